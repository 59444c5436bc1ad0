"""A labelling session without a screen: what is shown, what is asked, and where the answers go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

import numpy as np

from labelwise.annotator.desk import Conflict, Desk
from labelwise.annotator.gallery import draw_boxes, draw_mask, draw_points, encoded_thumbnail
from labelwise.annotator.keys import assign_keys
from labelwise.annotator.label_files import LabelFiles, require_writable
from labelwise.annotator.listing import ImageListing
from labelwise.annotator.points import PointQuestions
from labelwise.annotator.queue import EMPTY
from labelwise.annotator.tabs import OpenTabs
from labelwise.datasets.queries import read_queries
from labelwise.datasets.voc import VOC
from labelwise.errors import BadFile, UserError
from labelwise.samples import IGNORE_INDEX, Kind

__all__ = ["AnnotationSession", "Conflict", "UnknownImage"]

_PAUSE = 30.0
_BREATH = 0.002


class UnknownImage(KeyError):
    """There is no such image in the session, or no such label of it."""

    def __str__(self) -> str:
        return str(self.args[0])


class AnnotationSession:
    """Labels the images of one split of a VOC folder; any number of threads may call it.

    An answer is in the journal and in the label files, on the disk, when its method returns; the same answer (by its
    identifier) may come again and is acknowledged again. Coordinates are those of the upright image.

    Attributes:
        dataset: the folder.
        ids: the images, in the order of the split.
    """

    def __init__(
        self, dataset: VOC, split: str, folder: Path, *, queries: Path | None = None, predictions: Path | None = None
    ) -> None:
        """Start a session, or go on with one that was ended in whatever way.

        Args:
            dataset: the folder that the labels go into.
            split: whose images are shown.
            folder: for the journal and what else is no label.
            queries: the batch of questions.
            predictions: a VOC folder with masks that a model made for these images.

        Raises:
            UserError: no such split, no image in it, a folder that cannot be written to, or another process that labels
                it.
            BadFile: the journal or the queries cannot be read.
        """
        self.dataset, self._split = dataset, split
        self.ids = dataset.ids(split)
        if not self.ids:
            raise UserError(
                f"{dataset.root}: split '{split}' has no image to label; add images, or name another --split"
            )
        self._known = frozenset(self.ids)
        require_writable(dataset.root, folder)
        self._lock = RLock()
        self._stop = Event()
        self._tabs = OpenTabs()
        self._predictions: LabelFiles | None = None
        if predictions is not None:
            self.load_predictions(predictions)
        file = EMPTY if queries is None else read_queries(queries)
        # Last, because it keeps other sessions out of the folder.
        self._desk = Desk(dataset, folder)
        self._listing = ImageListing(self.ids, self._desk.store, self._desk.gallery)
        self._points = PointQuestions(self._desk, self._listing, self._known, file)

    def close(self) -> None:
        """End the session; another process may label the folder then."""
        self._stop.set()
        self._desk.recorder.close()

    def start_checking(self) -> None:
        """Look through all images and labels for what is broken, again and again, beside everything else."""
        Thread(target=self._check_for_ever, name="labelwise-check", daemon=True).start()

    def check(self) -> None:
        """Look through all images and labels for what is broken; what did not change is not read again."""
        for id in self.ids:
            if self._stop.wait(_BREATH):
                return
            self._listing.inspect(id)

    # ------------------------------------------------------------ what is shown

    def describe(self) -> dict[str, Any]:
        """The session as the page gets it: data set, classes with colors and keys, batch, statistics."""
        classes = self.dataset.classes
        colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in classes.palette[: len(classes)].tolist()]
        with self._lock:
            return {
                "data": str(self.dataset.root),
                "split": self._split,
                "images": len(self.ids),
                "classes": [
                    asdict(key) | {"color": color}
                    for key, color in zip(assign_keys(classes.names), colors, strict=True)
                ],
                "background": classes.background,
                "ignore": IGNORE_INDEX,
                "has_predictions": self._predictions is not None,
                "round": self._points.queue.file.round,
                "statistics": self._desk.recorder.statistics.described(),
            }

    def images(self, filter: str, search: str, order: str, offset: int, count: int) -> dict[str, Any]:
        """A page of the listing.

        Args:
            filter: `all`, `unlabeled`, `points`, `tags`, `boxes`, `masks`, or `broken`.
            search: part of the ids, in upper or lower case.
            order: `list`, or `least_sure` for the images first of which the model is least sure.
            offset: how many of them to pass over.
            count: how many at most.

        Raises:
            ValueError: an unknown filter or order.
        """
        with self._lock:
            found = self._listing.find(filter, search)
            if order == "least_sure":
                sure = {id: -(self._points.queue.uncertainty(id) or 0.0) for id in found}
                found.sort(key=sure.__getitem__)
            elif order != "list":
                raise ValueError(f"order: '{order}' is neither list nor least_sure")
            page = self._listing.described(found[max(offset, 0) : max(offset, 0) + max(count, 0)])
            return {
                "total": len(found),
                "images": [row | {"uncertainty": self._points.queue.uncertainty(row["id"])} for row in page],
            }

    def labels(self, id: str) -> dict[str, Any]:
        """The labels of an image; kinds whose file cannot be read are empty, and `problem` says why.

        Raises:
            UnknownImage: no image of the session.
        """
        self._require_known(id)
        with self._lock:
            problem = self._listing.inspect(id)
            try:
                size = self._desk.gallery.header(id).size
            except BadFile:
                size = (0, 0)
            labels = self._listing.labels(id)
            return {
                "id": id,
                "height": size[0],
                "width": size[1],
                "revision": self._desk.revision(id),
                "problem": problem,
                **labels,
                "prediction": self._predictions is not None and self._predictions.find(Kind.MASKS, id) is not None,
            }

    def mask(self, id: str, source: str) -> np.ndarray:
        """A mask of an image, [H, W] uint8.

        Args:
            id: the image.
            source: `labels`, or `prediction` for that of the model.

        Raises:
            UnknownImage: no such image, or no such mask of it.
            BadFile: the mask cannot be read.
        """
        self._require_known(id)
        files = self._desk.store.files if source == "labels" else self._predictions
        mask = None if files is None else self._desk.store.read_mask(files, id, self._desk.gallery.header(id))
        if mask is None:
            raise UnknownImage(f"'{id}' has no mask ({source})")
        return mask

    def thumbnail(self, id: str, labels: bool) -> bytes:
        """A JPEG of an image with a longer side of at most 240 pixels.

        Args:
            id: the image.
            labels: blend the mask in, or else draw the boxes; and draw the points.

        Raises:
            UnknownImage: no image of the session.
            BadFile: the image cannot be read.
        """
        self._require_known(id)
        picture, size = self._desk.gallery.thumbnail(id)
        if labels:
            drawn = self._listing.drawable(id)
            if drawn.mask is not None:
                picture = draw_mask(picture, drawn.mask, self.dataset.classes)
            elif drawn.boxes is not None:
                draw_boxes(picture, drawn.boxes, size, self.dataset.classes)
            draw_points(picture, drawn.points, size, self.dataset.classes)
        return encoded_thumbnail(picture)

    def image_file(self, id: str) -> tuple[bytes, str]:
        """The bytes of an image and their media type; of formats that browsers lack, those of a PNG.

        Raises:
            UnknownImage: no image of the session.
            BadFile: the image cannot be read.
        """
        self._require_known(id)
        return self._desk.gallery.content(id)

    def heartbeat(self, id: str, tab: str) -> dict[str, Any]:
        """Note that a tab shows an image, and tell whether others do, and whether the labels were changed.

        Raises:
            UnknownImage: no image of the session.
        """
        self._require_known(id)
        with self._lock:
            return {"others": self._tabs.heard(tab, id), "revision": self._desk.revision(id)}

    def statistics(self) -> dict[str, Any]:
        """Numbers and times of the answers, see `statistics.Statistics.described`."""
        with self._lock:
            return self._desk.recorder.statistics.described()

    # ------------------------------------------------------------------ points

    def queries(self, count: int) -> dict[str, Any]:
        """The next questions of the batch in order; those of images that cannot be labeled are passed over.

        Returns:
            `queries`, `batch` (a name for all questions together), `done` and `total` (of them), `passed_over` (open
            ones of images with a problem, as far as they were come upon), `round` and `strategy`.
        """
        with self._lock:
            return self._points.upcoming(count)

    def answer_point(self, answer: str, id: str, x: int, y: int, label: int | None, seconds: float) -> dict[str, Any]:
        """Name the class of a pixel, of the batch or any other.

        Args:
            answer: the client's identifier of this answer.
            id: the image.
            x: column of the pixel.
            y: its row.
            label: the class number, or None to skip the question: it counts as done and is not asked again.
            seconds: what it took.

        Returns:
            As `queries`, with `statistics` and the image's `revision`.

        Raises:
            UnknownImage: no image of the session.
            ValueError: no class of that number, or no pixel of the image.
            Conflict: another answer has named this pixel.
            BadFile: the image, or the file of its points, cannot be read; nothing is changed.
        """
        self._require_known(id)
        with self._lock:
            return self._points.answer(answer, id, x, y, label, seconds)

    def undo(self, answer: str) -> dict[str, Any]:
        """Take the latest named or skipped point back; a question of the batch is asked again.

        A label that somebody has changed by hand since stays.

        Args:
            answer: the client's identifier of this undo.

        Returns:
            As `answer_point`, with `undone`: `id`, `x`, `y` and `class` of the point, or None if there was none.

        Raises:
            BadFile: the file of the image's points cannot be read; nothing is changed.
        """
        with self._lock:
            return self._points.undo(answer)

    def load_queries(self, path: Path) -> None:
        """Ask the questions of another batch from now on, without those that were answered before.

        Raises:
            BadFile: the queries cannot be read.
        """
        file = read_queries(path)
        with self._lock:
            self._points.ask(file)

    # -------------------------------------------------------- tags, boxes, masks

    def set_tags(self, answer: str, id: str, revision: int, tags: Sequence[int], seconds: float) -> dict[str, Any]:
        """Say which classes an image shows.

        Args:
            answer: the client's identifier of this answer.
            id: the image.
            revision: that the client has seen.
            tags: the numbers of all classes that it shows, without the background.
            seconds: what it took.

        Returns:
            The new `revision`, and `statistics`.

        Raises:
            UnknownImage: no image of the session.
            ValueError: no class of such a number.
            Conflict: the image's labels were changed meanwhile.
            BadFile: the image or a tag list cannot be read; nothing is changed.
            UserError: a class has a name that no tag list can have.
        """
        return self._save(id, lambda: self._desk.save_tags(answer, id, revision, tags, seconds))

    def set_boxes(
        self, answer: str, id: str, revision: int, boxes: Sequence[dict[str, Any]], seconds: float
    ) -> dict[str, Any]:
        """Give an image its boxes.

        Args:
            answer: the client's identifier of this answer.
            id: the image.
            revision: that the client has seen.
            boxes: all its boxes, each with `box` (x1, y1, x2, y2; half-open, in pixels), `class` (a number) and
                `difficult`; none makes an annotation without objects.
            seconds: what it took.

        Returns:
            The new `revision`, and `statistics`.

        Raises:
            UnknownImage: no image of the session.
            ValueError: no class of such a number, or a box that is inverted or outside the image.
            Conflict: the image's labels were changed meanwhile.
            BadFile: the image or its annotation cannot be read; nothing is changed.
        """
        return self._save(id, lambda: self._desk.save_boxes(answer, id, revision, boxes, seconds))

    def set_mask(self, answer: str, id: str, revision: int, mask: np.ndarray, seconds: float) -> dict[str, Any]:
        """Give an image its mask.

        Args:
            answer: the client's identifier of this answer.
            id: the image.
            revision: that the client has seen.
            mask: [H, W] uint8 class numbers, 255 = ignore.
            seconds: what it took.

        Returns:
            The new `revision`, and `statistics`.

        Raises:
            UnknownImage: no image of the session.
            ValueError: the mask has another size than the image, or a number that no class has.
            Conflict: the image's labels were changed meanwhile.
            BadFile: the image or its mask cannot be read; nothing is changed.
        """
        return self._save(id, lambda: self._desk.save_mask(answer, id, revision, mask, seconds))

    def load_predictions(self, folder: Path) -> None:
        """Show the masks of a VOC folder as those of the model from now on.

        Raises:
            UserError: no VOC folder, or one with other classes.
        """
        predicted = VOC(folder)
        if predicted.classes.names != self.dataset.classes.names:
            raise UserError(
                f"{folder}: its classes are not those of {self.dataset.root}; predict with a model of these"
            )
        self._predictions = LabelFiles(predicted.root)

    # ----------------------------------------------------------------- within

    def _save(self, id: str, save: Callable[[], None]) -> dict[str, Any]:
        self._require_known(id)
        with self._lock:
            save()
            return {"revision": self._desk.revision(id), "statistics": self._desk.recorder.statistics.described()}

    def _require_known(self, id: str) -> None:
        if id not in self._known:
            raise UnknownImage(f"there is no image '{id}' in split '{self._split}'")

    def _check_for_ever(self) -> None:
        while not self._stop.is_set():
            self.check()
            self._stop.wait(_PAUSE)
