"""Codec round trips, and untrusted or damaged bytes."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pspnet.masks import codec as encodings
from pspnet.masks.codec import ENCODINGS, Form, MaskFileError, bits_for, decode, encode, encode_png
from tests.masks.mask_items import scene
from tests.masks.old_segments import old_payload

SLOW = settings(max_examples=60, deadline=None)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
values = st.sampled_from([st.integers(0, 1), st.integers(0, 11), st.integers(0, 255), st.sampled_from([0, 3, 255])])
masks = st.tuples(shapes, values).flatmap(lambda both: hnp.arrays(np.uint8, both[0], elements=both[1]))


@SLOW
@given(mask=masks, encoding=st.sampled_from(ENCODINGS))
def test_round_trip_of_a_key_mask(mask: np.ndarray, encoding: str) -> None:
    found = encode(mask, encoding)
    back = decode(found.form, found.data, *mask.shape)
    assert found.form == Form[encoding.upper()]
    assert back.dtype == np.uint8
    assert np.array_equal(back, mask)


@SLOW
@given(mask=masks, form=st.sampled_from([Form.WEBP, Form.RUNS_FROM_PREVIOUS, Form.CHANGES]), data=st.data())
def test_former_forms_are_read(mask: np.ndarray, form: Form, data: st.DataObject) -> None:
    previous = data.draw(hnp.arrays(np.uint8, mask.shape, elements=st.integers(0, 12)))
    assert np.array_equal(decode(form, old_payload(form, mask, previous), *mask.shape, previous), mask)


@SLOW
@given(mask=masks, filter_type=st.integers(0, 4), data=st.data())
def test_pillow_reads_png_of_every_depth_and_filter(mask: np.ndarray, filter_type: int, data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([bits for bits in (1, 2, 4, 8) if bits >= bits_for(mask)]))
    file = encode_png(mask, bits=bits, filter_type=filter_type)
    with Image.open(io.BytesIO(file)) as image:
        assert image.mode == ("L" if bits == 8 else "P")
        assert np.array_equal(np.array(image), mask)
    assert file[24] == bits


def test_round_trip_of_long_runs_and_a_large_mask() -> None:
    mask = np.zeros((3000, 4000), dtype=np.uint8)
    mask[-1, -1] = 255
    found = encode(mask)
    assert len(found.data) < 40
    assert np.array_equal(decode(found.form, found.data, 3000, 4000), mask)


def test_pack_bits_puts_the_leftmost_pixel_in_the_high_bits() -> None:
    assert encodings.pack_bits(np.array([[1, 2, 3]], dtype=np.uint8), 4).tolist() == [[0x12, 0x30]]
    assert encodings.pack_bits(np.array([[1, 0, 1]], dtype=np.uint8), 1).tolist() == [[0b10100000]]


def test_run_lengths_are_encoded_as_documented() -> None:
    mask = np.array([[7] * 200 + [9]], dtype=np.uint8)
    data = encodings.encode_runs(mask)
    size = int.from_bytes(data[:4], "little")
    assert zlib.decompress(data[4 : 4 + size], -15) == bytes([7, 9])
    assert zlib.decompress(data[4 + size :], -15) == bytes([200 & 127 | 128, 1, 1])


@SLOW
@given(data=st.binary(max_size=80), form=st.integers(0, 7))
def test_untrusted_bytes_raise_or_decode(data: bytes, form: int) -> None:
    previous = np.zeros((5, 6), dtype=np.uint8)
    try:
        mask = decode(form, data, 5, 6, previous)
    except MaskFileError:
        return
    assert mask.shape == (5, 6)


@SLOW
@given(encoding=st.sampled_from(ENCODINGS), place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_damaged_bytes_raise_or_keep_the_size(encoding: str, place: int, flip: int) -> None:
    found = encode(scene(3), encoding)
    data = bytearray(found.data)
    data[place % len(data)] ^= flip
    try:
        mask = decode(found.form, bytes(data), 24, 33)
    except MaskFileError:
        return
    assert mask.shape == (24, 33)


def test_a_deflate_bomb_is_not_inflated() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = bomb.compress(bytes(50_000_000)) + bomb.flush()
    with pytest.raises(MaskFileError, match="too long"):
        decode(Form.RUNS, len(packed).to_bytes(4, "little") + packed, 10, 10)


@pytest.mark.parametrize(
    ("form", "height", "width", "message"),
    [
        (Form.RUNS, 0, 5, "expected 1 to"),
        (Form.RUNS, 100_000, 100_000, "expected 1 to"),
        (9, 5, 5, "has form 9"),
        (Form.CHANGES, 5, 5, "which is missing"),
    ],
)
def test_undecodable_masks_raise(form: int, height: int, width: int, message: str) -> None:
    with pytest.raises(MaskFileError, match=message):
        decode(form, b"", height, width)


def test_a_png_of_another_size_raises_before_decoding() -> None:
    with pytest.raises(MaskFileError, match="has 33x24 pixels; expected 5x5"):
        decode(Form.PNG, encode_png(scene(0)), 5, 5)


def test_an_rgb_png_raises() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    with pytest.raises(MaskFileError, match="mode RGB"):
        decode(Form.PNG, buffer.getvalue(), 4, 4)


def test_other_arrays_and_encodings_raise() -> None:
    with pytest.raises(ValueError, match="expected"):
        encode(np.zeros((2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="found 'temporal'; expected one of runs, png"):
        encode(scene(0), "temporal")
