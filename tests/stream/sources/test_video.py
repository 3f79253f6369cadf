"""Sources of video files, folders and URLs, and paced sources, with real videos."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.stream.sources.base import SourceError, SourceOptions
from pspnet.stream.sources.factory import open_source
from pspnet.stream.sources.video import FileSource, FolderSource, PacedSource
from tests.stream.videos import frames, number_of, read_video, write_video


class Recorded:
    """Source options that record messages and counts."""

    def __init__(self, **options: object) -> None:
        self.messages: list[str] = []
        self.counted: list[str] = []
        self.options = SourceOptions(report=self.messages.append, count=self.counted.append, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PSPNET_CAMVID", raising=False)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_every_frame_of_a_file_has_its_number_and_time(tmp_path: Path, ending: str) -> None:
    path = write_video(tmp_path / f"a.{ending}", 25)
    source = open_source(str(path), SourceOptions())
    assert isinstance(source, FileSource)
    assert (source.live, source.rate) == (False, 10.0)
    before = time.time()
    found = list(source.frames())
    assert [frame.index for frame in found] == list(range(25))
    assert [number_of(frame.image) for frame in found] == list(range(25))
    assert [frame.timestamp for frame in found] == pytest.approx([index / 10 for index in range(25)], abs=0.002)
    assert found[0].image.shape == (48, 64, 3)
    assert found[0].image.dtype == np.uint8
    assert before <= found[0].captured <= found[-1].captured <= time.time()
    # RGB order.
    assert abs(int(found[0].image[40, 10, 2]) - 128) < 12


def test_close_ends_a_file_soon(tmp_path: Path) -> None:
    source = open_source(str(write_video(tmp_path / "a.mkv", 30)), SourceOptions())
    reading = source.frames()
    next(reading)
    source.close()
    assert len(list(reading)) < 10


def test_damaged_frames_are_counted_and_skipped(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 30)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = bytes(600)
    path.write_bytes(content)
    recorded = Recorded()
    found = list(open_source(str(path), recorded.options).frames())
    assert recorded.counted.count("broken") >= 1
    assert "cannot be decoded" in recorded.messages[0]
    numbers = [number_of(frame.image) for frame in found]
    assert numbers[0] == 0
    assert numbers[-1] == 29
    assert len(numbers) < 30
    indices = [frame.index for frame in found]
    assert indices == sorted(set(indices))


def test_a_truncated_file_gives_its_complete_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 30)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = list(open_source(str(path), SourceOptions()).frames())
    assert 10 <= len(found) < 30
    assert [number_of(frame.image) for frame in found[:10]] == list(range(10))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("none.mp4", None, "no such file or folder; expected a video file"),
        ("text.mp4", b"no video at all", "cannot be opened as video"),
        ("empty.mkv", b"", "cannot be opened as video"),
        ("camera:97", None, "no device /dev/video97; found"),
    ],
)
def test_invalid_sources_raise_one_line_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(SourceError, match=text) as caught:
        open_source(name, SourceOptions())
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_read_in_natural_order_and_broken_files_are_skipped(tmp_path: Path) -> None:
    for number, image in zip([1, 2, 9, 10, 100], frames(5)):
        Image.fromarray(image).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame11.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "notes.txt").write_text("no frame")
    recorded = Recorded(rate=5.0)
    source = open_source(str(tmp_path), recorded.options)
    assert isinstance(source, FolderSource)
    found = list(source.frames())
    assert [frame.labels["file"] for frame in found] == [f"frame{number}.png" for number in (1, 2, 9, 10, 100)]
    assert [number_of(frame.image) for frame in found] == [0, 1, 2, 3, 4]
    assert [frame.index for frame in found] == [0, 1, 2, 3, 5]
    assert [frame.timestamp for frame in found] == [0.0, 0.2, 0.4, 0.6, 1.0]
    assert recorded.counted == ["broken"]
    assert "frame11.jpg: not a readable image" in recorded.messages[0]


def test_a_folder_without_images_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no images in this folder; expected \.jpg, \.jpeg, \.png"):
        open_source(str(tmp_path), SourceOptions())


@pytest.mark.parametrize(("rate", "expected"), [(50.0, 0.02), (None, 0.1)])
def test_a_paced_source_returns_each_frame_when_it_is_due(tmp_path: Path, rate: float | None, expected: float) -> None:
    path = write_video(tmp_path / "a.mkv", 8)
    source = PacedSource(open_source(str(path), SourceOptions()), rate)
    assert source.live
    assert source.rate == (rate or 10.0)
    received = []
    for frame in source.frames():
        received.append((time.monotonic(), frame))
    for (moment, frame), index in zip(received, range(8)):
        assert frame.index == index
        assert frame.arrived - received[0][1].arrived == pytest.approx(index * expected, abs=0.003)
        assert moment >= frame.arrived
        assert frame.captured == pytest.approx(time.time() - (time.monotonic() - frame.arrived), abs=0.2)


def test_close_wakes_a_paced_source(tmp_path: Path) -> None:
    source = PacedSource(open_source(str(write_video(tmp_path / "a.mkv", 5)), SourceOptions()), 0.01)
    threading.Timer(0.3, source.close).start()
    started = time.monotonic()
    assert len(list(source.frames())) == 1
    assert time.monotonic() - started < 30


# --- reconnection to a live URL ---------------------------------------------------------------------------------------


class Broadcast(socketserver.ThreadingTCPServer):
    """HTTP server for video streams."""

    allow_reuse_address = True
    daemon_threads = True


@pytest.fixture
def broadcast(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    import av

    # A live stream has neither duration nor index.
    path = tmp_path / "live.mkv"
    with av.open(str(path), "w", format="matroska", options={"live": "1"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"preset": "ultrafast", "tune": "zerolatency"}
        for image in frames(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    served: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.append(len(served))
            self.send_response(200)
            self.send_header("Content-Type", "video/x-matroska")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = Broadcast(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/live", served
    server.shutdown()
    server.server_close()


def test_a_live_url_is_reconnected_and_numbers_and_times_continue(broadcast: tuple[str, list[int]]) -> None:
    url, served = broadcast
    recorded = Recorded()
    source = open_source(url, recorded.options)
    assert source.live
    found = []
    for frame in source.frames():
        found.append(frame)
        if len(found) == 30:
            source.close()
            break
    assert [frame.index for frame in found] == list(range(30))
    assert [number_of(frame.image) for frame in found] == [index % 12 for index in range(30)]
    stamps = [frame.timestamp for frame in found]
    assert stamps == sorted(stamps)
    assert len(served) == 3
    assert recorded.counted.count("reconnected") == 2
    # FFmpeg reports the end of a body without a length as an input error.
    assert recorded.messages[0].startswith(f"{url}: lost (")
    assert recorded.messages[0].endswith("); reconnecting with exponential backoff.")
    assert recorded.messages[1].startswith(f"{url}: reconnected after")


def test_a_live_url_that_stays_disconnected_raises(broadcast: tuple[str, list[int]]) -> None:
    url, served = broadcast
    recorded = Recorded(give_up=0.0)
    source = open_source(url, recorded.options)
    with pytest.raises(SourceError, match=r"gave up after 0 s without a frame \(--give_up\)"):
        list(source.frames())
    assert len(served) == 1


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_a_truncated_file_on_a_server_raises_after_its_frames(tmp_path: Path, fraction: float) -> None:
    content = write_video(tmp_path / "a.mkv", 30).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(fraction * len(content))])

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with Broadcast(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, recorded, found = f"http://127.0.0.1:{server.server_address[1]}/a.mkv", Recorded(), []
        source = open_source(url, recorded.options)
        assert not source.live
        try:
            found += source.frames()
            message = ""
        except SourceError as error:
            message = str(error)
        server.shutdown()
    if fraction == 1:
        assert (len(found), message) == (30, "")
    else:
        assert 5 < len(found) < 30
        assert message.startswith(f"{url}: reading failed after frame {len(found) - 1} (")
    assert "broken" not in recorded.counted


def test_a_connection_error_hides_the_password() -> None:
    with pytest.raises(SourceError, match="cannot be opened as video") as caught:
        open_source("http://me:secret@127.0.0.1:9/x", SourceOptions())
    assert "secret" not in str(caught.value)
    assert "me:***@127.0.0.1:9" in str(caught.value)


def test_round_trip_of_the_test_videos(tmp_path: Path) -> None:
    found = read_video(write_video(tmp_path / "a.mkv", 5))
    assert [number_of(image) for _, image in found] == [0, 1, 2, 3, 4]
