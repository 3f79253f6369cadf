"""MXNet's parameter format in all its versions. test_gluoncv.py reads files written by MXNet."""

from __future__ import annotations

import struct

import pytest
import torch

from pspnet.errors import WeightsError
from pspnet.models.imports.mxnet_params import read_mxnet_params
from tests.models.mxnet_files import FLAGS, array, file


@pytest.mark.parametrize("version", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", list(FLAGS), ids=str)
def test_every_version_and_type(version: int, dtype: torch.dtype) -> None:
    first, second = torch.arange(12).view(2, 3, 2).to(dtype), torch.tensor([1, 0, 1]).to(dtype)
    found = read_mxnet_params(file([array(first, version), array(second, version)], ["a.weight", "ü"]), "here")
    assert list(found) == ["a.weight", "ü"]
    assert found["a.weight"].dtype == dtype
    assert torch.equal(found["a.weight"], first)
    assert torch.equal(found["ü"], second)


def test_scalars_empty_and_shapeless_arrays() -> None:
    none = struct.pack("<Iii", 0xF993FAC9, 0, 0)
    arrays = [array(torch.tensor(2.5), 3), array(torch.zeros(0, 4)), none, array(torch.ones(2))]
    found = read_mxnet_params(file(arrays, list("abcd")), "here")
    assert found["a"].shape == ()
    assert found["a"] == 2.5
    assert found["b"].shape == (0, 4)
    assert found["c"].numel() == 0
    assert torch.equal(found["d"], torch.ones(2))


def test_prefixes_of_exported_models_are_removed() -> None:
    content = file([array(torch.ones(1)), array(torch.zeros(1))], ["arg:a_weight", "aux:a_mean"])
    assert list(read_mxnet_params(content, "here")) == ["a_weight", "a_mean"]


def test_every_truncation_is_detected() -> None:
    content = file([array(torch.arange(3.0)), array(torch.ones(2, 2))], ["first", "second"])
    for length in range(len(content)):
        with pytest.raises(WeightsError, match=r"here: (truncated|not an MXNet parameter file)"):
            read_mxnet_params(content[:length], "here")


def test_damaged_numbers_are_detected() -> None:
    """Damage raises only WeightsError and never allocates much memory."""
    content = file([array(torch.arange(3.0)), array(torch.ones(2, 2), 1)], ["first", "second"])
    for position in range(len(content)):
        for value in (0x00, 0x7F, 0xFF):
            damaged = content[:position] + bytes([value]) + content[position + 1 :]
            try:
                found = read_mxnet_params(damaged, "here")
            except WeightsError:
                continue
            assert sum(tensor.numel() for tensor in found.values()) <= 7


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"PK\x03\x04" + bytes(40), r"not an MXNet parameter file \(it does not begin with 0x112\)"),
        (b"", "not an MXNet parameter file"),
        (struct.pack("<QQQ", 0x112, 0, 1 << 60) + bytes(40), "damaged: a count of 1,152,921,504,606,846,976 arrays"),
        (file([struct.pack("<Ii", 0xF993FAC9, 1) + bytes(40)], ["a"]), "has a sparse array"),
        (file([array(torch.ones(1))[:-8] + struct.pack("<if", 99, 1)], ["a"]), "an array of the unknown type 99"),
        (file([struct.pack("<Iii", 0xF993FAC9, 0, 77) + bytes(99)], ["a"]), "an array of 77 dimensions"),
        (file([array(torch.ones(1))], []), "1 arrays, but 0 names"),
    ],
)
def test_invalid_parameter_files(content: bytes, text: str) -> None:
    with pytest.raises(WeightsError, match=text):
        read_mxnet_params(content, "here")
