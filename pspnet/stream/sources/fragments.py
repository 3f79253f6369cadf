"""The frames of one Matroska fragment: its blocks through PyAV's decoder, and nothing of them where one is broken.

Legend: H, W frame height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from pspnet.stream.sources.base import SourceError
from pspnet.stream.sources.matroska import Block, Track

# Matroska's codec identifiers (RFC 9559, codec mappings) and FFmpeg's decoders for them.
_DECODERS = {
    "V_MPEG4/ISO/AVC": "h264",
    "V_MPEGH/ISO/HEVC": "hevc",
    "V_MJPEG": "mjpeg",
    "V_VP8": "vp8",
    "V_VP9": "vp9",
    "V_AV1": "av1",
}
_UNIT = Fraction(1, 1_000_000)
_LONGEST = 1e12
"""Seconds on a fragment's clock, which may count from 1970; more comes from damaged bytes, and fits into no packet."""
_MOST_PIXELS = 8192 * 8192
"""A greater frame comes from damaged bytes, and would take gigabytes."""


class BrokenFrameError(ValueError):
    """A block that does not decode; what follows it in its fragment depends on it."""


class FragmentDecoder:
    """Decodes the blocks of one fragment, which by the rules of the stream depends on no other fragment."""

    def __init__(self, track: Track) -> None:
        """Raises SourceError for a codec that cannot be decoded."""
        try:
            import av
        except ImportError as error:
            raise SourceError("Kinesis streams need PyAV; install it with `pip install av`.") from error
        name = _DECODERS.get(track.codec)
        if name is None or track.encoded:
            what = "compressed or encrypted blocks" if track.encoded else f"the codec {track.codec or '(none)'}"
            raise SourceError(f"the stream's video has {what}; expected one of {', '.join(_DECODERS)}, as they are.")
        self.track = track.number
        self._av: Any = av
        codec: Any = av.CodecContext.create(name, "r")
        if track.private:
            codec.extradata = track.private
        # Frame threads would hold back as many frames as there are cores.
        codec.thread_type = "SLICE"
        # A frame that FFmpeg would guess at is worse than none.
        codec.options = {"err_detect": "explode", "max_pixels": str(_MOST_PIXELS)}
        self._codec = codec

    def decode(self, block: Block) -> Iterator[tuple[float, np.ndarray]]:
        """(seconds on the fragment's clock, (H, W, 3) uint8 RGB) of the frames that this block completes.

        Raises BrokenFrameError.
        """
        if not abs(block.time) < _LONGEST:
            raise BrokenFrameError(f"its time is {block.time:g} s")
        packet = self._av.Packet(block.data)
        packet.time_base = _UNIT
        packet.pts = round(block.time / _UNIT)
        yield from self._decoded(packet)

    def flush(self) -> Iterator[tuple[float, np.ndarray]]:
        """The frames that the decoder still holds, at the fragment's end. Raises BrokenFrameError."""
        yield from self._decoded(None)

    def _decoded(self, packet: Any) -> Iterator[tuple[float, np.ndarray]]:
        try:
            for frame in self._codec.decode(packet):
                if frame.is_corrupt:
                    raise ValueError("the decoder calls it corrupt")
                yield float((frame.pts or 0) * _UNIT), frame.to_ndarray(format="rgb24")
        except (self._av.FFmpegError, ValueError) as error:
            # PyAV has ValueError for pictures in a form that it cannot convert.
            raise BrokenFrameError(str(error)) from error
