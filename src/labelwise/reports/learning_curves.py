"""The picture of learning curves by class: what was measured, the fit, and where the correction of labels began."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LEARNING_CURVES = "learning_curves.json"
"""The file in a run's folder: class -> `epoch`, `iou` and `fit` (or null) of its points, `corrected_after` or null."""

LEARNING_CURVES_PICTURE = "learning_curves.png"

_COLUMNS = 4
# Readable on white and on near-black, because the picture has no ground of its own.
_INK, _CURVE, _FIT, _MARK = "#7a8087", "#3f8fc4", "#7a8087", "#ff7a2e"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    # A class named "$x" is a name, not a formula.
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def write_learning_curves(folder: Path) -> Path | None:
    """Draw the learning curves that a run has left, one panel per class.

    Args:
        folder: the run's.

    Returns:
        The picture among the run's pictures, or None where the run has left no curves.
    """
    file = folder / LEARNING_CURVES
    if not file.is_file():
        return None
    curves: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    if not any(curve["epoch"] for curve in curves.values()):
        return None
    path = folder / "pictures" / LEARNING_CURVES_PICTURE
    path.parent.mkdir(exist_ok=True)
    _draw(curves, path)
    return path


def _draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    rows = -(-len(curves) // _COLUMNS)
    columns = min(_COLUMNS, len(curves))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.6 * columns, 0.5 + 1.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for panel, (name, curve) in zip(panels, curves.items(), strict=False):
            panel.plot(curve["epoch"], curve["iou"], ".-", color=_CURVE, markersize=3, linewidth=1, label="IoU")
            if curve["fit"] is not None:
                panel.plot(curve["epoch"], curve["fit"], "--", color=_FIT, linewidth=1.2, label="fitted")
            if curve["corrected_after"] is not None:
                panel.axvline(curve["corrected_after"], color=_MARK, linewidth=1.5, label="correction begins")
            panel.set_title(name)
            panel.set_ylim(0, 1)
        for panel in panels[len(curves) :]:
            panel.set_axis_off()
        figure.supxlabel("epoch", color=_INK, fontsize=9)
        figure.supylabel("IoU with the given labels", color=_INK, fontsize=9)
        shown = {
            label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside upper right", ncols=3)
        figure.savefig(path, dpi=110, transparent=True)
