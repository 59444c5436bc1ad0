"""`labelwise predict`: a trained model on images; and `labelwise annotate`: its predictions as a new data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from labelwise import datasets
from labelwise.datasets.base import Classes, DataSet
from labelwise.datasets.images import IMAGE_SUFFIXES, read_image
from labelwise.datasets.voc import VOC
from labelwise.errors import UserError, require_share
from labelwise.files import atomic_write
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.method import Method
from labelwise.models.dense_crf import CRFParameters
from labelwise.progress import watched
from labelwise.runs import read_json
from labelwise.samples import Kind, Sample
from labelwise.saved import WEIGHTS, load_model
from labelwise.tasks.segmentation import SegmentationMethod
from labelwise.verbs.outputs import Output, output_of
from labelwise.verbs.preparation import broken_ids, usable

ORIGIN = "annotate.json"
"""The file of an annotated data set that says which model made it from what."""
LEAST_SCORE = 0.5
"""The least score of an object that is drawn, or becomes a label."""


def load_output(run: Path, hardware: Hardware, inference: InferenceOptions | None, least_score: float) -> Output:
    """A trained method on its device, and how its predictions are written.

    Raises:
        UserError: no such run, no such device on this machine, or the model cannot predict so.
    """
    require_share("least_score", least_score)
    device = _device(hardware)
    return output_of(load_model(run, inference).to(device), hardware.resolved_precision(), least_score)


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path,
    inference: InferenceOptions | None = None,
    least_score: float = LEAST_SCORE,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Predict images; write the prediction of each, and a picture.

    A segmenter's is a palette PNG (class numbers), a classifier's a JSON file, a detector's a JSON file with the boxes
    and scores of all objects and VOC's XML of the sure ones, of shapes a palette PNG (object numbers) instead.

    Args:
        run: the run's folder.
        images: image files, or folders of them.
        out: the folder to write `<name>.png`, `.json`, `.xml` and `.overlay.jpg` into; earlier ones are replaced.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        least_score: of a detector's objects that are drawn and written as labels.
        hardware: where to compute, and how precisely.

    Returns:
        `images`: for each file its `mask`, `overlay` and the share of each predicted class in percent; of a classifier
        the predicted `tags`, the probability of each class (`scores`) and the `file` that holds both; of a detector
        the `file` with all objects, the `labels`, the `overlay` and the number of sure objects of each class.

    Raises:
        UserError: no such run or image, two images of one name, or `out` holds other files of these names.
        BadFile: an image cannot be read; nothing has been written.
    """
    output = load_output(Path(run), hardware or Hardware(), inference, least_score)
    files, out = _image_files(images), Path(out)
    _refuse_other_files(output, out, files)
    for path in watched(files, "checking images", len(files)):
        read_image(path)
    out.mkdir(parents=True, exist_ok=True)
    watch = watched(files, "predicting", len(files))
    return {"images": [{"image": str(path)} | output.write(path, out) for path in watch]}


def annotate(
    run: Path,
    *,
    data: Path,
    out: Path,
    split: str = "train",
    skip_broken: bool = False,
    inference: InferenceOptions | None = None,
    least_score: float = LEAST_SCORE,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Predict a split and write images and predicted labels as a new data set in VOC layout.

    The images are copied as they are. An unfinished data set is completed when the same call is made again. Score maps
    are made of the tags of an image where it has any, refined masks from its score maps; no other label is read.

    Args:
        run: the run's folder.
        data: the data set's folder.
        out: the new data set's folder, which must be empty or not exist.
        split: the split to annotate; the new data set has a split of the same name.
        skip_broken: leave out images that cannot be read instead of stopping.
        inference: scales, flip, sliding window, output stride and CRF of a segmenter; one plain pass unless given.
        least_score: of a detector's objects that are drawn and written as labels.
        hardware: where to compute, and how precisely.

    Returns:
        `images` annotated, `skipped` and the folder `out`.

    Raises:
        UserError: no such run, data set or split, or `out` holds something else.
    """
    inference = inference or InferenceOptions()
    output = load_output(Path(run), hardware or Hardware(), inference, least_score)
    dataset = datasets.open(Path(data))
    origin = {
        "model": str(Path(run).resolve()),
        "weights": _digest(Path(run) / WEIGHTS),
        "data": str(dataset.root.resolve()),
        "split": split,
        "precision": output.precision,
        "inference": str(inference),
        # The numbers as well: they may come from a file, whose name says nothing of its content.
        "crf": str(_crf(output.method)),
        "least_score": least_score,
    }
    refuse_other_data(Path(out), origin)
    ids = dataset.ids(split)
    reads = {id: frozenset(kind for kind in output.reads if dataset.having(kind, [id])) for id in ids}
    broken = broken_ids(dataset, reads, skip_broken)
    kept = usable(ids, broken, f"split '{split}' of {data}")
    annotated = started(Path(out), output.method.classes, origin)
    missing = _unfinished(output, annotated, kept)
    for id in watched(missing, "annotating", len(missing)):
        sample = dataset.read(id, reads[id])
        annotated.copy_image(id, dataset.image_file(id))
        annotated.write(output.labels(sample))
    _carry_tags(output, dataset, annotated, sorted(set(kept) - set(missing)), reads)
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


def _refuse_other_files(output: Output, out: Path, images: Sequence[Path]) -> None:
    """Refuse to replace a file that is no earlier prediction, such as an image or a true mask."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder")
    for path in images:
        for file in output.files(out, path):
            if file.exists() and not output.is_prediction(out, path):
                raise UserError(f"--out {out}: holds {file.name}, which is no prediction; name another folder")


def _crf(method: Method) -> CRFParameters | None:
    """The CRF over a method's predictions, if there is one."""
    return method.inference.crf if isinstance(method, SegmentationMethod) else None


def refuse_other_data(out: Path, origin: Mapping[str, Any], marker: str = ORIGIN) -> None:
    """Check that a new data set can be written, or that an unfinished one can be gone on with.

    Args:
        out: its folder.
        origin: what it is made from, and how.
        marker: the file in which a started data set holds its origin.

    Raises:
        UserError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a new or empty folder")
    if out.is_dir() and any(out.iterdir()) and read_json(out / marker) != origin:
        raise UserError(f"--out {out}: holds something else than this call's data set; name a new or empty folder")


def started(out: Path, classes: Classes, origin: Mapping[str, Any], marker: str = ORIGIN) -> VOC:
    """A new data set that holds its origin, or the one that was started before."""
    dataset = VOC.create(out, classes, durable=False)
    atomic_write(out / marker, json.dumps(origin, indent=2))
    return dataset


def _unfinished(output: Output, annotated: VOC, ids: Sequence[str]) -> list[str]:
    """The images that are still to be predicted; of tags, which lie in lists of the whole split, all or none."""
    done = annotated.having(output.kind, ids)
    missing = [id for id in ids if id not in done]
    return list(ids) if output.kind is Kind.TAGS and missing else missing


def _carry_tags(
    output: Output, dataset: DataSet, annotated: VOC, ids: Sequence[str], reads: Mapping[str, frozenset[Kind]]
) -> None:
    """Give tags again to the images that an earlier call has annotated: their lists are of the whole split."""
    for id in ids if output.with_tags else ():
        sample = dataset.read(id, reads[id] & {Kind.TAGS})
        if sample.tags is None:
            sample = annotated.read(id, {Kind.TAGS})
        assert sample.tags is not None
        annotated.write(Sample(id=id, image=sample.image, tags=(sample.tags != 0).to(torch.uint8)))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
