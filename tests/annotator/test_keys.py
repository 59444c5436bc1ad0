from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labelwise.annotator.keys import KEYS, assign_keys
from labelwise.datasets.voc import VOC_NAMES


def test_the_classes_of_voc_have_the_keys_of_the_paper() -> None:
    keys = assign_keys(VOC_NAMES)
    assert "".join(key.key or "-" for key in keys) == "qwertyuiopasdfghjklzx"
    assert [key.number for key in keys] == list(range(21))
    assert keys[4].name == "boat" and keys[4].position == 3  # t of boat
    assert keys[0].position is None  # q of background


def test_a_class_takes_the_first_free_letter_of_its_name() -> None:
    keys = assign_keys(["Sky", "building", "sign symbol", "bb", "s s"])
    assert [(key.key, key.position) for key in keys] == [("s", 0), ("b", 0), ("i", 1), ("a", None), ("c", None)]


def test_a_name_without_letters_of_the_keyboard_gets_some_key() -> None:
    assert [(key.key, key.position) for key in assign_keys(["猫", "Über", "İz", ""])] == [
        ("a", None), ("b", 1), ("z", 1), ("c", None)
    ]  # fmt: skip


@given(st.lists(st.text(max_size=4), max_size=50))
def test_no_key_is_given_twice_and_none_is_kept_back(names: list[str]) -> None:
    keys = assign_keys(names)
    given_keys = [key.key for key in keys if key.key is not None]
    assert len(set(given_keys)) == len(given_keys) == min(len(names), len(KEYS))
    assert set(given_keys) <= set(KEYS)
    assert [key.name for key in keys] == names
    for key in keys:
        assert key.position is None or key.name[key.position].lower() == key.key
