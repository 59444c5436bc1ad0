"""What a trained model's predictions are as files, for each task; and as the labels of a data set."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from labelwise.datasets.derive import tags_of_labels
from labelwise.datasets.images import encode_mask, read_image, write_mask
from labelwise.datasets.voc_xml import format_annotation
from labelwise.detections import Detections
from labelwise.errors import UserError
from labelwise.files import atomic_file, atomic_write
from labelwise.method import Method
from labelwise.reports.pictures import overlay
from labelwise.runs import read_json
from labelwise.samples import Kind, Sample, ScoreMaps
from labelwise.saved import for_prediction
from labelwise.scoring import detected, draw_detections, localized, predicted_mask, predicted_tags, refined_mask
from labelwise.tasks.classification import ClassificationMethod
from labelwise.tasks.detection import DetectionMethod
from labelwise.tasks.instances import InstanceMethod
from labelwise.tasks.localization import LocalizationMethod
from labelwise.tasks.refinement import RefinementMethod

_MOST = 254
"The most objects of a palette PNG: 0 is none of them, 255 is not known."


class Output(ABC):
    """The predictions of one trained method."""

    kind: ClassVar[Kind]
    "the labels that it writes into a data set"
    reads: ClassVar[frozenset[Kind]] = frozenset()
    "labels of a data set that the prediction starts from, where an image has them"
    suffix: ClassVar[str]
    "the ending of the file that holds a prediction"
    with_tags: ClassVar[bool] = False
    "whether tags are written into a data set beside these labels"

    def __init__(self, method: Method, precision: str, least_score: float) -> None:
        """Remember the model.

        Args:
            method: on its device.
            precision: as of `Hardware.resolved_precision`.
            least_score: of the objects that are drawn and written as labels.
        """
        self.method, self.precision, self.least_score = method, precision, least_score

    def file(self, out: Path, image: Path) -> Path:
        """The file that holds the prediction of an image."""
        return out / f"{image.stem}{self.suffix}"

    def files(self, out: Path, image: Path) -> tuple[Path, ...]:
        """All files that are written for an image, but its overlay."""
        return (self.file(out, image),)

    def is_prediction(self, out: Path, image: Path) -> bool:
        """Whether the files that are there are an earlier prediction, as its overlay tells."""
        return overlay_file(out, image).exists()

    @abstractmethod
    def write(self, image: Path, out: Path) -> dict[str, Any]:
        """Predict an image file, write the prediction, and tell what was found."""

    @abstractmethod
    def labels(self, sample: Sample) -> Sample:
        """A sample with the prediction as its labels."""

    def computing(self) -> AbstractContextManager[Any]:
        """The precision in which to compute."""
        if self.precision == "32-true":
            return nullcontext()
        device = self.method.device.type
        # Lightning takes bfloat16 for either on a CPU; predictions and scores have to agree.
        half = torch.bfloat16 if self.precision == "bf16-mixed" or device == "cpu" else torch.float16
        return torch.autocast(device, half)


class MaskOutput(Output):
    """A class for every pixel: a palette PNG."""

    kind = Kind.MASKS
    suffix = ".png"

    def mask(self, image: torch.Tensor) -> np.ndarray:
        """The class of every pixel. [3, H, W] uint8 -> [H, W] uint8."""
        with self.computing():
            return predicted_mask(self.method, image)

    def write(self, image: Path, out: Path) -> dict[str, Any]:
        """Write the mask and an overlay."""
        classes = self.method.classes
        pixels = read_image(image)
        mask = self.mask(pixels)
        file, picture_file = self.file(out, image), overlay_file(out, image)
        # The overlay comes first: it tells a later call that the mask is a prediction.
        _save(overlay(pixels.numpy(), mask, classes.palette, background=classes.background), picture_file)
        write_mask(file, torch.from_numpy(mask), classes)
        counts = np.bincount(mask.ravel(), minlength=len(classes))
        shares = {classes.names[number]: round(100 * counts[number] / mask.size, 2) for number in counts.nonzero()[0]}
        return {"mask": str(file), "overlay": str(picture_file), "classes": shares}

    def labels(self, sample: Sample) -> Sample:
        """A sample with its predicted mask."""
        return replace(sample, mask=tv_tensors.Mask(torch.from_numpy(self.mask(sample.image))))


class TagOutput(Output):
    """Which classes are in the image: a JSON file."""

    kind = Kind.TAGS
    suffix = ".json"
    method: ClassificationMethod

    def is_prediction(self, out: Path, image: Path) -> bool:
        """Whether the file that is there is an earlier prediction, by its content."""
        file = self.file(out, image)
        return file.exists() and {"tags", "scores"} <= read_json(file).keys()

    def tags(self, image: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
        """The probability of each class by name, and the tags [C] uint8. [3, H, W] uint8 -> both."""
        with self.computing():
            return predicted_tags(self.method, image)

    def write(self, image: Path, out: Path) -> dict[str, Any]:
        """Write tags and probabilities."""
        scores, tags = self.tags(read_image(image))
        names = self.method.classes.names
        said = {
            "tags": [name for name, tag in zip(names, tags.tolist(), strict=True) if tag],
            "scores": {name: round(value, 6) for name, value in scores.items()},
        }
        file = self.file(out, image)
        atomic_write(file, json.dumps({"image": image.name, **said}, indent=2))
        return said | {"file": str(file)}

    def labels(self, sample: Sample) -> Sample:
        """A sample with its predicted tags."""
        return replace(sample, tags=self.tags(sample.image)[1])


class MapOutput(Output):
    """Where each class was found: score maps, their seed as a palette PNG, and the tags in a JSON file.

    In a data set the maps are those of its tags; only an image without any is given the predicted ones.
    """

    kind = Kind.MAPS
    reads = frozenset({Kind.TAGS})
    suffix = ".png"
    with_tags = True
    method: LocalizationMethod

    def __init__(self, method: Method, precision: str, least_score: float) -> None:
        """As of every output; the method can only predict from then on."""
        super().__init__(for_prediction(method, precision), precision, least_score)

    def files(self, out: Path, image: Path) -> tuple[Path, ...]:
        """The seed and the file with the scores."""
        return self.file(out, image), self.file(out, image).with_suffix(".json")

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        """The probability of each class. [3, H, W] uint8 -> [K]."""
        with self.computing(), torch.no_grad():
            self.method.eval()
            logits = self.method.predict(image.as_subclass(torch.Tensor)[None].to(self.method.device))
        return logits[0].float().sigmoid().cpu()

    def maps(self, image: torch.Tensor, labels: torch.Tensor) -> tuple[ScoreMaps, np.ndarray]:
        """The score maps of these classes, and the mask that they stand for, [H, W] uint8."""
        with self.computing():
            return localized(self.method, image, labels)

    def write(self, image: Path, out: Path) -> dict[str, Any]:
        """Write the seed of the predicted tags, the scores of all classes, and an overlay."""
        classes = self.method.classes
        pixels = read_image(image)
        scores = self.scores(pixels)
        labels = self.method.tags(scores)
        mask = self.maps(pixels, labels)[1]
        file, picture_file = self.file(out, image), overlay_file(out, image)
        _save(overlay(pixels.numpy(), mask, classes.palette, background=classes.background), picture_file)
        write_mask(file, torch.from_numpy(mask), classes)
        said = {
            "tags": [classes.names[label] for label in labels.tolist()],
            "scores": {
                name: round(value, 6) for name, value in zip(self.method.tag_names, scores.tolist(), strict=True)
            },
        }
        atomic_write(file.with_suffix(".json"), json.dumps({"image": image.name, **said}, indent=2))
        return {"mask": str(file), "overlay": str(picture_file), **said}

    def labels(self, sample: Sample) -> Sample:
        """A sample with the score maps of its tags and their seed."""
        labels = self.known_labels(sample)
        maps, mask = self.maps(sample.image, labels)
        tags = tags_of_labels(labels, self.method.classes)
        return replace(sample, tags=tags, maps=maps, mask=tv_tensors.Mask(torch.from_numpy(mask)))

    def known_labels(self, sample: Sample) -> torch.Tensor:
        """The class numbers of a sample's tags, or the predicted ones where it has no tags. -> [N] int64."""
        if sample.tags is None:
            return self.method.tags(self.scores(sample.image))
        return sample.tags.nonzero().flatten()


class RefinedOutput(MaskOutput):
    """A class for every pixel, from the score maps that a data set has of an image."""

    reads = frozenset({Kind.MAPS})
    method: RefinementMethod

    def write(self, image: Path, out: Path) -> dict[str, Any]:
        """Refuse: an image file has no score maps.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{image}: '{self.method.card.name}' refines score maps, which an image file has not; "
            "`labelwise annotate RUN --data SEEDS` reads them from a data set"
        )

    def labels(self, sample: Sample) -> Sample:
        """A sample with its refined mask; the score maps are left out.

        Raises:
            UserError: it has no score maps.
        """
        with self.computing():
            mask = refined_mask(self.method, sample)
        return replace(sample, maps=None, mask=tv_tensors.Mask(torch.from_numpy(mask)))


class BoxOutput(Output):
    """Boxes: a JSON file with all of them and their scores, and VOC's XML with the sure ones."""

    kind = Kind.BOXES
    suffix = ".xml"
    method: DetectionMethod

    def files(self, out: Path, image: Path) -> tuple[Path, ...]:
        """The annotation and the file with the scores."""
        return self.file(out, image), self.file(out, image).with_suffix(".json")

    def detected(self, id: str, image: torch.Tensor) -> Detections:
        """The objects of an image, surest first."""
        with self.computing():
            return detected(self.method, Sample(id=id, image=tv_tensors.Image(image)))

    def sure(self, found: Detections) -> Detections:
        """Those from `least_score` on that cover a pixel."""
        whole = (found.boxes[:, 2:] - found.boxes[:, :2] >= 1).all(1)
        return found[whole & (found.scores >= self.least_score)]

    def write(self, image: Path, out: Path) -> dict[str, Any]:
        """Write boxes with scores, an annotation, and an overlay."""
        pixels = read_image(image)
        found = self.detected(image.stem, pixels)
        sure = self.sure(found)
        picture_file = overlay_file(out, image)
        _save(self.picture(pixels, sure), picture_file)
        self.write_objects(image, pixels, found, sure, out)
        objects = [self.described(found, place) for place in range(len(found))]
        scores_file = self.file(out, image).with_suffix(".json")
        atomic_write(scores_file, json.dumps({"image": image.name, "objects": objects}, indent=1))
        names = [self.method.classes.names[label] for label in sure.labels.tolist()]
        return {
            "file": str(scores_file),
            "labels": str(self.file(out, image)),
            "overlay": str(picture_file),
            "classes": {name: names.count(name) for name in dict.fromkeys(names)},
        }

    def described(self, found: Detections, place: int) -> dict[str, Any]:
        """One object for the JSON file: class, score, and box as x1, y1, x2, y2 in pixels, half-open from 0."""
        return {
            "class": self.method.classes.names[int(found.labels[place])],
            "score": round(float(found.scores[place]), 6),
            "box": [round(value, 2) for value in found.boxes[place].tolist()],
        }

    def picture(self, image: torch.Tensor, sure: Detections) -> Image.Image:
        """The image with the sure objects."""
        return draw_detections(image, sure, self.method.classes)

    def write_objects(self, image: Path, pixels: torch.Tensor, found: Detections, sure: Detections, out: Path) -> None:
        """Write the sure objects in VOC's way."""
        names = [self.method.classes.names[label] for label in sure.labels.tolist()]
        height, width = pixels.shape[-2:]
        no = np.zeros(len(sure), dtype=bool)
        text = format_annotation(image.name, (height, width), names, sure.boxes.numpy(), no, segmented=False)
        atomic_write(self.file(out, image), text)

    def labels(self, sample: Sample) -> Sample:
        """A sample with the sure boxes."""
        return with_boxes(sample, self.sure(self.detected(sample.id, sample.image)))


class ShapeOutput(BoxOutput):
    """Shapes: as of boxes, and a palette PNG with one number for each of the sure objects."""

    kind = Kind.INSTANCES
    suffix = ".png"
    method: InstanceMethod

    def sure(self, found: Detections) -> Detections:
        """Those from `least_score` on with a pixel of their own, as many as a palette PNG can hold."""
        assert found.masks is not None or not len(found)
        if found.masks is None:
            return found
        return found[found.masks.flatten(1).any(1) & (found.scores >= self.least_score)][:_MOST]

    def described(self, found: Detections, place: int) -> dict[str, Any]:
        """One object for the JSON file: as of boxes, and its pixels as COCO's compressed run lengths."""
        from labelwise.datasets.coco_labels import encode_rle

        assert found.masks is not None
        return super().described(found, place) | {"segmentation": encode_rle(found.masks[place])}

    def write_objects(self, image: Path, pixels: torch.Tensor, found: Detections, sure: Detections, out: Path) -> None:
        """Write which object each pixel shows; of objects that overlap the surest."""
        height, width = pixels.shape[-2:]
        atomic_write(self.file(out, image), encode_mask(_numbered(sure, height, width), self.method.classes.palette))

    def labels(self, sample: Sample) -> Sample:
        """A sample with the sure shapes and their boxes; a pixel belongs to the surest."""
        sure = self.sure(self.detected(sample.id, sample.image))
        height, width = sample.image.shape[-2:]
        numbers = _numbered(sure, height, width)
        shapes = numbers == torch.arange(1, len(sure) + 1, dtype=torch.uint8)[:, None, None]
        seen = shapes.flatten(1).any(1)
        labeled = with_boxes(sample, sure[seen])
        return replace(labeled, instances=tv_tensors.Mask(shapes[seen]), instance_labels=sure.labels[seen])


_OUTPUTS: tuple[tuple[type[Method], type[Output]], ...] = (
    (InstanceMethod, ShapeOutput),
    (DetectionMethod, BoxOutput),
    (ClassificationMethod, TagOutput),
    (LocalizationMethod, MapOutput),
    (RefinementMethod, RefinedOutput),
    (Method, MaskOutput),
)


def output_of(method: Method, precision: str, least_score: float) -> Output:
    """How this method's predictions are written."""
    chosen = next(output for task, output in _OUTPUTS if isinstance(method, task))
    return chosen(method, precision, least_score)


def overlay_file(out: Path, image: Path) -> Path:
    """The picture of a prediction."""
    return out / f"{image.stem}.overlay.jpg"


def with_boxes(sample: Sample, found: Detections) -> Sample:
    """A sample with these objects as its boxes."""
    height, width = sample.image.shape[-2:]
    boxes = tv_tensors.BoundingBoxes(found.boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width))
    difficult = torch.zeros(len(found), dtype=torch.bool)
    return replace(sample, boxes=boxes, box_labels=found.labels, difficult=difficult)


def _numbered(found: Detections, height: int, width: int) -> torch.Tensor:
    """[H, W] uint8: 0, or the place of the first of these objects that covers the pixel, counted from 1."""
    numbers = torch.zeros(height, width, dtype=torch.uint8)
    if found.masks is not None and len(found):
        covered = found.masks.any(0)
        numbers[covered] = (found.masks.to(torch.uint8).argmax(0)[covered] + 1).to(torch.uint8)
    return numbers


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_file(path) as file:
        picture.save(file, format="JPEG", quality=90)
