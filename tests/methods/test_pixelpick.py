"""What PixelPick promises: the paper's network and recipe, clicks under augmentation, and pixels worth labelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.optim import Adam
from torchvision import tv_tensors

from labelwise.configuration import load_preset, make_config
from labelwise.datasets.base import Classes
from labelwise.datasets.shapes import RARE_CLASSES, ShapesOptions, rare_scene
from labelwise.errors import UserError
from labelwise.losses.pixel import cross_entropy
from labelwise.methods.points import pixelpick
from labelwise.methods.points.pixelpick import PixelPick, pad_by_reflection
from labelwise.models.acquisition import select_pixels, vote
from labelwise.models.backbones import Backbone
from labelwise.models.deeplab_v3plus import DeepLabV3Plus
from labelwise.samples import IGNORE_INDEX, Batch, Sample
from tests.tiny_runs import OPTIONS, outcome, tiny_run

CLASSES = Classes(("background", "cat", "dog"))
VOC_CLASSES = Classes(("background", *(f"class_{number}" for number in range(20))))
SMALL: dict[str, Any] = {"backbone": "tiny", "backbone_weights": "none", "decoder_channels": 16, "crop": 32}


def method(classes: Classes = CLASSES, **options: Any) -> PixelPick:
    torch.manual_seed(0)
    return PixelPick(PixelPick.Config(**{**SMALL, **options}), classes)


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("preset", "backbone", "total"), [("paper", 1_811_712, 5_816_053), ("fpn", 23_508_032, 26_710_869)]
)
def test_the_presets_build_the_papers_networks(preset: str, backbone: int, total: int) -> None:
    config = make_config(PixelPick, load_preset(PixelPick, preset), {})
    with torch.device("meta"):
        network = PixelPick(config, VOC_CLASSES, training=False).network
    assert parameters(cast(torch.nn.Module, network.backbone)) == backbone
    assert parameters(network) == total


def test_deeplab_drops_as_published_and_its_state_has_the_usual_names() -> None:
    network = cast(DeepLabV3Plus, method().network)
    shares = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    assert sorted(shares) == [0.0, 0.2, 0.5, 0.5]
    plain = DeepLabV3Plus(network.backbone, 3, 16, 16)
    assert plain.state_dict().keys() == network.state_dict().keys()
    assert {module.p for module in plain.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_a_feature_pyramid_has_one_output_stride() -> None:
    config = PixelPick.Config(**SMALL, decoder="fpn")
    with pytest.raises(UserError, match="one output stride only"):
        config.at_output_stride(8)
    assert PixelPick.Config(**SMALL).at_output_stride(8).output_stride == 8


def test_a_backbone_too_coarse_for_the_pyramid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = Backbone(torch.nn.Identity(), (8,), (16,))
    monkeypatch.setattr(pixelpick, "create_backbone", lambda *_: coarse)
    with pytest.raises(UserError, match=r"--backbone tiny: .*none at stride 4; --backbone resnet50"):
        method(decoder="fpn")


# ---------------------------------------------------------------------- training


def labeled(mask: Tensor) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (len(mask), 3, *mask.shape[1:]), generator=generator, dtype=torch.uint8)
    return Batch(ids=tuple(map(str, range(len(mask)))), image=image, mask=mask)


@pytest.mark.parametrize("decoder", ["deeplab", "fpn"])
def test_with_every_pixel_labelled_the_loss_is_ordinary_cross_entropy(decoder: str) -> None:
    picker = method(decoder=decoder).eval()
    batch = labeled(torch.randint(3, (2, 32, 32), dtype=torch.uint8))
    assert batch.mask is not None
    logits = picker.network(picker.normalize(batch.image))
    expected = torch.nn.functional.cross_entropy(logits, batch.mask.long())
    torch.testing.assert_close(picker.losses(labeled=batch)["points"], expected)


def test_the_loss_is_the_mean_over_the_labelled_pixels_of_the_batch() -> None:
    picker, mask = method().eval(), torch.full((2, 32, 32), IGNORE_INDEX, dtype=torch.uint8)
    # Three pixels of the first image and one of the second weigh alike.
    mask[0, 3, 4], mask[0, 9, 9], mask[0, 20, 1], mask[1, 30, 31] = 1, 0, 2, 1
    batch = labeled(mask)
    logits = picker.network(picker.normalize(batch.image))
    known = [(0, 3, 4, 1), (0, 9, 9, 0), (0, 20, 1, 2), (1, 30, 31, 1)]
    each = [-logits[image, :, row, column].log_softmax(0)[label] for image, row, column, label in known]
    torch.testing.assert_close(picker.losses(labeled=batch)["points"], torch.stack(each).mean())
    torch.testing.assert_close(cross_entropy(logits, mask), torch.stack(each).mean())


def test_the_rate_falls_as_published() -> None:
    poly = method(learning_rate=0.01)
    poly.total_steps = 12
    assert 0.01 * poly.rate_factor(1) == pytest.approx(0.009247, abs=5e-7)
    assert poly.rate_factor(0) == 1 and poly.rate_factor(12) == 0
    dropping = method(rate_drops=(0.4, 0.8))
    dropping.total_steps = 50
    factors = {epoch: dropping.rate_factor(epoch) for epoch in (0, 19, 20, 39, 40, 49)}
    assert list(factors.values()) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_optimiser_of_camvid_and_cityscapes() -> None:
    for preset in ("camvid", "cityscapes"):
        config = make_config(PixelPick, load_preset(PixelPick, preset) | SMALL, {})
        optimizer = PixelPick(config, CLASSES).configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
        assert type(optimizer) is Adam
        assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.9, 0.999), 1e-7)}
        assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([5e-5, 5e-4])
        assert {group["weight_decay"] for group in optimizer.param_groups} == {2e-4}


def test_the_optimiser_of_voc() -> None:
    config = make_config(PixelPick, load_preset(PixelPick, "paper") | SMALL, {})
    optimizer = PixelPick(config, CLASSES).configure_optimizers()["optimizer"]  # type: ignore[index, call-overload]
    assert type(optimizer) is torch.optim.SGD
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([1e-3, 1e-2])
    assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.9, 5e-4)}
    assert config.total_steps(1464) == 50 * 146


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"decoder_dropout": (0.5, 1.5)}, "--dropout 1.5"),
        ({"rate_drops": (20.0, 40.0)}, "--rate-drops 20.0"),
        ({"color_jitter": (0.1, 0.1, 0.1, 0.7)}, "--color-jitter: the hue's 0.7"),
        ({"color_jitter": (-0.1, 0.1, 0.1, 0.1)}, "--color-jitter -0.1"),
        ({"crop": 0, "crop_width": 64}, "--crop-width 64: --crop 0 cuts nothing"),
        ({"share": 0.0}, "--share 0.0"),
        ({"rounds": 0}, "--rounds 0"),
        ({"error_rate": 2.0}, "--error-rate 2.0"),
        ({"votes": -1}, "--votes -1"),
        ({"votes": 20, "strategy": "random"}, "--votes 20: random pixels need no votes"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0"),
    ],
)
def test_options_that_nothing_can_be_done_with_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        PixelPick.Config(**{**SMALL, **options})


def test_random_pixels_are_drawn_from_the_whole_image() -> None:
    assert PixelPick.Config(strategy="random").candidate_share == 1
    assert PixelPick.Config(share=0.1).candidate_share == 0.1


# ---------------------------------------------------------------------- clicks under augmentation


def clicked(seed: int, height: int = 24, width: int = 40, count: int = 30) -> Sample:
    """An image of which the color of every pixel is its own, with clicks whose class is the red value modulo 3."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[0] = torch.randint(250, (height, width), generator=generator, dtype=torch.uint8)
    places = torch.randperm(height * width, generator=generator)[:count]
    points = torch.stack([places % width, places // width], dim=1)
    return Sample(
        id="a",
        image=tv_tensors.Image(image),
        points=tv_tensors.KeyPoints(points.float(), canvas_size=(height, width)),
        point_labels=(image[0, points[:, 1], points[:, 0]] % 3).long(),
    )


def view(sample: Sample, seed: int, **options: Any) -> Sample:
    plain = {"photometric": False, "scale_base": 0, **options}
    transform = method(**plain).streams()["labeled"].transform
    torch.manual_seed(seed)
    return transform(sample).sample


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), exact=st.booleans(), crop=st.integers(8, 48), width=st.sampled_from([0, 16, 56]))
def test_clicks_stay_on_their_pixels_under_crop_and_flip(seed: int, exact: bool, crop: int, width: int) -> None:
    options = {"crop": crop, "crop_width": width, "scale_range": (1.0, 1.0), "exact_points": exact}
    moved = view(clicked(seed), seed, **options)
    assert moved.mask is not None and moved.image.shape == (3, crop, width or crop)
    known = moved.mask.as_subclass(Tensor) != IGNORE_INDEX
    assert known.any() or crop < 24
    # Blue is 0 in the image and not in the mean color of its padding.
    assert not moved.image[2][known].any()
    assert torch.equal(moved.mask[known], moved.image[0][known] % 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.4, 2.5))
def test_an_exact_click_remains_one_pixel_while_others_vanish_or_become_blocks(seed: int, scale: float) -> None:
    sample = clicked(seed, count=12)
    # So large that nothing is cut away.
    options = {"crop": 104, "scale_range": (scale, scale)}
    exact, nearest = (view(sample, seed, **options, exact_points=each).mask for each in (True, False))
    assert exact is not None and nearest is not None
    # Two clicks may meet on a pixel of a smaller image.
    count = int((exact != IGNORE_INDEX).sum())
    assert count == 12 if scale >= 1 else 1 <= count <= 12
    blocks = int((nearest != IGNORE_INDEX).sum())
    assert blocks == pytest.approx(12 * scale**2, rel=0.75, abs=6)
    if scale >= 2:
        assert blocks >= 4 * 12
        # A click's own pixel lies in its block.
        assert torch.equal(nearest[exact != IGNORE_INDEX], exact[exact != IGNORE_INDEX])


def test_colors_change_and_clicks_do_not() -> None:
    sample = clicked(0)
    plain, changed = (view(sample, 3, photometric=photometric) for photometric in (False, True))
    assert plain.mask is not None and changed.mask is not None
    assert torch.equal(plain.mask, changed.mask) and not torch.equal(plain.image, changed.image)


def test_masks_are_taken_where_an_image_has_one() -> None:
    mask = tv_tensors.Mask(torch.ones(24, 40, dtype=torch.uint8))
    sample = Sample(id="a", image=tv_tensors.Image(torch.zeros(3, 24, 40, dtype=torch.uint8)), mask=mask)
    moved = view(sample, 0, crop=24, scale_range=(1.0, 1.0)).mask
    assert moved is not None and (moved == 1).all()


# ---------------------------------------------------------------------- prediction


def test_a_mirror_continues_images_to_multiples_of_8() -> None:
    image = torch.arange(10, dtype=torch.uint8).expand(1, 3, 16, 10)
    padded = pad_by_reflection(image)
    assert padded.shape == (1, 3, 16, 16) and padded.dtype == torch.uint8
    assert padded[0, 0, 0].tolist() == [*range(10), 8, 7, 6, 5, 4, 3]
    expected = torch.nn.functional.pad(image.float(), (0, 6, 0, 0), mode="reflect")
    assert torch.equal(padded.float(), expected)
    assert pad_by_reflection(image[..., :8]).shape[3] == 8
    assert pad_by_reflection(image[..., :3, :2])[0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("decoder", ["deeplab", "fpn"])
def test_predictions_have_the_images_size(decoder: str) -> None:
    picker = method(decoder=decoder).eval()
    image = torch.randint(256, (2, 3, 37, 45), dtype=torch.uint8)
    with torch.no_grad():
        scores = picker.predict(image)
        padded = picker.predict(pad_by_reflection(image))
    assert scores.shape == (2, 3, 37, 45)
    assert torch.equal(scores, padded[..., :37, :45])


# ---------------------------------------------------------------------- the promise


def border_distance(mask: np.ndarray) -> np.ndarray:
    """[H, W] distance in pixels to the nearest pixel beside another class."""
    border = np.zeros(mask.shape, dtype=bool)
    for before, after in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differs = mask[before] != mask[after]
        border[before] |= differs
        border[after] |= differs
    return cast(np.ndarray, distance_transform_edt(~border))


def scenes(count: int) -> tuple[Tensor, Tensor]:
    samples = [rare_scene(ShapesOptions(scenes="rare", size=40), "train", index) for index in range(count)]
    masks = [cast(Tensor, sample.mask) for sample in samples]
    return torch.stack([sample.image.as_subclass(Tensor) for sample in samples]), torch.stack(masks)


def trained(image: Tensor, mask: Tensor, steps: int) -> PixelPick:
    options = load_preset(PixelPick, "mini") | {"steps": steps}
    torch.manual_seed(0)
    picker = PixelPick(make_config(PixelPick, options, {}), RARE_CLASSES).train()
    made = cast(dict[str, Any], picker.configure_optimizers())
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for _ in range(steps):
        drawn = torch.randint(len(image), (8,))
        flip = [-1] if torch.rand(()) < 0.5 else []
        batch = Batch(ids=(), image=image[drawn].flip(flip), mask=mask[drawn].flip(flip))
        optimizer.zero_grad()
        picker.losses(labeled=batch)["points"].backward()
        optimizer.step()
        schedule.step()
    return picker.eval()


def test_pixels_of_a_small_margin_lie_at_borders_and_in_rare_classes() -> None:
    """The scaled-down claim (i): at most 0.6 times as far from borders, the two rarest classes 1.5 times as often."""
    image, mask = scenes(60)
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(mask.shape, dtype=torch.bool)
    for known, each in zip(first, mask, strict=True):
        chosen = select_pixels(
            torch.zeros(40, 40), 3, largest=True, share=1, exclude=each == IGNORE_INDEX, generator=generator
        )
        known[chosen[:, 1], chosen[:, 0]] = True
    picker = trained(image, torch.where(first, mask, IGNORE_INDEX), steps=150)
    score = vote(picker.predict, image, "margin", network=picker.network).score
    void = mask == IGNORE_INDEX
    picked, random = torch.zeros_like(first), ~void
    for number, margin in enumerate(score):
        # All candidates: their share and distance are the expectation of any number drawn from them.
        chosen = select_pixels(margin, 80, largest=False, exclude=first[number] | void[number], generator=generator)
        picked[number, chosen[:, 1], chosen[:, 0]] = True
    distance = torch.from_numpy(np.stack([border_distance(each.numpy()) for each in mask]))
    rare = (mask == 4) | (mask == 5)
    assert distance[picked].mean() <= 0.6 * distance[random].mean()
    assert rare[picked].float().mean() >= 1.5 * rare[random].float().mean()


# ---------------------------------------------------------------------- runs


def test_a_run_learns_from_the_clicks_that_it_is_given_alike_each_time(shapes_folder: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"base": OPTIONS, "labels": "points:5", "rounds": 1, "steps": 3, "scale_base": 0}
    whole = tiny_run("pixelpick", shapes_folder, tmp_path / "whole", **call)
    again = tiny_run("pixelpick", shapes_folder, tmp_path / "again", **call)
    assert outcome(whole) == outcome(again)
    assert 0 <= outcome(whole)[1]["miou"] <= 100
