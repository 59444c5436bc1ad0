"""Supervision: which label kinds a method may see, for which images; what is not allowed is never opened.

A specification is a sum of terms, ``masks:1/8+tags``. A term is a kind of label and, after a colon, for which images:

=====================  =================================================================================
``masks``              every image that has masks; also ``masks:all``
``masks:1/8``          as many images with masks as an eighth of the split's images
``masks:92``           92 images with masks
``masks:classic/183``  the images of a published list (`labelwise.partitions`); also ``masks:blender/1_8``
``masks:FILE``         the images whose ids a text file lists
``points:20``          20 random clicks per image, on every image: for points a number counts clicks
``points:FOLDER``      the clicks of a folder of ``<id>.json`` in the form of `Points/<id>.json` of a VOC folder
``none``               no labels at all
=====================  =================================================================================
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor
from torchvision import tv_tensors

from labelwise import partitions
from labelwise.datasets.base import DataSet, unique
from labelwise.datasets.clicked import Clicked
from labelwise.errors import BadFile, UserError, did_you_mean
from labelwise.samples import Kind, Sample

NONE = "none"
_STRENGTH = (Kind.INSTANCES, Kind.MASKS, Kind.BOXES, Kind.POINTS, Kind.MAPS, Kind.TAGS, Kind.CAPTIONS)


@dataclass(frozen=True)
class Streams:
    """The images of a split as a method may see them.

    Attributes:
        labeled: ids of the images with labels of the strongest kind of the specification.
        unlabeled: ids of the other images.
        allowed: the kinds that may be read, for every id of both; ``masks:1/8+tags`` allows tags on unlabelled images.
        protocol: how the labelled images were chosen; to be stored next to a result.
        seed: of the choice of images and clicks.
        points_per_image: clicks per image, or None for all points there are.
    """

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    allowed: Mapping[str, frozenset[Kind]]
    protocol: str
    seed: int
    points_per_image: int | None = None

    def read(self, dataset: DataSet, id: str) -> Sample:
        """Read an image with the labels that are allowed on it, and no file of any other.

        Raises:
            BadFile: a file that has to be opened is missing, damaged or wrong.
        """
        sample = dataset.read(id, self.allowed.get(id, frozenset()))
        return sample if self.points_per_image is None else _with_clicks(sample, self.points_per_image, self.seed)


@dataclass(frozen=True)
class Everything:
    """Every image that has the label."""

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Budget:
    """A number or a share of images, chosen by a seed."""

    amount: int | Fraction

    def __str__(self) -> str:
        return str(self.amount)

    def count(self, images: int) -> int:
        """The number of images out of so many."""
        return math.ceil(images * self.amount) if isinstance(self.amount, Fraction) else self.amount


@dataclass(frozen=True)
class Official:
    """A published list."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ListFile:
    """A text file of ids."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Clicks:
    """A number of clicks on every image."""

    per_image: int

    def __str__(self) -> str:
        return str(self.per_image)


@dataclass(frozen=True)
class ClicksFolder:
    """The clicks of a folder, which count instead of the data set's own."""

    path: str

    def __str__(self) -> str:
        return self.path


Subset = Everything | Budget | Official | ListFile | Clicks | ClicksFolder


@dataclass(frozen=True)
class Term:
    """A kind of label and for which images it is allowed."""

    kind: Kind
    subset: Subset

    def __str__(self) -> str:
        return f"{self.kind}:{self.subset}" if str(self.subset) else str(self.kind)


@dataclass(frozen=True)
class Supervision:
    """A parsed specification; `str` gives it back in its canonical form.

    Attributes:
        terms: the strongest kind first; empty for ``none``.
    """

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, spec: str) -> Supervision:
        """Read a specification.

        Raises:
            UserError: names the option and the part that is wrong.
        """
        parts = _parts(spec)
        if parts == [NONE]:
            return cls(())
        terms = [_parse_term(part, spec) for part in parts]
        kinds = [term.kind for term in terms]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise UserError(f"--labels {spec}: names {kind} twice; give one term per kind of label")
        return cls(tuple(sorted(terms, key=lambda term: _STRENGTH.index(term.kind))))

    def __str__(self) -> str:
        return "+".join(map(str, self.terms)) or NONE

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of label that it allows on some image."""
        return frozenset(term.kind for term in self.terms)

    @property
    def clicks_per_image(self) -> int | None:
        """How many random clicks it allows on every image, or None if it counts none."""
        return next((term.subset.per_image for term in self.terms if isinstance(term.subset, Clicks)), None)

    def view(self, dataset: DataSet) -> DataSet:
        """The data set as it has to be read: with the clicks of ``points:FOLDER`` instead of its own.

        Raises:
            UserError: the folder is not there any more.
        """
        folder = next((Path(term.subset.path) for term in self.terms if isinstance(term.subset, ClicksFolder)), None)
        if folder is None or (isinstance(dataset, Clicked) and dataset.folder == folder):
            return dataset
        if not folder.is_dir():
            raise UserError(f"--labels {self}: there is no folder {folder}; check the spelling")
        return Clicked(dataset, folder)

    def streams(self, dataset: DataSet, split: str, seed: int) -> Streams:
        """Choose the images.

        Budgets take images in one order per seed, so that a larger budget contains a smaller one, and whatever
        labels the images outside the budget have makes no difference.

        Args:
            dataset: where the images are, or the `view` of it; no label file is opened.
            split: the split to train on. A published list of VOC brings its own pool of unlabelled images instead.
            seed: of the choice.

        Raises:
            UserError: the data set lacks the split, or labels or images that the specification asks for.
        """
        dataset = self.view(dataset)
        pool = _pool(self.terms, dataset, split)
        choices = [_Choice(self, term, dataset, split, pool, seed) for term in self.terms]
        chosen = [choice.ids() for choice in choices]
        labeled = chosen[0] if chosen else ()
        granted = [(term.kind, frozenset(ids)) for term, ids in zip(self.terms, chosen, strict=True)]
        among_labeled = frozenset(labeled)
        return Streams(
            labeled=labeled,
            unlabeled=tuple(id for id in pool if id not in among_labeled),
            allowed={id: frozenset(kind for kind, ids in granted if id in ids) for id in pool},
            protocol=_protocol(choices),
            seed=seed,
            points_per_image=self.clicks_per_image,
        )


def seeded_order(ids: Iterable[str], seed: int) -> tuple[str, ...]:
    """The ids in an order that looks random and depends on each id and the seed alone.

    The order of the ids given does not matter, and ids that come or go leave the others in their order.
    """
    return tuple(sorted(ids, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).digest()))


def _pool(terms: Iterable[Term], dataset: DataSet, split: str) -> tuple[str, ...]:
    """All training images, labelled or not: those of a published list's protocol that there are, or the split's."""
    for term in terms:
        official = partitions.load(term.subset.name).pool if isinstance(term.subset, Official) else None
        if official is not None:
            return tuple(id for id in official if _has_image(dataset, id))
    return dataset.ids(split)


@dataclass(frozen=True)
class _Choice:
    """The images of one term out of the pool."""

    supervision: Supervision
    term: Term
    dataset: DataSet
    split: str
    pool: tuple[str, ...]
    seed: int

    @property
    def protocol(self) -> str:
        """How the images were chosen; empty if they were not."""
        match self.term.subset:
            case Budget():
                return f"own lists, seed {self.seed}"
            case Official(name):
                return name
            case ListFile(path):
                return f"{path} ({partitions.fingerprint(_listed_ids(path))})"
            case Clicks(per_image):
                return f"{per_image} own clicks per image, seed {self.seed}"
            case ClicksFolder(path):
                return f"clicks of {path}"
            case _:
                return ""

    def ids(self) -> tuple[str, ...]:
        """The images on which the label is allowed, in the seeded order."""
        match self.term.subset:
            case Budget() as budget:
                return self._first(budget.count(len(self.pool)))
            case Official(name):
                return self._listed(partitions.load(name).labeled, f"list '{name}'")
            case ListFile(path):
                return self._listed(_listed_ids(path), path)
            case _:
                return self._having()

    def _having(self) -> tuple[str, ...]:
        having = self.dataset.having(self.term.kind, self.pool)
        if not having and isinstance(self.term.subset, ClicksFolder):
            raise self._error(
                f"{self.term.subset} has no <id>.json of any image of the split '{self.split}' of {self.dataset.root}; "
                "name the folder that holds these files"
            )
        if not having:
            raise self._error(f"the split '{self.split}' of {self.dataset.root} has no {self.term.kind}; see `inspect`")
        return tuple(id for id in seeded_order(self.pool, self.seed) if id in having)

    def _first(self, count: int) -> tuple[str, ...]:
        order, kind = self._having(), self.term.kind
        if count > len(order):
            raise self._error(
                f"asks for {count} {kind}; the split '{self.split}' has {len(order)}; "
                f"ask for {kind}:{len(order)} or fewer"
            )
        return order[:count]

    def _listed(self, ids: Collection[str], source: str) -> tuple[str, ...]:
        pool, kind = frozenset(self.pool), self.term.kind
        self._require(ids, [id for id in ids if id not in pool], f"images of {source}", "are missing")
        having = self.dataset.having(kind, ids)
        self._require(ids, [id for id in ids if id not in having], f"images of {source}", f"have no {kind}")
        return seeded_order(ids, self.seed)

    def _require(self, ids: Collection[str], absent: Collection[str], what: str, wrong: str) -> None:
        if absent:
            examples = ", ".join(list(absent)[:2]) + (", ..." if len(absent) > 2 else "")
            raise self._error(
                f"{len(absent)} of the {len(ids)} {what} {wrong} in split '{self.split}' of {self.dataset.root} "
                f"({examples}); add them, or ask for a share such as {self.term.kind}:1/8"
            )

    def _error(self, message: str) -> UserError:
        return UserError(f"--labels {self.supervision}: {message}")


def _protocol(choices: Collection[_Choice]) -> str:
    names = unique([choice.protocol for choice in choices if choice.protocol])
    return " + ".join(names) or ("every label" if choices else "no labels")


def _parts(spec: str) -> list[str]:
    """The terms as they are written; a plus sign within the path of a file or folder does not end one."""
    subset = spec.partition(":")[2]
    return [part.strip() for part in ([spec] if subset and Path(subset).exists() else spec.split("+"))]


def _parse_term(text: str, spec: str) -> Term:
    name, colon, subset = text.partition(":")
    if name not in set(Kind):
        raise UserError(f"--labels {spec}: no label kind '{name}'{did_you_mean(name, [*Kind, NONE])}")
    if colon and not subset:
        raise UserError(f"--labels {spec}: nothing follows the colon; write {name}, {name}:1/8, {name}:92 or a list")
    return Term(Kind(name), _parse_subset(Kind(name), subset, spec))


def _parse_subset(kind: Kind, text: str, spec: str) -> Subset:
    if text in ("", "all"):
        return Everything()
    numbers = text.split("/")
    if len(numbers) <= 2 and all(number.isascii() and number.isdigit() for number in numbers):
        return _parse_amount(kind, text, spec)
    official = _official_name(text)
    if official is not None:
        return Official(official)
    if Path(text).is_file():
        _listed_ids(text)
        return ListFile(text)
    if kind is Kind.POINTS and Path(text).is_dir():
        return ClicksFolder(text)
    mend = did_you_mean(text, partitions.NAMES)
    raise UserError(f"--labels {spec}: '{text}' is no number, fraction, published list or file{mend}")


def _parse_amount(kind: Kind, text: str, spec: str) -> Subset:
    if "/" not in text:
        count = int(text)
        if count < 1:
            raise UserError(f"--labels {spec}: '{text}' allows no label; write a number from 1 on, or {NONE}")
        return Clicks(count) if kind is Kind.POINTS else Budget(count)
    top, bottom = map(int, text.split("/"))
    if not 0 < top <= bottom:
        raise UserError(f"--labels {spec}: '{text}' is no share of the images; write a fraction such as 1/8")
    return Everything() if top == bottom else Budget(Fraction(top, bottom))


def _official_name(text: str) -> str | None:
    """``blender/1/8`` is ``blender/1_8``."""
    family, _, rest = text.partition("/")
    name = f"{family}/{rest.replace('/', '_')}"
    return name if name in partitions.NAMES else None


def _listed_ids(path: str) -> tuple[str, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels: {path} cannot be read ({error}); give a text file of image ids") from None
    ids = unique([line.strip() for line in lines if line.strip()])
    if not ids:
        raise UserError(f"--labels: {path} lists no image; write one image id per line")
    return ids


def _has_image(dataset: DataSet, id: str) -> bool:
    try:
        dataset.image_file(id)
    except BadFile:
        return False
    return True


def _with_clicks(sample: Sample, count: int, seed: int) -> Sample:
    """A seeded choice of a sample's points; all of them where it has fewer."""
    if sample.points is None or sample.point_labels is None:
        return sample
    key = hashlib.sha256(f"clicks/{seed}/{sample.id}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
    chosen = torch.randperm(len(sample.points), generator=generator)[:count]
    points = tv_tensors.wrap(sample.points.as_subclass(Tensor)[chosen], like=sample.points)
    return replace(sample, points=points, point_labels=sample.point_labels[chosen])
