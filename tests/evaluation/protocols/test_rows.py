"""Streaming resize of rows in any portions equals F.interpolate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pspnet.evaluation.protocols.rows import ResizedRows


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 60), width=st.integers(1, 12), full=st.integers(1, 200))
def test_rows_in_any_portions_equal_interpolate(data: st.DataObject, height: int, width: int, full: int) -> None:
    generator = torch.Generator().manual_seed(height * 1000 + full)
    whole = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)
    total = torch.ones(2, 3, full, 7, dtype=torch.float64)
    rows = ResizedRows(total, height)
    start = 0
    while start < height:
        count = data.draw(st.integers(1, height - start))
        rows.push(whole[:, :, start : start + count].clone())
        start += count
    expected = 1 + F.interpolate(whole, (full, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("portions", [[10], [4, 6], [1] * 10])
def test_rows_of_the_target_size_are_added_unchanged(portions: list[int]) -> None:
    whole = torch.rand(1, 2, 10, 8)
    total = torch.zeros(1, 2, 10, 8)
    rows, start = ResizedRows(total, 10), 0
    for count in portions:
        rows.push(whole[:, :, start : start + count])
        start += count
    assert torch.equal(total, whole)
