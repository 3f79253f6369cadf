"""Writer of MXNet's parameter files, for the tests of the reader."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor

FLAGS = {
    torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.uint8: 3, torch.int32: 4, torch.int8: 5, torch.int64: 6,
    torch.bool: 7,
}  # fmt: skip


def array(value: Tensor, version: int = 2) -> bytes:
    """Encode an array like MXNet 0.8 (version 0) to 1.9 (2, and 3 with NumPy's shapes)."""
    dimensions = value.dim()
    if version == 0:
        head = struct.pack(f"<I{dimensions}I", dimensions, *value.shape)
    else:
        magic = 0xF993FAC7 + version
        head = struct.pack("<I", magic) + (struct.pack("<i", 0) if version > 1 else b"")
        head += struct.pack(f"<i{dimensions}q", dimensions, *value.shape)
    return head + struct.pack("<iii", 1, 0, FLAGS[value.dtype]) + value.detach().numpy().tobytes()


def file(arrays: list[bytes], names: list[str]) -> bytes:
    """Encode a file of arrays and their names."""
    content = struct.pack("<QQQ", 0x112, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names))
    return content + b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in names)


def file_of(state: Mapping[str, Tensor]) -> bytes:
    """Encode a file like `save_parameters`."""
    return file([array(value) for value in state.values()], list(state))
