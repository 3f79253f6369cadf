"""Masks written to a pipe and read back."""

from __future__ import annotations

import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pspnet.stream.sinks import stdout
from pspnet.stream.sinks.base import SinkClosed, SinkContext, SinkError
from pspnet.stream.sinks.stdout import StdoutSink
from tests.stream.fakes import masked


class Pipe:
    """Pipe that replaces sys.stdout."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.writer

    def content(self) -> bytes:
        os.close(self.writer)
        with open(self.reader, "rb") as file:
            return file.read()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Pipe:
    made = Pipe()
    # Patched in the module only, since pytest sets sys.stdout itself between a fixture and its test.
    monkeypatch.setattr(stdout, "sys", SimpleNamespace(stdout=made))
    return made


def test_each_mask_follows_a_line_of_json(pipe: Pipe) -> None:
    sink = StdoutSink(SinkContext(), bare=False)
    for index in (3, 5):
        sink.write(masked(index))
    file = io.BytesIO(pipe.content())
    for index in (3, 5):
        about = json.loads(file.readline())
        assert (about["index"], about["height"], about["width"], about["labels"]) == (index, 4, 6, {"n": str(index)})
        assert about["timestamp"] == index / 10
        with Image.open(io.BytesIO(file.read(about["bytes"]))) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.full((4, 6), index))
    assert file.read() == b""


def test_bare_masks_are_concatenated_png_files(pipe: Pipe) -> None:
    import av

    sink = StdoutSink(SinkContext(), bare=True)
    for index in (1, 2, 3):
        sink.write(masked(index))
    with av.open(io.BytesIO(pipe.content()), format="png_pipe") as container:
        found = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert len(found) == 3


def test_a_closed_pipe_closes_the_sink(pipe: Pipe) -> None:
    sink = StdoutSink(SinkContext(), bare=False)
    os.close(pipe.reader)
    with pytest.raises(SinkClosed, match="the reader closed the pipe"):
        sink.write(masked(0))


def test_a_terminal_raises(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "isatty", lambda: True)
    with pytest.raises(SinkError, match="standard output is a terminal; redirect it to a file or a program"):
        StdoutSink(SinkContext(), bare=False)
