from __future__ import annotations

from pathlib import Path

import pytest

from pspnet.errors import DataError
from pspnet.system.atomic_folders import is_free, new_folder


def test_the_folder_is_created_atomically(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "set"
    with new_folder(output) as folder:
        (folder / "a.txt").write_text("a")
        assert not output.exists()
    assert (output / "a.txt").read_text() == "a"
    assert [path.name for path in output.parent.iterdir()] == ["set"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert is_free(tmp_path / "set")
    with new_folder(tmp_path / "set") as folder:
        (folder / "a.txt").touch()
    assert not is_free(tmp_path / "set")


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError, RuntimeError])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def write() -> None:
        with new_folder(tmp_path / "set") as folder:
            (folder / "a.txt").touch()
            raise error("stop")

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_data_error(tmp_path: Path) -> None:
    message = r"set: cannot be written \(No space left on device: big\.png\)\. Free some"
    with pytest.raises(DataError, match=message), new_folder(tmp_path / "set"):
        raise OSError(28, "No space left on device", "big.png")
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = r"set: cannot be written \(Not a directory: .*choose a writable folder"
    with pytest.raises(DataError, match=message), new_folder(tmp_path / "file" / "set"):
        pass


def test_a_folder_written_by_another_process_meanwhile_is_kept(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "set"):
            (tmp_path / "set").mkdir()
            (tmp_path / "set" / "theirs").touch()

    with pytest.raises(FileExistsError, match="was filled while it was being written"):
        write()
    assert (tmp_path / "set" / "theirs").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
