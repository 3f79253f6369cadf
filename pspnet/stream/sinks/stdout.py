"""Masks to standard output, for another program to read.

`-`: for each frame one line of JSON, then as many bytes of PNG as it names in `bytes`:

    {"index": 12, "captured": 1763.5, "timestamp": 1.2, "height": 360, "width": 480, "labels": {}, "bytes": 1834}

`png:-`: the PNG files alone, one behind the other, as `ffmpeg -f image2pipe -c:v png -i -` reads them.
"""

from __future__ import annotations

import json
import os
import sys

from pspnet.masks.frames import MaskedFrame
from pspnet.masks.png import encode_mask
from pspnet.stream.sinks.base import SinkClosed, SinkContext, SinkError


class StdoutSink:
    """8-bit PNG masks whose values are the class ids. Nothing else is written to standard output meanwhile."""

    name = "stdout"
    durable = True
    wants_images = False

    def __init__(self, context: SinkContext, bare: bool) -> None:
        """bare: PNG files alone. Raises SinkError where standard output is a terminal."""
        if sys.stdout.isatty():
            raise SinkError("-: standard output is a terminal; send it to a file or another program.", temporary=False)
        self._bare = bare
        self._palette = context.palette if bare else None
        self._file = sys.stdout.fileno()

    def write(self, item: MaskedFrame) -> None:
        """As Sink."""
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
            raise SinkClosed("its reader has gone.") from error
        except OSError as error:
            raise SinkError(f"cannot be written ({error.strerror or error}).", temporary=False) from error

    def flush(self) -> None:
        """As Sink; nothing is held back."""

    def close(self) -> None:
        """As Sink."""
