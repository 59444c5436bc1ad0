"""What R-CNN fits on cached features of all training images: a linear machine and a box regression per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from labelwise.models.box_ridge import fit_box_ridge
from labelwise.models.linear_svm import COST, HardNegativeCache, LinearSVM
from labelwise.models.window_network import WindowNetwork

NEGATIVE = 0.3
"""IoU with every object of a class below which a window is a negative of its machine."""
NORM = 20.0
"""Mean norm to which features are scaled, so that one C suits every layer."""


@dataclass(frozen=True)
class CachedWindows:
    """What is kept of the N windows of an image, and of the R pairs of a window and a class it is near an object of."""

    features: np.ndarray
    "[N, D] float16 of the machines' layer, not scaled; those of the M objects first"
    norms: np.ndarray
    "[N, 2] of the features and of pool5"
    overlap: np.ndarray
    "[N, K] the largest IoU with an object of each class"
    objects: np.ndarray
    "[M] classes of the objects"
    pool5: np.ndarray
    "[R, D5] float16, not scaled"
    classes: np.ndarray
    "[R]"
    offsets: np.ndarray
    "[R, 4] to the object"

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **asdict(self))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> CachedWindows:
        """Read a file of `save`."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**{field.name: file[field.name] for field in fields(cls)})


def fit_scales(network: WindowNetwork, files: Sequence[Path]) -> None:
    """Set the factors by which features have a mean norm of `NORM` over all windows.

    Args:
        network: where they are kept.
        files: of `CachedWindows`, one per image.
    """
    norms = np.concatenate([_part(file, "norms") for file in files])
    mean = norms.mean(axis=0, dtype=np.float64) if len(norms) else np.ones(2)
    scales = NORM / np.maximum(mean, np.finfo(np.float32).tiny)
    network.feature_scale.fill_(float(scales[0]))
    network.pool5_scale.fill_(float(scales[1]))


def fit_machines(network: WindowNetwork, files: Sequence[Path], cost: float = COST) -> list[int]:
    """Train each class's machine on its objects and on hard negatives of the images, in their order.

    Args:
        network: has its scales; is given the machines.
        files: of `CachedWindows`, one per image.
        cost: C of `fit_svm`.

    Returns:
        the classes that have no machine, for want of objects or of negatives.
    """
    scale = float(network.feature_scale)
    caches = [HardNegativeCache(positives, cost) for positives in _positives(network, files, scale)]
    for number, file in enumerate(files, start=1):
        windows = CachedWindows.load(file)
        features = windows.features.astype(np.float32) * scale
        for column, cache in enumerate(caches):
            if len(cache.positives):
                negatives = features[windows.overlap[:, column] < NEGATIVE]
                cache.step(negatives, last=number == len(files))
    for column, cache in enumerate(caches):
        _keep_machine(network, column, cache.machine)
    return [column for column, cache in enumerate(caches) if cache.machine is None]


def _positives(network: WindowNetwork, files: Sequence[Path], scale: float) -> list[np.ndarray]:
    """The features of the objects of each class, [P, D] each."""
    classes = np.concatenate([_part(file, "objects") for file in files])
    found = [_part(file, "features")[: len(_part(file, "objects"))] for file in files]
    features = np.concatenate(found).astype(np.float32) * scale
    return [features[classes == column] for column in range(len(network.svm_bias))]


def _keep_machine(network: WindowNetwork, column: int, machine: LinearSVM | None) -> None:
    network.svm_weight[:, column] = 0.0 if machine is None else torch.from_numpy(machine.weight)
    network.svm_bias[column] = -torch.inf if machine is None else machine.bias


def fit_ridges(network: WindowNetwork, files: Sequence[Path]) -> None:
    """Fit the box regression of each class that has any window near an object; the others leave boxes as they are.

    Args:
        network: has its scales; is given the ridges.
        files: of `CachedWindows`, one per image.
    """
    classes = np.concatenate([_part(file, "classes") for file in files])
    offsets = np.concatenate([_part(file, "offsets") for file in files])
    for column in np.unique(classes).tolist():
        near = [_part(file, "pool5")[_part(file, "classes") == column] for file in files]
        pool5 = torch.from_numpy(np.concatenate(near)).float() * network.pool5_scale.cpu()
        ridge = fit_box_ridge(pool5, torch.from_numpy(offsets[classes == column]))
        network.ridge_weight[column] = ridge.weight
        network.ridge_unwhiten[column] = ridge.unwhiten
        network.ridge_mean[column] = ridge.mean


def _part(path: Path, name: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        part: np.ndarray = file[name]
    return part
