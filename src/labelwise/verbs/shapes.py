"""`labelwise shapes`: a synthetic data set in VOC layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labelwise.datasets.shapes import ShapesOptions, write_shapes
from labelwise.progress import watched


def shapes(folder: Path, options: ShapesOptions | None = None) -> dict[str, Any]:
    """Write a synthetic data set: masks, instances, boxes, tags, captions and points that agree with each other.

    Args:
        folder: a new or empty folder, or an unfinished set of the same options.
        options: sizes, seed, noise and so on.

    Returns:
        `folder`, `train` and `val` counts.

    Raises:
        UserError: the folder holds something else.
    """
    options = options or ShapesOptions()
    write_shapes(Path(folder), options, progress=lambda items: watched(items, "drawing"))
    return {"folder": str(folder), "train": options.train, "val": options.val}
