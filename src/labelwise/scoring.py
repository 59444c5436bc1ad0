"""Scoring a trained method by its task's protocol, and pictures of its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from PIL import Image, ImageOps

from labelwise.datasets.base import Classes, DataSet
from labelwise.detections import Detections
from labelwise.files import atomic_file
from labelwise.hardware import process_rank
from labelwise.loaders import evaluation_loader
from labelwise.method import Method
from labelwise.models.cam import seed
from labelwise.monitoring import clean_pseudo_labels, read_bounded
from labelwise.reports.pictures import contact_sheet, draw_boxes, legend_entries, map_overlay, overlay, text_panel
from labelwise.samples import IGNORE_INDEX, Kind, Sample, ScoreMaps
from labelwise.tasks.classification import ClassificationMethod
from labelwise.tasks.detection import DetectionMethod
from labelwise.tasks.few_masks import FewMasksMethod
from labelwise.tasks.instances import InstanceMethod, boxes_of_instances
from labelwise.tasks.localization import LocalizationMethod
from labelwise.tasks.refinement import RefinementMethod

_PICTURED = 6
_CELL = 160
_OBJECT_CELL = 240
"""Wider, so that the names at the boxes can be read."""
_SHOWN = 0.3
"""The least score of an object on a sheet: less than that of a label, so that a look shows what is nearly found."""


def score(method: Method, dataset: DataSet, ids: Sequence[str], trainer: lightning.Trainer) -> dict[str, Any]:
    """Score a method on images with labels; every image counts once, however many processes share the work.

    Returns:
        What `evaluate --json` prints, in percent, and `images`: for semantic segmentation `miou`, `iou`,
        `pixel_accuracy`, `mean_accuracy`, `frequency_weighted_iou`, `boundary_iou` and `trimap_miou` (width of the band
        in pixels -> percent); for classification `map`, `ap` and, where every image has one class, `top1` and `top5`.
    """
    loader = evaluation_loader(
        dataset, ids, method.card.truth.kinds, rank=process_rank(), world=trainer.world_size, workers=0
    )
    method.thorough = True
    # A training without evaluations of its own has switched validation off.
    trainer.limit_val_batches = 1.0
    trainer.validate(method, loader, verbose=False)
    method.thorough = False
    return dict(method.results)


def write_prediction_sheet(
    trained: Mapping[str, Method], dataset: DataSet, ids: Sequence[str], path: Path, count: int = _PICTURED
) -> None:
    """A sheet of image, truth and each method's prediction for a few images spread over the ids.

    Args:
        trained: title -> method; all of one task.
        dataset: where to read images and labels.
        ids: images with the labels that the methods give.
        path: the PNG to write; its folder is made if need be.
        count: images on the sheet.
    """
    chosen = [ids[position] for position in np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(int)]
    classifiers = {title: method for title, method in trained.items() if isinstance(method, ClassificationMethod)}
    detectors = {title: method for title, method in trained.items() if isinstance(method, DetectionMethod)}
    localizers = {title: method for title, method in trained.items() if isinstance(method, LocalizationMethod)}
    if classifiers:
        sheet = _tag_sheet(classifiers, dataset, chosen)
    elif detectors:
        sheet = _object_sheet(detectors, dataset, chosen)
    elif localizers:
        sheet = _map_sheet(localizers, dataset, chosen)
    else:
        sheet = _mask_sheet(trained, dataset, chosen)
    _save(sheet, path)


def _tag_sheet(trained: Mapping[str, ClassificationMethod], dataset: DataSet, chosen: Sequence[str]) -> Image.Image:
    names = dataset.classes.names
    rows: list[list[Image.Image]] = []
    for id in chosen:
        sample = dataset.read(id, {Kind.TAGS})
        assert sample.tags is not None
        true = {name: tag for name, tag in zip(names, sample.tags.tolist(), strict=True) if tag}
        truth = [(f"{name} (difficult)" if tag == IGNORE_INDEX else name, False) for name, tag in true.items()]
        panels = [text_panel(truth)]
        for method in trained.values():
            scores, tags = predicted_tags(method, sample.image)
            said = sorted((name for name, tag in zip(names, tags.tolist(), strict=True) if tag), key=scores.__getitem__)
            panels.append(text_panel([(f"{name} {scores[name]:.2f}", name not in true) for name in reversed(said)]))
        rows.append([Image.fromarray(sample.image.numpy().transpose(1, 2, 0)), *panels])
    return contact_sheet(rows, ["image", "truth", *trained], chosen)


def _object_sheet(trained: Mapping[str, DetectionMethod], dataset: DataSet, chosen: Sequence[str]) -> Image.Image:
    shapes = any(isinstance(method, InstanceMethod) for method in trained.values())
    rows: list[list[Image.Image]] = []
    for id in chosen:
        sample = dataset.read(id, {Kind.INSTANCES if shapes else Kind.BOXES})
        found = [detected(method, sample) for method in trained.values()]
        sure = [each[each.scores >= _SHOWN] for each in found]
        # Whole multiples of small images, so that the names at the objects do not cover them.
        factor = max(1, _OBJECT_CELL // max(sample.image.shape[-2:]))
        image = _repeated(sample.image.as_subclass(torch.Tensor), factor)
        drawn = [draw_detections(image, _enlarged(each, factor), dataset.classes) for each in sure]
        truth = draw_detections(image, _enlarged(_truth(sample), factor), dataset.classes, with_scores=False)
        rows.append([Image.fromarray(image.numpy().transpose(1, 2, 0)), truth, *drawn])
    return contact_sheet(rows, ["image", "truth", *trained], chosen, cell=_OBJECT_CELL)


def _truth(sample: Sample) -> Detections:
    """The true objects of an image, all of them sure."""
    if sample.instances is not None and sample.instance_labels is not None:
        masks, labels = sample.instances.as_subclass(torch.Tensor) != 0, sample.instance_labels
        return Detections(boxes=boxes_of_instances(masks), labels=labels, scores=torch.ones(len(labels)), masks=masks)
    assert sample.boxes is not None and sample.box_labels is not None
    boxes, labels = sample.boxes.as_subclass(torch.Tensor), sample.box_labels
    return Detections(boxes=boxes, labels=labels, scores=torch.ones(len(labels)))


def _enlarged(found: Detections, factor: int) -> Detections:
    masks = None if found.masks is None else _repeated(found.masks, factor)
    return replace(found, boxes=found.boxes * factor, masks=masks)


def _repeated(planes: torch.Tensor, factor: int) -> torch.Tensor:
    """Planes [N, H, W] with every pixel repeated in both directions."""
    return planes.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def draw_detections(
    image: torch.Tensor, found: Detections, classes: Classes, *, with_scores: bool = True
) -> Image.Image:
    """An image [3, H, W] uint8 with objects in the colors of their classes."""
    masks = None if found.masks is None else found.masks.numpy()
    scores = found.scores.numpy() if with_scores else None
    return draw_boxes(
        image.numpy(), found.boxes.numpy(), found.labels.numpy(), classes.names, classes.palette, scores, masks
    )


def _map_sheet(trained: Mapping[str, LocalizationMethod], dataset: DataSet, chosen: Sequence[str]) -> Image.Image:
    """Image, truth where there is a mask, and each method's score maps of the true tags with their seed."""
    classes = dataset.classes
    have = dataset.having(Kind.MASKS, chosen)
    rows: list[list[Image.Image]] = []
    shown: list[np.ndarray] = []
    for id in chosen:
        sample = dataset.read(id, {Kind.TAGS, *([Kind.MASKS] if id in have else [])})
        assert sample.tags is not None
        image = sample.image.numpy()
        truth = np.zeros(image.shape[1:], np.uint8) if sample.mask is None else sample.mask.numpy()
        panels = [overlay(image, truth, classes.palette, background=classes.background)]
        for method in trained.values():
            maps, mask = localized(method, sample.image, sample.tags.nonzero().flatten())
            panels.append(map_overlay(image, maps.fine.numpy(), maps.labels.numpy(), classes.palette))
            panels.append(overlay(image, mask, classes.palette, background=classes.background))
            shown.append(mask)
        rows.append([Image.fromarray(image.transpose(1, 2, 0)), *panels])
        shown.append(truth)
    legend = legend_entries(shown, classes.names, classes.palette)
    titles = [title for name in trained for title in (name, "seed")]
    return contact_sheet(rows, ["image", "truth", *titles], chosen, legend=legend)


def _mask_sheet(trained: Mapping[str, Method], dataset: DataSet, chosen: Sequence[str]) -> Image.Image:
    classes = dataset.classes
    rows: list[list[Image.Image]] = []
    shown: list[np.ndarray] = []
    refined = any(isinstance(method, RefinementMethod) for method in trained.values())
    for id in chosen:
        sample = dataset.read(id, {Kind.MASKS, *([Kind.MAPS] if refined else [])})
        assert sample.mask is not None
        image = sample.image.numpy()
        masks = [sample.mask.numpy(), *(_mask_of(method, sample) for method in trained.values())]
        drawn = [overlay(image, mask, classes.palette, background=classes.background) for mask in masks]
        rows.append([Image.fromarray(image.transpose(1, 2, 0)), *drawn])
        shown += masks
    legend = legend_entries(shown, classes.names, classes.palette)
    return contact_sheet(rows, ["image", "truth", *trained], chosen, legend=legend)


def _mask_of(method: Method, sample: Sample) -> np.ndarray:
    if isinstance(method, RefinementMethod):
        return refined_mask(method, sample)
    return predicted_mask(method, sample.image)


def _save(sheet: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        sheet.save(file, format="PNG")


def write_pseudo_label_sheet(
    method: FewMasksMethod,
    dataset: DataSet,
    ids: Sequence[str],
    path: Path,
    *,
    with_truth: bool = False,
    count: int = _PICTURED,
) -> None:
    """A sheet of image, pseudo-label and prediction for the first unlabelled images; what is not taught is hatched.

    Images are bounded in size as in monitoring; the prediction is made at that size too.

    Args:
        method: a trained method with what training alone needs.
        dataset: where to read.
        ids: unlabelled images.
        path: the PNG to write; its folder is made if need be.
        with_truth: read the hidden masks and show them as well; without, no mask is opened.
        count: images on the sheet.
    """
    classes = dataset.classes
    kinds = {Kind.MASKS} if with_truth else set()
    samples = [read_bounded(dataset, id, kinds) for id in ids[:count]]
    longest = max(side for sample in samples for side in sample.image.shape[-2:])
    # Whole multiples of small images, so that nothing blurs their pixels.
    factor = max(1, _CELL // longest)
    rows: list[list[Image.Image]] = []
    shown: list[np.ndarray] = []
    for sample in samples:
        label, keep = clean_pseudo_labels(method, sample.image)
        masks = [label.masked_fill(~keep, IGNORE_INDEX).numpy(), predicted_mask(method, sample.image)]
        if sample.mask is not None:
            masks.insert(0, sample.mask.numpy())
        picture = _fitted(Image.fromarray(sample.image.numpy().transpose(1, 2, 0)), factor, Image.Resampling.LANCZOS)
        image = np.asarray(picture).transpose(2, 0, 1)
        fitted = [_fitted(Image.fromarray(mask), factor, Image.Resampling.NEAREST) for mask in masks]
        drawn = [overlay(image, np.asarray(mask), classes.palette, background=classes.background) for mask in fitted]
        rows.append([picture, *drawn])
        shown += masks
    titles = ["image", *(["truth (monitoring)"] if with_truth else []), "pseudo-label", "prediction"]
    legend = legend_entries(shown, classes.names, classes.palette)
    cell = factor * longest if factor > 1 else _CELL
    _save(contact_sheet(rows, titles, [sample.id for sample in samples], cell, legend), path)


def _fitted(picture: Image.Image, factor: int, shrink: Image.Resampling) -> Image.Image:
    """Repeat the pixels of a small picture; scale a large one to its cell, before fine hatching is drawn on it."""
    if max(picture.size) > _CELL:
        return ImageOps.contain(picture, (_CELL, _CELL), shrink)
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)


@torch.no_grad()
def predicted_mask(method: Method, image: torch.Tensor) -> np.ndarray:
    """The predicted class of every pixel of one [3, H, W] uint8 image, as [H, W] uint8."""
    method.eval()
    scores: torch.Tensor = method.predict(image.as_subclass(torch.Tensor)[None].to(method.device))
    return scores.argmax(1)[0].to(torch.uint8).cpu().numpy()


def localized(method: LocalizationMethod, image: torch.Tensor, labels: torch.Tensor) -> tuple[ScoreMaps, np.ndarray]:
    """The score maps of some classes in one [3, H, W] uint8 image, and the mask that they stand for, [H, W] uint8."""
    method.eval()
    maps = method.localize(image, labels)
    assert method.classes.background is not None
    mask = seed(maps.fine, maps.labels, method.config.background, method.classes.background)
    return maps, mask.numpy()


def refined_mask(method: RefinementMethod, sample: Sample) -> np.ndarray:
    """The class of every pixel of one image with score maps, as [H, W] uint8."""
    method.eval()
    return method.refined_mask(sample).numpy()


@torch.no_grad()
def detected(method: DetectionMethod, sample: Sample) -> Detections:
    """The objects of one image, surest first."""
    method.eval()
    return method.detect(sample).cpu()


@torch.no_grad()
def predicted_tags(method: ClassificationMethod, image: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
    """The probability of each class of one [3, H, W] uint8 image by name, and the predicted tags, [C] uint8."""
    method.eval()
    logits = method.predict(image.as_subclass(torch.Tensor)[None].to(method.device))
    probabilities = method.probabilities(logits)
    scores = dict(zip(method.tag_names, probabilities[0].tolist(), strict=True))
    return scores, method.tags(probabilities)[0].cpu()
