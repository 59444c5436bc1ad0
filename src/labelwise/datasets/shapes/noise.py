"""Masks as careless annotators and other methods draw them: too wide or narrow, beside the object, with its ground."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image, ImageFilter
from torchvision import tv_tensors

from labelwise.datasets.base import Classes
from labelwise.datasets.shapes.labels import class_mask
from labelwise.datasets.shapes.options import ShapesOptions, random_state
from labelwise.datasets.shapes.scene import class_at_home
from labelwise.samples import Sample

_NOISE_PURPOSE = 1
"keeps the draws of the noise apart from those of the scene, so that noise changes no picture"
_GROWING = ("dilated", "context")
"over the background alone"


def with_noise(sample: Sample, options: ShapesOptions, split: str, index: int, classes: Classes) -> Sample:
    """Spoil a scene's mask; every other label stays true.

    Each object is spoiled with probability `options.noise_amount`:

    - ``dilated``: grows by 1/32 of the image's size over the background, never over another object;
    - ``eroded``: loses a rim of 1/48 of the image's size (2 pixels at 96), thin parts vanish;
    - ``uneven``: in one half of the images grows, in the other loses a rim, by 1/32 to 1/14 of the image's size;
    - ``shifted``: lies 1/24 to 1/10 of the image's size beside its place;
    - ``missing``: is background;
    - ``wrong_class``: has the right outline and one of the other classes;
    - ``context``: grows over the ground below it by 1/4 of the image's size, if that is its class's own ground.

    Contours of 255 follow the spoiled outlines, so that they do not give the true ones away.

    Args:
        sample: what `scene(options, split, index)` returned.
        options: kind and amount of the noise.
        split: the scene's split.
        index: the scene's position in the split.
        classes: of the data set.
    """
    if options.noise == "none" or sample.instances is None or sample.instance_labels is None:
        return sample
    rng = random_state(options, split, index, _NOISE_PURPOSE)
    instances, labels = sample.instances.numpy(), sample.instance_labels.numpy()
    spoiled = rng.random(len(labels)) < options.noise_amount
    if options.noise == "context":
        spoiled &= labels == class_at_home(options, split, index)
    if options.noise == "wrong_class":
        labels = np.where(spoiled, _other_classes(labels, len(classes.objects), rng), labels)
    else:
        instances = _redrawn(instances, spoiled, options, rng)
    mask = class_mask((instances * np.arange(1, len(labels) + 1)[:, None, None]).max(axis=0, initial=0), labels)
    return replace(sample, mask=tv_tensors.Mask(torch.from_numpy(mask)))


def _other_classes(labels: np.ndarray, objects: int, rng: Generator) -> np.ndarray:
    return 1 + (labels - 1 + rng.integers(1, objects, len(labels))) % objects


def _redrawn(instances: np.ndarray, spoiled: np.ndarray, options: ShapesOptions, rng: Generator) -> np.ndarray:
    """[N, H, W] bool masks of which the spoiled ones are drawn anew and give way to what the others really cover."""
    size, noise = options.size, options.noise
    reach = {"dilated": round(size / 32), "eroded": round(size / 48), "context": round(size / 4)}.get(noise, 0)
    if noise == "uneven":
        noise, reach = rng.choice(("dilated", "eroded")), max(1, round(size * rng.uniform(1 / 32, 1 / 14)))
    drawn = instances.copy()
    for number in np.flatnonzero(spoiled):
        drawn[number] = _redraw(instances[number], noise, reach, size, rng)
    keeps = instances if noise in _GROWING else instances & ~spoiled[:, None, None]
    free = ~keeps.any(axis=0)
    return keeps | (drawn & spoiled[:, None, None] & free)


def _redraw(mask: np.ndarray, noise: str, reach: int, size: int, rng: Generator) -> np.ndarray:
    if noise == "dilated":
        return _filtered(mask, ImageFilter.MaxFilter(2 * reach + 1))
    if noise == "eroded":
        return _filtered(mask, ImageFilter.MinFilter(2 * reach + 1))
    if noise == "context":
        return np.any([_moved(mask, down, 0) for down in range(1, reach + 1)], axis=0)
    if noise == "shifted":
        angle, length = rng.uniform(0, 2 * np.pi), size * rng.uniform(1 / 24, 1 / 10)
        return _moved(mask, round(length * np.sin(angle)), round(length * np.cos(angle)))
    return np.zeros_like(mask)


def _filtered(mask: np.ndarray, filter: ImageFilter.Filter) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(filter)) > 0


def _moved(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    reach = max(abs(down), abs(right))
    padded = np.pad(mask, reach)
    return padded[reach - down : reach - down + mask.shape[0], reach - right : reach - right + mask.shape[1]]
