"""Probability decoder against hand-written bytes and against the project's encoder."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pspnet.client.probability_record import decode_probabilities
from pspnet.errors import DataError


def record(shape: tuple[int, ...], values: np.ndarray) -> bytes:
    """Return a Record in a RecordIO frame, written by hand from the format's description."""

    def varint(number: int) -> bytes:
        head = b""
        while number > 127:
            head, number = head + bytes([number & 127 | 128]), number >> 7
        return head + bytes([number])

    def part(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def feature(name: str, kind: int, content: bytes) -> bytes:
        return part(1, part(1, name.encode()) + part(2, part(kind, part(1, content))))

    message = feature("target", 2, values.astype("<f4").tobytes())
    message += feature("shape", 7, b"".join(varint(size) for size in shape)) + part(3, b"uid")
    return struct.pack("<II", 0xCED7230A, len(message)) + message + bytes(-len(message) % 4)


def test_records_with_and_without_a_frame_and_damaged_ones() -> None:
    values = np.arange(12, dtype=np.float32)
    whole = record((1, 3, 2, 2), values)
    np.testing.assert_array_equal(decode_probabilities(whole), values.reshape(3, 2, 2))
    end = 8 + struct.unpack_from("<I", whole, 4)[0]
    np.testing.assert_array_equal(decode_probabilities(whole[8:end]), values.reshape(3, 2, 2))
    for cut in range(end):
        with pytest.raises(DataError):
            decode_probabilities(whole[:cut])
    with pytest.raises(DataError, match=r"holds the shape \[3, 2, 2\]"):
        decode_probabilities(record((3, 2, 2), values))


def test_the_decoder_reads_the_projects_encoder() -> None:
    from pspnet.serving.protocol.recordio import encode_probabilities

    values = np.random.default_rng(1).random((21, 7, 300), dtype=np.float32)
    np.testing.assert_array_equal(decode_probabilities(encode_probabilities(values)), values)
