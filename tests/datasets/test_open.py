from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import labelwise.datasets
from labelwise.errors import UserError


def picture(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3)).save(path)


def test_the_layout_is_recognised(tmp_path: Path, voc_folder: Path) -> None:
    picture(tmp_path / "plain/images/a.jpg")
    picture(tmp_path / "road/train/a.png")
    picture(tmp_path / "road/trainannot/a.png", "L")
    assert labelwise.datasets.open(voc_folder).layout == "VOC"
    assert labelwise.datasets.open(str(voc_folder.parent)).root == voc_folder
    assert labelwise.datasets.open(tmp_path / "plain").layout == "folders"
    assert labelwise.datasets.open(tmp_path / "road").layout == "CamVid"


def test_what_cannot_be_opened_is_said_in_one_line(tmp_path: Path) -> None:
    picture(tmp_path / "some/a.jpg")
    for name, reason in (
        ("none", "no such folder"),
        ("some/a.jpg", "is a file"),
        ("some", "not a known layout; looked for JPEGImages"),
    ):
        with pytest.raises(UserError) as caught:
            labelwise.datasets.open(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ") and reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_development_kit_of_two_years_asks_for_one(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        picture(tmp_path / year / "JPEGImages/a.jpg")
    with pytest.raises(UserError, match="holds VOC2007, VOC2012; name one of them"):
        labelwise.datasets.open(tmp_path)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, labelwise.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
