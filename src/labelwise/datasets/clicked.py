"""A data set with the clicks of another folder instead of its own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torchvision import tv_tensors

from labelwise.datasets.base import Classes, DataSet, naming
from labelwise.datasets.listing import stems
from labelwise.datasets.voc_labels import read_points
from labelwise.samples import Kind, Sample


class Clicked(DataSet):
    """The images of a data set with the points of a folder of ``<id>.json``, as `voc_labels.read_points` reads them.

    An image without a file there has no points, whatever the data set itself has. Everything else is the data set's.
    """

    def __init__(self, dataset: DataSet, folder: Path) -> None:
        """List the folder; opens no file.

        Args:
            dataset: where the images are.
            folder: where the clicks are, in pixels of the upright images.
        """
        self.layout = dataset.layout  # type: ignore[misc]
        self.root, self.dataset, self.folder = dataset.root, dataset, folder
        self._files = stems(folder, (".json",))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Never: it is made, not found."""
        return False

    @property
    def classes(self) -> Classes:  # type: ignore[override]
        """The classes of the data set."""
        return self.dataset.classes

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data set."""
        return self.dataset.splits

    def ids(self, split: str) -> tuple[str, ...]:
        """The images of the data set."""
        return self.dataset.ids(split)

    def having(self, kind: Kind, ids: Collection[str]) -> frozenset[str]:
        """Points where the folder has a file; other kinds as in the data set."""
        if kind is not Kind.POINTS:
            return self.dataset.having(kind, ids)
        return frozenset(id for id in ids if id in self._files)

    def image_file(self, id: str) -> Path:
        """The image in the data set."""
        return self.dataset.image_file(id)

    def label_files(self, id: str, kind: Kind) -> tuple[Path, ...]:
        """The folder's file for points; other kinds as in the data set."""
        if kind is not Kind.POINTS:
            return self.dataset.label_files(id, kind)
        # As the listing of an index knows it.
        return (self.folder.resolve() / self._files[id],) if id in self._files else ()

    def label_folders(self) -> tuple[Path, ...]:
        """Those of the data set, and the folder."""
        return (*self.dataset.label_folders(), self.folder)

    def read(self, id: str, kinds: Collection[Kind] = ()) -> Sample:
        """Read the other kinds from the data set and the points from the folder."""
        sample = self.dataset.read(id, [kind for kind in kinds if kind is not Kind.POINTS])
        if Kind.POINTS not in kinds or id not in self._files:
            return sample
        size = (sample.image.shape[-2], sample.image.shape[-1])
        with naming(id):
            points, labels = read_points(self.folder / self._files[id], self.classes, size)
        return replace(sample, points=tv_tensors.KeyPoints(points, canvas_size=size), point_labels=labels)

    def write(self, sample: Sample) -> None:
        """Write into the data set."""
        self.dataset.write(sample)
