"""Window: missing requirements, and its content under a virtual display if available."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pspnet.errors import ConfigError
from pspnet.stream.sinks import window
from pspnet.stream.sinks.base import SinkContext
from pspnet.stream.sinks.factory import open_sink

ROOT = Path(__file__).resolve().parents[3]
XVFB = shutil.which("xvfb-run")
SHOW = """
import time
import numpy as np
from pspnet.classes import voc_palette
from pspnet.masks.frames import Frame, MaskedFrame
from pspnet.stream.sinks.base import SinkClosed, SinkContext
from pspnet.stream.sinks.window import WindowSink

sink = WindowSink(SinkContext(palette=voc_palette(), source="film.mkv"))
image = np.full((60, 80, 3), 100, dtype=np.uint8)
mask = np.zeros((60, 80), dtype=np.uint8)
mask[:, 40:] = 1
item = MaskedFrame(Frame(0, image, time.time(), time.monotonic(), 0.0), mask, 0.0)
for _ in range(3):
    sink.write(item)
assert sink._root.title() == "pspnet: film.mkv"
assert (sink._label.winfo_width(), sink._label.winfo_height()) == (80, 60)
assert sink._picture.get(10, 10) == (50, 50, 50)
assert sink._picture.get(70, 10) == (114, 50, 50)
sink._leave()
try:
    sink.write(item)
except SinkClosed as error:
    print(error)
sink.close()
"""


def test_the_error_without_a_display_suggests_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(window, "find_spec", lambda _: object())
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ConfigError, match=r"window: no display .* use `--to web` and a browser\."):
        open_sink("window", SinkContext())


def test_the_error_without_tk_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"window: tkinter is not installed \(python3-tk on Debian\)"):
        open_sink("window", SinkContext())


@pytest.mark.skipif(XVFB is None, reason="no xvfb-run on this machine, so the window was NOT tried")
def test_the_window_shows_overlays_and_ends_when_it_is_closed() -> None:
    pytest.importorskip("tkinter")
    result = subprocess.run(
        [str(XVFB), "-a", sys.executable, "-c", SHOW],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the window was closed.\n"
