"""What the benchmarks share: times of calls in turn, their medians, and a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table


def times_ms(
    functions: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """The times of all calls that count, in milliseconds.

    The functions take turns, so that a machine that is busy for a while slows all of them.

    Args:
        functions: name -> what to time.
        repetitions: calls of each that count.
        clock: seconds; `time.process_time` counts the processor's time of all threads instead of wall time.
        warm_up: calls of each that do not count.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warm_up + repetitions):
        for name, function in functions.items():
            start = clock()
            function()
            taken = clock() - start
            if round_number >= warm_up:
                times[name].append(1000 * taken)
    return times


def medians_ms(
    functions: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 1,
) -> dict[str, float]:
    """The median time of a call in milliseconds; the arguments are those of `times_ms`."""
    return {name: statistics.median(taken) for name, taken in times_ms(functions, repetitions, clock, warm_up).items()}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text; the first column is aligned left, numbers right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
