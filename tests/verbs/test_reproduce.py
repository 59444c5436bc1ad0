from __future__ import annotations

import json
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelwise import methods
from labelwise.checkpoints import Interrupted
from labelwise.errors import UserError
from labelwise.method import Claim
from labelwise.reports.statistics import paired_difference, verdict
from labelwise.verbs import reproduce as module
from labelwise.verbs import train as train_module
from labelwise.verbs.compare import Form
from tests.conftest import TINY_OPTIONS, Called

Call = Callable[..., Called]

SCENES = {"size": 48, "train": 12, "val": 4}
OWN = ("--option", "cps.cutmix=false")
CLAIM = Claim(
    "Two networks see more than one.",
    baseline="supervised",
    labels="masks:1/2",
    paper_labels="masks:blender/1_16",
    margin=1.5,
    ceiling="masks:all",
    scenes=SCENES,
)
FOLDER = Path("shapes-size-48-train-12-val-4", "mini-masks-1-2")
TINY = FOLDER.with_name("tiny-masks-1-2")


def set_claim(patch: pytest.MonkeyPatch, name: str, claim: Claim | None) -> None:
    method = methods.load(name)
    patch.setattr(method, "card", replace(method.card, claim=claim))


@pytest.fixture(autouse=True)
def small_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cps", "supervised"):
        set_claim(monkeypatch, name, CLAIM)


def words(out: Path, *more: object) -> list[object]:
    """The rest of a call after the name of the method, for runs of less than a second."""
    preset = out.with_name("tiny.yaml")
    preset.write_text(yaml.safe_dump(TINY_OPTIONS | {"steps": 2}))
    return ["--out", out, "--seeds", 2, "--preset", preset, "--workers", 0, *more]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished reproduction of `cps`; a test may add those of other methods."""
    from labelwise.cli import main

    out = tmp_path_factory.mktemp("reproductions") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cps", "supervised"):
            set_claim(patch, name, CLAIM)
        # The pages of the runs would take longer than the runs.
        patch.setattr("labelwise.verbs.train.write_run_report", lambda folder: None)
        code = main(["reproduce", "cps", *map(str, words(out, *OWN))])
    assert code == (0 if stored(out, "cps")["verdict"] == "holds" else 1)
    yield out


def stored(out: Path, method: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / TINY / f"reproduction-{method}.json").read_text())
    return content


def score_of(out: Path, method: str, labels: str, seed: int) -> float:
    run = out / TINY / "comparison" / "runs" / f"{method}-data-{labels}-seed{seed}"
    score: float = json.loads((run / "results.json").read_text())["miou"]
    return score


def test_method_baseline_and_ceiling_are_scored_on_every_seed(reproduced: Path) -> None:
    content = stored(reproduced, "cps")
    sides = {"baseline": ("supervised", "masks-1-2"), "method": ("cps", "masks-1-2")}
    for side, (name, labels) in (sides | {"ceiling": ("supervised", "masks-all")}).items():
        scores = [score_of(reproduced, name, labels, seed) for seed in (0, 1)]
        assert content[f"{side}_scores"] == scores
        assert content[f"{side}_mean"] == pytest.approx(statistics.fmean(scores))
        assert content[f"{side}_labeled"] == (6 if labels == "masks-1-2" else 12)
        assert content[f"{side}_steps"] == 2 and content[f"{side}_seconds"] > 0
    assert [content[f"{side}_labels"] for side in ("baseline", "method", "ceiling")] == [
        "masks:1/2",
        "masks:1/2",
        "masks:all",
    ]
    assert not (reproduced / FOLDER / "comparison" / "runs" / "cps-data-masks-all-seed0").exists()


def test_difference_share_and_verdict_follow_from_the_scores(reproduced: Path) -> None:
    content = stored(reproduced, "cps")
    difference = paired_difference(content["method_scores"], content["baseline_scores"])
    assert content["difference_mean"] == pytest.approx(statistics.fmean(content["differences"]))
    assert (content["difference_mean"], content["difference_half_width"]) == difference[:2]
    assert content["margin"] == 1.5 and content["verdict"] == verdict(difference, 1.5)
    gap = content["ceiling_mean"] - content["baseline_mean"]
    share = pytest.approx(content["difference_mean"] / gap) if gap > 0 else None
    assert content["share_of_gap"] == share


def test_everything_lies_where_it_says(reproduced: Path) -> None:
    content = stored(reproduced, "cps")
    assert content["claim"] == CLAIM.text and content["scale"] == "mini" and content["options"] == {"cps.cutmix": False}
    assert content["data"] == str((reproduced / TINY.parent / "data").resolve())
    assert content["scenes"] == SCENES and content["seeds"] == 2 and content["metric"] == "miou"
    assert (reproduced / TINY / content["comparison"]).is_file()
    page = (reproduced / TINY / "reproduction-cps.html").read_text()
    assert CLAIM.text in page and 'href="comparison/report.html"' in page and "<svg" in page


def test_the_same_call_again_trains_and_draws_nothing(call: Call, reproduced: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in reproduced.rglob("*") if path.suffix in (".jpg", ".safetensors")
    }
    first = stored(reproduced, "cps")
    again = call("reproduce", "cps", *words(reproduced, *OWN), "--json")
    assert again.err.count("finished already") == 6 and "step " not in again.err and "drawing" not in again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(before) == 16 + 6
    report = str(reproduced / TINY / "reproduction-cps.html")
    assert again.json == first | {"report": report, "command": again.json["command"]}


def test_a_method_that_is_its_own_baseline_compares_labels_and_shares_the_runs(call: Call, reproduced: Path) -> None:
    called = call("reproduce", "supervised", *words(reproduced))
    assert called.err.count("finished already") == 4 and "step " not in called.err
    content, other = stored(reproduced, "supervised"), stored(reproduced, "cps")
    assert content["baseline_scores"] == other["baseline_scores"]
    assert content["method_scores"] == other["ceiling_scores"] and content["method_labels"] == "masks:all"
    assert content["ceiling_scores"] is content["ceiling_mean"] is content["share_of_gap"] is None
    assert "verdict: " in called.out and "share of the gap" not in called.out
    assert called.code == (0 if content["verdict"] == "holds" else 1)


def test_a_cut_reproduction_goes_on_where_it_was(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("labelwise.verbs.train.write_run_report", lambda folder: None)
    train, trained = train_module.train, []

    def cut(name: str, **options: Any) -> dict[str, Any]:
        if len(trained) == 3:
            raise Interrupted(signal.SIGTERM)
        trained.append((name, options["labels"], options["seed"]))
        return train(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train", cut)
        assert call("reproduce", "cps", *words(tmp_path / "out")).code == 143
    assert trained == [("supervised", "masks:1/2", 0), ("cps", "masks:1/2", 0), ("supervised", "masks:1/2", 1)]
    assert not list(tmp_path.rglob("reproduction-*"))
    called = call("reproduce", "cps", *words(tmp_path / "out"))
    assert called.code in (0, 1) and called.err.count("finished already") == 3
    assert len(stored(tmp_path / "out", "cps")["ceiling_scores"]) == 2


def test_scenes_that_are_incomplete_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Path] = []
    shapes = module.shapes
    monkeypatch.setattr(module, "shapes", lambda folder, options: drawn.append(folder) or shapes(folder, options))
    options = module.ShapesOptions(size=48, train=2, val=1)
    for _ in range(2):
        assert module._drawn(tmp_path / "data", options) == tmp_path / "data"
    assert len(drawn) == 1
    for path in (tmp_path / "data").rglob("val.txt"):
        path.unlink()
    module._drawn(tmp_path / "data", options)
    assert len(drawn) == 2 and list((tmp_path / "data").rglob("val.txt"))


class Compared:
    """Stands for `compare`: scores by method and labels instead of training; notes how it was called."""

    def __init__(self, scores: Mapping[tuple[str, str], Sequence[float]]) -> None:
        self.scores = scores
        self.calls: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []

    def __call__(self, names: Sequence[str], *, labels: Sequence[str], **call: Any) -> dict[str, Any]:
        self.calls.append({"names": list(names), "labels": list(labels), **call})
        for spec in labels:
            for name in names:
                scores = self.scores[name, spec]
                self.runs += [
                    {"method": name, "labels": spec, "seed": seed, "score": score, "seconds": 10.0 * seed}
                    for seed, score in enumerate(scores)
                ]
        return {
            "task": "semantic segmentation",
            "metric": "miou",
            "precision": "32-true",
            "labels": list(dict.fromkeys(run["labels"] for run in self.runs)),
            "methods": list(dict.fromkeys(run["method"] for run in self.runs)),
            "baseline": names[0],
            "runs": self.runs,
        }


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Compared]:
    """Let `reproduce` compare these scores."""

    def patch(
        baseline: Sequence[float], ours: Sequence[float], ceiling: Sequence[float], labels: str = "masks:1/2"
    ) -> Compared:
        scores = {("supervised", labels): baseline, ("cps", labels): ours, ("supervised", "masks:all"): ceiling}
        stand_in = Compared(scores)
        monkeypatch.setattr(module, "compare", stand_in)
        monkeypatch.setattr(module, "shapes", lambda folder, options: None)
        return stand_in

    return patch


@pytest.mark.parametrize(
    ("ours", "decided", "code", "share"),
    [
        ([12.0, 22.0, 33.0], "holds", 0, "47 %"),
        ([10.5, 20.5, 30.5], "does not hold", 1, "10 %"),
        ([11.0, 22.0, 33.0], "undecided", 1, "40 %"),
        ([9.0, 19.0, 28.0], "does not hold", 1, "-27 %"),
    ],
)
def test_the_exit_code_tells_the_verdict(
    call: Call,
    compared: Callable[..., Compared],
    tmp_path: Path,
    ours: list[float],
    decided: str,
    code: int,
    share: str,
) -> None:
    compared([10.0, 20.0, 30.0], ours, [15.0, 25.0, 35.0])
    called = call("reproduce", "cps", "--out", tmp_path)
    assert called.code == code
    assert f"\nverdict: {decided}\n" in called.out
    assert f"share of the gap to the ceiling: {share}\n" in called.out
    assert called.out.endswith(f"report with charts: {tmp_path / FOLDER / 'reproduction-cps.html'}\n")


def test_one_seed_decides_nothing(call: Call, compared: Callable[..., Compared], tmp_path: Path) -> None:
    compared([10.0], [90.0], [95.0])
    called = call("reproduce", "cps", "--out", tmp_path, "--seeds", 1)
    assert called.code == 1 and "verdict: undecided" in called.out and "±" not in called.out
    assert "difference: +80.00 points (one seed: no interval)" in called.out


def test_seeds_of_an_earlier_call_with_more_are_left_out(
    call: Call, compared: Callable[..., Compared], tmp_path: Path
) -> None:
    compared([10.0, 20.0, 90.0], [13.0, 23.0, 0.0], [40.0, 50.0, 0.0])
    content = call("reproduce", "cps", "--out", tmp_path, "--seeds", 2, "--json").json
    assert content["method_scores"] == [13.0, 23.0] and content["verdict"] == "holds"
    assert (content["baseline_mean"], content["ceiling_mean"], content["method_seconds"]) == (15.0, 45.0, 5.0)
    assert content["share_of_gap"] == pytest.approx(0.1)


def test_a_ceiling_below_the_baseline_leaves_no_gap(
    call: Call, compared: Callable[..., Compared], tmp_path: Path
) -> None:
    compared([10.0, 20.0, 30.0], [12.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert call("reproduce", "cps", "--out", tmp_path, "--json").json["share_of_gap"] is None
    text = call("reproduce", "cps", "--out", tmp_path).out
    assert "The ceiling is not above the baseline" in text and "share of the gap to" not in text


def test_at_paper_scale_the_papers_preset_and_labels_count_and_no_margin(
    call: Call, compared: Callable[..., Compared], tmp_path: Path, shapes_folder: Path
) -> None:
    stand_in = compared([10.0, 20.0, 30.0], [10.5, 20.5, 30.5], [15.0, 25.0, 35.0], labels="masks:blender/1_16")
    called = call("reproduce", "cps", "--scale", "paper", "--data", shapes_folder, "--out", tmp_path, "--json")
    assert called.code == 0 and called.json["margin"] == 0.0 and called.json["scenes"] is None
    assert "note: both methods take their preset 'paper'" in called.err
    first, ceiling = stand_in.calls
    assert first["names"] == ["supervised", "cps"] and first["labels"] == ["masks:blender/1_16"]
    assert ceiling["names"] == ["supervised"] and ceiling["labels"] == ["masks:all"]
    for given in stand_in.calls:
        assert given["preset"] == "paper" and given["data"] == shapes_folder and given["seeds"] == 3
        assert given["out"] == tmp_path / "shapes" / "paper-masks-blender-1-16" / "comparison"


def test_data_labels_and_preset_of_ones_own_have_their_own_folder(
    call: Call, compared: Callable[..., Compared], tmp_path: Path, shapes_folder: Path
) -> None:
    stand_in = compared([10.0, 20.0, 30.0], [12.0, 22.0, 33.0], [15.0, 25.0, 35.0], labels="masks:3")
    mine = ["--data", shapes_folder, "--labels", "masks:3", "--preset", "small", "--out", tmp_path]
    assert call("reproduce", "cps", *mine, "--json").json["margin"] == 1.5
    assert stand_in.calls[0]["preset"] == "small" and stand_in.calls[0]["labels"] == ["masks:3"]
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {f"shapes/small-masks-3/reproduction-cps.{kind}" for kind in ("json", "html")}


def test_the_default_folder_is_named_after_the_scale(
    call: Call, compared: Callable[..., Compared], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    compared([10.0, 20.0, 30.0], [12.0, 22.0, 33.0], [15.0, 25.0, 35.0])
    report = call("reproduce", "cps", "--json").json["report"]
    assert report == str("runs/reproduce-mini" / FOLDER / "reproduction-cps.html")


def test_options_of_the_method_alone_do_not_reach_the_ceiling(
    call: Call, compared: Callable[..., Compared], tmp_path: Path
) -> None:
    stand_in = compared([10.0, 20.0, 30.0], [12.0, 22.0, 33.0], [15.0, 25.0, 35.0])
    pairs = ["crop=64", "cutmix=false", "cps.crop=32", "supervised.steps=5"]
    call("reproduce", "cps", "--out", tmp_path, *(part for pair in pairs for part in ("--option", pair)))
    first, ceiling = stand_in.calls
    assert first["options"] == {"crop": 64, "cutmix": False, "cps.crop": 32, "supervised.steps": 5}
    assert ceiling["options"] == {"crop": 64, "supervised.steps": 5}


def test_where_the_labels_are_those_of_the_ceiling_there_is_none(
    call: Call, compared: Callable[..., Compared], tmp_path: Path
) -> None:
    stand_in = compared([10.0, 20.0, 30.0], [12.0, 22.0, 33.0], [15.0, 25.0, 35.0])
    stand_in.scores = {(name, "masks:all"): [50.0, 51.0, 52.0] for name in ("cps", "supervised")}
    called = call("reproduce", "cps", "--labels", "masks:all", "--out", tmp_path, "--json")
    assert len(stand_in.calls) == 1 and called.json["ceiling_scores"] is None and called.code == 1


@pytest.mark.parametrize(
    ("call_words", "message"),
    [
        (["csp"], "unknown method 'csp'; did you mean 'cps'? (`labelwise methods` lists them)"),
        (["cps", "--scale", "paper"], "--data: a value is missing; --scale paper needs the data set of the paper's"),
        (["cps", "--scale", "papre"], "--scale papre: must be one of mini, paper; did you mean 'paper'?"),
        (["cps", "--seeds", "0"], "--seeds 0: must be at least 1"),
        (["cps", "--preset", "mimi"], "--preset mimi: neither a preset of 'supervised' nor a file; did you mean 'mini"),
        (["cps", "--labels", "maks:1/2"], "--labels maks:1/2: "),
        (["cps", "--option", "crop"], "--option crop: must be NAME=VALUE, such as crop=64 or cps.cutmix=false"),
        (["cps", "--data", "nothing"], "nothing: there is no such folder; check the spelling"),
        (["supervised", "--labels", "masks:all"], "--labels masks:all: 'supervised' is measured with masks:all agains"),
    ],
)
def test_a_wrong_call_writes_nothing(call: Call, tmp_path: Path, call_words: list[str], message: str) -> None:
    out = tmp_path / "out"
    assert call("reproduce", *call_words, "--out", out).message.startswith(message)
    assert not out.exists()


COARSER = replace(CLAIM, ceiling=None, labels="masks:all", margin=-3.0, baseline_settings={"decoder_channels": 4})
COARSE = "supervised, decoder channels 4"


def test_a_method_is_measured_against_a_form_of_itself(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("labelwise.verbs.train.write_run_report", lambda folder: None)
    set_claim(monkeypatch, "supervised", COARSER)
    # An option of the call is for both sides, unless the claim sets it.
    more = ("--option", "supervised.crop=24", "--option", "decoder_channels=8")
    called = call("reproduce", "supervised", *words(tmp_path / "out", *more))
    folder = tmp_path / "out" / TINY.with_name("tiny-masks-all")
    content = json.loads((folder / "reproduction-supervised.json").read_text())
    assert called.code == (0 if content["verdict"] == "holds" else 1)
    assert (content["baseline_name"], content["method_name"], content["ceiling_name"]) == (COARSE, "supervised", None)
    assert content["baseline_settings"] == {"decoder_channels": 4} and content["margin"] == -3.0
    channels = {}
    for run in (folder / "comparison" / "runs").iterdir():
        config = yaml.safe_load((run / "config.yaml").read_text())
        channels[run.name] = config["options"]["decoder_channels"]
        assert config["method"] == "supervised" and config["options"]["crop"] == 24
    assert channels == {
        f"{name}-data-masks-all-seed{seed}": width
        for name, width in (("supervised", 8), ("supervised-decoder-channels-4", 4))
        for seed in (0, 1)
    }
    for page in (folder / "reproduction-supervised.html", folder / "comparison" / "report.html"):
        assert COARSE in page.read_text()
    assert COARSE in called.out
    again = call("reproduce", "supervised", *words(tmp_path / "out", *more))
    assert again.err.count("finished already") == 4 and "step " not in again.err


def test_another_baseline_can_have_settings_and_a_ceiling(
    call: Call, compared: Callable[..., Compared], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_claim(monkeypatch, "cps", replace(CLAIM, baseline_settings={"decoder_channels": 4, "flip_sides": True}))
    refused = call("reproduce", "cps", "--out", tmp_path)
    assert refused.message.startswith("method 'supervised' has no option 'flip_sides'")
    set_claim(monkeypatch, "cps", replace(CLAIM, baseline_settings={"decoder_channels": 4}))
    stand_in = compared([10.0, 20.0, 30.0], [12.0, 22.0, 33.0], [15.0, 25.0, 35.0])
    for channels in (4, 6):
        name = f"supervised, decoder channels {channels}"
        stand_in.scores |= {(name, spec): stand_in.scores["supervised", spec] for spec in ("masks:1/2", "masks:all")}
        own = [] if channels == 4 else ["--option", "supervised.decoder_channels=6"]
        content = call("reproduce", "cps", "--out", tmp_path, *own, "--json").json
        assert content["baseline_name"] == content["ceiling_name"] == name and content["method_name"] == "cps"
        first, ceiling = stand_in.calls[-2:]
        assert first["names"] == [name, "cps"] and ceiling["names"] == [name]
        assert first["forms"][name] == Form("supervised", {"decoder_channels": channels})
        assert first["out"] == tmp_path / FOLDER / "comparison"


def test_settings_that_the_call_gives_to_the_method_too_leave_nothing_to_compare(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_claim(monkeypatch, "supervised", COARSER)
    refused = call("reproduce", "supervised", "--option", "decoder-channels=4", "--out", tmp_path / "out")
    assert refused.message == (
        "METHOD supervised: with this preset and these options it is 'supervised, decoder channels 4', which it is "
        "measured against; leave decoder_channels to the claim"
    )
    assert not (tmp_path / "out").exists()


def test_at_paper_scale_a_loss_that_the_claim_allows_is_still_allowed(
    call: Call, compared: Callable[..., Compared], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shapes_folder: Path
) -> None:
    set_claim(monkeypatch, "cps", replace(CLAIM, margin=-2.0))
    compared([10.0, 20.0, 30.0], [9.0, 19.0, 29.2], [15.0, 25.0, 35.0], labels="masks:blender/1_16")
    called = call("reproduce", "cps", "--scale", "paper", "--data", shapes_folder, "--out", tmp_path, "--json")
    assert called.code == 0 and called.json["margin"] == -2.0 and called.json["verdict"] == "holds"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "fcn"),
        ({"output_stride": 32, "decoder": False}, "fcn, output stride 32, without decoder"),
        ({"heavy": True, "rates": (6, 12)}, "fcn, with heavy, rates 6 12"),
    ],
)
def test_a_side_is_named_after_its_settings(settings: dict[str, Any], name: str) -> None:
    assert module.Side("fcn", "masks:all", settings).name == name


@pytest.mark.parametrize(
    ("call_words", "message"),
    [
        (["--option", "crosweight=1"], "--option crosweight: none of supervised, cps has an option 'crosweight'"),
        (["--labels", "tags"], "--labels tags: gives tags, but 'supervised' needs masks"),
    ],
)
def test_what_the_data_or_the_methods_do_not_have_is_refused_before_training(
    call: Call, tmp_path: Path, shapes_folder: Path, call_words: list[str], message: str
) -> None:
    refused = call("reproduce", "cps", "--data", shapes_folder, "--out", tmp_path / "out", *call_words)
    assert refused.message.startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_file_as_folder_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    refused = call("reproduce", "cps", "--out", tmp_path / "letter.txt")
    assert refused.message == f"--out {tmp_path / 'letter.txt'}: is a file; name a folder"


@pytest.mark.parametrize("claim", [None, replace(CLAIM, baseline="cps", ceiling=None)])
def test_a_method_without_a_claim_is_refused(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, claim: Claim | None
) -> None:
    set_claim(monkeypatch, "cps", claim)
    message = call("reproduce", "cps", "--out", tmp_path / "out").message
    assert message == "METHOD cps: its card claims nothing that could be measured; name another method"
    assert not (tmp_path / "out").exists()


def test_an_unknown_scale_is_refused_from_python_too() -> None:
    with pytest.raises(UserError, match="--scale papre: no such scale; did you mean 'paper'"):
        module.reproduce("cps", scale="papre")  # type: ignore[arg-type]
