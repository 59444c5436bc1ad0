"""The report of a comparison and its table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labelwise.costs import cost_table
from labelwise.reports.compare_page import comparison_csv, comparison_markdown, comparison_table, write_compare_report
from labelwise.reports.statistics import mean_interval

Read = Callable[[Path], Any]
HOSTILE = '<script>alert("1")</script>'


def comparison(seeds: int = 3, labels: tuple[str, ...] = ("masks:1/16",)) -> dict[str, Any]:
    runs = [
        {
            "method": method,
            "labels": spec,
            "seed": seed,
            "score": 40.0 + 10 * seed + gain + 5 * budget,
            "iou": {"cat": 50.0 + gain, HOSTILE: 30.0, "boat": None},
            "folder": f"runs/{method} {seed}",
            "seconds": 100.0,
            "steps": 200,
            "peak_memory_mb": 900.0 + seed,
            "labeled": 92 * (budget + 1),
            "unlabeled": 1000,
        }
        for budget, spec in enumerate(labels)
        for method, gain in (("supervised", 0.0), ("cps", 6.0))
        for seed in range(seeds)
    ]
    return {
        "data": "VOC2012",
        "task": "semantic segmentation",
        "metric": "miou",
        "labels": list(labels),
        "methods": ["supervised", "cps"],
        "runs": runs,
        "baseline": "supervised",
        "command": "labelwise compare supervised cps",
    }


def test_table_pairs_by_seed() -> None:
    baseline, cps = comparison_table(comparison())
    assert (baseline["mean"], baseline["difference"], baseline["seeds"]) == (50.0, None, 3)
    assert baseline["half_width"] == mean_interval([40.0, 50.0, 60.0]).half_width
    assert (cps["difference"], cps["difference_half_width"], cps["pairs"]) == (6.0, 0.0, 3)
    assert (cps["labeled"], cps["seconds"], cps["peak_memory_mb"]) == (92, 100.0, 902.0)


def test_seeds_without_partner_are_in_no_difference() -> None:
    content = comparison()
    next(run for run in content["runs"] if run["method"] == "supervised" and run["seed"] == 1)["score"] = None
    baseline, cps = comparison_table(content)
    assert (baseline["seeds"], cps["seeds"], cps["pairs"]) == (2, 3, 2)


def test_method_without_a_score_has_no_row(tmp_path: Path, read_page: Read) -> None:
    content = comparison()
    for run in content["runs"]:
        if run["method"] == "cps":
            run["score"] = None
    assert [row["method"] for row in comparison_table(content)] == ["supervised"]
    assert "3 of 6 runs gave no score" in read_page(write_compare_report(tmp_path, content)).text


def test_page_shows_table_interval_and_honest_notes(tmp_path: Path, read_page: Read) -> None:
    page = read_page(write_compare_report(tmp_path, {**comparison(), "scale": "mini"}))
    for part in (
        "50.00 ± 24.84",
        "+6.00 ± 0.00",
        "baseline",
        "at mini scale",
        "not the numbers of the papers",
        HOSTILE,
    ):
        assert part in page.text
    assert "labelwise compare supervised cps" in page.text
    assert page.tags.count("svg") == 1


def test_one_seed_has_no_interval(tmp_path: Path, read_page: Read) -> None:
    content = comparison(seeds=1)
    text = read_page(write_compare_report(tmp_path, content)).text
    assert "one seed: no interval" in text.lower()
    assert "±" not in text
    assert "40.00 (one seed: no interval)" in comparison_markdown(content)


def test_several_budgets_are_drawn_over_the_number_of_labels(tmp_path: Path, read_page: Read) -> None:
    content = comparison(labels=("masks:1/16", "masks:1/8"))
    assert read_page(write_compare_report(tmp_path, content)).tags.count("svg") == 3
    for run in content["runs"]:
        run["labeled"] = 92
    page = read_page(write_compare_report(tmp_path, content))
    assert page.tags.count("svg") == 2


def costed(
    labels: dict[str, dict[str, int]], minutes: list[float], own: dict[str, float] | None = None
) -> dict[str, Any]:
    """A comparison over budgets with these annotations and minutes."""
    content = comparison(labels=tuple(labels))
    for run in content["runs"]:
        run["annotations"] = labels[run["labels"]]
        run["annotation_minutes"] = minutes[list(labels).index(run["labels"])]
    return content | {"costs": cost_table(own or {})}


def test_times_that_were_measured_are_told_from_published_ones(tmp_path: Path, read_page: Read) -> None:
    content = costed({"points:20": {"points": 40}, "masks:1/8": {"masks": 184}}, [1.0, 735.0])
    content["costs"]["points"] = 1.23456
    content["measured_costs"] = {"points": 1.23456}
    text = read_page(write_compare_report(tmp_path, content)).text
    assert "an estimate, not a measurement" in text
    assert "points 1.235 s per click (measured when this data set was labeled)" in text
    assert "masks 239.7 s per image (Bearman et al., ECCV 2016)" in text


MASKS = {"masks:1/16": {"masks": 92}, "masks:1/8": {"masks": 184}}


def test_budgets_of_one_kind_are_drawn_over_images_and_over_minutes(tmp_path: Path, read_page: Read) -> None:
    page = read_page(write_compare_report(tmp_path, costed(MASKS, [367.54, 735.08])))
    assert page.tags.count("svg") == 4
    assert "Score over labeled images" in page.text and "Score over annotation minutes" in page.text
    assert "logarithmic" not in page.text
    assert (
        "annotation minutessupervised, %cps, % masks:1/1692368 50.00 ± 24.8456.00 ± 24.84 masks:1/8184735" in page.text
    )


def test_budgets_far_apart_have_a_logarithmic_axis(tmp_path: Path, read_page: Read) -> None:
    text = read_page(write_compare_report(tmp_path, costed(MASKS, [100.0, 801.0]))).text
    assert "annotation minutes, logarithmic" in text and "labeled images, logarithmic" not in text
    assert "logarithmic" not in read_page(write_compare_report(tmp_path, costed(MASKS, [0.0, 801.0]))).text


def test_budgets_of_different_kinds_share_only_the_axis_of_minutes(tmp_path: Path, read_page: Read) -> None:
    content = costed({"masks:1/16": {"masks": 92}, "tags": {"tags": 1464}}, [367.54, 488.0])
    page = read_page(write_compare_report(tmp_path, content))
    assert page.tags.count("svg") == 3
    assert "Score over annotation minutes" in page.text and "Score over labeled images" not in page.text


def test_a_combination_that_was_not_run_is_left_out(tmp_path: Path, read_page: Read) -> None:
    content = costed({"tags": {"tags": 1464}, "masks:1/16": {"masks": 92}}, [488.0, 367.54])
    content["runs"] = [run for run in content["runs"] if (run["labels"], run["method"]) != ("tags", "supervised")]
    (tags, _, _) = comparison_table(content)
    assert (tags["method"], tags["difference"], tags["pairs"]) == ("cps", None, None)
    assert comparison_markdown(content).splitlines()[2].startswith("| tags | cps | 3 | 56.00 ± 24.84 |  | 92 |")
    assert next(csv.DictReader(io.StringIO(comparison_csv(content))))["difference"] == ""
    page = read_page(write_compare_report(tmp_path, content))
    assert "Not every method was run on all of these labels" in page.text and "no common seed" not in page.text
    assert page.tags.count("svg") == 3 and "Score over annotation minutes" in page.text


def test_one_budget_has_minutes_but_no_chart_of_budgets(tmp_path: Path, read_page: Read) -> None:
    page = read_page(write_compare_report(tmp_path, costed({"masks:1/16": {"masks": 92}}, [367.54])))
    assert page.tags.count("svg") == 1 and "Label budgets" not in page.text
    assert "92 labeled images, 1,000 bare · 368 minutes of annotation" in page.text


def test_the_page_tells_what_the_minutes_rest_on(tmp_path: Path, read_page: Read) -> None:
    content = costed({"masks:1/16": {"masks": 92}, "boxes": {"boxes": 9}}, [367.54, 1.05], {"boxes": 7.0})
    text = read_page(write_compare_report(tmp_path, content)).text
    assert (
        "an estimate, not a measurement: masks 239.7 s per image (Bearman et al., ECCV 2016); "
        "boxes 7 s per box (given by --cost)." in text
    )
    assert "estimate" not in read_page(write_compare_report(tmp_path, comparison())).text


def test_minutes_are_the_mean_over_seeds() -> None:
    content = costed({"boxes": {"boxes": 9}}, [0.0])
    for run in content["runs"]:
        run["annotation_minutes"] = 3.0 + run["seed"]
    assert [row["annotation_minutes"] for row in comparison_table(content)] == [4.0, 4.0]
    (row, _) = csv.DictReader(io.StringIO(comparison_csv(content)))
    assert (row["labeled"], row["annotation_minutes"]) == ("92", "4.0")


def test_a_command_of_words_is_shown_as_typed(tmp_path: Path, read_page: Read) -> None:
    content = comparison() | {"command": ["labelwise", "compare", "cps", "--data", "my data"]}
    assert "labelwise compare cps --data 'my data'" in read_page(write_compare_report(tmp_path, content)).text


def test_runs_are_linked_where_their_report_exists(tmp_path: Path, read_page: Read) -> None:
    content = comparison()
    content["runs"][0]["folder"] = str(tmp_path / "runs" / "supervised 0")
    for seed in (0, 1):
        report = tmp_path / "runs" / f"supervised {seed}" / "report.html"
        report.parent.mkdir(parents=True)
        report.touch()
    page = read_page(write_compare_report(tmp_path, content))
    links = [address for address in page.addresses if address.endswith(".html")]
    assert links == ["runs/supervised%200/report.html", "runs/supervised%201/report.html"]


def test_side_by_side_pictures_come_with_the_page(tmp_path: Path, read_page: Read) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("side_by_side", "failures"):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / f"{name}.png")
    page = read_page(write_compare_report(tmp_path, comparison()))
    assert page.tags.count("img") == 2
    assert "Side by side" in page.text and "failures" in page.text


def test_runs_that_hold_the_least_suffice(tmp_path: Path, read_page: Read) -> None:
    content = comparison(seeds=1)
    content["runs"] = [{name: run[name] for name in ("method", "labels", "seed", "score")} for run in content["runs"]]
    del content["command"]
    assert "46.00" in read_page(write_compare_report(tmp_path, content)).text


def test_csv_reads_back_as_the_table() -> None:
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison()))))
    assert [row["method"] for row in rows] == ["supervised", "cps"]
    assert float(rows[1]["difference"]) == 6.0
    assert rows[0]["difference"] == ""


def test_markdown_has_a_row_per_method() -> None:
    lines = comparison_markdown(comparison()).splitlines()
    assert len(lines) == 4
    assert lines[3] == "| masks:1/16 | cps | 3 | 56.00 ± 24.84 | +6.00 ± 0.00 | 92 | – |"
    assert lines[0].endswith("| labeled images | annotation minutes |")


@pytest.mark.parametrize("metric", ["map", "something_new"])
def test_other_metrics_keep_their_name(tmp_path: Path, read_page: Read, metric: str) -> None:
    page = read_page(write_compare_report(tmp_path, {**comparison(), "metric": metric}))
    assert {"map": "mean average precision", "something_new": "something_new"}[metric] in page.text
