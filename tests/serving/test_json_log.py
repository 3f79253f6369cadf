"""Tests of the non-blocking JSON log."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from pspnet.serving import json_log as logs
from pspnet.serving.json_log import JsonLog, LogHandler


def test_lines_are_json_objects_in_order() -> None:
    stream = io.StringIO()
    log = JsonLog(stream, worker=3)
    log.write("first", text='quoted "text"\nand a new line')
    try:
        raise KeyError("x")
    except KeyError as error:
        log.error("second", error, request_id="r")
    log.close()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["worker"], first["text"]) == ("first", 3, 'quoted "text"\nand a new line')
    assert (second["error"], second["request_id"]) == ("KeyError: 'x'", "r")
    assert second["traceback"].startswith("Traceback")


class BlockedStream(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(30)
        return super().write(text)


def test_lines_are_dropped_while_the_reader_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MAX_LINES", 5)
    monkeypatch.setattr(logs, "_FLUSH_SECONDS", 60.0)
    stream = BlockedStream()
    log = JsonLog(stream)
    for number in range(9):
        log.write("line", number=number)
    stream.released.set()
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["number"] for line in lines[:-1]] == [0, 1, 2, 3, 4]
    assert (lines[-1]["event"], lines[-1]["count"]) == ("log_lines_dropped", 4)


def test_closed_stream_is_ignored() -> None:
    stream = io.StringIO()
    stream.close()
    log = JsonLog(stream)
    log.write("line")
    log.close()


def test_library_warnings_are_logged() -> None:
    stream = io.StringIO()
    log = JsonLog(stream)
    logger = logging.Logger("library")
    logger.addHandler(LogHandler(log))
    logger.info("not this")
    logger.warning("odd: %s", 7)
    log.close()
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["message"]) == ("library", "odd: 7")
