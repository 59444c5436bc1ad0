"""`labelwise train`: one method on one data set with the labels it may see."""

from __future__ import annotations

import json
import resource
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from labelwise import methods
from labelwise.checkpoints import Interrupted
from labelwise.datasets.base import Classes
from labelwise.engine import Training, check_possible
from labelwise.errors import UserError, require_at_least
from labelwise.hardware import Hardware, process_rank
from labelwise.method import Method, MethodConfig, NonFiniteLoss
from labelwise.monitoring import PseudoLabelMonitor, monitored_ids
from labelwise.progress import console, watched
from labelwise.reports.learning_curves import write_learning_curves
from labelwise.reports.pseudo_labels_page import PSEUDO_LABELS_PICTURE
from labelwise.reports.run_page import PAGE, read_metrics, write_run_report
from labelwise.runs import Run, read_json
from labelwise.samples import Kind, Sample
from labelwise.saved import save_model
from labelwise.scoring import score, write_prediction_sheet, write_pseudo_label_sheet
from labelwise.supervision import seeded_order
from labelwise.tasks.few_masks import FewMasksMethod
from labelwise.verbs.preparation import Material, broken_ids, note, prepare_material, prepare_method
from labelwise.verbs.rounds import complete_rounds, last_labels, make_rounds, rounds_of, with_protocol
from labelwise.verbs.stages import check_named, load_stages, make_stages, planned_runs
from labelwise.verbs.starting import initial_weights

_SCRATCH = ".scratch-{}"
"""The folder within a run's that a process keeps files in until the run is finished.

Hidden, because a further process may make it before the first has made the run's folder, which then has to be empty.
"""


def train(
    method: str,
    *,
    data: Path,
    labels: str | None = None,
    preset: str | None = None,
    out: Path | None = None,
    split: str = "train",
    val_split: str = "val",
    seed: int = 0,
    skip_broken: bool = False,
    monitor: int = 0,
    start_from: Path | None = None,
    start_partly: bool = False,
    hardware: Hardware | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a method and score it; the same call again continues an unfinished run.

    Args:
        method: a name that `labelwise methods` lists.
        data: the data set's folder.
        labels: what the method may see, such as `masks:1/8`, `masks:92`, `masks:classic/183`, `masks:FILE`; all labels
            of the kind that it needs unless given.
        preset: `mini` (CPU minutes), `small` (pretrained backbone, small real data), `paper`, or a YAML file.
        out: the run's folder; named after the call unless given.
        split: the split to learn from.
        val_split: the split to score on.
        seed: of everything random, the choice of the labelled images included.
        skip_broken: leave out images with broken files instead of stopping.
        monitor: watch the pseudo-labels of so many unlabelled images by their hidden masks. The training sees none of
            it and gives the same model, so that a run may be continued with another number.
        start_from: the folder of a finished run whose weights the network starts from.
        start_partly: leave out layers of that run that do not fit, such as the classifier of other classes.
        hardware: where and how fast to compute.
        **options: the method's own options; they win over the preset.

    Returns:
        The scores on `val_split`, with `folder`, `steps`, `seconds`, `peak_memory_mb`, `labeled` and `unlabeled`.

    Raises:
        UserError: the call or the data is wrong; nothing has been written.
        Interrupted: a signal stopped the run; its state is saved.
        NonFiniteLoss: a loss term became infinite or not a number.
    """
    hardware = hardware or Hardware()
    method_class, config = prepare_method(method, preset, options)
    _require_monitorable(method_class, monitor)
    labels = method_class.card.needs.all_labels if labels is None else labels
    folder = Path(out) if out else Path("runs") / run_name(method, Path(data), labels, seed)
    request = {
        "method": method,
        "data": str(Path(data).resolve()),
        "labels": labels,
        "split": split,
        "val_split": val_split,
        "seed": seed,
        "skip_broken": skip_broken,
        "precision": hardware.resolved_precision(),
        "options": asdict(config),
    }
    if start_from is not None:
        request |= {"start_from": str(Path(start_from).resolve()), "start_partly": start_partly}
    elif start_partly:
        raise UserError("--start-partly: nothing to start from; name a run with --start-from RUN")
    run = Run(folder, request)
    if run.finished:
        console.print(f"{folder}: this run is finished already")
        if not (folder / PAGE).is_file():
            write_run_report(folder)
        return read_json(folder / "results.json")
    ood = getattr(config, "ood", "")
    rounds = rounds_of(config, labels)
    if rounds and process_rank() == 0:
        _make_rounds(run, method_class, config, hardware)
    seen = last_labels(folder, rounds) if rounds else labels
    material = prepare_material(method_class, Path(data), seen, split, val_split, seed, skip_broken, ood)
    if rounds:
        material = with_protocol(material, config, labels)
    monitored = _monitored(material, monitor, seed, skip_broken)
    if process_rank() == 0:
        _make_stages(run, method_class, config, material.dataset.classes, hardware)
    earlier = load_stages(method_class, config, folder, run.request, material.dataset.classes)
    initial = None
    if start_from is not None:
        trial = method_class(config, material.dataset.classes, training=False)
        initial = initial_weights(Path(start_from), trial, start_partly)
    torch.manual_seed(seed)
    learner = method_class(config, material.dataset.classes, earlier=earlier, initial=initial)
    check_possible(learner, hardware)
    if process_rank() != 0:
        return _help(run, learner, material, seed, hardware, monitored)
    with run.locked():
        run.start()
        return _fit_and_report(run, learner, material, seed, hardware, monitored)


def train_anywhere(
    name: str, call: Mapping[str, Any], options: Mapping[str, Any], hardware: Hardware
) -> dict[str, Any]:
    """Train from within another verb, on one or several devices.

    Args:
        name: of the method.
        call: the arguments of `train`, `out` among them.
        options: the method's own.
        hardware: where to compute.
    """
    if hardware.world == 1:
        return train(name, hardware=hardware, **call, **options)
    # Lightning starts the further processes of a run by repeating the whole command, which must then be one `train`.
    words = as_words({**asdict(hardware), **call, **options}, methods.load(name).Config)
    subprocess.run([sys.executable, "-m", "labelwise", "train", name, *words], check=True, stdout=subprocess.DEVNULL)
    return read_json(call["out"] / "results.json")


def as_words(options: Mapping[str, Any], config: type[MethodConfig]) -> list[str]:
    """Options as the shell takes them; None is left out."""
    hints = get_type_hints(config)
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple) and Ellipsis in get_args(hints.get(name)):
            # Any number of values, none included.
            words.append(f"{flag}={json.dumps(list(value))}")
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={value}")
    return words


def run_name(method: str, data: Path, labels: str, seed: int) -> str:
    """The default name of a run's folder, such as `cps-VOC2012-masks-1-8-seed0`."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in labels).strip("-")
    return f"{method}-{data.resolve().name}-{slug}-seed{seed}"


def _make_rounds(run: Run, method: type[Method], config: MethodConfig, hardware: Hardware) -> None:
    """Choose the clicks of this run by the models of the rounds before it, which are trained into its folder."""
    names = ("data", "split", "val_split", "seed", "skip_broken", "start_from", "start_partly")
    same = {name: run.request[name] for name in names if name in run.request}

    def train_round(name: str, out: Path, labels: str, options: Mapping[str, Any]) -> dict[str, Any]:
        return train_anywhere(name, {**same, "out": out, "labels": labels}, options, hardware)

    make_rounds(run, method, config, hardware, train_round)


def _make_stages(run: Run, method: type[Method], config: MethodConfig, classes: Classes, hardware: Hardware) -> None:
    """Train what this run learns from, into its folder."""
    planned = planned_runs(method, config)
    if not planned:
        return
    # What cannot be is refused now, before anything is written, not after hours of the trainings before it.
    check_named(method, config, run.request, classes)
    before = [prepare_method(name, None, options) for name, options in planned]
    for each, its_config in (*before, (method, config)):
        trial = each(its_config, classes, training=False)
        trial.build_network(pretrained=True)
        check_possible(trial, hardware)
    same = {name: run.request[name] for name in ("labels", "split", "val_split", "seed", "skip_broken")}

    def train_stage(name: str, out: Path, options: Mapping[str, Any]) -> None:
        train_anywhere(name, {"data": Path(run.request["data"]), "out": out, **same}, options, hardware)

    with run.locked():
        run.start()
        try:
            make_stages(method, config, run.folder, hardware, train_stage)
        except BaseException as error:
            run.record(status="stopped", reason=str(error) or type(error).__name__)
            raise


def _require_monitorable(method: type[Method], monitor: int) -> None:
    require_at_least("monitor", monitor, 0)
    if monitor and not issubclass(method, FewMasksMethod):
        raise UserError(f"--monitor {monitor}: '{method.card.name}' makes no pseudo-labels to watch; leave it out")


def _monitored(material: Material, monitor: int, seed: int, skip_broken: bool) -> tuple[str, ...]:
    """The unlabelled images whose pseudo-labels are compared with their hidden masks; none unless asked for.

    Raises:
        BadFile: one of these masks is broken and `skip_broken` is not set.
    """
    if not monitor:
        return ()
    ids = monitored_ids(material.dataset, material.sources["unlabeled"], monitor, seed)
    broken = broken_ids(material.dataset, dict.fromkeys(ids, frozenset({Kind.MASKS})), skip_broken)
    ids = tuple(id for id in ids if id not in broken)
    if not ids:
        note("no unlabelled image has a mask to compare with: going on without monitoring")
    return ids


def _fit(
    run: Run, learner: Method, material: Material, seed: int, hardware: Hardware, monitored: Sequence[str]
) -> dict[str, Any]:
    training = Training(
        method=learner,
        dataset=material.dataset,
        sources=material.sources,
        read=material.read,
        read_ood=material.read_ood,
        validation=material.validation,
        folder=run.folder,
        seed=seed,
        hardware=hardware,
        monitor=PseudoLabelMonitor(material.dataset, monitored, run.folder) if monitored else None,
    )
    scratch = scratch_folder(run.folder)
    # What is measured before the training may need passes of the network over all images.
    if hardware.on_gpu:
        learner.to(torch.device("cuda", process_rank() % torch.cuda.device_count()))
    learner.ood_samples = _Images(material.sources.get("ood", ()), material.read_ood, "preparing")
    learner.prepare(_Images(material.sources["labeled"], material.read, "preparing"), scratch)
    trainer = training.run()
    # Lightning leaves a trained model in the main memory.
    learner.to(trainer.strategy.root_device)
    with warnings.catch_warnings(record=True) as said:
        learner.complete(_Images(material.sources["labeled"], material.read, "completing"), scratch)
    for warning in said:
        note(str(warning.message))
    if process_rank() == 0:
        learner.report(run.folder)
    return score(learner, material.dataset, material.validation, trainer) if material.validation else {}


class _Images(Sequence[Sample]):
    """Training images of one source, each read when it is asked for."""

    def __init__(self, ids: Sequence[str], read: Callable[[str], Sample], purpose: str) -> None:
        self.ids, self.read, self.purpose = ids, read, purpose

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, watched(self.ids, self.purpose, len(self.ids)))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.read(id) for id in self.ids[index]]
        return self.read(self.ids[index])


def scratch_folder(folder: Path) -> Path:
    """Where this process may keep files until the run is finished."""
    scratch = folder / _SCRATCH.format(process_rank())
    scratch.mkdir(parents=True, exist_ok=True)
    return scratch


def _help(
    run: Run, learner: Method, material: Material, seed: int, hardware: Hardware, monitored: Sequence[str]
) -> dict[str, Any]:
    """Take part in a run of several processes; the first of them keeps the folder and speaks."""
    try:
        return _fit(run, learner, material, seed, hardware, monitored)
    except (Interrupted, NonFiniteLoss):
        # Reported by the first process, which Lightning's watcher would kill if this one failed.
        raise SystemExit(0) from None


def _fit_and_report(
    run: Run, learner: Method, material: Material, seed: int, hardware: Hardware, monitored: Sequence[str]
) -> dict[str, Any]:
    began = time.monotonic()
    before = run.status.get("seconds", 0.0)
    _forget_peak_memory(hardware)
    console.print(
        f"{learner.card.name}: seed {seed}, {len(material.sources['labeled'])} labelled and "
        f"{len(material.sources['unlabeled'])} unlabelled images, run folder {run.folder}"
    )
    if monitored:
        console.print(f"monitoring: reads hidden masks of {len(monitored)} images; the training never sees them")
        run.record(monitored=list(monitored))
    try:
        results = _fit(run, learner, material, seed, hardware, monitored)
    except BaseException as error:
        run.record(
            status="stopped",
            reason=str(error) or type(error).__name__,
            step=learner.global_step,
            steps=learner.total_steps,
            seconds=before + time.monotonic() - began,
        )
        raise
    seconds = before + time.monotonic() - began
    results |= {
        "protocol": material.streams.protocol,
        "folder": str(run.folder),
        "steps": learner.total_steps,
        "seconds": round(seconds, 1),
        "peak_memory_mb": _peak_memory_mb(hardware),
        "labeled": len(material.sources["labeled"]),
        "unlabeled": len(material.sources["unlabeled"]),
        "skipped": list(material.skipped),
    }
    results |= _best_evaluation(run.folder, learner.card.main_score.key)
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    save_model(learner, run.folder, results, command)
    run.write_results(results)
    complete_rounds(run, type(learner), results)
    _write_pictures(run, learner, material, monitored)
    run.record(status="finished", step=learner.total_steps, steps=learner.total_steps, seconds=seconds)
    for scratch in run.folder.glob(_SCRATCH.format("*")):
        shutil.rmtree(scratch, ignore_errors=True)
    write_run_report(run.folder)
    return results


def _best_evaluation(folder: Path, key: str) -> dict[str, Any]:
    """The best of several evaluations, which is what the papers report, beside the last, which is the model kept."""
    steps, scores = read_metrics(folder / "metrics.csv").get(f"val/{key}", ((), ()))
    if len(scores) < 2:
        return {}
    best = max(range(len(scores)), key=scores.__getitem__)
    return {f"best_{key}": scores[best], "best_step": int(steps[best])}


def _write_pictures(run: Run, learner: Method, material: Material, monitored: Sequence[str]) -> None:
    if material.validation:
        path = run.folder / "pictures" / "predictions.png"
        write_prediction_sheet({learner.card.name: learner}, material.dataset, material.validation, path)
    write_learning_curves(run.folder)
    if isinstance(learner, FewMasksMethod):
        ids = monitored or seeded_order(material.sources["unlabeled"], run.request["seed"])
        path = run.folder / "pictures" / PSEUDO_LABELS_PICTURE
        write_pseudo_label_sheet(learner, material.dataset, ids, path, with_truth=bool(monitored))


def _forget_peak_memory(hardware: Hardware) -> None:
    """Count the peak anew, so that a run in a comparison does not inherit that of the run before."""
    if hardware.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb(hardware: Hardware) -> int:
    """Peak memory in MB: the device's where there is one, else this process's resident set."""
    if hardware.on_gpu:
        return torch.cuda.max_memory_allocated() // 2**20
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
    # Elsewhere the peak of the whole process; macOS counts bytes, others kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20
