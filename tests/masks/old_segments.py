"""Segments as former versions wrote them: records that need the previous mask, WebP, and shared labels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from pspnet.masks.codec import Form, encode_runs, runs_of
from pspnet.masks.frames import MaskedFrame
from pspnet.masks.segment import INDEX_ENTRY, SegmentHeader, pack_index
from pspnet.masks.writer import head_of


def old_payload(form: Form, mask: np.ndarray, previous: np.ndarray) -> bytes:
    """Encode a mask in any form but PNG."""
    if form == Form.RUNS:
        return encode_runs(mask)
    if form == Form.WEBP:
        buffer = io.BytesIO()
        Image.fromarray(mask).save(buffer, "WEBP", lossless=True)
        return buffer.getvalue()
    if form == Form.CHANGES:
        absent = np.uint8(np.flatnonzero(np.bincount(mask.ravel(), minlength=256) == 0)[0])
        return bytes([absent]) + encode_runs(np.where(mask == previous, absent, mask))
    streams = []
    for content, dictionary in zip(runs_of(mask), runs_of(previous)):
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_DEFAULT_STRATEGY, dictionary[-32_768:])
        streams.append(packer.compress(content) + packer.flush())
    return struct.pack("<I", len(streams[0])) + streams[0] + streams[1]


def old_segment(items: Sequence[MaskedFrame], key_every: int = 5, class_names: tuple[str, ...] = ("a", "b")) -> bytes:
    """A segment whose records alternate between the forms 4 and 5, with a key record every `key_every`."""
    height, width = items[0].mask.shape
    data = SegmentHeader(height, width, class_names, encoding="temporal", source="film.mkv").pack()
    entries = []
    for number, item in enumerate(items):
        key = number % key_every == 0
        before = items[max(0, number - 1)]
        form = Form.RUNS if key else (Form.RUNS_FROM_PREVIOUS, Form.CHANGES)[number % 2]
        head = replace(head_of(item), form=form, key=key)
        if not key and before.frame.labels == item.frame.labels:
            head = replace(head, labels=None)
        record = head.pack(old_payload(form, item.mask, before.mask))
        first = number - number % key_every
        entries.append((head.frame, head.captured, head.timestamp, len(data), len(record), first))
        data += record
    return data + pack_index(np.array(entries, dtype=INDEX_ENTRY), len(data))
