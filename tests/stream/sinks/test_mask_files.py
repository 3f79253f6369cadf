"""Mask files in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import CAMVID_CLASSES, palette_for
from pspnet.masks.writer import SegmentSettings
from pspnet.stream import read_masks
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.factory import open_sink
from pspnet.stream.sinks.mask_files import FolderSink
from pspnet.stream.sinks.sink_settings import SinkSettings
from tests.masks.mask_items import item, scene

CONTEXT = SinkContext(CAMVID_CLASSES, palette_for(CAMVID_CLASSES), source="kvs://car")
FRAMES = SegmentSettings(frames=4)


def test_folder_stores_segments(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "new" / "masks"), CONTEXT)
    assert isinstance(sink, FolderSink)
    for index in range(10):
        sink.write(item(index))
    sink.close()
    (path,) = (tmp_path / "new" / "masks").iterdir()
    assert path.suffix == ".pspm"
    records = list(read_masks(path))
    assert all(np.array_equal(record.mask, scene(index)) for index, record in enumerate(records))
    assert records[9].class_names == CAMVID_CLASSES


def test_flush_finishes_a_segment_and_the_next_item_starts_one(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path, CONTEXT)
    sink.write(item(0))
    sink.flush()
    sink.flush()
    sink.write(item(1))
    sink.close()
    assert len(list(tmp_path.glob("*.pspm"))) == 2


def test_folder_of_palette_png_files(tmp_path: Path) -> None:
    context = SinkContext(CAMVID_CLASSES, palette_for(CAMVID_CLASSES), settings=SinkSettings(mask_encoding="files"))
    for _ in range(2):  # the same item, as after a lost response
        sink = FolderSink(tmp_path, context)
        sink.write(item(3, fragment="7"))
        sink.close()
    sink.write(item(3, scene(4)))  # another mask of the same time
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["20231114T221320550000Z-000000003.1.png", "20231114T221320550000Z-000000003.png"]
    with Image.open(tmp_path / names[1]) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), scene(3))
        assert tuple(image.convert("RGB").getpixel((0, 0))) == tuple(palette_for(CAMVID_CLASSES)[scene(3)[0, 0]])
    (first, second) = read_masks(tmp_path, frames=[3])
    assert second.labels == {"fragment": "7"}
    assert np.array_equal(first.mask, scene(4))


def test_an_unusable_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="cannot store masks here") as caught:
        FolderSink(tmp_path / "file", CONTEXT)
    assert not caught.value.temporary


def test_a_removed_folder_is_a_temporary_error(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path / "masks", CONTEXT, SegmentSettings("files"))
    (tmp_path / "masks").rmdir()
    (tmp_path / "masks").write_text("in the way")
    with pytest.raises(SinkError, match="cannot be written") as caught:
        sink.write(item(0))
    assert caught.value.temporary
    (tmp_path / "masks").unlink()
    sink.write(item(0))
    assert len(list(read_masks(tmp_path / "masks"))) == 1
