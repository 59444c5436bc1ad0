"""A trained model as files: `model.safetensors`, `config.json`, and a model card; nothing in them can run code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from labelwise import methods
from labelwise.configuration import make_config
from labelwise.datasets.base import Classes
from labelwise.errors import UserError
from labelwise.files import atomic_write
from labelwise.inference_options import InferenceOptions
from labelwise.method import Method
from labelwise.models.dense_crf import parse_crf
from labelwise.models.folding import folded
from labelwise.models.inference import Inference
from labelwise.tasks.localization import LocalizationMethod, LocalizationNetwork
from labelwise.tasks.segmentation import SegmentationMethod

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
_SHOWN = 200
_EXAMPLE = 96
"""Side in pixels of an image that every backbone can take: some convolve and pool 75 pixels down to one."""


def save_model(method: Method, folder: Path, results: Mapping[str, Any], command: str) -> None:
    """Write the network that prediction needs, how to rebuild it, and its card.

    Args:
        method: a trained method.
        folder: the run's folder.
        results: the measured scores, for the card.
        command: the call that made the run, for the card.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in method.network.state_dict().items()}
    description = {
        "labelwise": version("labelwise"),
        "method": method.card.name,
        "task": method.card.task,
        "classes": asdict(method.classes),
        "options": asdict(method.config),
    }
    atomic_write(folder / WEIGHTS, save(state))
    atomic_write(folder / DESCRIPTION, json.dumps(description, indent=2))
    atomic_write(folder / "README.md", _card(method, results, command))


def load_model(folder: Path, options: InferenceOptions | None = None) -> Method:
    """Rebuild a trained method for prediction.

    Args:
        folder: of a finished run.
        options: how to predict; a single plain pass unless given.

    Raises:
        UserError: the folder holds no finished run, its files do not fit together, or the model cannot predict so.
    """
    method = _rebuilt(folder)
    if options is not None and options.changed:
        method = _predicting(method, options)
    try:
        method.network.load_state_dict(load_weights(folder))
    except RuntimeError as error:
        raise _unloadable(folder, error) from None
    return method.eval()


def for_prediction(method: Method, precision: str) -> Method:
    """Make a loaded method faster that will only predict and never be saved: one that finds classes in images.

    Args:
        method: its network is replaced; those of other tasks stay as they are.
        precision: as of `Hardware.resolved_precision`. In bf16 convolutions of a CPU are slower with the channels last.
    """
    if isinstance(method, LocalizationMethod):
        method.network = folded(method.network, _every_map)
        if precision == "32-true":
            method.network.to(memory_format=torch.channels_last)
    return method


def _every_map(network: nn.Module) -> list[Tensor]:
    """The logits and the maps of a network, and of networks within it."""
    image = torch.zeros(1, 3, _EXAMPLE, _EXAMPLE, device=next(network.parameters()).device)
    parts = [cast(LocalizationNetwork, part) for part in network.modules() if hasattr(part, "maps")]
    return [result for part in parts for result in (part(image), part.maps(image))]


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The network's weights of a finished run, by name.

    Raises:
        UserError: the folder holds no finished run, or the file cannot be read.
    """
    _description(folder)
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _unloadable(folder, error) from None


def _unloadable(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:_SHOWN]
    return UserError(f"{folder / WEIGHTS}: cannot be loaded ({reason}); train again or restore the file")


def _predicting(method: Method, options: InferenceOptions) -> SegmentationMethod:
    """The same method, not yet with its weights, that predicts in this way."""
    if not isinstance(method, SegmentationMethod):
        name = next(iter(options.changed)).replace("_", "-")
        raise UserError(f"--{name}: '{method.card.name}' does not predict pixels; leave it out")
    if options.output_stride is not None:
        config = method.config.at_output_stride(options.output_stride)
        method = type(method)(config, method.classes, training=False)
    crf = None if options.crf is None else parse_crf(options.crf)
    method.inference = Inference(scales=options.scales, flip=options.flip, window=options.window, crf=crf)
    return method


def _rebuilt(folder: Path) -> Method:
    description = _description(folder)
    try:
        method_class = methods.load(description["method"])
        config = make_config(method_class, {}, description["options"])
        return method_class(config, _classes(description["classes"]), training=False)
    except (UserError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / DESCRIPTION}: {error}; train again or restore the file") from error


def _classes(named: Mapping[str, Any]) -> Classes:
    colors = named["colors"]
    return Classes(tuple(named["names"]), named["background"], tuple(map(tuple, colors)) if colors else None)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; `labelwise train` makes one")
    if not path.is_file():
        raise UserError(f"{folder}: holds no finished run (no {DESCRIPTION}); repeat the call of `labelwise train`")
    try:
        description: dict[str, Any] = json.loads(path.read_text())
        if {"method", "classes", "options"} <= description.keys():
            return description
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        pass
    raise UserError(f"{path}: is not the description of a labelwise model; restore the file or train again")


def _card(method: Method, results: Mapping[str, Any], command: str) -> str:
    header = {"library_name": "labelwise", "tags": [method.card.task.replace(" ", "-"), method.card.name]}
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False).strip(),
        "---",
        f"# {method.card.title}",
        "",
        method.card.idea,
        "",
        f"Trained by: `{command}`",
        "",
        f"Paper: {method.card.paper}",
        "",
        f"Classes: {', '.join(method.classes.names)}",
        "",
    ]
    key, name = method.card.main_score
    if key in results:
        lines += [f"Measured: {results[key]:.1f} {name} on {results['images']} images ({results['protocol']}).", ""]
    lines += ["Load it with `labelwise predict THIS_FOLDER IMAGE --out DIR`.", ""]
    return "\n".join(lines)
