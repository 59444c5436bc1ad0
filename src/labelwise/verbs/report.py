"""`labelwise report`: the HTML page of runs, comparisons and recipes, written anew from their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labelwise.errors import UserError
from labelwise.reports.compare_page import write_compare_report
from labelwise.reports.recipe_page import RECIPE, write_recipe_report
from labelwise.reports.run_page import write_run_report
from labelwise.runs import CONFIG, read_json
from labelwise.verbs.compare import COMPARISON


def report(runs: Sequence[Path]) -> dict[str, Any]:
    """Write the report page of each folder.

    Args:
        runs: folders of runs, comparisons or recipes.

    Returns:
        `reports`: the pages.

    Raises:
        UserError: a folder is none of these.
    """
    folders = [Path(folder) for folder in runs]
    for folder in folders:
        if not any((folder / file).is_file() for file in (COMPARISON, CONFIG, RECIPE)):
            raise UserError(
                f"{folder}: is neither a run nor a comparison nor a recipe's; name a folder that `train`, `compare` or "
                "`run` wrote"
            )
    return {"reports": [str(_report(folder)) for folder in folders]}


def _report(folder: Path) -> Path:
    if (folder / COMPARISON).is_file():
        return write_compare_report(folder, read_json(folder / COMPARISON))
    if (folder / RECIPE).is_file():
        return write_recipe_report(folder)
    return write_run_report(folder)
