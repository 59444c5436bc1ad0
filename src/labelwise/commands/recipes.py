"""The command that runs a chain of stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from labelwise.commands.shared import Flat, Json, parsed_options
from labelwise.hardware import Hardware
from labelwise.output import console, print_json, print_rows
from labelwise.stages import shipped_recipes

_HARDWARE = Hardware()
_SHIPPED = "; ".join(f"{name} ({about})" for name, about in shipped_recipes().items())


def run(
    recipe: Annotated[str, Parameter(name="RECIPE", help=f"a YAML file, or a recipe that is shipped: {_SHIPPED}")],
    /,
    *,
    data: Path,
    out: Path | None = None,
    seed: int = 0,
    preset: str | None = None,
    option: list[str] | None = None,
    until: str | None = None,
    hardware: Annotated[Hardware, Flat] = _HARDWARE,
    json: Json = False,
) -> None:
    """Run a recipe: a chain of trainings, labels and scores; the same call again continues.

    A stage that is finished is run again only if its options or what it reads have changed.

    Parameters
    ----------
    data
        the data set's folder; `data` in the recipe
    out
        the folder of all stages and the page [default: runs/RECIPE-DATA-seedN]
    seed
        of everything random
    preset
        mini, small, paper or a YAML file, for every training that names none
    option
        NAME=VALUE for every stage that has this option, or STAGE.NAME=VALUE for one; may be given several times
    until
        the last stage to run [default: all are run]
    """
    from labelwise.verbs.run import run as run_stages

    result = run_stages(
        recipe,
        data=data,
        out=out,
        seed=seed,
        preset=preset,
        options=parsed_options(option or []),
        until=until,
        hardware=hardware,
    )
    if json:
        print_json(result)
        return
    print_rows(
        [
            {
                "stage": stage["name"],
                "kind": stage["kind"],
                "status": stage["status"],
                "seconds": f"{stage['seconds']:.1f}",
                "score": f"{stage['score']['name']} {stage['score']['value']:.2f}" if stage["score"] else "",
            }
            for stage in result["stages"]
        ]
    )
    console.print(f"report with pictures: {result['report']}")
