"""What the supervised baseline promises."""

from __future__ import annotations

import torch

from labelwise.datasets.base import Classes
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.masks.supervised import Supervised
from labelwise.samples import Batch

CLASSES = Classes(("background", "cat", "dog"))


def method(**options: object) -> Supervised:
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 32}
    return Supervised(Supervised.Config(**{**settings, **options}), CLASSES)


def labeled(ignored: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(100, (2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(2, 32, 32, dtype=torch.uint8)
    image[:, 0, :, 16:] += 150
    mask[:, :, 16:] = 2
    return Batch(ids=("a", "b"), image=image, mask=torch.full_like(mask, 255) if ignored else mask)


def test_the_loss_is_the_mean_cross_entropy_of_the_network() -> None:
    supervised, batch = method().eval(), labeled()
    expected = cross_entropy(supervised.network(supervised.normalize(batch.image)), batch.mask)
    torch.testing.assert_close(supervised.losses(labeled=batch)["supervised"], expected)


def test_a_batch_without_a_labelled_pixel_teaches_nothing() -> None:
    supervised = method()
    term = supervised.losses(labeled=labeled(ignored=True))["supervised"]
    term.backward()
    assert term == 0
    assert all(not parameter.grad.any() for parameter in supervised.parameters() if parameter.grad is not None)


def test_a_few_steps_on_one_batch_lower_the_loss() -> None:
    supervised, batch = method(optimizer="adamw", learning_rate=0.01), labeled()
    optimizer = supervised.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(8):
        loss = supervised.losses(labeled=batch)["supervised"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_only_labelled_images_are_drawn() -> None:
    assert {stream.source for stream in method().streams().values()} == {"labeled"}
