"""The section of a run's page on detection: precision over recall, the protocols side by side, recall of proposals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from labelwise.reports.curves import Curve, line_chart
from labelwise.reports.page import is_number, score
from labelwise.reports.pseudo_labels_page import MOST_CLASSES

PROTOCOL_NAMES = {"sds": "SDS", "mnc": "MNC", "ese_seg": "ESE-Seg, of convex hulls"}
OVERLAP_NAMES = {"0.5": "at 0.5", "0.7": "at 0.7", "vol": "mean of 0.1 to 0.9"}
_PERCENT = (-3.0, 103.0)

Content = dict[str, Any]


def detection_section(results: Mapping[str, Any], score_names: Mapping[str, str]) -> Content:
    """What the page shows of `DetectionScores`, `InstanceScores` and `ProposalRecall`.

    Args:
        results: of the run; everything but `curves`, `map_r`, `boxes` and `proposals` is left to the rest of the page.
        score_names: how the keys of a result are written out.

    Returns:
        `charts`, and `tables`, each with `title`, `columns` and `rows` of `name` and `values` as texts.
    """
    boxes = results.get("boxes", {})
    charts = [
        *_precision_recall(results, "masks" if "map_r" in results else "boxes"),
        *_precision_recall(boxes, "boxes"),
        *_proposal_recall(results.get("proposals", {})),
    ]
    tables = [_region_table(results.get("map_r", {})), _box_table(boxes, score_names)]
    return {"charts": charts, "tables": [table for table in tables if table["rows"]]}


def _precision_recall(results: Mapping[str, Any], what: str) -> list[Content]:
    """The curves of the classes, of many those with the lowest average precision."""
    curves: dict[str, Curve] = {
        name: (curve["recall"], curve["precision"]) for name, curve in results.get("curves", {}).items()
    }
    found = {name: curve for name, curve in curves.items() if curve[0]}
    if not found:
        return []
    worst = sorted(found, key=lambda name: results["ap"][name])[:MOST_CLASSES]
    shown = {name: curve for name, curve in found.items() if name in worst}
    captions = []
    if len(shown) < len(found):
        captions.append(f"The {len(shown)} of {len(found)} classes with the lowest average precision.")
    if missed := [name for name in curves if name not in found]:
        captions.append(f"No object found: {', '.join(missed)}.")
    title = f"Precision and recall of {what} at an overlap of 0.5"
    svg = line_chart(shown, "recall (%)", "precision (%)", title, xlim=_PERCENT, ylim=_PERCENT)
    return [{"svg": Markup(svg), "caption": " ".join(captions)}]


def _proposal_recall(proposals: Mapping[str, Any]) -> list[Content]:
    if not proposals:
        return []
    series: dict[str, Curve] = {
        f"IoU {threshold}": ([float(number) for number in recall], list(recall.values()))
        for threshold, recall in proposals["recall"].items()
    }
    numbers = {float(number): number for recall in proposals["recall"].values() for number in recall}
    title = "Objects covered by the best proposals"
    svg = line_chart(
        series, "proposals per image, logarithmic", "recall (%)", title, ticks=numbers, log_x=True, ylim=_PERCENT
    )
    caption = (
        f"{proposals['mean_number']:,.0f} proposals per image on average; mean average best overlap "
        f"{proposals['mabo']:.1f} %."
    )
    return [{"svg": Markup(svg), "caption": caption}]


def _region_table(variants: Mapping[str, Mapping[str, float]]) -> Content:
    rows = [
        {"name": PROTOCOL_NAMES[variant], "values": [score(values[overlap]) for overlap in OVERLAP_NAMES]}
        for variant, values in variants.items()
    ]
    return {"title": "APʳ by protocol", "columns": list(OVERLAP_NAMES.values()), "rows": rows}


def _box_table(boxes: Mapping[str, Any], score_names: Mapping[str, str]) -> Content:
    rows = [
        {"name": name, "values": [score(boxes[key])]} for key, name in score_names.items() if is_number(boxes.get(key))
    ]
    return {"title": "Boxes around the shapes", "columns": ["percent"], "rows": rows}
