"""A json file of COCO, read once and kept as its own text.

A tree of Python objects takes ten times the memory of the text, in every worker process anew. So the file is walked
once, which finds out where the annotations of each image stand; they are parsed when the image is read.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from labelwise.datasets.images import read_text, refuse

SIZE_LIMIT = 2_000_000_000
"""The most bytes of a json file."""

_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class ListedImage:
    """An entry of `images`.

    Attributes:
        name: its `file_name`, with forward slashes.
        size: height and width as the file states them, or None.
    """

    name: str
    size: tuple[int, int] | None


class Document:
    """One json file: its images and categories, and where the annotations of each image stand in its text.

    Attributes:
        path: the file.
        images: the entries of `images`, in their order.
        categories: category id -> name, in the order of the ids.
        has_regions: whether any object has a segmentation.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the file as a whole; single annotations are judged when their image is read.

        Raises:
            BadFile: it is missing, no json, of another form, lists an image or category twice, or has an annotation of
                an image that it does not list.
        """
        self.path = path
        self._text = read_text(path, SIZE_LIMIT)
        self._places: dict[int | str, int] = {}
        self.images: list[ListedImage] = []
        self.categories: dict[int, str] = {}
        self._owners: list[int | str] = []
        self._starts, self._ends, self._segmented = array("q"), array("q"), bytearray()
        try:
            self._walk()
        except (json.JSONDecodeError, RecursionError) as error:
            refuse(path, f"it is no whole json file ({error})", "replace it by a whole copy")
        except ValueError as error:
            refuse(path, str(error), "write it in the format of COCO")
        self._group()
        self.categories = dict(sorted(self.categories.items()))
        self.has_regions = bool(self._flags.any())

    def count(self, image: int) -> int:
        """How many annotations an image has."""
        return int(self._bounds[image + 1] - self._bounds[image])

    def segmented(self, image: int) -> bool:
        """Whether an image shows instances: one of its objects is segmented, or it has none in a file with any."""
        part = self._flags[self._bounds[image] : self._bounds[image + 1]]
        return self.has_regions and (bool(part.any()) or not len(part))

    def annotations(self, image: int) -> list[dict[str, Any]]:
        """The annotations of an image, parsed."""
        part = slice(self._bounds[image], self._bounds[image + 1])
        spans = zip(self._firsts[part].tolist(), self._lasts[part].tolist(), strict=True)
        return [json.loads(self._text[first:last]) for first, last in spans]

    def _walk(self) -> None:
        """Go through the text once, keeping images and categories, and places of annotations."""
        take = {"images": self._take_image, "annotations": self._take_annotation, "categories": self._take_category}
        found: set[str] = set()
        cursor = _Cursor(self._text)
        for name in cursor.members():
            if name not in take:
                cursor.skip()
                continue
            if name in found:
                raise ValueError(f"it has '{name}' twice")
            found.add(name)
            for start, end, entry in cursor.elements(name):
                take[name](start, end, entry)
        if "images" not in found:
            raise ValueError("it lacks the list 'images'")

    def _take_image(self, start: int, end: int, entry: dict[str, Any]) -> None:
        key, name = entry.get("id"), entry.get("file_name")
        place = len(self.images) + 1
        if not _is_key(key) or not isinstance(name, str) or not name:
            raise ValueError(f"image {place} lacks an 'id' or a 'file_name'")
        if key in self._places:
            raise ValueError(
                f"it lists the image id {key} twice ('{self.images[self._places[key]].name}' and '{name}')"
            )
        height, width = (entry.get(side) or 0 for side in ("height", "width"))
        if not all(type(side) is int and side >= 0 for side in (height, width)):
            raise ValueError(f"image {place} ('{name}') states the width {width} and the height {height}")
        self._places[key] = len(self.images)
        self.images.append(ListedImage(name.replace("\\", "/"), (height, width) if height and width else None))

    def _take_annotation(self, start: int, end: int, entry: dict[str, Any]) -> None:
        owner = entry.get("image_id")
        if not _is_key(owner):
            raise ValueError(f"annotation {len(self._owners) + 1} lacks an 'image_id'")
        self._owners.append(owner)
        self._starts.append(start)
        self._ends.append(end)
        self._segmented.append(bool(entry.get("segmentation")))

    def _take_category(self, start: int, end: int, entry: dict[str, Any]) -> None:
        key, name = entry.get("id"), entry.get("name")
        if type(key) is not int or not isinstance(name, str) or not name.strip():
            raise ValueError(f"category {len(self.categories) + 1} lacks a number 'id' or a 'name'")
        if key in self.categories or name.strip() in self.categories.values():
            raise ValueError(f"it lists the category {key} ('{name}') twice")
        self.categories[key] = name.strip()

    def _group(self) -> None:
        """Sort the annotations by their images."""
        places = np.array([self._places.get(owner, -1) for owner in self._owners], dtype=np.int64)
        if (places < 0).any():
            first = int((places < 0).argmax())
            reason = f"annotation {first + 1} is of the image id {self._owners[first]}, which 'images' lacks"
            refuse(self.path, reason, "add the image, or remove its annotations")
        names = [image.name for image in self.images]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            refuse(self.path, f"it lists the image '{twice}' twice", "list each image once")
        order = np.argsort(places, kind="stable")
        self._firsts, self._lasts = (np.array(part, dtype=np.int64)[order] for part in (self._starts, self._ends))
        self._flags = np.frombuffer(bytes(self._segmented), dtype=np.bool_)[order]
        self._bounds = np.searchsorted(places[order], np.arange(len(self.images) + 1))
        del self._owners, self._starts, self._ends, self._places


def _is_key(value: object) -> TypeGuard[int | str]:
    """Whether a value can be the id of an image."""
    return isinstance(value, int | str) and not isinstance(value, bool)


class _Cursor:
    """Walks over a json object, so that only one element of its lists is in memory at a time."""

    def __init__(self, text: str) -> None:
        """Stand before the first member of the object."""
        self._text = text
        self._decode = json.JSONDecoder().raw_decode
        self._place = 0
        self._skip_space()
        if self._here != "{":
            raise ValueError("it is no json object")

    def members(self) -> Iterator[str]:
        """The names of the members; the value of each has to be consumed by `elements` or `skip`."""
        for _ in self._parts("}"):
            name, self._place = self._decode(self._text, self._place)
            self._skip_space()
            if not isinstance(name, str) or self._here != ":":
                raise json.JSONDecodeError("a name and a colon are missing", self._text, self._place)
            self._place += 1
            self._skip_space()
            yield name
        if self._place != len(self._text):
            raise json.JSONDecodeError("something follows the end", self._text, self._place)

    def skip(self) -> None:
        """Step over a value."""
        _, self._place = self._decode(self._text, self._place)

    def elements(self, name: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """The objects of a list, with the places where each begins and ends."""
        if self._here != "[":
            raise ValueError(f"'{name}' is no list")
        for _ in self._parts("]"):
            start = self._place
            entry, self._place = self._decode(self._text, start)
            if not isinstance(entry, dict):
                raise ValueError(f"'{name}' holds something that is no object")
            yield start, self._place, entry

    @property
    def _here(self) -> str:
        return self._text[self._place : self._place + 1]

    def _parts(self, closing: str) -> Iterator[None]:
        """Stand at each part of an object or list by turns; at the end, behind its closing bracket."""
        self._place += 1
        self._skip_space()
        while self._here != closing:
            yield
            self._skip_space()
            if self._here == ",":
                self._place += 1
                self._skip_space()
                if self._here == closing:
                    raise json.JSONDecodeError("a comma stands before the end", self._text, self._place)
            elif self._here != closing:
                raise json.JSONDecodeError("a comma is missing", self._text, self._place)
        self._place += 1
        self._skip_space()

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._place)
        self._place = self._place if found is None else found.end()
