"""Charts as inline SVG whose colors follow the page: dark or light, and told apart by the color-blind."""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labelwise.reports.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

Curve = tuple[Sequence[float], Sequence[float]]

SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0558a", "#b58500", "#3f8fc4", "#7d6b5d", "#5b5fc7")
"""Okabe and Ito's colors, the pale ones darkened for thin lines on white."""

_INK, _GRID = "#5b636d", "#d9dde2"
_MARKERS = "osD^vPX*"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
_WIDTH = 4.5
_LETTER = 0.02
"""The width of a tick's digit as a share of the axis."""
_BESIDE = 4.0
"""Points between the error bars of two series at the same place."""
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "text.color": _INK,
    # A class named "$x" is a name, not a formula.
    "text.parse_math": False,
    "xtick.color": _GRID,
    "xtick.labelcolor": _INK,
    "xtick.labelsize": 8.5,
    "ytick.color": _GRID,
    "ytick.labelcolor": _INK,
    "ytick.labelsize": 8.5,
}


def line_chart(
    series: Mapping[str, Curve],
    xlabel: str,
    ylabel: str,
    title: str,
    bands: Mapping[str, Curve] | None = None,
    errors: Mapping[str, Sequence[float | None]] | None = None,
    ticks: Mapping[float, str] | None = None,
    log_x: bool = False,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
) -> str:
    """Curves over a common axis.

    Args:
        series: name -> (x, y).
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        title: printed above, and read out by screen readers.
        bands: name -> (low, high), a pale band around that series.
        errors: name -> half widths of error bars, None where there is no interval; points are then marked.
        ticks: place on the x axis -> its text, instead of round numbers; a text that its right neighbour leaves no room
            for is not written.
        log_x: draw a logarithmic x axis; every x must then be above zero.
        xlim: the ends of the x axis, instead of those of the data.
        ylim: the ends of the y axis, instead of those of the data.

    Returns:
        an `<svg>` element.

    Raises:
        ValueError: there is no series.
    """
    if not series:
        raise ValueError("a chart needs at least one series")
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        legend_rows = _legend_rows(series) if len(series) > 1 else 0
        figure, axes = _figure(2.9 + 0.19 * legend_rows, title)
        for index, (name, (x, y)) in enumerate(series.items()):
            look: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "label": _shortened(name)}
            dashes = _DASHES[index // len(SERIES) % len(_DASHES)]
            if errors is not None:
                half_widths = [half_width or 0.0 for half_width in errors.get(name, [None] * len(y))]
                look |= {"marker": _MARKERS[index % len(_MARKERS)], "transform": _beside(axes, index, len(series))}
                axes.errorbar(x, y, half_widths, markersize=5, capsize=3, linewidth=1.4, **look)
                # Whatever is drawn beside its place is not counted by the limits of the axes.
                for sign in (-1, 1):
                    ends = [value + sign * half_width for value, half_width in zip(y, half_widths, strict=True)]
                    axes.update_datalim(list(zip(x, ends, strict=True)))
            else:
                marker = "o" if len(y) <= 12 else ""
                axes.plot(x, y, marker=marker, markersize=3.5, linewidth=1.5, linestyle=dashes, **look)
            if bands and name in bands:
                axes.fill_between(x, *bands[name], color=look["color"], alpha=0.16, linewidth=0)
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear")
        axes.autoscale_view()
        axes.set(xlim=xlim or axes.get_xlim(), ylim=ylim or axes.get_ylim())
        axes.grid(True)
        if ticks:
            _set_ticks(axes, ticks)
        if len(series) > 1:
            columns = _legend_columns(series)
            figure.legend(loc="outside lower left", ncols=columns, handlelength=1.8, columnspacing=1.2)
        return _svg(figure, title)


def bar_chart_with_points(
    values: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str,
    highest: float | None = None,
    order: Sequence[str] | None = None,
) -> str:
    """A horizontal bar per name: its mean, its 95 % interval, and a dot for each value.

    Args:
        values: name -> the values of its seeds.
        xlabel: what the values are, with their unit.
        title: printed above, and read out by screen readers.
        highest: end of the axis, for charts that stand side by side.
        order: all names of these charts, by which a name has the same color in each of them.

    Returns:
        an `<svg>` element.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("a chart needs at least one bar")
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(0.95 + 0.42 * len(values), title)
        places = list(order or values)
        for index, (name, scores) in enumerate(values.items()):
            color = SERIES[places.index(name) % len(SERIES)]
            mean, half_width = mean_interval(scores)
            axes.barh(index, mean, height=0.62, color=color, alpha=0.28, linewidth=0)
            axes.plot([mean, mean], [index - 0.31, index + 0.31], color=color, linewidth=2)
            if half_width is not None:
                axes.errorbar(mean, index, xerr=half_width, color=color, capsize=4, linewidth=1.4, zorder=3)
            # Seeds are spread in height so that equal values stay countable.
            heights = [index + 0.17 * (2 * seed / max(1, len(scores) - 1) - 1) for seed in range(len(scores))]
            spread = heights if len(scores) > 1 else [index]
            axes.plot(scores, spread, "o", color=color, markersize=4.5, alpha=0.85, markeredgewidth=0, zorder=4)
        axes.set_yticks(range(len(values)), [_shortened(name) for name in values])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(left=min(0, axes.get_xlim()[0]), right=highest)
        axes.set_xlabel(xlabel)
        axes.grid(True, axis="x")
        return _svg(figure, title)


def _figure(height: float, title: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_shortened(title, 60))
    return figure, axes


def _beside(axes: Axes, index: int, number: int) -> Transform:
    """The data's place, moved by some points so that the error bars of several series stand beside each other."""
    from matplotlib.transforms import ScaledTranslation

    points = _BESIDE * (index - (number - 1) / 2)
    assert axes.figure is not None
    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def _set_ticks(axes: Axes, ticks: Mapping[float, str]) -> None:
    """Ticks at these places, with the texts that fit beside each other; the last one always does."""
    places = sorted(ticks)
    shares = (axes.transData + axes.transAxes.inverted()).transform([(place, 0.0) for place in places])[:, 0]
    texts: list[str] = []
    room = float("inf")
    for place, share in zip(reversed(places), reversed(shares), strict=True):
        half = _LETTER * (len(ticks[place]) + 1) / 2
        fits = share + half <= room
        texts.append(ticks[place] if fits else "")
        room = share - half if fits else room
    axes.set_xticks(places, texts[::-1])
    axes.minorticks_off()


def _legend_columns(names: Mapping[str, Any]) -> int:
    longest = max(len(_shortened(name)) for name in names)
    return max(1, min(len(names), 58 // (longest + 6)))


def _legend_rows(names: Mapping[str, Any]) -> int:
    return -(-len(names) // _legend_columns(names))


def _shortened(name: str, width: int = 28) -> str:
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 1] + "…"


def _svg(figure: Figure, title: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    # A glyph that the measuring font lacks is drawn by the browser's own fonts.
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "labelwise"}):
        warnings.filterwarnings("ignore", message=".*Glyph")
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _inlined(buffer.getvalue(), title)


def _inlined(document: str, title: str) -> str:
    """Make matplotlib's SVG file a part of a page: fluid, unique ids, colors and font of the page."""
    body = document[document.index("<svg") :]
    prefix = "c" + hashlib.sha256(document.encode()).hexdigest()[:10]
    colors = {_INK: "ink", _GRID: "grid", **{color: str(index) for index, color in enumerate(SERIES)}}

    def adapted(tag: re.Match[str]) -> str:
        text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{prefix}-", tag[0])
        text = re.sub("|".join(colors), lambda color: f"var(--chart-{colors[color[0]]}, {color[0]})", text)
        return text.replace("'DejaVu Sans'", "system-ui, sans-serif")

    body = re.sub(r"<[^>]+>", adapted, body)
    label = html.escape(title, quote=True)
    return re.sub(
        r'^<svg [^>]*?(viewBox="[^"]+")[^>]*>',
        lambda match: (
            f'<svg class="chart" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" {match[1]}>'
        ),
        body,
        count=1,
    )
