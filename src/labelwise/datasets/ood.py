"""Images in which no class occurs: a split of the data set, a folder, or a list of image files."""

from __future__ import annotations

from pathlib import Path

from labelwise.datasets.base import DataSet, unique
from labelwise.datasets.images import IMAGE_SUFFIXES, read_image
from labelwise.datasets.listing import read_lines
from labelwise.errors import BadFile, UserError
from labelwise.samples import Sample


class OodImages:
    """Images without labels, by ids that are ids of the data set or paths of image files."""

    def __init__(self, dataset: DataSet, source: str) -> None:
        """Find the images; opens none.

        Args:
            dataset: the data set of the labelled images.
            source: the name of one of its splits; or a folder of images; or a text file with one image path in each
                line, relative to its own folder. What follows a tab in a line, and lines that begin with `#`, are
                passed over.

        Raises:
            UserError: there is no such split, folder or file, or no image in it.
        """
        self.dataset = dataset
        self.files: dict[str, Path] = {}
        if source in dataset.splits:
            self.ids = dataset.ids(source)
        else:
            self.files = {str(path): path for path in _image_files(Path(source), dataset)}
            self.ids = tuple(self.files)
        if not self.ids:
            raise UserError(f"--ood {source}: holds no image; name a split, a folder of images or a list of them")

    def read(self, id: str) -> Sample:
        """Read one image, without any label.

        Raises:
            BadFile: it is missing or damaged.
        """
        return Sample(id=id, image=read_image(self.files[id])) if id in self.files else self.dataset.read(id)

    def check(self, id: str) -> BadFile | None:
        """What is wrong with an image file, if anything."""
        try:
            self.read(id)
        except BadFile as error:
            return error
        return None


def _image_files(source: Path, dataset: DataSet) -> tuple[Path, ...]:
    if source.is_dir():
        return tuple(sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES))
    if not source.is_file():
        raise UserError(
            f"--ood {source}: is no split of {dataset.root} ({', '.join(dataset.splits)}), no folder and no file; "
            "`labelwise mine-ood` makes a list of such images"
        )
    lines = (line.partition("\t")[0].strip() for line in read_lines(source))
    return tuple(source.parent / name for name in unique([line for line in lines if line and line[0] != "#"]))
