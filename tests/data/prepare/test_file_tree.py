"""Files of a data set in a folder and in a zip: equal names, root detection, no writes outside the output."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from pspnet.data.prepare.file_tree import open_tree
from pspnet.errors import DataError

FILES = {
    "masks/train/b_mask.png": b"mask b",
    "masks/train/a_mask.PNG": b"mask a",
    "masks/train/city/c_mask.png": b"mask c",
    "masks/train/c_image.png": b"of another kind",
    "masks/train/._a_mask.png": b"left by an operating system",
    "masks/other/d_mask.png": b"of another split",
}
EXPECTED = "a set with masks/train"


def make_folder(root: Path) -> Path:
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def make_zip(path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{prefix}masks/", "")
        for name, content in FILES.items():
            archive.writestr(prefix + name, content)
    return path


@pytest.fixture(params=["folder", "folder below", "zip", "zip below", "zip two below"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        return make_folder(tmp_path / "set")
    if request.param == "folder below":
        make_folder(tmp_path / "set" / "repository-main" / "Set")
        return tmp_path / "set"
    prefix = {"zip": "", "zip below": "Set/", "zip two below": "repository-main/Set/"}[request.param]
    return make_zip(tmp_path / "set.zip", prefix)


def test_files_are_found_by_stem_and_copied(source: Path, tmp_path: Path) -> None:
    with open_tree(source, "masks/train", EXPECTED) as tree:
        found = tree.names("masks/train", "_mask.png")
        assert found == {
            "a": "masks/train/a_mask.PNG",
            "b": "masks/train/b_mask.png",
            "c": "masks/train/city/c_mask.png",
        }
        assert tree.names("masks/none", ".png") == {}
        assert sorted(tree.in_stored_order(found.values())) == sorted(found.values())
        tree.copy_to(found["c"], tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes() == b"mask c"


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    make_folder(tmp_path / "disk")
    (tmp_path / "set" / "masks" / "train").mkdir(parents=True)
    (tmp_path / "set" / "masks" / "train" / "city").symlink_to(tmp_path / "disk" / "masks" / "train" / "city")
    with open_tree(tmp_path / "set", "masks/train", EXPECTED) as tree:
        assert tree.names("masks/train", "_mask.png") == {"c": "masks/train/city/c_mask.png"}


def test_repeated_stems_are_named(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "masks/train/city/a_mask.png").write_bytes(b"")
    message = r"masks/train/a_mask\.PNG and masks/train/city/a_mask\.png share a name"
    with open_tree(tmp_path, "masks/train", EXPECTED) as tree, pytest.raises(DataError, match=message):
        tree.names("masks/train", "_mask.png")


def test_other_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: does not exist; expected a set with masks/train"), open_tree(
        tmp_path / "gone", "masks/train", EXPECTED
    ):
        pass
    for source in (tmp_path, make_zip(tmp_path / "deep.zip", "one/two/three/")):
        with pytest.raises(DataError, match=r"has no folder masks/train; expected a set with masks/train"), open_tree(
            source, "masks/train", EXPECTED
        ):
            pass


@pytest.mark.parametrize("kept", [0, 40, -30])
def test_a_truncated_zip_is_an_error(tmp_path: Path, kept: int) -> None:
    path = make_zip(tmp_path / "set.zip")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(
        DataError, match=r"set\.zip: not a readable zip file, or truncated \(.+\)\. Download it again"
    ), open_tree(path, "masks/train", EXPECTED):
        pass


def test_damage_inside_a_zip_is_an_error(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "set.zip")
    content = bytearray(path.read_bytes())
    place = content.index(b"masks/train/b_mask.png") + len("masks/train/b_mask.png") + 2
    content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"set\.zip: not a readable zip file, or truncated"), open_tree(
        path, "masks/train", EXPECTED
    ) as tree:
        tree.copy_to("masks/train/b_mask.png", tmp_path / "b.png")


def test_names_in_a_zip_cannot_escape_the_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("masks/train/good.png", "masks/train/../../../evil.png", "/masks/train/evil.png"):
            archive.writestr(name, b"x")
        archive.writestr("masks/train/..\\evil.png", b"x")
    with open_tree(tmp_path / "set.zip", "masks/train", EXPECTED) as tree:
        stems = tree.names("masks/train", ".png")
        assert "good" in stems
        assert not [stem for stem in stems if os.sep in stem or stem.startswith(".") or "\\" in stem]
