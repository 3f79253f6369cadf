"""kvs://STREAM: frames of a Kinesis video stream, with the producer's times, across lost connections.

    client = MediaClient            GetMedia through boto3 (kinesis_client.py)
      -> Body.pieces()              bytes as they come
      -> MatroskaReader.feed()      blocks and tags (matroska.py)
      -> FragmentDecoder.decode()   frames (fragments.py)

A fragment's number and times stand in tags before its frames, the continuation token behind them. So a token means that
the whole fragment was read; a connection that is lost within one asks for it again and passes over the frames it had.
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

_TAG = "AWS_KINESISVIDEO_"
_LABELS = {"FRAGMENT_NUMBER": "fragment", "PRODUCER_TIMESTAMP": "producer_time", "SERVER_TIMESTAMP": "server_time"}
# GetMedia may be called five times a second for a stream, by all of its readers together.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0


@dataclass
class _Position:
    """How far the stream was read."""

    # Numbers of the last fragments that were read whole. What comes again is one of them; that numbers grow is not
    # relied on: a single damaged one would then shut out all that follow.
    done: deque[str] = field(default_factory=lambda: deque(maxlen=64))
    token: str | None = None
    producer_time: float | None = None  # of the fragment that was begun last
    begun: str | None = None  # its number
    given: int = 0  # frames of it that were handed on
    gone: int = 0  # how often what was asked for was not there any more

    def selector(self, start: dict[str, Any]) -> dict[str, Any]:
        """Where the next connection begins."""
        if self.gone > 1:
            return {"StartSelectorType": "NOW"}
        if self.token is not None and not self.gone:
            return {"StartSelectorType": "CONTINUATION_TOKEN", "ContinuationToken": self.token}
        if self.producer_time is not None:
            return at_time(self.producer_time)
        return {"StartSelectorType": "NOW"} if self.gone else start


@dataclass
class _Fragment:
    """The fragment that is being read."""

    tags: dict[str, str] = field(default_factory=dict)
    decoder: FragmentDecoder | None = None
    number: str | None = None
    seen: int = 0  # frames decoded
    had: int = 0  # frames of it that an earlier connection gave
    base: float | None = None  # its clock at its beginning, which is the producer's time
    passed_over: bool = False  # it was read before, or is broken


class KinesisSource:
    """A Kinesis video stream as a live source; see the module."""

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
        """`text` is the stream's name or ARN, `session` a boto3 session. Raises SourceError."""
        self._start = start_selector(options.start)
        self._client = MediaClient(text, options, session, stall)
        self._options = options
        self._first_pause = first_pause
        self._closed = threading.Event()
        self._position = _Position()
        self._fragment = _Fragment()
        self._index = 0
        self._began: float | None = None
        self._heard = time.monotonic()

    def close(self) -> None:
        """Called from another thread: frames() ends within a second."""
        self._closed.set()

    def frames(self) -> Iterator[Frame]:
        """Frames until close(). Raises SourceError for what another connection cannot mend."""
        pause, self._heard = self._first_pause, time.monotonic()
        while not self._closed.is_set():
            before = self._heard
            try:
                yield from self._connection()
                reason = "AWS ended the connection"
            except LostError as error:
                reason = str(error)
                self._position.gone += error.gone
            if self._closed.is_set():
                return
            silent = time.monotonic() - self._heard
            if silent > self._options.give_up:
                raise SourceError(
                    f"{self._client.name}: nothing came for {silent:.0f} seconds; last reason: {reason}. Check that "
                    "the producer sends; the stream's page in the console plays what it does."
                )
            pause = self._first_pause if self._heard > before else min(2 * pause, LONGEST_PAUSE)
            self._options.report(f"{self._client.name}: {reason}; connecting again in {pause:g} s.")
            self._options.count("reconnected")
            self._closed.wait(pause)

    def _connection(self) -> Iterator[Frame]:
        reader = MatroskaReader()
        self._fragment = _Fragment(passed_over=True)
        for piece in Body(self._client, self._position.selector(self._start), self._closed).pieces():
            for event in reader.feed(piece):
                yield from self._event(event)
                if self._closed.is_set():
                    return

    def _event(self, event: Event) -> Iterator[Frame]:
        if isinstance(event, Begin):
            # A fragment without a token behind it, such as a stand-in may send, is whole where the next begins.
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
            # After frames that could be decoded, it is not the stream that is foreign, but this fragment damaged.
            if self._began is None:
                raise
            self._broken(str(error).rstrip("."))

    def _tagged(self, values: dict[str, str]) -> Iterator[Frame]:
        tags = {name[len(_TAG) :]: text for name, text in values.items() if name.startswith(_TAG)}
        self._fragment.tags.update(tags)
        if "FRAGMENT_NUMBER" in tags:
            self._begin(tags)
        if "CONTINUATION_TOKEN" in tags:
            yield from self._finish()
            self._position.token, self._position.gone = tags["CONTINUATION_TOKEN"], 0
        if "ERROR_ID" in tags or "ERROR_CODE" in tags:
            raise stream_error(self._client.name, tags.get("ERROR_ID", ""), tags.get("ERROR_CODE", ""))

    def _begin(self, tags: dict[str, str]) -> None:
        fragment, position = self._fragment, self._position
        self._heard = time.monotonic()
        fragment.number = tags["FRAGMENT_NUMBER"]
        fragment.passed_over = fragment.passed_over or fragment.number in position.done
        if fragment.number == position.begun:
            fragment.had = position.given
        elif not fragment.passed_over:
            position.begun, position.given = fragment.number, 0
            position.producer_time = _seconds(fragment.tags.get("PRODUCER_TIMESTAMP"))

    def _finish(self) -> Iterator[Frame]:
        """The last frames of the fragment; it will not be asked for again."""
        fragment = self._fragment
        if fragment.decoder is not None and not fragment.passed_over:
            try:
                for seconds, image in fragment.decoder.flush():
                    yield from self._frame(seconds, image)
            except BrokenFrameError as error:
                self._broken(str(error))
        if fragment.number is not None:
            self._position.done.append(fragment.number)
        fragment.passed_over = True

    def _decoded(self, block: Block) -> Iterator[Frame]:
        fragment = self._fragment
        if fragment.passed_over or fragment.decoder is None or block.track != fragment.decoder.track:
            return
        # Muxers other than the producer SDK's may write several clusters.
        fragment.base = block.base if fragment.base is None else fragment.base
        try:
            for seconds, image in fragment.decoder.decode(block):
                yield from self._frame(seconds, image)
        except BrokenFrameError as error:
            self._broken(str(error))

    def _frame(self, seconds: float, image: np.ndarray) -> Iterator[Frame]:
        fragment = self._fragment
        fragment.seen += 1
        if fragment.seen <= fragment.had:
            return
        if fragment.number is not None:
            self._position.given = fragment.seen
        produced = _seconds(fragment.tags.get("PRODUCER_TIMESTAMP"))
        captured = time.time() if produced is None else produced + seconds - (fragment.base or 0.0)
        self._began = captured if self._began is None else self._began
        labels = {label: fragment.tags[name] for name, label in _LABELS.items() if name in fragment.tags}
        index, self._index, self._heard = self._index, self._index + 1, time.monotonic()
        yield Frame(index, image, captured, self._heard, captured - self._began, labels)

    def _broken(self, reason: str) -> None:
        """Leave out the rest of the fragment: its frames depend on the one that is broken."""
        if not self._fragment.passed_over:
            number = self._fragment.tags.get("FRAGMENT_NUMBER")
            which = f"fragment {number}" if number else "a fragment"
            self._options.report(f"{self._client.name}: the rest of {which} is left out: {reason}.")
            self._options.count("broken")
            self._index += 1
        self._fragment.passed_over = True


def _seconds(text: str | None) -> float | None:
    """A tag's time in seconds since the epoch; None where it is no such time."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 0 < value < 1e11 else None
