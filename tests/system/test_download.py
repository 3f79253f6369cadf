from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pspnet.errors import DataError
from pspnet.system import download as module
from pspnet.system.download import download, file_digest
from tests.system.file_server import CONTENT, Server, running_server

MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def fetch(server: Server, destination: Path, md5: str = MD5, attempts: int = 3) -> Path:
    return download(server.url, destination, md5, progress=False, attempts=attempts, backoff=0.0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_complete_download(server: Server, tmp_path: Path) -> None:
    assert fetch(server, tmp_path / "new" / "voc.tar") == tmp_path / "new" / "voc.tar"
    assert (tmp_path / "new" / "voc.tar").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["voc.tar"]
    assert server.asked == [None]


def test_a_file_without_checksum_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        download(server.url, tmp_path / "voc.tar", None, progress=False)
    assert (tmp_path / "voc.tar").read_bytes() == CONTENT
    assert server.asked == [None]


def test_an_interrupted_transfer_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    fetch(server, tmp_path / "voc.tar")
    assert (tmp_path / "voc.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_call_resumes(server: Server, tmp_path: Path) -> None:
    server.cuts = [70_000]
    with pytest.raises(DataError, match=r"stopped after 70,000 bytes .*1 attempts in a row.*save it as .*voc\.tar\."):
        fetch(server, tmp_path / "voc.tar", attempts=1)
    assert names(tmp_path) == ["voc.tar.part"]
    fetch(server, tmp_path / "voc.tar")
    assert (tmp_path / "voc.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [100_000]
    fetch(server, tmp_path / "voc.tar")
    assert (tmp_path / "voc.tar").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


def test_a_complete_part_is_used(server: Server, tmp_path: Path) -> None:
    (tmp_path / "voc.tar.part").write_bytes(CONTENT)
    fetch(server, tmp_path / "voc.tar")
    assert names(tmp_path) == ["voc.tar"]


def test_a_part_longer_than_the_file_is_discarded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "voc.tar.part").write_bytes(CONTENT + b"more")
    fetch(server, tmp_path / "voc.tar")
    assert (tmp_path / "voc.tar").read_bytes() == CONTENT


def test_a_wrong_checksum_removes_the_file(server: Server, tmp_path: Path) -> None:
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(
        DataError, match=rf"has MD5 [0-9a-f]{{32}}, expected {MD5}\. It was removed: run the command ag"
    ):
        fetch(server, tmp_path / "voc.tar")
    assert names(tmp_path) == []


def test_an_upper_case_checksum(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "voc.tar", md5=MD5.upper())
    assert file_digest(tmp_path / "voc.tar", "md5") == MD5


def test_http_404_is_not_retried(server: Server, tmp_path: Path) -> None:
    server.statuses = [404, 404]
    with pytest.raises(DataError, match=r"the server returned HTTP 404 Not Found\. Check the URL"):
        fetch(server, tmp_path / "voc.tar")
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_busy_server_is_retried(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    fetch(server, tmp_path / "voc.tar")
    assert len(server.asked) == 3
    server.statuses = [503, 503, 503]
    with pytest.raises(DataError, match=r"stopped after 0 bytes \(HTTP 503 .*3 attempts in a row failed"):
        fetch(server, tmp_path / "other.tar")


def test_progress_resets_the_attempts(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000] * 6
    fetch(server, tmp_path / "voc.tar", attempts=2)
    assert len(server.asked) == 7


def test_a_refused_connection_is_a_data_error(tmp_path: Path) -> None:
    with Server() as gone:
        url = gone.url
    with pytest.raises(DataError, match=r"stopped after 0 bytes \(.*refused.*2 attempts"):
        download(url, tmp_path / "voc.tar", MD5, progress=False, attempts=2, backoff=0.0)


def test_backoff_doubles(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
    server.statuses = [503, 503, 503]
    download(server.url, tmp_path / "voc.tar", MD5, progress=False, attempts=4, backoff=0.5)
    assert all(longest / 2 <= wait <= longest for wait, longest in zip(waits, (0.5, 1.0, 2.0), strict=True))


def test_an_existing_file_is_checked_and_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "voc.tar").write_bytes(CONTENT)
    fetch(server, tmp_path / "voc.tar")
    (tmp_path / "voc.tar").write_bytes(b"other")
    with pytest.raises(DataError, match=rf"voc\.tar: exists and has MD5 .*expected {MD5}\. Remove the file"):
        fetch(server, tmp_path / "voc.tar")
    assert server.asked == []
    assert (tmp_path / "voc.tar").read_bytes() == b"other"


def test_missing_disk_space_is_reported_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "shutil", SimpleNamespace(disk_usage=lambda path: shutil._ntuple_diskusage(9, 8, 1000)))
    with pytest.raises(DataError, match=r"256,000 more bytes are needed and 1,000 are free\. Free some space"):
        fetch(server, tmp_path / "voc.tar")
    assert names(tmp_path) == []


def test_an_unwritable_folder_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"voc\.tar\.part: cannot be written \(.*the same command resumes"):
        fetch(server, tmp_path / "file" / "voc.tar")


def test_a_full_disk_keeps_the_partial_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.cuts = [5000]
    with pytest.raises(DataError):
        fetch(server, tmp_path / "voc.tar", attempts=1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_receive", full)
    with pytest.raises(DataError, match=r"part: cannot be written \(No space left on device\)\. Free some space"):
        fetch(server, tmp_path / "voc.tar")
    assert (tmp_path / "voc.tar.part").read_bytes() == CONTENT[:5000]


def test_only_http_urls_are_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file:///etc/hostname: cannot be downloaded; expected .* http://"):
        download("file:///etc/hostname", tmp_path / "a", MD5)
