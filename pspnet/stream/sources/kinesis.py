"""Source of a Kinesis video stream (kvs://STREAM), with the producer's times and reconnection.

    client = MediaClient            GetMedia through boto3 (kinesis_client.py)
      -> Body.pieces()              bytes as they arrive
      -> MatroskaReader.feed()      blocks and tags (matroska.py)
      -> FragmentDecoder.decode()   frames (fragments.py)

The tags with a fragment's number and times precede its frames, the continuation token follows them. So a token means
that the whole fragment was read. After a connection is lost within a fragment, the fragment is requested again and the
frames that were already returned are skipped.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pspnet.masks.frames import Frame
from pspnet.stream.sources.base import SourceError, SourceOptions
from pspnet.stream.sources.fragments import BrokenFrameError, FragmentDecoder
from pspnet.stream.sources.kinesis_client import (
    STALL_SECONDS,
    Body,
    LostError,
    MediaClient,
    at_time,
    start_selector,
    stream_error,
)
from pspnet.stream.sources.matroska import Begin, Block, Damage, Event, MatroskaReader, Tags, Track
from pspnet.system.backoff import Backoff

_TAG = "AWS_KINESISVIDEO_"
_LABELS = {"FRAGMENT_NUMBER": "fragment", "PRODUCER_TIMESTAMP": "producer_time", "SERVER_TIMESTAMP": "server_time"}
# The rate limit of GetMedia is five calls per second and stream, shared by all readers.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


@dataclass
class _Position:
    """Read position in the stream."""

    # Numbers of the last complete fragments, which identify repeated ones. Increasing numbers are not assumed, since a
    # single damaged number would then exclude all later fragments.
    done: deque[str] = field(default_factory=lambda: deque(maxlen=64))
    token: str | None = None
    producer_time: float | None = None  # of the fragment that was started last
    started: str | None = None  # its number
    returned: int = 0  # its frames that were returned
    expired: int = 0  # requests in a row whose start no longer existed

    def selector(self, start: dict[str, Any]) -> dict[str, Any]:
        """Return the StartSelector of the next connection."""
        if self.expired > 1:
            return {"StartSelectorType": "NOW"}
        if self.token is not None and not self.expired:
            return {"StartSelectorType": "CONTINUATION_TOKEN", "ContinuationToken": self.token}
        if self.producer_time is not None:
            return at_time(self.producer_time)
        return {"StartSelectorType": "NOW"} if self.expired else start


@dataclass
class _Fragment:
    """State of the fragment that is being read."""

    tags: dict[str, str] = field(default_factory=dict)
    decoder: FragmentDecoder | None = None
    number: str | None = None
    decoded: int = 0  # frames
    skip: int = 0  # frames that an earlier connection returned
    base: float | None = None  # clock at the start of the fragment, which corresponds to the producer's time
    skipped: bool = False  # was read before, or is broken


class KinesisSource:
    """Live source of a Kinesis video stream; see the module."""

    live = True
    rate: float | None = None

    def __init__(
        self,
        text: str,
        options: SourceOptions,
        session: Any = None,
        stall: float = STALL_SECONDS,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """text: name or ARN of the stream. session: a boto3 session. Raises SourceError."""
        self._start = start_selector(options.start)
        self._client = MediaClient(text, options, session, stall)
        self._options = options
        self._first_pause = first_pause
        self._closed = threading.Event()
        self._position = _Position()
        self._fragment = _Fragment()
        self._index = 0
        self._first_captured: float | None = None
        self._last_activity = time.monotonic()

    def close(self) -> None:
        """End frames() within a second; called from another thread."""
        self._closed.set()

    def frames(self) -> Iterator[Frame]:
        """Yield frames until close(). Raises SourceError for permanent errors."""
        backoff, self._last_activity = Backoff(self._first_pause, LONGEST_PAUSE), time.monotonic()
        while not self._closed.is_set():
            before = self._last_activity
            try:
                yield from self._connection()
                reason = "AWS ended the connection"
            except LostError as error:
                reason = str(error)
                self._position.expired += error.expired
            if self._closed.is_set():
                return
            silent = time.monotonic() - self._last_activity
            if silent > self._options.give_up:
                raise SourceError(
                    f"{self._client.name}: no data for {silent:.0f} seconds; last reason: {reason}. Check that the "
                    "producer is sending; the stream's page in the AWS console plays it."
                )
            if self._last_activity > before:
                backoff.reset()
            pause = backoff.next()
            self._options.report(f"{self._client.name}: {reason}; reconnecting in {pause:.1f} s.")
            self._options.count("reconnected")
            self._closed.wait(pause)

    def _connection(self) -> Iterator[Frame]:
        reader = MatroskaReader()
        self._fragment = _Fragment(skipped=True)
        for piece in Body(self._client, self._position.selector(self._start), self._closed).pieces():
            for event in reader.feed(piece):
                yield from self._event(event)
                if self._closed.is_set():
                    return

    def _event(self, event: Event) -> Iterator[Frame]:
        if isinstance(event, Begin):
            # A fragment without a token, as some emulators send, is complete when the next one starts.
            yield from self._finish()
            self._fragment = _Fragment()
        elif isinstance(event, Track):
            self._open(event)
        elif isinstance(event, Tags):
            yield from self._tagged(event.values)
        elif isinstance(event, Block):
            yield from self._decoded(event)
        elif isinstance(event, Damage):
            self._broken(event.reason)

    def _open(self, track: Track) -> None:
        try:
            self._fragment.decoder = FragmentDecoder(track)
        except SourceError as error:
            # After the first decoded frame, an unsupported track means that this fragment is damaged.
            if self._first_captured is None:
                raise
            self._broken(str(error).rstrip("."))

    def _tagged(self, values: dict[str, str]) -> Iterator[Frame]:
        tags = {name[len(_TAG) :]: text for name, text in values.items() if name.startswith(_TAG)}
        self._fragment.tags.update(tags)
        if "FRAGMENT_NUMBER" in tags:
            self._begin(tags)
        if "CONTINUATION_TOKEN" in tags:
            yield from self._finish()
            self._position.token, self._position.expired = tags["CONTINUATION_TOKEN"], 0
        if "ERROR_ID" in tags or "ERROR_CODE" in tags:
            raise stream_error(self._client.name, tags.get("ERROR_ID", ""), tags.get("ERROR_CODE", ""))

    def _begin(self, tags: dict[str, str]) -> None:
        fragment, position = self._fragment, self._position
        self._last_activity = time.monotonic()
        fragment.number = tags["FRAGMENT_NUMBER"]
        fragment.skipped = fragment.skipped or fragment.number in position.done
        if fragment.number == position.started:
            fragment.skip = position.returned
        elif not fragment.skipped:
            position.started, position.returned = fragment.number, 0
            position.producer_time = _seconds(fragment.tags.get("PRODUCER_TIMESTAMP"))

    def _finish(self) -> Iterator[Frame]:
        """Yield the last frames of the fragment and mark it as complete."""
        fragment = self._fragment
        if fragment.decoder is not None and not fragment.skipped:
            try:
                for seconds, image in fragment.decoder.flush():
                    yield from self._frame(seconds, image)
            except BrokenFrameError as error:
                self._broken(str(error))
        if fragment.number is not None:
            self._position.done.append(fragment.number)
        fragment.skipped = True

    def _decoded(self, block: Block) -> Iterator[Frame]:
        fragment = self._fragment
        if fragment.skipped or fragment.decoder is None or block.track != fragment.decoder.track:
            return
        # Muxers other than that of the producer SDK may write several clusters.
        fragment.base = block.base if fragment.base is None else fragment.base
        try:
            for seconds, image in fragment.decoder.decode(block):
                yield from self._frame(seconds, image)
        except BrokenFrameError as error:
            self._broken(str(error))

    def _frame(self, seconds: float, image: np.ndarray) -> Iterator[Frame]:
        fragment = self._fragment
        fragment.decoded += 1
        if fragment.decoded <= fragment.skip:
            return
        if fragment.number is not None:
            self._position.returned = fragment.decoded
        produced = _seconds(fragment.tags.get("PRODUCER_TIMESTAMP"))
        captured = time.time() if produced is None else produced + seconds - (fragment.base or 0.0)
        self._first_captured = captured if self._first_captured is None else self._first_captured
        labels = {label: fragment.tags[name] for name, label in _LABELS.items() if name in fragment.tags}
        index, self._index, self._last_activity = self._index, self._index + 1, time.monotonic()
        yield Frame(index, image, captured, self._last_activity, captured - self._first_captured, labels)

    def _broken(self, reason: str) -> None:
        """Skip the rest of the fragment: its frames depend on the broken one."""
        if not self._fragment.skipped:
            number = self._fragment.tags.get("FRAGMENT_NUMBER")
            which = f"fragment {number}" if number else "a fragment"
            self._options.report(f"{self._client.name}: skipped the rest of {which}: {reason}.")
            self._options.count("broken")
            self._index += 1
        self._fragment.skipped = True


def _seconds(text: str | None) -> float | None:
    """Parse a tag's time in seconds since the epoch; None if it is missing or invalid."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 < value < 1e11 else None
