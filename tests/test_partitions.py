from __future__ import annotations

import pytest

from labelwise import partitions

# Measured on the authors' lists: labelled images, fingerprint, how many of them are in the official `train`.
VOC2012 = {
    "classic/92": (92, "124b0aab2fcd", 92),
    "classic/183": (183, "79b959bccf77", 183),
    "classic/366": (366, "f0e702c687e2", 366),
    "classic/732": (732, "8c23014f5128", 732),
    "classic/1464": (1464, "129f1fe99172", 1464),
    "blender/1_16": (662, "baa85754594f", 93),
    "blender/1_8": (1323, "c9ca45b4e688", 193),
    "blender/1_4": (2646, "fd0e8dca3dac", 388),
    "blender/1_2": (5291, "5338f2777301", 742),
    "priority/1_16": (662, "feea46927383", 662),
    "priority/1_8": (1323, "23921931a213", 1323),
    "priority/1_4": (2646, "d35f7cd4b481", 1464),
}
CITYSCAPES = {
    "cityscapes/1_16": (186, "1e5363dd012c"),
    "cityscapes/1_8": (372, "6b3b52bab110"),
    "cityscapes/1_4": (744, "6856046a4415"),
    "cityscapes/1_2": (1488, "2b3183629a3a"),
}


def labeled(name: str) -> set[str]:
    return set(partitions.load(name).labeled)


@pytest.mark.parametrize("name", VOC2012)
def test_voc_lists_are_the_published_ones(name: str) -> None:
    count, digest, careful = VOC2012[name]
    partition = partitions.load(name)
    assert len(partition.labeled) == len(set(partition.labeled)) == count
    assert partitions.fingerprint(partition.labeled) == digest
    assert len(labeled(name) & set(partitions.read("voc2012/train.txt"))) == careful
    assert partition.pool is not None
    assert labeled(name) <= set(partition.pool)


@pytest.mark.parametrize("name", CITYSCAPES)
def test_cityscapes_lists_are_the_published_ones(name: str) -> None:
    count, digest = CITYSCAPES[name]
    partition = partitions.load(name)
    assert (len(partition.labeled), partitions.fingerprint(partition.labeled)) == (count, digest)
    assert partition.pool is None


def test_every_listed_partition_can_be_loaded() -> None:
    assert set(VOC2012) | set(CITYSCAPES) | {"cityscapes/1_30"} == set(partitions.NAMES)
    assert len(labeled("cityscapes/1_30")) == 100


def test_the_augmented_training_images_are_disjoint_from_val() -> None:
    train_aug, val = partitions.read("voc2012/train_aug.txt"), partitions.read("voc2012/val.txt")
    assert (len(train_aug), partitions.fingerprint(train_aug)) == (10582, "855dff350b7f")
    assert (len(val), partitions.fingerprint(val)) == (1449, "6f8edc379937")
    assert not set(train_aug) & set(val)


@pytest.mark.parametrize("family", ["blender", "priority"])
def test_a_smaller_list_lies_inside_the_larger(family: str) -> None:
    assert labeled(f"{family}/1_16") < labeled(f"{family}/1_8") < labeled(f"{family}/1_4")


def test_the_classic_lists_are_not_nested() -> None:
    shared = [
        len(labeled(f"classic/{few}") & labeled(f"classic/{more}")) for few, more in [(92, 183), (183, 366), (366, 732)]
    ]
    assert shared == [9, 42, 188]


def test_the_fingerprint_ignores_the_order_but_not_the_content() -> None:
    assert partitions.fingerprint(["b", "a"]) == partitions.fingerprint(["a", "b"])
    assert partitions.fingerprint(["a", "b"]) != partitions.fingerprint(["a", "b", "c"])
