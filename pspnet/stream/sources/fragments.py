"""Decoder of one Matroska fragment through PyAV.

Legend: H, W frame height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from pspnet.stream.sources.base import SourceError
from pspnet.stream.sources.matroska import Block, Track

# FFmpeg decoders by Matroska codec ID (RFC 9559, codec mappings).
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
"""Limit in seconds of a fragment's clock, which may start at the epoch; larger values come from damaged bytes."""
_MAX_PIXELS = 8192 * 8192
"""Limit of a frame; larger ones come from damaged bytes, and would take gigabytes of memory."""


class BrokenFrameError(ValueError):
    """A block cannot be decoded; later blocks of its fragment depend on it."""


class FragmentDecoder:
    """Decoder of the blocks of one fragment; fragments are independent of each other."""

    def __init__(self, track: Track) -> None:
        """Raises SourceError for an unsupported codec, and without PyAV."""
        try:
            import av
        except ImportError as error:
            raise SourceError("Kinesis streams need PyAV; install it with `pip install av`.") from error
        name = _DECODERS.get(track.codec)
        if name is None or track.encoded:
            found = "compressed or encrypted blocks" if track.encoded else f"the codec {track.codec or '(none)'}"
            raise SourceError(f"the stream's video has {found}; expected plain blocks of {', '.join(_DECODERS)}.")
        self.track = track.number
        self._av: Any = av
        codec: Any = av.CodecContext.create(name, "r")
        if track.private:
            codec.extradata = track.private
        # Frame threads would delay the output by as many frames as there are cores.
        codec.thread_type = "SLICE"
        # Fail instead of concealing errors: a guessed frame is worse than a missing one.
        codec.options = {"err_detect": "explode", "max_pixels": str(_MAX_PIXELS)}
        self._codec = codec

    def decode(self, block: Block) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds on the fragment's clock, (H, W, 3) uint8 RGB) of decoded frames. Raises BrokenFrameError."""
        if not abs(block.time) < _LONGEST:
            raise BrokenFrameError(f"its time is {block.time:g} s")
        packet = self._av.Packet(block.data)
        packet.time_base = _UNIT
        packet.pts = round(block.time / _UNIT)
        yield from self._decoded(packet)

    def flush(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the frames buffered in the decoder, at the end of the fragment. Raises BrokenFrameError."""
        yield from self._decoded(None)

    def _decoded(self, packet: Any) -> Iterator[tuple[float, np.ndarray]]:
        try:
            for frame in self._codec.decode(packet):
                if frame.is_corrupt:
                    raise ValueError("the decoder marked it as corrupt")
                yield float((frame.pts or 0) * _UNIT), frame.to_ndarray(format="rgb24")
        except (self._av.FFmpegError, ValueError) as error:
            # PyAV raises ValueError for pixel formats that it cannot convert.
            raise BrokenFrameError(str(error)) from error
