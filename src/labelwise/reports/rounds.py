"""The section of a run's page on rounds: the score by the clicks per image, and what was asked in each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from labelwise.reports.curves import Curve, line_chart
from labelwise.reports.page import DASH, count, is_number, score
from labelwise.reports.pseudo_labels_page import MOST_CLASSES

ROUNDS = "rounds.json"
"""The file in a run's folder that tells of its rounds."""

_COLUMNS = {
    "clicks_per_image": "clicks per image",
    "clicks": "clicks in all",
    "entropy": "mean entropy (nats)",
    "distinct_classes": "classes per image",
    "coverage": "mean distance (px)",
}
_CAPTION = (
    "Of the pixels that were new in the round: the entropy of the model's probabilities there, how many different "
    "classes they show in an image, and how far apart they lie."
)

Content = dict[str, Any]


def rounds_section(recorded: Mapping[str, Any], score_names: Mapping[str, str]) -> Content:
    """What the page shows of `rounds.json`.

    Args:
        recorded: the file's content; empty where a run has no rounds.
        score_names: how the keys of a result are written out.

    Returns:
        `charts`; `columns` and `rows` of `name` and `values` as texts; and the `caption` of this table.
    """
    rounds: Sequence[Mapping[str, Any]] = recorded.get("rounds", ())
    key = next((name for name in score_names if any(is_number(each.get(name)) for each in rounds)), None)
    columns = {**({key: f"{score_names[key]} (%)"} if key else {}), **_COLUMNS}
    rows = [
        {"name": f"round {each['round']}", "values": [_cell(name, each.get(name)) for name in columns]}
        for each in rounds
    ]
    charts = [_score_chart(rounds, key, score_names[key])] if key else []
    if rounds:
        charts.append(_class_chart(rounds))
    return {"charts": charts, "columns": list(columns.values()), "rows": rows, "caption": _CAPTION}


def _cell(name: str, value: Any) -> str:
    if not is_number(value):
        return DASH
    return count(value) if name.startswith("clicks") else score(value)


def _score_chart(rounds: Sequence[Mapping[str, Any]], key: str, name: str) -> Content:
    scored = [each for each in rounds if is_number(each.get(key))]
    curve: Curve = ([each["clicks_per_image"] for each in scored], [each[key] for each in scored])
    ticks = {float(each["clicks_per_image"]): str(each["clicks_per_image"]) for each in rounds}
    svg = line_chart({name: curve}, "clicks per image", f"{name} (%)", "Score by clicks per image", ticks=ticks)
    return {"svg": Markup(svg), "caption": ""}


def _class_chart(rounds: Sequence[Mapping[str, Any]]) -> Content:
    """The share of each class among the new pixels, of many classes those that are asked for most at the end."""
    shares: dict[str, Curve] = {}
    places = [each["clicks_per_image"] for each in rounds]
    last = rounds[-1]["histogram"]
    names = sorted(last, key=lambda name: -last[name])[:MOST_CLASSES]
    for name in names:
        values = [100 * each["histogram"][name] / max(1, sum(each["histogram"].values())) for each in rounds]
        shares[name] = (places, values)
    some = len(names) < len(last)
    caption = f"The {len(names)} of {len(last)} classes with the most new pixels in the last round." if some else ""
    ticks = {float(place): str(place) for place in places}
    svg = line_chart(
        shares, "clicks per image", "percent of the new pixels", "Classes that were asked for", ticks=ticks
    )
    return {"svg": Markup(svg), "caption": caption}
