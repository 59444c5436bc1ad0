"""What `labelwise compare` trains and scores: methods, and recipes, which are chains of methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from labelwise import datasets, methods
from labelwise.configuration import option_names
from labelwise.errors import UserError, did_you_mean
from labelwise.hardware import Hardware
from labelwise.method import Card, Method
from labelwise.stages import DATA, Recipe, load_recipe, shipped_recipes
from labelwise.supervision import NONE, Everything, Supervision
from labelwise.tasks.few_masks import FewMasksMethod
from labelwise.verbs.preparation import prepare_material, prepare_method, require_fit
from labelwise.verbs.run import planned, run, with_options
from labelwise.verbs.stage_kinds import KINDS, Call, Model, Plan
from labelwise.verbs.train import train_anywhere


@dataclass(frozen=True)
class Form:
    """A method as it is compared.

    Attributes:
        method: a name that `labelwise methods` lists.
        options: options of this form alone; they win over all others.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share; each as `compare` takes it."""

    data: Path
    split: str
    val_split: str
    skip_broken: bool
    preset: str | None
    monitor: int
    hardware: Hardware


class Trained(NamedTuple):
    """One run of a comparison.

    Attributes:
        results: its scores on the split to score on, `seconds`, and where known `steps`, `peak_memory_mb`, `labeled`
            and `unlabeled`.
        model: the folder of the trained model.
    """

    results: Mapping[str, Any]
    model: Path


class Compared(ABC):
    """A method or a recipe that takes part in a comparison.

    Attributes:
        name: by which tables and pictures tell it apart.
        card: of the method that is scored.
        labels: what it learns from unless the call says so.
        needs: the same in words.
        makes_pseudo_labels: whether its runs can be monitored.
        settings: plain data: everything that determines its runs beside what all share.
    """

    name: str
    card: Card
    labels: str
    needs: str
    makes_pseudo_labels: bool
    settings: Mapping[str, Any]

    @abstractmethod
    def fits(self, supervision: Supervision) -> bool:
        """Whether it can be run on a label specification."""

    @abstractmethod
    def require_fit(self, labels: str) -> None:
        """Refuse a label specification that it does not fit.

        Raises:
            UserError: it cannot learn from that.
        """

    @abstractmethod
    def check(self, labels: str) -> None:
        """Check the files that its runs on a label specification will read.

        Raises:
            UserError: the data does not fit, or a file is broken.
        """

    @abstractmethod
    def train(self, labels: str, seed: int, out: Path) -> Trained:
        """Train and score it; the same call again continues an unfinished run, and repeats no finished one."""


class ComparedMethod(Compared):
    """A method, trained and scored by `labelwise train`."""

    def __init__(self, name: str, method: str, options: Mapping[str, Any], setting: Setting) -> None:
        """Take a method into a comparison.

        Args:
            name: of its form.
            method: a name that `labelwise methods` lists.
            options: its own, which win over the preset.
            setting: what all runs share.

        Raises:
            UserError: unknown preset, or a wrong value.
        """
        self.name, self.options, self.setting = name, options, setting
        self.method, self.config = prepare_method(method, setting.preset, options)
        self.card = self.method.card
        self.labels, self.needs = self.card.needs.all_labels, str(self.card.needs)
        self.makes_pseudo_labels = issubclass(self.method, FewMasksMethod)
        self.settings = asdict(self.config)

    def fits(self, supervision: Supervision) -> bool:
        """Whether the kinds of label suffice."""
        return self.card.needs.fit(supervision.kinds)

    def require_fit(self, labels: str) -> None:
        """Refuse a label specification without the kinds that it needs."""
        require_fit(self.method, Supervision.parse(labels), labels)

    def check(self, labels: str) -> None:
        """Check what a run will read."""
        each, ood = self.setting, getattr(self.config, "ood", "")
        prepare_material(self.method, each.data, labels, each.split, each.val_split, 0, each.skip_broken, ood)

    def train(self, labels: str, seed: int, out: Path) -> Trained:
        """Train it into the folder `out`."""
        each = self.setting
        call: dict[str, Any] = {
            "data": each.data,
            "labels": labels,
            "preset": each.preset,
            "out": out,
            "split": each.split,
        }
        call |= {"val_split": each.val_split, "seed": seed, "skip_broken": each.skip_broken}
        call["monitor"] = each.monitor if self.makes_pseudo_labels else 0
        return Trained(train_anywhere(self.card.name, call, self.options, each.hardware), out)


class ComparedRecipe(Compared):
    """A recipe, run by `labelwise run` and judged by the last of its stages that scores a model.

    It fits the one label specification that its trainings on the data set of the call may see together.
    """

    makes_pseudo_labels = False

    def __init__(self, recipe: Recipe, word: str, options: Mapping[str, Any], setting: Setting) -> None:
        """Check a recipe against the data set and take it into a comparison.

        Args:
            recipe: as it was read.
            word: what `labelwise run` knows it by.
            options: of its stages, as `labelwise run` takes them.
            setting: what all runs share.

        Raises:
            UserError: one of its stages cannot be run, it cannot be scored, or it does not learn from the same images.
        """
        self.name, self.word, self.options, self.setting = recipe.name, word, options, setting
        if setting.skip_broken:
            raise UserError(f"--skip-broken: the recipe '{self.name}' stops at broken files; leave one of both out")
        dataset = datasets.open(setting.data)
        self.plans = planned(with_options(recipe, options), dataset, Call(seed=0, preset=setting.preset))
        self.learning = [
            plan for plan in self.plans if plan.stage.kind == "train" and plan.stage.reads["data"] == (DATA,)
        ]
        for plan in self.learning:
            if (split := plan.settings["split"]) != setting.split:
                raise plan.stage.error(
                    "split",
                    f"stage '{plan.stage.name}' learns from split '{split}' of the data, but the comparison from "
                    f"'{setting.split}'; name the same split in the recipe and with --split",
                )
        self.supervision = _together(self.name, [plan.settings["labels"] for plan in self.learning])
        self.labels = self.needs = str(self.supervision)
        self.score = self._score_plan()
        self.card = self._models[self.score.stage.subject].card
        self.settings = self._fingerprinted()

    @property
    def _models(self) -> dict[str, type[Method]]:
        return {plan.stage.name: plan.gives.method for plan in self.plans if isinstance(plan.gives, Model)}

    def fits(self, supervision: Supervision) -> bool:
        """Whether it is the specification of its own trainings."""
        return supervision == self.supervision

    def require_fit(self, labels: str) -> None:
        """Refuse any other label specification."""
        if not self.fits(Supervision.parse(labels)):
            raise UserError(
                f"--labels {labels}: the recipe '{self.name}' learns from {self.labels}; write --labels {self.labels}"
            )

    def check(self, labels: str) -> None:
        """Check what its trainings on the data set will read."""
        for plan in self.learning:
            # A list of images without a class that a stage makes is not there yet.
            if "ood" not in plan.stage.reads:
                each, method = plan.settings, cast(Model, plan.gives).method
                ood = each["options"].get("ood", "")
                splits = (each["split"], each["val_split"])
                prepare_material(method, self.setting.data, each["labels"], *splits, 0, False, ood)

    def train(self, labels: str, seed: int, out: Path) -> Trained:
        """Run its stages into the folder `out`; the seconds are those of all stages."""
        each = self.setting
        call: dict[str, Any] = {"data": each.data, "out": out, "preset": each.preset, "hardware": each.hardware}
        done = {stage["name"]: stage for stage in run(self.word, seed=seed, options=self.options, **call)["stages"]}
        steps = [stage["results"].get("steps") for stage in done.values() if stage["kind"] == "train"]
        learned = [done[plan.stage.name]["results"] for plan in self.learning]
        results = done[self.score.stage.name]["results"] | {
            "seconds": round(sum(stage["seconds"] for stage in done.values()), 1),
            "steps": None if None in steps else sum(steps),
            # Not every kind of stage measures its memory.
            "peak_memory_mb": None,
            **{key: _agreed(result.get(key) for result in learned) for key in ("labeled", "unlabeled")},
        }
        return Trained(results, Path(done[self.score.stage.subject]["folder"]))

    def _score_plan(self) -> Plan:
        scored = [
            plan
            for plan in self.plans
            if plan.stage.kind == "evaluate"
            and plan.stage.subject in self._models
            and plan.stage.reads["data"] == (DATA,)
            and plan.settings["split"] == self.setting.val_split
        ]
        if not scored:
            stage = f"score: {{evaluate: STAGE, data: data, split: {self.setting.val_split}}}"
            raise UserError(
                f"METHOD {self.name}: no stage of the recipe scores a model on split '{self.setting.val_split}' of the "
                f"data; add a stage such as `{stage}`"
            )
        return scored[-1]

    def _fingerprinted(self) -> dict[str, Any]:
        """What the results depend on, but not how the recipe is written: a comment may change."""
        stages = {
            plan.stage.name: {
                "kind": plan.stage.kind,
                "reads": {key: list(names) for key, names in plan.stage.reads.items()},
                **{key: value for key, value in plan.settings.items() if key != "seed"},
            }
            for plan in self.plans
        }
        return {"stages": list(stages), "settings": stages}


def load_compared(
    words: Sequence[str], forms: Mapping[str, Form], options: Mapping[str, Any], setting: Setting
) -> dict[str, Compared]:
    """What a call of `compare` names, by name, in the same order.

    Args:
        words: names of `forms`, methods, or recipes: shipped ones or YAML files.
        forms: methods with options of their own.
        options: as `compare` takes them.
        setting: what all runs share.

    Raises:
        UserError: a word is none of these, two have the same name, or an option is wrong.
    """
    recipes = {word: _loaded_recipe(word) for word in words if word not in forms and _is_recipe(word)}
    named = {word: recipes[word].name if word in recipes else word for word in words}
    for word, recipe in recipes.items():
        if recipe.name in methods.METHODS or list(named.values()).count(recipe.name) > 1:
            raise UserError(f"METHOD {word}: something else is called '{recipe.name}' too; rename the file")
    compared_forms = {word: forms.get(word, Form(word)) for word in words if word not in recipes}
    chosen = options_of_forms(compared_forms, options, list(recipes.values()))
    compared: dict[str, Compared] = {}
    for word, name in named.items():
        if word in recipes:
            compared[name] = ComparedRecipe(recipes[word], word, chosen[name], setting)
        else:
            compared[name] = ComparedMethod(name, compared_forms[word].method, chosen[name], setting)
    return compared


def options_of_forms(
    forms: Mapping[str, Form], options: Mapping[str, Any], recipes: Sequence[Recipe] = ()
) -> dict[str, dict[str, Any]]:
    """The options of each form and recipe, by name: those meant for it, and a form's own, which win.

    Args:
        forms: methods.
        options: `option` for everyone who has it; `method.option`, `recipe.option` or `recipe.stage.option` for one.
        recipes: whose options are returned as `labelwise run` takes them.

    Raises:
        UserError: nobody has an option, or it names who does not take part.
    """
    known: dict[str, Collection[str]] = {form.method: option_names(_load(form.method)) for form in forms.values()}
    known |= {recipe.name: _stage_options(recipe) for recipe in recipes}
    chosen: dict[str, dict[str, Any]] = {name: {} for name in known}
    for key, value in options.items():
        having, option = _meant(key, known)
        for name in having:
            chosen[name][option] = value
    own = {name: chosen[form.method] | dict(form.options) for name, form in forms.items()}
    return own | {recipe.name: chosen[recipe.name] for recipe in recipes}


def _meant(key: str, known: Mapping[str, Collection[str]]) -> tuple[list[str], str]:
    """Whom an option is for, and its name there."""
    among = ", ".join(known)
    whom = max((name for name in known if key.startswith(f"{name}.")), key=len, default="")
    if not whom and "." in key:
        raise UserError(f"--option {key}: '{key.rpartition('.')[0]}' is not among the methods compared ({among})")
    option = key.removeprefix(f"{whom}.")
    having = [name for name in ([whom] if whom else known) if option in known[name]]
    if not having:
        every = {each for options in known.values() for each in options if ("." in each) == ("." in option)}
        who = f"none of {among} has an" if not whom and len(known) > 1 else f"'{whom or among}' has no"
        raise UserError(f"--option {key}: {who} option '{option}'{did_you_mean(option, every)}")
    return having, option


def _stage_options(recipe: Recipe) -> set[str]:
    """Every `option` and `stage.option` of a recipe."""
    stages = {stage.name: KINDS[stage.kind].options(stage) for stage in recipe.stages}
    return {each for name, options in stages.items() for option in options for each in (option, f"{name}.{option}")}


def _is_recipe(word: str) -> bool:
    if word in methods.METHODS:
        return False
    return word in shipped_recipes() or Path(word).is_file() or Path(word).suffix in (".yaml", ".yml")


def _loaded_recipe(word: str) -> Recipe:
    return load_recipe(word, {name: kind.keys for name, kind in KINDS.items()})


def _load(name: str) -> type[Method]:
    if name not in methods.METHODS:
        near = did_you_mean(name, [*methods.METHODS, *shipped_recipes()])
        raise UserError(f"unknown method '{name}'{near} (`labelwise methods` lists them)")
    return methods.load(name)


def _together(name: str, labels: Iterable[str]) -> Supervision:
    """The specification of all labels that some trainings may see.

    Raises:
        UserError: they see different parts of one kind of label, for which there is no specification.
    """
    terms = {term for spec in labels for term in Supervision.parse(spec).terms}
    whole = {term.kind for term in terms if isinstance(term.subset, Everything)}
    kept = [term for term in terms if term.kind not in whole or isinstance(term.subset, Everything)]
    for kind in sorted({term.kind for term in kept}):
        several = sorted(str(term) for term in kept if term.kind == kind)
        if len(several) > 1:
            raise UserError(
                f"METHOD {name}: the recipe's stages learn from {' and '.join(several)}; let all of them learn from one"
            )
    return Supervision.parse("+".join(map(str, kept)) or NONE)


def _agreed(values: Iterable[Any]) -> Any:
    """The one value that all are; None where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None
