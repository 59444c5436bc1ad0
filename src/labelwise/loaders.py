"""Loaders whose content is a function of (seed, step): any run can be cut and continued at any step."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from labelwise.datasets.base import DataSet
from labelwise.errors import UserError
from labelwise.method import Stream
from labelwise.samples import Batch, Kind, Sample, Views, collate


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, draw) from endless reshuffled passes over a stream.

    Draw number d takes position d mod n of pass d div n; each pass is a permutation seeded by (seed, pass). All
    devices together see consecutive draws, so the number of devices changes nothing.
    """

    def __init__(
        self, size: int, batch: int, *, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        """Plan the batches.

        Args:
            size: images in the stream.
            batch: images per batch on this device.
            seed: of the permutations.
            start: number of the first batch; a resumed run starts where it was cut.
            stop: number after the last batch.
            rank: this device's number.
            world: number of devices.
        """
        self.size, self.batch, self.seed = size, batch, seed
        self.start, self.stop, self.rank, self.world = start, stop, rank, world

    def __len__(self) -> int:
        """The whole plan's length: Lightning counts a resumed run's batches from the beginning of the plan."""
        return self.stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: Sequence[int] = ()
        current = -1
        for number in range(self.start, self.stop):
            first = (number * self.world + self.rank) * self.batch
            batch = []
            for draw in range(first, first + self.batch):
                if draw // self.size != current:
                    current = draw // self.size
                    order = self._permutation(current)
                batch.append((order[draw % self.size], draw))
            yield batch

    def _permutation(self, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "pass", number))
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        return order


class StreamSet(Dataset[Views]):
    """The images of one stream, augmented under a random state that is a function of (seed, draw)."""

    def __init__(self, read: Callable[[str], Sample], ids: Sequence[str], stream: Stream, seed: int) -> None:
        """Remember what may be read.

        Args:
            read: reads an image of this id with the labels that its stream may see, and no others.
            ids: the stream's images.
            stream: with the transform to apply.
            seed: of the augmentation.
        """
        self.read, self.ids, self.stream, self.seed = read, tuple(ids), stream, seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, item: tuple[int, int]) -> Views:
        index, draw = item
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "draw", draw))
            return self.stream.transform(self.read(self.ids[index]))


class EvaluationSet(Dataset[Sample]):
    """The images of a split at their own size, with the labels that the score needs."""

    def __init__(self, dataset: DataSet, ids: Sequence[str], kinds: frozenset[Kind]) -> None:
        """Remember what to read."""
        self.dataset, self.ids, self.kinds = dataset, tuple(ids), kinds

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.read(self.ids[index], self.kinds)


class EveryOnce(Sampler[int]):
    """Each image exactly once over all devices; nothing is repeated to fill the last round."""

    def __init__(self, size: int, rank: int, world: int) -> None:
        """Take every `world`-th image from `rank` on."""
        self.indices = range(rank, size, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def training_loader(images: StreamSet, batches: EndlessBatches, workers: int) -> DataLoader[Any]:
    """The loader of one training stream."""
    return DataLoader(
        images,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
    )


def evaluation_loader(
    dataset: DataSet, ids: Sequence[str], kinds: frozenset[Kind], *, rank: int = 0, world: int = 1, workers: int = 0
) -> DataLoader[Any]:
    """The loader of an evaluation: one image at a time, at its own size.

    Raises:
        UserError: fewer images than devices; a device without any would not take part in the common score.
    """
    if 0 < len(ids) < world:
        raise UserError(f"--devices: {world} devices cannot share {len(ids)} images to score; take at most {len(ids)}")
    images = EvaluationSet(dataset, ids, kinds)
    return DataLoader(
        images,
        batch_size=1,
        sampler=EveryOnce(len(images), rank, world),
        collate_fn=_collate_whole,
        num_workers=workers,
    )


def _collate_whole(samples: list[Sample]) -> Batch:
    return collate([Views(sample=sample) for sample in samples])


def _start_worker(_: Any) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's SIGTERM reach the whole group, but the step under way still needs its batch; workers end
    # with their loader.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)
