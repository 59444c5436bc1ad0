"""Weights of networks that others trained: read from files, fetched, and checked before they are used."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model, list_models

from labelwise.errors import BadFile, Problem, UserError, did_you_mean

_MEND = "--backbone-weights FILE or --backbone-weights none"
_SHOWN_KEYS = 6
_TIMM_VGG = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
"""timm's names of the classifier of a VGG -> torchvision's."""

Built = TypeVar("Built")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file; code in it is never run.

    Args:
        path: a safetensors file, or one that torch reads with `weights_only=True`.

    Raises:
        BadFile: the file does not exist, cannot be read, or holds more than named tensors.
    """
    mend = "give a safetensors file, or a .pth file of tensors, to --backbone-weights"
    if not path.is_file():
        raise BadFile(Problem(path, "no such file", mend))
    try:
        state = _load_tensors(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise BadFile(Problem(path, "cannot be read as weights", mend)) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadFile(Problem(path, "holds more than named tensors", mend))
    return state


def _load_tensors(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def check_keys(
    path: Path, name: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], classifier: Collection[str]
) -> None:
    """Refuse a file that does not hold the weights of a network.

    Args:
        path: of the file.
        name: of the network.
        state: what the file holds.
        expected: the network's own tensors; only their shapes are looked at.
        classifier: prefixes of keys that do not matter, on either side.

    Raises:
        BadFile: keys are missing, unexpected or of another shape; the first of each are named.
    """

    def counts(key: str) -> bool:
        # num_batches_tracked is missing from converted files and has no influence.
        in_classifier = any(key.startswith(f"{part}.") for part in classifier)
        return not in_classifier and not key.endswith("num_batches_tracked")

    given = {key: value.shape for key, value in state.items() if counts(key)}
    wanted = {key: value.shape for key, value in expected.items() if counts(key)}
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(key for key in given.keys() & wanted.keys() if given[key] != wanted[key]),
    }
    parts = [f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys]
    if parts:
        reason = f"not the weights of '{name}' ({'; '.join(parts)})"
        raise BadFile(Problem(path, reason, f"give weights of '{name}' in its own naming, or another --backbone"))


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN_KEYS
    return ", ".join(keys[:_SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")


def fetched(name: str, build: Callable[[], Built]) -> Built:
    """What `build` returns, which downloads the pretrained weights of a network.

    Raises:
        UserError: they cannot be had.
    """
    try:
        # The clients warn at every retry; the one line below says it all.
        with quiet("huggingface_hub"), quiet("timm"):
            return build()
    except Exception as error:  # the errors of the clients that may be in use have no common base
        raise UserError(f"cannot fetch the pretrained weights of '{name}' ({type(error).__name__}); {_MEND}") from error


def require_pretrained(name: str) -> None:
    """Refuse a network of timm for which there are no pretrained weights.

    Raises:
        UserError: there are none.
    """
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is None or not pretrained.has_weights:
        raise UserError(f"timm has no pretrained weights for backbone '{name}'; {_MEND}")


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep a library's warnings out of the output."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def classifier_weights(network: str, weights: str | Path) -> dict[str, Tensor]:
    """All weights of an ImageNet classifier, its fully connected layers included, in torchvision's naming.

    A VGG-16 has `features.0.weight` [64, 3, 3, 3], ..., `classifier.0.weight` (fc6) [4096, 25088],
    `classifier.3.weight` (fc7) [4096, 4096] and `classifier.6.weight` (fc8). Sizes are those of the file: whoever uses
    the tensors checks them (`check_keys`).

    Args:
        network: "vgg16" or another VGG, "alexnet", "googlenet", or another classifier that torchvision builds.
        weights: "imagenet", or a file of safetensors or of torch in torchvision's or timm's naming.

    Raises:
        UserError: an unknown network, or pretrained weights that cannot be had.
        BadFile: the file does not exist or cannot be read.
    """
    known = list_models()
    if network not in known:
        raise UserError(f"unknown classifier '{network}'{did_you_mean(network, known)}")
    if weights != "imagenet":
        return to_torchvision(read_weights(Path(weights)))
    if timm.is_model(network):
        return to_torchvision(fetched(network, lambda: timm.create_model(network, pretrained=True)).state_dict())
    return dict(fetched(network, lambda: get_model(network, weights="DEFAULT")).state_dict())


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename timm's layers of a VGG; tensors in torchvision's naming stay as they are.

    timm holds fc6 and fc7 as convolutions: [4096, 512, 7, 7] becomes [4096, 25088], in the same order.
    """
    return dict(_renamed(key, value) for key, value in state.items())


def _renamed(key: str, value: Tensor) -> tuple[str, Tensor]:
    for theirs, ours in _TIMM_VGG.items():
        if key.startswith(theirs):
            return key.replace(theirs, ours, 1), value.flatten(1) if value.ndim > 1 else value
    return key, value
