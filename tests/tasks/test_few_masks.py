"""What the methods that learn from few masks share: streams, mixed views, partners, the supervised start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.methods.few_masks.fixmatch import FixMatch
from labelwise.samples import Batch, Sample, collate
from labelwise.tasks import few_masks
from labelwise.tasks.few_masks import in_evaluation

CLASSES = Classes(("background", "cat", "dog"))
SETTINGS: dict[str, Any] = {
    "backbone": "micro_w2",
    "backbone_weights": "none",
    "output_stride": 4,
    "decoder_channels": 8,
    "crop": 32,
    "steps": 10,
}


def method(step: int = 0, **options: Any) -> FixMatch:
    """The method as it stands before a step of ten."""
    torch.manual_seed(0)
    made = FixMatch(FixMatch.Config(**SETTINGS | options), CLASSES)
    made.trainer = SimpleNamespace(global_step=step)
    return made


def batch(value: int, padded: int = 0) -> Batch:
    """Two images of one brightness, whose strong view is brighter by 1 and whose lowest rows may be padding."""
    image = torch.full((2, 3, 32, 32), value, dtype=torch.uint8)
    padding = torch.zeros(2, 32, 32, dtype=torch.bool)
    padding[:, 32 - padded :] = True
    return Batch(ids=("a", "b"), image=image, strong=(image + 1,), padding=padding)


def boxes(monkeypatch: pytest.MonkeyPatch, box: Tensor) -> None:
    monkeypatch.setattr(few_masks, "sample_cutmix_boxes", lambda batch, size: box)


def test_a_mixed_view_holds_strong_views_and_the_padding_of_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = method()
    box = torch.zeros(2, 32, 32, dtype=torch.bool)
    box[0, 16:, :8] = True
    boxes(monkeypatch, box)
    image, drawn, valid = learner.mixed_view(batch(10, padded=4), batch(90, padded=20))
    assert drawn is box
    pixels = (image * learner.normalize.std + learner.normalize.mean).round()
    assert (pixels[box[:, None].expand_as(pixels)] == 91).all()
    assert (pixels[~box[:, None].expand_as(pixels)] == 11).all()
    expected = torch.ones(2, 32, 32, dtype=torch.bool)
    expected[:, 28:] = False
    expected[0, 16:, :8] = False
    assert torch.equal(valid, expected)


def test_each_mixed_view_draws_its_own_boxes() -> None:
    learner = method()
    torch.manual_seed(0)
    first, second = (learner.mixed_view(batch(10), batch(90)).box for _ in range(2))
    assert not torch.equal(first, second)


def test_partners_are_predicted_by_running_statistics_and_without_gradients() -> None:
    learner = method().train()
    learner.network.aspp.eval()
    before = {name: value.clone() for name, value in learner.network.named_buffers()}
    expected = learner.eval().network(learner.normalize(batch(90).image))
    learner.train()
    logits = learner.partner_logits(batch(90))
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected.detach())
    assert all(torch.equal(value, before[name]) for name, value in learner.network.named_buffers())


def test_after_an_evaluation_every_part_is_in_its_own_mode_again() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Sequential(nn.BatchNorm2d(1), nn.Dropout()))
    network[1][0].eval()
    with pytest.raises(KeyError), in_evaluation(network):
        assert not any(part.training for part in network.modules())
        raise KeyError
    assert [part.training for part in network.modules()] == [True, True, True, False, True]


def test_an_unlabelled_draw_has_strong_views_of_the_same_crop_and_partners_are_drawn_alike() -> None:
    streams = method().streams()
    assert {name: stream.source for name, stream in streams.items()} == {
        "labeled": "labeled",
        "unlabeled": "unlabeled",
        "partner": "unlabeled",
    }
    # A sharp step from left to right, and the same geometry for both views.
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pixels[:, :, 16:] = 200
    sample = Sample(id="a", image=tv_tensors.Image(pixels))
    torch.manual_seed(0)
    drawn = collate([streams["unlabeled"].transform(sample) for _ in range(8)])
    assert len(drawn.strong) == 1 and drawn.strong[0].shape == drawn.image.shape == (8, 3, 32, 32)
    assert drawn.padding is not None
    assert not torch.equal(drawn.strong[0], drawn.image)
    weak, strong = (views.float().mean(1) for views in (drawn.image, drawn.strong[0]))
    for one, other in zip(weak, strong, strict=True):
        if one.std() > 1 and other.std() > 1:
            assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.8
    assert streams["labeled"].transform(sample).strong == ()


def test_labels_alone_teach_for_their_share_of_the_steps() -> None:
    assert [method(step, supervised_share=0.3).warming_up for step in (0, 2, 3, 9)] == [True, True, False, False]
    assert not method(0).warming_up


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervised_share": 1.5}, r"--supervised-share 1\.5: must be between 0 and 1"),
        ({"supervised_share": -0.1}, r"--supervised-share -0\.1"),
        ({"blur": (0.0, 1.0)}, r"--blur 0\.0 1\.0: must be two rising numbers above 0"),
        ({"blur": (2.0, 1.0)}, r"--blur 2\.0 1\.0"),
    ],
)
def test_what_no_training_can_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**options)
