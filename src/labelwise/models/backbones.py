"""Backbones: image classification networks without their classifier, with features at several strides."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from labelwise.errors import UserError, did_you_mean
from labelwise.models.fd_mobilenet import CLASSIFIER, NAMES, MobileNetBackbone
from labelwise.models.tiny import MicroNetwork, Tiny32Network, TinyNetwork
from labelwise.models.weights import check_keys, fetched, quiet, read_weights, require_pretrained
from labelwise.models.wide_resnet38 import CLASSIFIER as WIDE_CLASSIFIER
from labelwise.models.wide_resnet38 import WideResNet38

TINY, TINY32 = "tiny", "tiny32"
WIDE = "wide_resnet38"
_MICRO = re.compile(r"micro_w([1-9]\d{0,2})")
_EXAMPLES = (TINY, "micro_w10", "fd_mobilenet", "mobilenetv2_100", "resnet50s", "resnet101s")
_RUN_WEIGHTS = "model.safetensors"


class Backbone(nn.Module):
    """A network that returns its features, the finest first.

    Attributes:
        channels: channels of each feature.
        strides: input pixels per feature pixel, rising.
    """

    def __init__(self, body: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.body = body
        self.channels = tuple(channels)
        self.strides = tuple(strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] float -> one [B, channels[i], H / strides[i], W / strides[i]] per feature."""
        return self.body(x)


def create_backbone(
    name: str, output_stride: int, weights: str | Path | None, multi_grid: Sequence[int] | None = None
) -> Backbone:
    """Build a backbone.

    The papers' ResNets with a deep stem ("v1c") are timm's `resnet50s` and `resnet101s`.

    Args:
        name: "tiny", "tiny32", "micro_wN" of width N, "wide_resnet38", a name of `fd_mobilenet.NAMES` such as
            "fd_mobilenet_050" (all our own), or one of `timm.list_models()`, possibly with the tag of its weights.
        output_stride: 8 or 16 (32 where the network allows it and for "tiny32", 4 for "tiny" and "micro_wN", 8 alone
            for "wide_resnet38"); later stages are dilated instead of strided.
        weights: "imagenet" for timm's pretrained weights; a safetensors file (or one that torch reads with
            `weights_only=True`) in the network's own naming; for our own networks also the folder of a run that
            trained them as a classifier; None or "none" for random weights.
        multi_grid: dilation of each block of a ResNet's last stage, (2, 4, 8) for Cross Pseudo Supervision; of
            MobileNetV2 the last blocks. The first numbers count where there are fewer blocks.

    Raises:
        UserError: an unknown name, an output stride or a multi-grid that the network cannot have, or pretrained
            weights that cannot be had.
        BadFile: the file of weights does not exist, cannot be read, or is not of this network.
    """
    known = None if weights in (None, "none") else weights
    if name in (TINY, TINY32, WIDE, *NAMES) or _MICRO.fullmatch(name):
        backbone = _own(name, output_stride, known)
    else:
        backbone = _from_timm(name, output_stride, known)
    if multi_grid is not None:
        _dilate_last_stage(backbone.body, name, multi_grid)
    return backbone


def _own(name: str, output_stride: int, weights: str | Path | None) -> Backbone:
    if weights == "imagenet":
        run = ", or the folder of a run of `labelwise train fd_mobilenet`" if name in NAMES else ""
        file = ", or a file of the released ones" if name == WIDE else ""
        raise UserError(f"backbone '{name}' has no ImageNet weights; --backbone-weights none{run}{file}")
    body = _own_body(name, output_stride)
    if weights is not None:
        path = Path(weights) / _RUN_WEIGHTS if Path(weights).is_dir() else Path(weights)
        state = read_weights(path)
        check_keys(path, name, state, body.state_dict(), classifier=(CLASSIFIER, WIDE_CLASSIFIER))
        # Not strict: what is missing or too much now is the classifier and num_batches_tracked.
        body.load_state_dict(state, strict=False)
    return Backbone(body, body.channels, body.strides)


def _own_body(
    name: str, output_stride: int
) -> TinyNetwork | Tiny32Network | MicroNetwork | MobileNetBackbone | WideResNet38:
    micro = _MICRO.fullmatch(name)
    if micro and output_stride != 4:
        raise UserError(f"backbone '{name}' has output stride 4 and no other; --output-stride 4")
    if micro:
        return MicroNetwork(int(micro[1]))
    if name == TINY32 and output_stride != 32:
        raise UserError(f"backbone '{name}' has output stride 32 and no other; --output-stride 32")
    if name == TINY32:
        return Tiny32Network()
    if name == WIDE and output_stride != 8:
        raise UserError(f"backbone '{name}' has output stride 8 and no other; --output-stride 8")
    if name == WIDE:
        return WideResNet38()
    try:
        return MobileNetBackbone(*NAMES[name], output_stride) if name in NAMES else TinyNetwork(output_stride)
    except ValueError as error:
        raise UserError(f"backbone '{name}': {error}; --output-stride 8 or 16") from error


def _from_timm(name: str, output_stride: int, weights: str | Path | None) -> Backbone:
    _check_name(name)
    _check_output_stride(name, output_stride)
    options: dict[str, Any] = {"features_only": True, **_stride_option(output_stride)}
    if weights == "imagenet":
        body = _pretrained(name, options)
    elif weights is None:
        body = _build(name, pretrained=False, **options)
    else:
        state = _timm_weights(Path(weights), name)
        # timm maps the keys onto its feature network only when the weights come in as "pretrained"; it warns of the
        # classifier's keys, and all others have been checked.
        with quiet("timm"):
            body = _build(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **options)
    return Backbone(body, body.feature_info.channels(), body.feature_info.reduction())


def _build(name: str, **options: Any) -> Any:
    # Any: timm's networks carry attributes that nn.Module's type does not know.
    return timm.create_model(name, **options)


def _check_name(name: str) -> None:
    network, _, tag = name.partition(".")
    names = timm.list_models()
    if network not in names:
        near = difflib.get_close_matches(network, [TINY, TINY32, WIDE, *NAMES, *names], n=1, cutoff=0.5)
        raise UserError(f"unknown backbone '{name}'{did_you_mean(network, near or _EXAMPLES)}")
    tagged = timm.list_pretrained(f"{network}.*")
    if tag and name not in tagged:
        raise UserError(f"backbone '{network}' has no weights '{tag}'{did_you_mean(name, tagged)}")


def _check_output_stride(name: str, output_stride: int) -> None:
    refusal = f"backbone '{name}' cannot have output stride {output_stride}; --backbone resnet50s or mobilenetv2_100"
    try:
        with torch.device("meta"):
            probe = _build(name, pretrained=False, features_only=True, **_stride_option(output_stride))
    except (TypeError, ValueError, AssertionError, RuntimeError, NotImplementedError) as error:
        raise UserError(refusal) from error
    if probe.feature_info.reduction()[-1] != output_stride:
        raise UserError(refusal)


def _stride_option(output_stride: int) -> dict[str, int]:
    # 32 is what timm's networks have unless told; some of them, such as InceptionV3, know no such option.
    return {} if output_stride == 32 else {"output_stride": output_stride}


def _pretrained(name: str, options: dict[str, Any]) -> Any:
    require_pretrained(name)
    return fetched(name, lambda: _build(name, pretrained=True, **options))


def _timm_weights(path: Path, name: str) -> dict[str, Tensor]:
    state = read_weights(path)
    with torch.device("meta"):
        whole = _build(name, pretrained=False)
    classifier = whole.pretrained_cfg.get("classifier") or ()
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    check_keys(path, name, state, whole.state_dict(), prefixes)
    return state


def takes_multi_grid(name: str) -> bool:
    """Whether the last blocks of this backbone can be dilated one by one."""
    network = name.partition(".")[0]
    if network.startswith("mobilenetv2"):
        return True
    # By its builder: of the networks that are named "resnet" not all are built of the same stages.
    return timm.is_model(network) and timm.models.model_entrypoint(network).__module__ == "timm.models.resnet"


def _dilate_last_stage(body: nn.Module, name: str, dilations: Sequence[int]) -> None:
    if not takes_multi_grid(name):
        raise UserError(f"backbone '{name}' has no last blocks to dilate; --backbone resnet50s or mobilenetv2_100")
    for block, dilation in zip(_last_blocks(body, len(dilations)), dilations, strict=False):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                conv.dilation = conv.padding = (dilation, dilation)


def _last_blocks(body: nn.Module, count: int) -> list[nn.Module]:
    """A ResNet's last stage, or so many inverted residuals at the end of a MobileNetV2."""
    if hasattr(body, "layer4"):
        return list(body.get_submodule("layer4").children())
    return [block for stage in body.get_submodule("blocks").children() for block in stage.children()][-count:]
