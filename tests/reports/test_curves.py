"""Charts as inline SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from labelwise.reports.curves import bar_chart_with_points, line_chart

HOSTILE = '<script>alert("1")</script> $x_1$ --> &'


@pytest.fixture(scope="module")
def lines() -> str:
    series = {"loss": ([0, 1, 2], [3.0, 2.0, 1.0]), HOSTILE: ([0, 1, 2], [2.0, 2.5, 1.0])}
    return line_chart(series, HOSTILE, "loss", HOSTILE, bands={"loss": ([2.0, 1.0, 0.5], [4.0, 3.0, 2.0])})


def test_chart_is_one_well_formed_svg_element(lines: str) -> None:
    root = ElementTree.fromstring(lines)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == HOSTILE


def test_names_are_text_and_never_markup(lines: str) -> None:
    assert "<script" not in lines
    assert any("$x_1$" in (element.text or "") for element in ElementTree.fromstring(lines).iter())


def test_chart_asks_for_nothing_and_follows_the_page(lines: str) -> None:
    assert not re.search(r'(?:href|src)="(?!#)', lines)
    assert "@import" not in lines and "font-face" not in lines
    assert "var(--chart-ink," in lines and "var(--chart-0," in lines and "var(--chart-1," in lines
    assert not re.search(r"fill: #ffffff", lines)


def test_references_resolve_and_ids_differ_between_charts(lines: str) -> None:
    other = line_chart({"a": ([0, 1], [0.0, 1.0])}, "step", "a", "a")
    identifiers, others = (set(re.findall(r'\bid="([^"]+)"', chart)) for chart in (lines, other))
    assert not identifiers & others
    references = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', lines))
    assert references
    assert {first or second for first, second in references} <= identifiers


def test_same_input_gives_the_same_chart() -> None:
    charts = {line_chart({"a": ([0, 1], [0.0, 1.0])}, "step", "a", "a") for _ in range(2)}
    assert len(charts) == 1


def test_error_bars_are_drawn_where_there_is_an_interval() -> None:
    series = {"cps": ([92, 183], [40.0, 50.0])}
    without = line_chart(series, "images", "IoU", "t", errors={"cps": [None, None]})
    wide = line_chart(series, "images", "IoU", "t", errors={"cps": [20.0, 20.0]})
    assert without != wide


def tick_texts(chart: str) -> list[str]:
    """The texts of the x axis from left to right."""
    (axis,) = (group for group in ElementTree.fromstring(chart).iter() if (group.get("id") or "").endswith("axis_1"))
    return [element.text or "" for element in axis.iter() if element.tag.endswith("text")]


def test_error_bars_of_several_series_stand_beside_each_other_and_within_the_axes() -> None:
    series = {name: ([10.0, 20.0], [40.0, 50.0]) for name in ("supervised", "cps")}
    chart = line_chart(series, "images", "IoU", "t", errors={"supervised": [2.0, 2.0], "cps": [2.0, 25.0]})
    lines = re.findall(
        r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n" clip-path[^>]*stroke: var\(--chart-[01]', chart
    )
    places = sorted({float(x) for x, _, end, _ in lines if x == end})
    assert len(places) == 4
    assert [b - a for a, b in zip(places[::2], places[1::2], strict=True)] == pytest.approx([4.0, 4.0], abs=0.01)
    drawn = [text.text for text in ElementTree.fromstring(chart).iter() if text.tag.endswith("text")]
    assert "70" in drawn and "40" in drawn and "0" not in drawn


def test_given_ticks_replace_round_numbers() -> None:
    series = {"cps": ([11.0, 42.0, 330.0], [40.0, 50.0, 60.0])}
    ticks = {11.0: "11", 42.0: "42", 330.0: "330"}
    assert tick_texts(line_chart(series, "images", "IoU", "t", ticks=ticks, log_x=True)) == [
        "11",
        "42",
        "330",
        "images",
    ]


def test_a_tick_text_without_room_is_left_out_and_the_last_one_stays() -> None:
    ticks = {1.0: "1,000", 2.0: "2,000", 100.0: "100,000"}
    series = {"cps": (list(ticks), [40.0, 50.0, 60.0])}
    assert tick_texts(line_chart(series, "x", "y", "t", ticks=ticks)) == ["2,000", "100,000", "x"]
    assert tick_texts(line_chart(series, "x", "y", "t", ticks=ticks, log_x=True)) == ["1,000", "2,000", "100,000", "x"]


def test_a_logarithmic_axis_sets_equal_ratios_equally_far_apart() -> None:
    series = {"cps": ([10.0, 100.0, 1000.0], [40.0, 41.0, 42.0])}
    (places,) = re.findall(
        r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \n"',
        line_chart(series, "x", "y", "t", log_x=True),
    )
    first, second, third = map(float, places)
    assert third - second == pytest.approx(second - first)


def test_bars_show_each_seed() -> None:
    chart = bar_chart_with_points({"supervised": [40.0, 42.0, 43.0], "cps": [46.0]}, "mean IoU (%)", "masks:1/16")
    circles = re.findall(r"<use ", chart)
    few = re.findall(r"<use ", bar_chart_with_points({"supervised": [40.0], "cps": [46.0]}, "mean IoU (%)", "t", 60))
    ElementTree.fromstring(chart)
    assert len(circles) >= len(few) + 2


def test_a_name_keeps_its_color_in_charts_of_which_some_lack_another() -> None:
    alone = bar_chart_with_points({"cps": [46.0]}, "mean IoU (%)", "tags", order=["supervised", "cps"])
    assert "var(--chart-1," in alone and "var(--chart-0," not in alone


def test_empty_charts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        line_chart({}, "x", "y", "t")
    with pytest.raises(ValueError, match="at least one"):
        bar_chart_with_points({}, "x", "t")
