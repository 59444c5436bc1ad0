"""The page of a recipe: its stages, what they scored, and what they made of a few images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labelwise.errors import BadFile, Problem
from labelwise.reports.page import flattened, render, score, write_text
from labelwise.reports.run_page import PAGE, picture_content

RECIPE = "recipe.json"
"""What was called, and the stages in their order."""
STAGE_SHEET = "pictures/stages.png"
"""A few images with the labels that each stage gave them."""

_CAPTION = (
    "Maps: the higher the score, the stronger the color of the class. Hatched: pixels without a label. "
    "Truth: the masks of the data set, which a stage sees only where the recipe says so."
)
_TONES = {"finished": "good", "stopped": "bad"}


def write_recipe_report(folder: Path) -> Path:
    """Write `report.html` of a recipe's folder from the files that are there.

    Read are `recipe.json`, the record `<n>-<name>.json` of each stage, and the pictures of the recipe and its stages.

    Args:
        folder: the folder that `labelwise run` wrote.

    Returns:
        the page's path.

    Raises:
        BadFile: one of the files cannot be read as what its name says.
    """
    recipe = _mapping(folder / RECIPE)
    stages = [_stage(folder, number, stage) for number, stage in enumerate(recipe["stages"], start=1)]
    sheet = folder / STAGE_SHEET
    page = render(
        "recipe.html",
        title=recipe["recipe"],
        about=recipe["about"],
        badges=[f"{name} {recipe[name]}" for name in ("data", "preset", "seed") if recipe[name] is not None],
        tiles=[
            {
                "name": f"{stage['score']['name']} of {stage['scored']}",
                "value": score(stage["score"]["value"]),
                "unit": "%",
            }
            for stage in reversed(stages)
            if stage["score"]
        ],
        notes=[f"Stage '{stage['name']}' stopped: {stage['reason']}" for stage in stages if stage["reason"]],
        stages=stages,
        sheet=picture_content(sheet) | {"caption": _CAPTION} if sheet.is_file() else None,
        text=recipe["text"],
        command=shlex.join(recipe["command"]),
    )
    return write_text(folder / PAGE, page)


def _stage(folder: Path, number: int, stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's row and its pictures."""
    own = folder / stage["folder"]
    record = _mapping(own.with_name(f"{own.name}.json"))
    status = record.get("status", "not run")
    return {
        **stage,
        "number": number,
        "scored": stage["subject"] if stage["kind"] == "evaluate" else stage["name"],
        "status": status,
        "tone": _TONES.get(status, ""),
        "reason": record.get("reason") if status == "stopped" else None,
        "seconds": record.get("seconds"),
        "score": record.get("score"),
        "settings": flattened(record.get("settings", stage["settings"])),
        "page": f"{stage['folder']}/{PAGE}" if (own / PAGE).is_file() else None,
        "pictures": [
            {**content, "caption": f"{stage['name']}: {content['caption']}"}
            for content in map(picture_content, sorted([*own.glob("*.png"), *own.glob("pictures/*.png")]))
        ],
    }


def _mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadFile(Problem(path, f"not readable ({error})", "delete it")) from error
    if not isinstance(content, dict):
        raise BadFile(Problem(path, "does not hold names and values", "delete it"))
    return content
