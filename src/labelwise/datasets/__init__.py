"""Data sets: folders in a known layout. Importing this package is cheap; opening a folder imports the layouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labelwise.errors import UserError

if TYPE_CHECKING:
    from labelwise.datasets.base import DataSet

__all__ = ["open"]


def open(path: Path | str) -> DataSet:
    """Open a data set, recognising its layout by the names of its folders.

    Raises:
        UserError: there is no such folder, or it has no known layout.
    """
    from labelwise.datasets.camvid import CamVid
    from labelwise.datasets.cityscapes import Cityscapes
    from labelwise.datasets.coco import COCO
    from labelwise.datasets.folders import Folders
    from labelwise.datasets.voc import VOC
    from labelwise.datasets.yolo import YOLO

    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such folder; check the spelling")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; name the folder of a data set")
    if VOC.recognises(path):
        return VOC(path)
    if CamVid.recognises(path):
        return CamVid(path)
    if Cityscapes.recognises(path):
        return Cityscapes(path)
    # Both have folders that plain images and masks could have as well.
    if COCO.recognises(path):
        return COCO(path)
    if YOLO.recognises(path):
        return YOLO(path)
    if Folders.recognises(path):
        return Folders(path)
    raise UserError(
        f"{path}: not a known layout; looked for JPEGImages or VOC20xx/JPEGImages (VOC), train and trainannot "
        "(CamVid), leftImg8bit and gtFine (Cityscapes), annotations/instances_<split>.json or "
        "<split>/_annotations.coco.json (COCO), data.yaml or labels with text files (YOLO), and images, train/images "
        "or images/train with masks beside them (folders)"
    )
