"""The report of a reproduction."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelwise.reports.reproduce_page import (
    difference_text,
    measured_sides,
    share_text,
    verdict_reason,
    write_reproduce_report,
)
from labelwise.reports.statistics import mean_interval, paired_difference, verdict

Read = Callable[[Path], Any]
HOSTILE = '<script>alert("1")</script>'
SCORES = {"baseline": [40.0, 41.0, 42.0], "method": [50.0, 51.5, 52.0], "ceiling": [60.0, 61.0, 62.0]}


def reproduction(scores: dict[str, list[float] | None] | None = None, **other: Any) -> dict[str, Any]:
    scores = dict(SCORES) if scores is None else scores
    ours, theirs = scores["method"] or [], scores["baseline"] or []
    margin = other.get("margin", 2.0)
    difference = paired_difference(ours, theirs)
    content: dict[str, Any] = {
        "method": "cps",
        "baseline": "supervised",
        "claim": f"Two networks beat one; {HOSTILE}.",
        "scale": "mini",
        "task": "semantic segmentation",
        "metric": "miou",
        "data": "data/VOC2012",
        "scenes": None,
        "preset": "mini",
        "command": ["labelwise", "reproduce", "cps", "--out", "a b"],
        "seeds": len(ours),
        "differences": [left - right for left, right in zip(ours, theirs, strict=True)],
        "difference_mean": difference.mean,
        "difference_half_width": difference.half_width,
        "margin": margin,
        "share_of_gap": 0.51 if scores["ceiling"] else None,
        "verdict": verdict(difference, margin),
        "published": [{"setting": "VOC, ResNet-50", "metric": "mIoU", "value": 68.21, "source": "paper, table 2"}],
        "comparison": "comparison/report.html",
    }
    for side, values in scores.items():
        mean, half_width = mean_interval(values) if values else (None, None)
        name = "cps" if side == "method" else "supervised"
        measured = {"name": name, "labels": "masks:1/16", "scores": values, "mean": mean, "half_width": half_width}
        measured |= {"labeled": 20, "unlabeled": 300, "steps": 450, "seconds": 70.0, "peak_memory_mb": 900}
        content |= {f"{side}_{name}": value for name, value in measured.items()}
    return content | other


def rows(path: Path) -> list[str]:
    """The rows of all tables, with a space between cells."""
    found = re.findall(r"<tr>(.*?)</tr>", path.read_text(), re.S)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in found]


def test_page_tells_claim_verdict_numbers_and_command(tmp_path: Path, read_page: Read) -> None:
    path = write_reproduce_report(tmp_path / "new", reproduction())
    assert path == tmp_path / "new" / "reproduction-cps.html"
    page = read_page(path)
    for part in (
        "cps: the claim holds",
        f"Two networks beat one; {HOSTILE}.",
        "51 %of the gap",
        "at mini scale after 450 steps",
        "not the numbers of the paper",
        "the images of data/VOC2012",
        "labelwise reproduce cps --out 'a b'",
    ):
        assert part in page.text, part
    for row in (
        "seed 1 41.00 51.50 61.00 +10.50",
        "mean 41.00 51.17 61.00 +10.17",
        "95 % interval ± 2.48 ± 2.59 ± 2.48 ± 0.72",
        "method cps masks:1/16 20 300 450 1 min 10 s 900 MB",
    ):
        assert row in rows(path)
    assert page.tags.count("svg") == 1
    assert "comparison/report.html" in page.addresses


def test_published_numbers_are_marked_as_such(tmp_path: Path, read_page: Read) -> None:
    path = write_reproduce_report(tmp_path, reproduction())
    before, after = read_page(path).text.split("published, not measured here")
    assert "68.21" not in before and "68.21" in after
    assert "VOC, ResNet-50 mIoU 68.21 paper, table 2" in rows(path)
    without = read_page(write_reproduce_report(tmp_path, reproduction(published=[]))).text
    assert "published, not measured here" not in without


@pytest.mark.parametrize(
    ("ours", "margin", "tone", "title"),
    [
        ([50.0, 51.5, 52.0], 2.0, "verdict good", "the claim holds"),
        ([40.1, 41.1, 42.0], 2.0, "verdict bad", "the claim does not hold"),
        ([39.0, 45.0, 44.0], 2.0, "verdict ", "the claim is undecided"),
    ],
)
def test_the_badge_shows_the_verdict(
    tmp_path: Path, read_page: Read, ours: list[float], margin: float, tone: str, title: str
) -> None:
    path = write_reproduce_report(tmp_path, reproduction(SCORES | {"method": ours}, margin=margin))
    assert f'class="badge {tone}">{title.split(" ", 2)[2].removeprefix("is ")}<' in path.read_text()
    assert f"cps: {title}" in read_page(path).text


def test_a_claim_without_a_ceiling_has_two_sides_and_no_share(tmp_path: Path, read_page: Read) -> None:
    content = reproduction(SCORES | {"ceiling": None})
    assert [side["role"] for side in measured_sides(content)] == ["baseline", "method"]
    assert "gap" not in read_page(write_reproduce_report(tmp_path, content)).text


def test_a_ceiling_that_is_no_higher_is_told(tmp_path: Path, read_page: Read) -> None:
    text = read_page(write_reproduce_report(tmp_path, reproduction(share_of_gap=None))).text
    assert "The ceiling is not above the baseline" in text and "–of the gap" in text


def test_one_seed_has_no_interval(tmp_path: Path, read_page: Read) -> None:
    content = reproduction({side: values[:1] for side, values in SCORES.items()})
    text = read_page(write_reproduce_report(tmp_path, content)).text
    assert "±" not in text and "1 seed " in text and "without one nothing is decided" in text
    assert difference_text(content) == "+10.00 points (one seed: no interval)"


def test_at_paper_scale_no_margin_is_asked_for(tmp_path: Path, read_page: Read) -> None:
    text = read_page(write_reproduce_report(tmp_path, reproduction(scale="paper", margin=0.0))).text
    assert "the mean difference is above 0" in text and "lies at or below 0" in text
    assert "say nothing about them" not in text and "as the paper prints them" in text


def test_a_loss_that_the_claim_allows_is_told_as_such(tmp_path: Path, read_page: Read) -> None:
    scores = SCORES | {"method": [39.0, 40.0, 41.1], "ceiling": None}
    text = read_page(write_reproduce_report(tmp_path, reproduction(scores, margin=-2.0))).text
    assert "the claim holds" in text
    assert "the mean difference is above -2.00 points and its whole 95 % Student-t interval lies above -2.00 p" in text
    assert "does not hold if the whole interval lies at or below -2.00 points" in text


def test_a_method_and_its_coarser_form_are_told_apart(tmp_path: Path, read_page: Read) -> None:
    content = reproduction(method="fcn", baseline="fcn", baseline_name="fcn, stride 32", method_name="fcn")
    path = write_reproduce_report(tmp_path, content)
    assert "baseline fcn, stride 32 masks:1/16 20 300 450 1 min 10 s 900 MB" in rows(path)
    assert "method fcn masks:1/16 20 300 450 1 min 10 s 900 MB" in rows(path)
    text = read_page(path).text
    assert "%fcn, stride 32 on masks:1/16" in text and "%fcn on masks:1/16" in text


@pytest.mark.parametrize(
    ("mean", "half_width", "margin", "reason"),
    [
        (3.0, 1.0, 2.0, "lies above 0 and the mean is at least the 2.00 points"),
        (3.0, 1.0, 0.0, "lies above 0."),
        (3.0, 1.0, 5.0, "lies below the 5.00 points"),
        (-3.0, 1.0, 0.0, "lies at or below 0."),
        (3.0, 4.0, 2.0, "contains 0; more seeds may decide"),
        (3.0, 1.0, 3.5, "lies above 0, but the mean is below the 3.50 points"),
        (3.0, None, 0.0, "without one nothing is decided"),
        (-1.0, 0.5, -2.0, "lies above -2.00, the loss that the claim allows."),
        (-4.0, 1.0, -2.0, "lies at or below -2.00, the loss that the claim allows."),
        (-2.0, 1.0, -2.0, "contains -2.00, the loss that the claim allows; more seeds may decide"),
    ],
)
def test_the_reason_is_that_of_the_verdict(mean: float, half_width: float | None, margin: float, reason: str) -> None:
    difference = paired_difference([mean], [0.0])._replace(half_width=half_width)
    content = {"difference_mean": mean, "difference_half_width": half_width, "margin": margin}
    assert reason in verdict_reason(content | {"verdict": verdict(difference, margin)})


def test_shares_are_whole_percentages() -> None:
    assert (share_text(0.514), share_text(-0.2), share_text(None)) == ("51 %", "-20 %", "–")
