"""Sink that shows overlays in a Tk window."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any

from pspnet.errors import ConfigError
from pspnet.masks.frames import MaskedFrame
from pspnet.stream.sinks.base import SinkClosed, SinkContext, SinkError
from pspnet.stream.sinks.rendering import render


class WindowSink:
    """Window with the newest item. Closing the window, q or Escape ends the sink."""

    name = "window"
    durable, spills = False, False

    def __init__(self, context: SinkContext) -> None:
        """The window opens with the first frame, in the sink's thread. Raises ConfigError without Tk or a display."""
        if find_spec("tkinter") is None:
            raise ConfigError("window: tkinter is not installed (python3-tk on Debian); `--to web` works without it.")
        if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
            raise ConfigError("window: no display (DISPLAY is not set); use `--to web` and a browser.")
        self._context = context
        self._root: Any = None
        self._label: Any = None
        self._picture: Any = None
        self._closed = False

    def write(self, item: MaskedFrame) -> None:
        """See Sink."""
        import tkinter

        picture = render(item, self._context)
        height, width = picture.shape[:2]
        try:
            if self._root is None:
                self._open()
            if self._closed:
                raise SinkClosed("the window was closed.")
            content = b"P6 %d %d 255 " % (width, height) + picture.tobytes()
            # Tk holds no reference to the image that it shows.
            self._picture = tkinter.PhotoImage(master=self._root, data=content, format="PPM")
            self._label.configure(image=self._picture)
            self._root.update()
        except tkinter.TclError as error:
            raise SinkError(f"the window cannot be shown ({error}); use `--to web`.", temporary=False) from error

    def _open(self) -> None:
        import tkinter

        self._root = tkinter.Tk()
        self._root.title(f"pspnet: {self._context.source}")
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self._leave)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda _event: self._leave())

    def _leave(self) -> None:
        self._closed = True

    def flush(self) -> None:
        """See Sink."""

    def close(self) -> None:
        """See Sink."""
        if self._root is not None:
            self._label = self._picture = None
            root, self._root = self._root, None
            root.destroy()
