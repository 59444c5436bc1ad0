"""What the stages of a recipe can be: what each kind reads and gives, and which verb it runs.

A new kind is a function that makes a `Plan`, and a line in `KINDS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from labelwise import methods
from labelwise.configuration import make_options, option_names
from labelwise.datasets.base import DataSet
from labelwise.datasets.ood import OodImages
from labelwise.engine import check_possible
from labelwise.errors import UserError, did_you_mean, require_at_least, require_share
from labelwise.hardware import Hardware
from labelwise.inference_options import InferenceOptions
from labelwise.method import MAIN_SCORES, MainScore, Method, MethodConfig
from labelwise.models.dense_crf import parse_crf
from labelwise.samples import Kind, with_derivable
from labelwise.stages import DATA, Keys, Stage
from labelwise.supervision import Supervision
from labelwise.tasks.segmentation import SegmentationMethod
from labelwise.verbs.evaluate import evaluate
from labelwise.verbs.mine_ood import mine_ood
from labelwise.verbs.predict import LEAST_SCORE, annotate
from labelwise.verbs.preparation import prepare_method
from labelwise.verbs.refine import WITH_MAPS, By, check_options, refine
from labelwise.verbs.train import train_anywhere

_TRAIN, _VAL = "train", "val"
OOD_LIST = "ood.txt"
"""The file that `mine_ood` writes into its stage's folder."""
_READ_BY_TASK = {"refinement": frozenset({Kind.MAPS})}
"""What predictions of a task are made from, beside the image."""


@dataclass(frozen=True)
class Labels:
    """What is known of a data set before it is made: the kinds of label of each split."""

    kinds: Mapping[str, frozenset[Kind]]


@dataclass(frozen=True)
class Model:
    """What is known of a trained model before it is trained."""

    method: type[Method]


@dataclass(frozen=True)
class OodList:
    """A list of images in which no class occurs."""


@dataclass(frozen=True)
class Scores:
    """The end of a chain: nothing reads them."""


Output = Labels | Model | OodList | Scores
Given = Mapping[str, tuple[Output, ...]]
"""What a stage reads, by its keys."""
Folders = Mapping[str, tuple[Path, ...]]
"""Where that lies."""
_SAID = {
    Labels: "a data set",
    Model: "a trained model",
    OodList: "a list of images without a class",
    Scores: "a table of scores",
}


@dataclass(frozen=True)
class Call:
    """What all stages of one call share."""

    seed: int
    preset: str | None


@dataclass(frozen=True)
class Plan:
    """A stage that was checked.

    Attributes:
        stage: as it was written.
        settings: plain data: everything that determines the result beside what is read.
        gives: its result's type.
        execute: (folders of what is read, folder of the result, hardware) -> results, plain data; the same call again
            continues an unfinished one.
        score: what it is judged by, where its results hold that.
        rehearse: (data set of the call, hardware) -> refuses what only building the networks can tell.
    """

    stage: Stage
    settings: Mapping[str, Any]
    gives: Output
    execute: Callable[[Folders, Path, Hardware], dict[str, Any]]
    score: MainScore | None = None
    rehearse: Callable[[DataSet, Hardware], None] | None = None


@dataclass(frozen=True)
class StageKind:
    """A kind of stage.

    Attributes:
        keys: what such a stage may say.
        plan: checks a stage against what it reads; raises a `UserError` with the line.
        options: the names of the options that such a stage has.
    """

    keys: Keys
    plan: Callable[[Stage, Given, Call], Plan]
    options: Callable[[Stage], tuple[str, ...]]


def _options_of(verb: Callable[..., Any]) -> type[Any]:
    """The options of a verb that a recipe may give, as a dataclass with the verb's defaults."""
    hints, besides = get_type_hints(verb), ("split", "skip_broken", "hardware")
    given = [each for each in signature(verb).parameters.values() if each.default is not each.empty]
    return make_dataclass(
        verb.__name__,
        [(each.name, hints[each.name], field(default=each.default)) for each in given if each.name not in besides],
    )


_MineOptions = _options_of(mine_ood)
_RefineOptions = _options_of(refine)


# ------------------------------------------------------------------------ train


def plan_train(stage: Stage, given: Given, call: Call) -> Plan:
    """A method, trained on a data set."""
    with stage.at("train"):
        needs = methods.load(stage.subject).card.needs
    with stage.at("preset"):
        method, _ = prepare_method(stage.subject, preset := stage.words.get("preset", call.preset), {})
    with stage.at("options"):
        _, config = prepare_method(stage.subject, preset, stage.options)
    labels = stage.words.get("labels", needs.all_labels)
    split, val_split = stage.words.get("split", _TRAIN), stage.words.get("val_split", _VAL)
    with stage.at("labels"):
        seen = Supervision.parse(labels).kinds
    if not needs.fit(seen):
        raise stage.error(
            "labels" if "labels" in stage.words else "train",
            f"stage '{stage.name}' may see {_listed(seen)}, but '{stage.subject}' needs {needs}; take other labels, or "
            f"one of the methods that `labelwise methods --labels {labels}` lists",
        )
    _require_labels(stage, given, seen, "split", split)
    (data,) = _labels(stage, "data", given).values()
    if "val_split" in stage.words or _VAL in data.kinds:
        _require_labels(stage, given, method.card.truth.required, "val_split", val_split)
    if "ood" in given and not needs.ood:
        raise stage.error("ood", f"'{stage.subject}' takes no images without a class; leave it out")
    if not isinstance(given.get("ood", (OodList(),))[0], OodList):
        raise stage.error("ood", f"stage '{stage.name}' needs what a stage `mine_ood` gives; name one")
    shared = {"labels": labels, "split": split, "val_split": val_split, "seed": call.seed}

    def execute(folders: Folders, out: Path, hardware: Hardware) -> dict[str, Any]:
        options = asdict(config)
        if "ood" in folders:
            options["ood"] = str(folders["ood"][0] / OOD_LIST)
        return train_anywhere(stage.subject, {"data": folders["data"][0], "out": out, **shared}, options, hardware)

    settings = {"method": stage.subject, **shared, "options": asdict(config)}
    return Plan(stage, settings, Model(method), execute, method.card.main_score, _rehearsal(stage, method, config))


def _rehearsal(stage: Stage, method: type[Method], config: MethodConfig) -> Callable[[DataSet, Hardware], None]:
    def build(dataset: DataSet, hardware: Hardware) -> None:
        with stage.at("options"):
            if method.card.needs.ood and stage.reads == {"data": (DATA,)}:
                OodImages(dataset, getattr(config, "ood", ""))
            trial = method(config, dataset.classes, training=False)
            trial.build_network(pretrained=True)
            check_possible(trial, hardware)

    return build


def _train_options(stage: Stage) -> tuple[str, ...]:
    return option_names(methods.load(stage.subject)) if stage.subject in methods.METHODS else ()


# --------------------------------------------------------------------- annotate


@dataclass(frozen=True, kw_only=True)
class _AnnotationOptions(InferenceOptions):
    """The options of `annotate`, as a recipe gives them."""

    least_score: float = LEAST_SCORE
    "of a detector's objects that become labels"


def plan_annotate(stage: Stage, given: Given, call: Call) -> Plan:
    """The predictions of a model as labels of a data set."""
    method = _model(stage, "annotate", given).method
    split = stage.words.get("split", _TRAIN)
    _require_labels(stage, given, _READ_BY_TASK.get(method.card.task, frozenset()), "split", split)
    with stage.at("options"):
        options = asdict(make_options(_AnnotationOptions, stage.options, "`annotate`"))
        require_share("least_score", least_score := options.pop("least_score"))
        inference = _inference(options, method)

    def execute(folders: Folders, out: Path, hardware: Hardware) -> dict[str, Any]:
        return annotate(
            folders["annotate"][0],
            data=folders["data"][0],
            out=out,
            split=split,
            inference=inference,
            least_score=least_score,
            hardware=_one_device(hardware),
        )

    settings = {"split": split, "least_score": least_score, "options": options}
    return Plan(stage, settings, Labels({split: method.card.gives}), execute)


# --------------------------------------------------------------------- mine_ood


def plan_mine_ood(stage: Stage, given: Given, call: Call) -> Plan:
    """Images of no class on which a classifier fires; a person may take lines out of the list before it is read."""
    method, split = _model(stage, "mine_ood", given).method, stage.words.get("split", _TRAIN)
    if method.card.task not in ("classification", "localisation"):
        raise stage.error("mine_ood", f"'{method.card.name}' predicts no tags; name a classifier, such as cam")
    _require_labels(stage, given, frozenset({Kind.TAGS}), "split", split)
    with stage.at("options"):
        options = asdict(make_options(_MineOptions, stage.options, "`mine_ood`"))
        require_share("least_score", options["least_score"])
        require_at_least("most", options["most"], 0)

    def execute(folders: Folders, out: Path, hardware: Hardware) -> dict[str, Any]:
        run, data, file = folders["mine_ood"][0], folders["data"][0], out / OOD_LIST
        out.mkdir(parents=True, exist_ok=True)
        return mine_ood(run, data=data, out=file, split=split, hardware=_one_device(hardware), **options)

    return Plan(stage, {"split": split, "options": options}, OodList(), execute)


# ----------------------------------------------------------------------- refine


def plan_refine(stage: Stage, given: Given, call: Call) -> Plan:
    """Other labels of the score maps of one or several data sets."""
    by, split = stage.subject, stage.words.get("split", _TRAIN)
    if by not in get_args(By):
        raise stage.error("refine", f"no way to refine is called '{by}'{did_you_mean(by, get_args(By))}")
    if (by == "sum") != (len(stage.reads["data"]) > 1):
        raise stage.error("data", "`refine: sum` reads two or more data sets, all other ways one; `data: [one, other]`")
    _require_labels(stage, given, frozenset({Kind.MAPS}), "split", split)
    with stage.at("options"):
        options = asdict(make_options(_RefineOptions, stage.options, "`refine`"))
        check_options({name: value for name, value in options.items() if name != "crf"})
        if options["crf"] is not None:
            parse_crf(options["crf"])

    def execute(folders: Folders, out: Path, hardware: Hardware) -> dict[str, Any]:
        return refine(cast(By, by), data=folders["data"], out=out, split=split, **options)

    kinds = frozenset({Kind.MASKS, Kind.TAGS}) | ({Kind.MAPS} if by in WITH_MAPS else set())
    return Plan(stage, {"by": by, "split": split, "options": options}, Labels({split: kinds}), execute)


# --------------------------------------------------------------------- evaluate


def plan_evaluate(stage: Stage, given: Given, call: Call) -> Plan:
    """The scores of a model, or of labels."""
    (judged,) = given["evaluate"]
    split = stage.words.get("split", _VAL)
    inference = None
    if isinstance(judged, Labels):
        if stage.options:
            first = next(iter(stage.options))
            raise stage.error(f"options.{first}", f"labels are scored as they are; leave '{first}' out")
        truth = frozenset({Kind.MASKS})
        has_maps = Kind.MAPS in judged.kinds.get(split, ())
        _require_kinds(stage, "evaluate", judged, frozenset() if has_maps else truth, stage.subject, split)
        score = MAIN_SCORES["localisation" if has_maps else "refinement"]
    else:
        method = _model(stage, "evaluate", given).method
        truth, score = method.card.truth.required, method.card.main_score
        with stage.at("options"):
            inference = _inference(asdict(make_options(InferenceOptions, stage.options, "`evaluate`")), method)
    _require_labels(stage, given, truth, "split", split)

    def execute(folders: Folders, out: Path, hardware: Hardware) -> dict[str, Any]:
        # An evaluation begins anew; what a killed one left may not look like one.
        shutil.rmtree(out, ignore_errors=True)
        return evaluate(
            folders["evaluate"][0],
            data=folders["data"][0],
            split=split,
            out=out,
            inference=inference,
            hardware=_one_device(hardware),
        )

    settings = {"split": split, "options": asdict(inference or InferenceOptions())}
    return Plan(stage, settings, Scores(), execute, score)


def _names_of(options: type[Any]) -> Callable[[Stage], tuple[str, ...]]:
    return lambda stage: tuple(field.name for field in fields(options))


KINDS = {
    "train": StageKind(
        Keys(reads=("data",), may_read=("ood",), words=("labels", "preset", "split", "val_split")),
        plan_train,
        _train_options,
    ),
    "annotate": StageKind(
        Keys(reads=("annotate", "data"), words=("split",)), plan_annotate, _names_of(_AnnotationOptions)
    ),
    "mine_ood": StageKind(Keys(reads=("mine_ood", "data"), words=("split",)), plan_mine_ood, _names_of(_MineOptions)),
    "refine": StageKind(
        Keys(reads=("data",), several=("data",), words=("split",)),
        plan_refine,
        _names_of(_RefineOptions),
    ),
    "evaluate": StageKind(
        Keys(reads=("evaluate", "data"), words=("split",)), plan_evaluate, _names_of(InferenceOptions)
    ),
}
"""The kinds of stage, by the key that a recipe names them with."""


# ----------------------------------------------------------------------- checks


def _labels(stage: Stage, key: str, given: Given) -> dict[str, Labels]:
    """The data sets that a key names."""
    found = {}
    for name, output in zip(stage.reads[key], given[key], strict=True):
        if not isinstance(output, Labels):
            what = _SAID[type(output)]
            raise stage.error(key, f"stage '{stage.name}' reads a data set, but '{name}' is {what}; name a data set")
        found[name] = output
    return found


def _model(stage: Stage, key: str, given: Given) -> Model:
    """The trained model that a key names."""
    ((name,), (output,)) = stage.reads[key], given[key]
    if not isinstance(output, Model):
        what = "a trained model or a data set" if key == "evaluate" else "a trained model"
        raise stage.error(
            key, f"stage '{stage.name}' needs {what}, but '{name}' is {_SAID[type(output)]}; name another stage"
        )
    return output


def _require_labels(stage: Stage, given: Given, kinds: frozenset[Kind], split_key: str, split: str) -> None:
    """Refuse a data set (`data`) without a split, or whose split lacks a kind of label."""
    for name, labels in _labels(stage, "data", given).items():
        if split not in labels.kinds:
            near = did_you_mean(split, labels.kinds)
            raise stage.error(
                split_key if split_key in stage.words else "data",
                f"stage '{stage.name}' reads split '{split}', which '{name}' does not have{near}",
            )
        _require_kinds(stage, "data", labels, kinds, name, split)


def _require_kinds(stage: Stage, key: str, labels: Labels, kinds: frozenset[Kind], name: str, split: str) -> None:
    there = labels.kinds.get(split, frozenset())
    missing = kinds - with_derivable(there)
    if missing:
        raise stage.error(
            key,
            f"stage '{stage.name}' reads {_listed(missing)}, but split '{split}' of '{name}' has {_listed(there)}; "
            "name another data set",
        )


def _inference(options: Mapping[str, Any], method: type[Method]) -> InferenceOptions:
    inference = InferenceOptions(**options)
    if inference.changed and not issubclass(method, SegmentationMethod):
        name = next(iter(inference.changed)).replace("_", "-")
        raise UserError(f"--{name}: '{method.card.name}' does not predict pixels; leave it out")
    if inference.crf is not None:
        parse_crf(inference.crf)
    return inference


def _one_device(hardware: Hardware) -> Hardware:
    """The same machine without the further processes, which Lightning would start by repeating the whole recipe."""
    return replace(hardware, devices=1, nodes=1, strategy="auto")


def _listed(kinds: frozenset[Kind]) -> str:
    return ", ".join(sorted(kinds)) or "no labels"
