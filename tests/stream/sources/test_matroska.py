"""Incremental Matroska parser: pieces of any size, and damaged fragments."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pspnet.stream.sources.matroska import Begin, Block, Damage, Event, MatroskaReader, Tags, Track
from tests.stream.sources.fake_kinesis import CLUSTER, FIRST_NUMBER, element, fragment, tags_element

STREAM, THIRD = fragment(0) + fragment(1), fragment(2)
HEAD = STREAM.partition(CLUSTER)[0]
NAME = "AWS_KINESISVIDEO_FRAGMENT_NUMBER"


def events(data: bytes, piece: int | None = None) -> list[Event]:
    reader = MatroskaReader()
    step = piece or len(data) or 1
    return [event for at in range(0, len(data), step) for event in reader.feed(data[at : at + step])]


def fragment_numbers(found: list[Event]) -> list[int]:
    texts = [event.values.get(NAME, "") for event in found if isinstance(event, Tags)]
    return [int(text) - FIRST_NUMBER for text in texts if text.isdigit()]


def test_events_of_a_stream() -> None:
    found = events(STREAM)
    assert sum(isinstance(event, Begin) for event in found) == 2
    tracks = [event for event in found if isinstance(event, Track)]
    assert [(track.number, track.codec, track.encoded) for track in tracks] == [(1, "V_MPEG4/ISO/AVC", False)] * 2
    assert tracks[0].private[0] == 1  # the version of an avcC record
    blocks = [event for event in found if isinstance(event, Block)]
    assert [round(block.time, 6) for block in blocks] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [block.base for block in blocks] == [0.0] * 4 + [0.4] * 4
    assert fragment_numbers(found) == [0, 1]
    last = found[-1]
    assert isinstance(last, Tags)
    assert last.values == {
        "AWS_KINESISVIDEO_MILLIS_BEHIND_NOW": "120",
        "AWS_KINESISVIDEO_CONTINUATION_TOKEN": str(FIRST_NUMBER + 1),
    }


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1000])
def test_events_are_independent_of_the_piece_size(piece: int) -> None:
    assert events(STREAM, piece) == events(STREAM)


def test_a_block_is_returned_with_its_last_byte() -> None:
    whole = events(fragment(0))
    data = fragment(0)
    last_block = next(event for event in reversed(whole) if isinstance(event, Block))
    end = data.rindex(last_block.data) + len(last_block.data)
    assert events(data[:end])[-1] == last_block
    assert events(data[: end - 1])[-1] != last_block


def test_damage_skips_only_the_rest_of_its_fragment() -> None:
    data = fragment(0)
    cluster = data.index(CLUSTER)
    found = events(data[: cluster + 12] + b"\x00" * 40 + data[cluster + 52 :] + fragment(1), 100)
    damage = [event for event in found if isinstance(event, Damage)]
    assert len(damage) == 1
    assert "element" in damage[0].reason
    assert sum(isinstance(event, Block) for event in found) == 4
    assert fragment_numbers(found) == [0, 1]


def test_a_size_that_exceeds_the_fragment_is_detected() -> None:
    data = fragment(0)
    at = data.index(element("1254C367", b"")[:4], data.index(CLUSTER))
    wrong = data[: at + 4] + (5_000_000 | 1 << 56).to_bytes(8, "big") + data[at + 12 :]
    found = events(wrong + fragment(1), 64)
    assert [event.reason for event in found if isinstance(event, Damage)] == [
        "element 0x1254c367 runs into the next fragment"
    ]
    assert fragment_numbers(found) == [0, 1]


def test_a_stream_that_starts_within_a_fragment_is_read_from_the_next() -> None:
    found = events(fragment(0)[200:] + fragment(1), 50)
    assert isinstance(found[0], Damage)
    assert fragment_numbers(found) == [1]


def test_damaged_headers_are_skipped() -> None:
    header = b"\x1a\x45\xdf\xa3\x00matroska"
    found = events(header * 20 + fragment(1), 9)
    assert fragment_numbers(found) == [1]


def test_a_huge_size_allocates_no_memory() -> None:
    reader = MatroskaReader()
    found = list(reader.feed(fragment(0) + b"\xa3" + (1 << 40 | 1 << 56).to_bytes(8, "big")))
    for _ in range(50):
        found += reader.feed(b"\x55" * 100_000)
    assert isinstance(found[-1], Damage)
    assert "1099511627776 bytes" in found[-1].reason
    assert len(reader._buffer) < 1000


def test_laced_blocks_are_damage() -> None:
    head = fragment(0).partition(CLUSTER)[0]
    found = events(head + element("1F43B675", element("A3", b"\x81\x00\x00\x02data")))
    assert found[-1] == Damage("a block holds several frames, which video tracks do not use")


def test_times_use_the_timestamp_scale() -> None:
    head = element("1A45DFA3", element("4282", b"matroska")) + element(
        "1549A966", element("2AD7B1", (10**7).to_bytes(4, "big"))
    )
    found = events(head + element("1F43B675", element("E7", b"\x64") + element("A3", b"\x81\xff\xfe\x00data")))
    assert found[-1] == Block(1, 0.98, 1.0, b"data")


def test_other_data_gives_one_damage_event() -> None:
    assert events(b'{"Message": "no"}' * 100, 10) == [Damage("the stream does not begin with an EBML header")]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000), st.integers(1, 300))
def test_arbitrary_bytes_never_raise(data: bytes, piece: int) -> None:
    events(tags_element({}) + data, piece)
    events(HEAD + data, piece)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_changed_bytes_never_affect_the_next_fragment(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(HEAD + STREAM)
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    found = events(bytes(data) + THIRD, chance.randint(1, 3000))
    assert fragment_numbers(found)[-1:] == [2]
