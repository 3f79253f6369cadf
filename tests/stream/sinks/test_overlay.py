"""Overlay video: frames, times and legend, read back from the file."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest

from pspnet.classes import CAMVID_CLASSES, palette_for, voc_palette
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.factory import open_sink
from pspnet.stream.sinks.overlay import OverlayVideoSink
from pspnet.stream.sinks.rendering import legend, render
from tests.stream.fakes import frame
from tests.stream.videos import read_video


def item(index: int, stamp: float, height: int = 48, width: int = 64, class_id: int = 1) -> MaskedFrame:
    one = frame(index, height, width)
    one = dataclasses.replace(one, image=np.full((height, width, 3), 100, dtype=np.uint8), timestamp=stamp)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 2 :] = class_id
    return MaskedFrame(one, mask, 0.0)


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_the_video_has_overlays_at_their_times(tmp_path: Path, ending: str) -> None:
    context = SinkContext(palette=voc_palette(), opacity=0.5)
    sink = open_sink(str(tmp_path / "new" / f"o.{ending}"), context)
    assert isinstance(sink, OverlayVideoSink)
    for index, stamp in enumerate([0.0, 0.1, 0.5, 0.6]):
        sink.write(item(index, stamp))
    sink.flush()
    sink.close()
    found = read_video(tmp_path / "new" / f"o.{ending}")
    assert [round(stamp, 3) for stamp, _ in found] == [0.0, 0.1, 0.5, 0.6]
    for _, picture in found:
        assert picture.shape == (48, 64, 3)
        np.testing.assert_allclose(picture[10, 10].astype(int), [50, 50, 50], atol=6)
        np.testing.assert_allclose(picture[10, 54].astype(int), [114, 50, 50], atol=6)  # VOC's class 1 is 128, 0, 0


def test_odd_and_changing_sizes_and_repeated_times_are_accepted(tmp_path: Path) -> None:
    sink = OverlayVideoSink(tmp_path / "o.mkv", SinkContext())
    for index, (height, width) in enumerate([(35, 51), (35, 51), (70, 90), (10, 8)]):
        sink.write(item(index, 0.2, height, width))
    sink.close()
    found = read_video(tmp_path / "o.mkv")
    assert [picture.shape for _, picture in found] == [(36, 52, 3)] * 4
    stamps = [stamp for stamp, _ in found]
    assert stamps == sorted(set(stamps))


def test_frames_after_those_of_an_earlier_run_keep_their_intervals(tmp_path: Path) -> None:
    sink = OverlayVideoSink(tmp_path / "o.mkv", SinkContext(rate=10.0))
    for index, stamp in enumerate([3599.8, 3599.9, 0.0, 0.1, 0.4, 2.4, 2.3]):
        sink.write(item(index, stamp))
    sink.close()
    found = [stamp for stamp, _ in read_video(tmp_path / "o.mkv")]
    steps = [round(later - earlier, 3) for earlier, later in zip(found, found[1:])]
    assert steps == [0.1, 0.1, 0.1, 0.3, 2.0, 0.001]


def test_a_truncated_mp4_can_be_played(tmp_path: Path) -> None:
    sink = OverlayVideoSink(tmp_path / "o.mp4", SinkContext())
    for index in range(120):
        sink.write(item(index, index / 10))
    copy = tmp_path / "killed.mp4"
    copy.write_bytes((tmp_path / "o.mp4").read_bytes())
    assert len(read_video(copy)) >= 50
    sink.close()
    assert len(read_video(tmp_path / "o.mp4")) == 120


def test_an_existing_video_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "o.mkv").write_bytes(b"precious")
    messages: list[str] = []
    sink = OverlayVideoSink(tmp_path / "o.mkv", SinkContext(report=messages.append))
    sink.write(item(0, 0.0))
    sink.close()
    assert (tmp_path / "o.mkv").read_bytes() == b"precious"
    assert len(read_video(tmp_path / "o-2.mkv")) == 1
    assert messages == [f"{tmp_path / 'o.mkv'} exists; writing the video to {tmp_path / 'o-2.mkv'}."]


def test_an_unwritable_file_is_a_permanent_error(tmp_path: Path) -> None:
    sink = OverlayVideoSink(tmp_path / "o.mkv", SinkContext())
    (tmp_path / "o.mkv").mkdir()
    with pytest.raises(SinkError, match="the video cannot be written") as caught:
        sink.write(item(0, 0.0))
    assert not caught.value.temporary
    full = sink._failure(OSError(errno.ENOSPC, "No space left on device"))
    assert full.temporary


def test_the_legend_has_every_class_and_a_constant_size() -> None:
    palette = palette_for(CAMVID_CLASSES)
    context = SinkContext(class_names=CAMVID_CLASSES, palette=palette, legend=True)
    sheet = legend(np.zeros((360, 480), dtype=np.uint8), context)
    for class_id in range(len(CAMVID_CLASSES)):
        assert (sheet == palette[class_id]).all(axis=2).any()
    one = item(0, 0.0, 360, 480)
    assert render(one, context).shape == (360 + sheet.shape[0], 480, 3)
    many = SinkContext(class_names=tuple(f"c{index}" for index in range(150)), legend=True)
    sheets = [legend(item(0, 0.0, 60, 300, class_id).mask, many) for class_id in (3, 149)]
    assert sheets[0].shape == sheets[1].shape
    assert (sheets[1] == many.palette[149]).all(axis=2).any()
    assert not (sheets[0] == many.palette[149]).all(axis=2).any()
