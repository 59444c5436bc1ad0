"""`labelwise predict`: a trained model on images; and `labelwise annotate`: its predictions as a new data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from labelwise import datasets
from labelwise.datasets.base import DataSet
from labelwise.datasets.images import IMAGE_SUFFIXES, read_image, write_mask
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError
from labelwise.files import atomic_file, atomic_write
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.method import Method
from labelwise.models.dense_crf import CRFParameters
from labelwise.progress import watched
from labelwise.reports.pictures import overlay
from labelwise.runs import read_json
from labelwise.samples import Kind
from labelwise.saved import WEIGHTS, load_model
from labelwise.scoring import predicted_mask, predicted_tags
from labelwise.tasks.classification import ClassificationMethod
from labelwise.tasks.segmentation import SegmentationMethod
from labelwise.verbs.preparation import broken_ids, usable

ORIGIN = "annotate.json"
"""The file of an annotated data set that says which model made it from what."""


@dataclass(frozen=True)
class Predictor:
    """A trained method on its device, in its precision."""

    method: Method
    precision: str

    @classmethod
    def load(cls, run: Path, hardware: Hardware, inference: InferenceOptions | None = None) -> Predictor:
        """Load a trained method.

        Raises:
            UserError: no such run, no such device on this machine, or the model cannot predict so.
        """
        device = _device(hardware)
        return cls(load_model(run, inference).to(device), hardware.resolved_precision())

    @property
    def crf(self) -> CRFParameters | None:
        """The CRF over its predictions, if there is one."""
        return self.method.inference.crf if isinstance(self.method, SegmentationMethod) else None

    def mask(self, image: torch.Tensor) -> np.ndarray:
        """The class of every pixel. [3, H, W] uint8 -> [H, W] uint8."""
        with self._autocast():
            return predicted_mask(self.method, image)

    def tags(self, image: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
        """The probability of each class by name, and the tags [C] uint8. [3, H, W] uint8 -> both."""
        assert isinstance(self.method, ClassificationMethod)
        with self._autocast():
            return predicted_tags(self.method, image)

    @property
    def gives_tags(self) -> bool:
        """Whether it predicts tags, not masks."""
        return isinstance(self.method, ClassificationMethod)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "32-true":
            return nullcontext()
        device = self.method.device.type
        # Lightning takes bfloat16 for either on a CPU; predictions and scores have to agree.
        half = torch.bfloat16 if self.precision == "bf16-mixed" or device == "cpu" else torch.float16
        return torch.autocast(device, half)


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path,
    inference: InferenceOptions | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Predict images; write a palette PNG (class numbers) and an overlay for each, or of a classifier a JSON file.

    Args:
        run: the run's folder.
        images: image files, or folders of them.
        out: the folder to write `<name>.png` and `<name>.overlay.jpg`, or `<name>.json`, into; earlier predictions are
            replaced.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        hardware: where to compute, and how precisely.

    Returns:
        `images`: for each file its `mask`, `overlay` and the share of each predicted class in percent; of a classifier
        the predicted `tags`, the probability of each class (`scores`) and the `file` that holds both.

    Raises:
        UserError: no such run or image, two images of one name, or `out` holds other files of these names.
        BadFile: an image cannot be read; nothing has been written.
    """
    predictor = Predictor.load(Path(run), hardware or Hardware(), inference)
    files, out = _image_files(images), Path(out)
    _refuse_other_files(predictor, out, files)
    for path in watched(files, "checking images", len(files)):
        read_image(path)
    out.mkdir(parents=True, exist_ok=True)
    watch = watched(files, "predicting", len(files))
    write = _write_tags if predictor.gives_tags else _write_prediction
    return {"images": [{"image": str(path)} | write(predictor, path, out) for path in watch]}


def annotate(
    run: Path,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    skip_broken: bool = False,
    inference: InferenceOptions | None = None,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Predict a split and write images and predicted masks or tags as a new data set in VOC layout.

    The images are copied as they are. An unfinished data set is completed when the same call is made again.

    Args:
        run: the run's folder.
        data: the data set's folder; its labels are not read.
        out: the new data set's folder, which must be empty or not exist.
        split: the split to annotate; the new data set has a split of the same name.
        skip_broken: leave out images that cannot be read instead of stopping.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        hardware: where to compute, and how precisely.

    Returns:
        `images` annotated, `skipped` and the folder `out`.

    Raises:
        UserError: no such run, data set or split, or `out` holds something else.
    """
    inference = inference or InferenceOptions()
    predictor = Predictor.load(Path(run), hardware or Hardware(), inference)
    dataset = datasets.open(Path(data))
    origin = {
        "model": str(Path(run).resolve()),
        "weights": _digest(Path(run) / WEIGHTS),
        "data": str(dataset.root.resolve()),
        "split": split,
        "precision": predictor.precision,
        "inference": str(inference),
        # The numbers as well: they may come from a file, whose name says nothing of its content.
        "crf": str(predictor.crf),
    }
    _refuse_other_data(Path(out), origin)
    ids = dataset.ids(split)
    broken = broken_ids(dataset, dict.fromkeys(ids, frozenset()), skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {data}")
    annotated = _started(Path(out), predictor.method, origin)
    missing = _unfinished(predictor, annotated, kept)
    for id in watched(missing, "annotating", len(missing)):
        _annotate(predictor, dataset, id, annotated)
    annotated.write_split(split, kept)
    return {"images": len(kept), "skipped": sorted(broken), "out": str(out)}


def _device(hardware: Hardware) -> str:
    """The torch device that `--accelerator` means.

    Raises:
        UserError: this machine has none.
    """
    if hardware.on_gpu:
        return "cuda"
    has_mps = torch.backends.mps.is_available()
    if has_mps and hardware.accelerator in ("auto", "gpu", "mps"):
        return "mps"
    if hardware.accelerator not in ("auto", "cpu"):
        raise UserError(f"--accelerator {hardware.accelerator}: this machine has none that torch can use; take auto")
    return "cpu"


def _image_files(images: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, images):
        if not path.exists():
            raise UserError(f"{path}: there is no such image or folder; check the spelling")
        found = [path]
        if path.is_dir():
            found = sorted(item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise UserError(f"{path}: holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder")
        files += found
    stems: set[str] = set()
    for path in files:
        if path.stem in stems:
            raise UserError(
                f"{path}: a second image of this name would overwrite the prediction '{path.stem}'; use two calls"
            )
        stems.add(path.stem)
    return files


def _refuse_other_files(predictor: Predictor, out: Path, images: Sequence[Path]) -> None:
    """Refuse to replace a file that is no earlier prediction, such as an image or a true mask."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    for path in images:
        file, overlay_file = _outputs(out, path)
        predicted = overlay_file.exists()
        if predictor.gives_tags:
            file = _tag_file(out, path)
            predicted = file.exists() and {"tags", "scores"} <= read_json(file).keys()
        if file.exists() and not predicted:
            raise UserError(f"--out {out}: holds {file.name}, which is no prediction; name another folder")


def _tag_file(out: Path, image: Path) -> Path:
    return out / f"{image.stem}.json"


def _outputs(out: Path, image: Path) -> tuple[Path, Path]:
    return out / f"{image.stem}.png", out / f"{image.stem}.overlay.jpg"


def _write_prediction(predictor: Predictor, path: Path, out: Path) -> dict[str, Any]:
    classes = predictor.method.classes
    image = read_image(path)
    mask = predictor.mask(image)
    mask_file, overlay_file = _outputs(out, path)
    picture = overlay(image.numpy(), mask, classes.palette, background=classes.background)
    # The overlay comes first: it tells a later call that the mask is a prediction.
    with atomic_file(overlay_file) as file:
        picture.save(file, format="JPEG", quality=90)
    write_mask(mask_file, torch.from_numpy(mask), classes)
    counts = np.bincount(mask.ravel(), minlength=len(classes))
    shares = {classes.names[number]: round(100 * counts[number] / mask.size, 2) for number in counts.nonzero()[0]}
    return {"mask": str(mask_file), "overlay": str(overlay_file), "classes": shares}


def _write_tags(predictor: Predictor, path: Path, out: Path) -> dict[str, Any]:
    scores, tags = predictor.tags(read_image(path))
    names = predictor.method.classes.names
    said = {
        "tags": [name for name, tag in zip(names, tags.tolist(), strict=True) if tag],
        "scores": {name: round(value, 6) for name, value in scores.items()},
    }
    file = _tag_file(out, path)
    atomic_write(file, json.dumps({"image": path.name, **said}, indent=2))
    return said | {"file": str(file)}


def _refuse_other_data(out: Path, origin: Mapping[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a new or empty folder")
    if out.is_dir() and any(out.iterdir()) and read_json(out / ORIGIN) != origin:
        raise UserError(f"--out {out}: holds something else than this call's data set; name a new or empty folder")


def _started(out: Path, method: Method, origin: Mapping[str, Any]) -> VOC:
    annotated = VOC.create(out, method.classes, durable=False)
    atomic_write(out / ORIGIN, json.dumps(origin, indent=2))
    return annotated


def _unfinished(predictor: Predictor, annotated: VOC, ids: Sequence[str]) -> list[str]:
    """The images that are still to be predicted; of tags, which lie in lists of the whole split, all or none."""
    done = annotated.having(Kind.TAGS if predictor.gives_tags else Kind.MASKS, ids)
    missing = [id for id in ids if id not in done]
    return list(ids) if predictor.gives_tags and missing else missing


def _annotate(predictor: Predictor, dataset: DataSet, id: str, annotated: VOC) -> None:
    sample = dataset.read(id)
    annotated.copy_image(id, dataset.image_file(id))
    if predictor.gives_tags:
        annotated.write(replace(sample, tags=predictor.tags(sample.image)[1]))
        return
    mask = tv_tensors.Mask(torch.from_numpy(predictor.mask(sample.image)))
    annotated.write(replace(sample, mask=mask))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
