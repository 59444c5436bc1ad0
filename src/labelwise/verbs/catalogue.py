"""`labelwise methods`: the catalogue."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from labelwise import methods
from labelwise.errors import UserError, did_you_mean
from labelwise.method import TASKS, Card
from labelwise.supervision import Supervision


def catalogue(name: str | None = None, *, labels: str | None = None, task: str | None = None) -> list[dict[str, Any]]:
    """The methods, or one method's card.

    Args:
        name: one method; all of them unless given.
        labels: only methods that can learn from this label specification, such as `masks:1/8` or `tags`.
        task: only methods of this task, such as `semantic segmentation`.

    Returns:
        For each method that fits `name`, `task`, `needs`, `gives`, `paper` and `year`; with a name also `title`,
        `idea`, `published`, `claim` and `command`.

    Raises:
        UserError: an unknown method, task or label specification.
    """
    if task is not None and task not in TASKS:
        raise UserError(f"--task {task}: no such task{did_you_mean(task, TASKS)}")
    kinds = None if labels is None else Supervision.parse(labels).kinds
    cards = [methods.load(known).card for known in (methods.METHODS if name is None else [name])]
    cards = [card for card in cards if task in (None, card.task) and (kinds is None or card.needs.fit(kinds))]
    return [_summary(card) | ({} if name is None else _details(card)) for card in cards]


def _summary(card: Card) -> dict[str, Any]:
    return {
        "name": card.name,
        "task": card.task,
        "needs": str(card.needs),
        "gives": ", ".join(sorted(card.gives)),
        "paper": card.paper,
        "year": card.year,
    }


def _details(card: Card) -> dict[str, Any]:
    labels = card.claim.labels if card.claim else card.needs.all_labels
    return {
        "title": card.title,
        "idea": card.idea,
        "published": [asdict(number) for number in card.published],
        "claim": card.claim.text if card.claim else None,
        "command": f"labelwise train {card.name} --data DATA --labels {labels}",
    }
