"""Recipes: chains of stages in YAML, read with line numbers, put into order, told apart by fingerprints.

.. code-block:: yaml

    about: Image tags to a segmenter
    stages:
      classifier: {train: cam, data: data, labels: tags}
      seeds:      {annotate: classifier, data: data, split: train}
      segmenter:  {train: deeplab_v2, data: seeds, labels: masks, options: {crop: 225}}
      score:      {evaluate: segmenter, data: data, split: val}

A stage names the stages that it reads; `data` is the data set of the call. What a stage of each kind may say is not
decided here (`labelwise.verbs.stage_kinds`).
"""

from __future__ import annotations

import graphlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from labelwise.errors import UserError, did_you_mean

DATA = "data"
"""The data set of the call among the names that a stage may read."""
_ABOUT, _STAGES, _OPTIONS = "about", "stages", "options"
_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Keys:
    """What a stage of a kind may say, beside its `options`.

    Attributes:
        reads: keys that name what the stage reads: other stages, or `data`; all of them have to be there.
        may_read: the same, but may be left out.
        several: those of them that may name several.
        words: keys with a word of another meaning, such as a split.
    """

    reads: tuple[str, ...]
    may_read: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One step of a recipe, as it was written.

    Attributes:
        name: by which other stages name it.
        kind: such as `train`.
        reads: key -> names of other stages, or `data`.
        words: key -> word; of a kind that does something by name, such as the method of `train`, also that name.
        options: of what the stage runs.
        places: where a key (an option as `options.NAME`) was written, such as `recipe.yaml:7`; the stage itself is "".
    """

    name: str
    kind: str
    reads: Mapping[str, tuple[str, ...]]
    words: Mapping[str, str]
    options: Mapping[str, Any]
    places: Mapping[str, str]

    @property
    def subject(self) -> str:
        """What the kind is applied to: a method's name, or the stage that is annotated with or evaluated."""
        return self.words[self.kind] if self.kind in self.words else ", ".join(self.reads[self.kind])

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all that it reads, each once."""
        return tuple(dict.fromkeys(name for names in self.reads.values() for name in names))

    def error(self, key: str, text: str) -> UserError:
        """What is wrong with a key, with its place; with that of the stage where the key was not written."""
        return UserError(f"{self.places.get(key, self.places[''])}: {text}")

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Add the place of a key to any `UserError` meanwhile; of options, that of the one which the error names."""
        try:
            yield
        except UserError as error:
            raise self.error(self._blamed(key, str(error)), str(error)) from None

    def with_option(self, name: str, value: Any, place: str) -> Stage:
        """The stage with an option that was given elsewhere, which wins."""
        return replace(self, options={**self.options, name: value}, places={**self.places, f"{_OPTIONS}.{name}": place})

    def _blamed(self, key: str, text: str) -> str:
        if key != _OPTIONS:
            return key
        named = (name for name in self.options if re.search(rf"'{name}'|--{name.replace('_', '-')}\b", text))
        return f"{_OPTIONS}.{next(named, '')}".rstrip(".")


@dataclass(frozen=True)
class Recipe:
    """A chain of stages.

    Attributes:
        name: of its file, without the ending.
        about: what it does, in a sentence.
        text: the file's content.
        stages: in the order in which they can run; of those that could run next, the one that was written first.
    """

    name: str
    about: str
    text: str
    stages: tuple[Stage, ...]


def shipped_recipes() -> dict[str, str]:
    """The names of the recipes that come with the package, and what each does."""
    files = sorted((resources.files("labelwise") / "recipes").iterdir(), key=lambda file: file.name)
    yamls = {file.name.removesuffix(".yaml"): file.read_text() for file in files if file.name.endswith(".yaml")}
    return {name: str(yaml.safe_load(text)[_ABOUT]) for name, text in yamls.items()}


def load_recipe(recipe: str, kinds: Mapping[str, Keys]) -> Recipe:
    """Read a recipe that is shipped, or a file.

    Args:
        recipe: a shipped recipe's name, or a path.
        kinds: what a stage of each kind may say.

    Raises:
        UserError: there is no such recipe, or it is wrong; with the line.
    """
    path = Path(recipe)
    if not path.is_file():
        known = shipped_recipes()
        if recipe not in known:
            raise UserError(f"{recipe}: neither a file nor a recipe that is shipped{did_you_mean(recipe, known)}")
        text = (resources.files("labelwise") / "recipes" / f"{recipe}.yaml").read_text()
        return parse_recipe(text, f"{recipe}.yaml", kinds)
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), recipe, kinds)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no text ({error}); name a YAML file") from None


def parse_recipe(text: str, file: str, kinds: Mapping[str, Keys]) -> Recipe:
    """Read the text of a recipe.

    Args:
        text: YAML.
        file: its name in messages.
        kinds: what a stage of each kind may say.

    Raises:
        UserError: the recipe is wrong; with the line.
    """
    content = _Reader(file, kinds).recipe(text)
    return Recipe(Path(file).stem, content[0], text, in_order(content[1]))


def in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages so that each comes after those that it reads, else in the order in which they are.

    Raises:
        UserError: a stage reads one that is not there, or stages wait for each other.
    """
    named = {stage.name: stage for stage in stages}
    for stage in stages:
        for key, names in stage.reads.items():
            for name in names:
                if name not in named and name != DATA:
                    near = did_you_mean(name, {*named, DATA} - {stage.name})
                    raise stage.error(key, f"stage '{stage.name}' reads '{name}', which is no stage{near}")
    try:
        graphlib.TopologicalSorter({stage.name: stage.inputs for stage in stages}).prepare()
    except graphlib.CycleError as error:
        # Each reads the one before it.
        circle = [str(name) for name in error.args[1]]
        first = next(stage for stage in stages if stage.name in circle)
        way = " -> ".join(f"'{name}'" for name in circle)
        raise first.error("", f"these stages wait for each other: {way}; let one of them read something else") from None
    done: dict[str, Stage] = {}
    while len(done) < len(stages):
        ready = (stage for stage in stages if stage.name not in done and {*stage.inputs} <= {*done, DATA})
        stage = next(ready)
        done[stage.name] = stage
    return tuple(done.values())


def fingerprint(kind: str, settings: Mapping[str, Any], inputs: Mapping[str, Sequence[str]]) -> str:
    """What a stage's result depends on, as a short text.

    Args:
        kind: of the stage.
        settings: plain data; all options in full, so that a changed default counts as a change.
        inputs: key -> digests of what it reads.
    """
    content = json.dumps([kind, settings, inputs], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


class _Reader:
    """Reads YAML by its nodes, which know their lines."""

    def __init__(self, file: str, kinds: Mapping[str, Keys]) -> None:
        self.file, self.kinds = file, kinds

    def recipe(self, text: str) -> tuple[str, list[Stage]]:
        self.loader = yaml.SafeLoader(text)
        try:
            node = self.loader.get_single_node()
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{self.file}:{mark.line + 1}" if mark else self.file
            reason = getattr(error, "problem", None) or " ".join(str(error).split())
            raise UserError(f"{place}: not usable YAML: {reason}") from None
        if node is None:
            raise UserError(f"{self.file}: is empty; write `stages:` and one stage a line")
        entries = self._entries(node, "a recipe")
        self._refuse_unknown(entries, (_ABOUT, _STAGES), "a recipe")
        if _STAGES not in entries:
            raise self._error(node, "a recipe needs `stages:`")
        about = self._word(entries[_ABOUT][1], _ABOUT) if _ABOUT in entries else ""
        stages = self._entries(entries[_STAGES][1], f"'{_STAGES}'")
        if not stages:
            raise self._error(entries[_STAGES][1], "there is no stage; write one a line")
        return about, [self._stage(name, *nodes) for name, nodes in stages.items()]

    def _stage(self, name: str, name_node: yaml.Node, node: yaml.Node) -> Stage:
        if not _NAME.fullmatch(name) or name == DATA:
            reason = "means the data set of the call" if name == DATA else "must be letters, digits and _"
            raise self._error(name_node, f"stage '{name}': the name {reason}; take another name")
        entries = self._entries(node, f"stage '{name}'")
        kind = self._kind(name, name_node, entries)
        keys = self.kinds[kind]
        read = (*keys.reads, *keys.may_read)
        words = tuple(dict.fromkeys([*([] if kind in read else [kind]), *keys.words]))
        self._refuse_unknown(entries, (*read, *words, _OPTIONS), f"stage '{name}' ({kind})")
        for key in keys.reads:
            if key not in entries:
                raise self._error(name_node, f"stage '{name}' ({kind}) needs `{key}:`, the name of what it reads")
        options = self._entries(entries[_OPTIONS][1], f"'{_OPTIONS}'") if _OPTIONS in entries else {}
        return Stage(
            name=name,
            kind=kind,
            reads={key: self._names(entries[key][1], key, keys) for key in read if key in entries},
            words={key: self._word(entries[key][1], key) for key in words if key in entries},
            options={option: self._value(value) for option, (_, value) in options.items()},
            places={"": self._place(name_node)}
            | {key: self._place(key_node) for key, (key_node, _) in entries.items()}
            | {f"{_OPTIONS}.{option}": self._place(key_node) for option, (key_node, _) in options.items()},
        )

    def _kind(self, name: str, node: yaml.Node, entries: Mapping[str, tuple[yaml.Node, yaml.Node]]) -> str:
        found = [key for key in entries if key in self.kinds]
        if len(found) == 1:
            return found[0]
        if found:
            both = " and ".join(f"`{key}:`" for key in found)
            raise self._error(node, f"stage '{name}' says {both}; make two stages of it")
        known = {key for keys in self.kinds.values() for key in (*keys.reads, *keys.may_read, *keys.words)}
        strange = next((key for key in entries if key not in known | {_OPTIONS}), None)
        if strange is None:
            raise self._error(node, f"stage '{name}' does not say what it does; write one of {', '.join(self.kinds)}")
        raise self._error(entries[strange][0], f"unknown kind of stage '{strange}'{did_you_mean(strange, self.kinds)}")

    def _names(self, node: yaml.Node, key: str, keys: Keys) -> tuple[str, ...]:
        if key in keys.several and isinstance(node, yaml.SequenceNode):
            names = tuple(self._word(part, key) for part in node.value)
            if names:
                return names
        return (self._word(node, key),)

    def _word(self, node: yaml.Node, key: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise self._error(node, f"'{key}' must be a word")
        return str(node.value)

    def _value(self, node: yaml.Node) -> Any:
        try:
            return self.loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self._error(node, f"not usable YAML: {getattr(error, 'problem', error)}") from None

    def _entries(self, node: yaml.Node, what: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> the nodes of the key and of its value."""
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{what} must hold `name: value`")
        entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = self._word(key, "the name of an entry")
            if name in entries:
                raise self._error(key, f"'{name}' is there twice; give it once")
            entries[name] = (key, value)
        return entries

    def _refuse_unknown(
        self, entries: Mapping[str, tuple[yaml.Node, yaml.Node]], known: Sequence[str], what: str
    ) -> None:
        for name, (key, _) in entries.items():
            if name not in known:
                raise self._error(key, f"{what} has no '{name}'{did_you_mean(name, known)}")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.file}:{node.start_mark.line + 1}"

    def _error(self, node: yaml.Node, text: str) -> UserError:
        return UserError(f"{self._place(node)}: {text}")
