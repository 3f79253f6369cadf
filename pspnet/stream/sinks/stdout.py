"""Sink that writes masks to standard output, for another program.

`-`: for each frame one line of JSON, then a PNG file of `bytes` bytes:

    {"index": 12, "captured": 1763.5, "timestamp": 1.2, "height": 360, "width": 480, "labels": {}, "bytes": 1834}

`png:-`: concatenated PNG files, as read by `ffmpeg -f image2pipe -c:v png -i -`.
"""

from __future__ import annotations

import json
import os
import sys

from pspnet.masks.frames import MaskedFrame
from pspnet.masks.png import encode_mask
from pspnet.stream.sinks.base import SinkClosed, SinkContext, SinkError


class StdoutSink:
    """Writer of 8-bit PNG masks whose values are the class ids. Nothing else may be written to standard output."""

    name = "stdout"
    durable, spills = True, True

    def __init__(self, context: SinkContext, bare: bool) -> None:
        """bare: PNG files without JSON. Raises SinkError if standard output is a terminal."""
        if sys.stdout.isatty():
            raise SinkError("-: standard output is a terminal; redirect it to a file or a program.", temporary=False)
        self._bare = bare
        self._palette = context.palette if bare else None
        self._file = sys.stdout.fileno()

    def write(self, item: MaskedFrame) -> None:
        """See Sink."""
        content = encode_mask(item.mask, self._palette)
        if not self._bare:
            frame = item.frame
            about = {
                "index": frame.index,
                "captured": round(frame.captured, 6),
                "timestamp": round(frame.timestamp, 6),
                "height": item.mask.shape[0],
                "width": item.mask.shape[1],
                "labels": dict(frame.labels),
                "bytes": len(content),
            }
            content = json.dumps(about).encode() + b"\n" + content
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BrokenPipeError as error:
            raise SinkClosed("the reader closed the pipe.") from error
        except OSError as error:
            raise SinkError(f"cannot be written ({error.strerror or error}).", temporary=False) from error

    def flush(self) -> None:
        """See Sink. Nothing is buffered."""

    def close(self) -> None:
        """See Sink."""
