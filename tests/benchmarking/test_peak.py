"""The peak is the rate of the fastest product."""

from __future__ import annotations

import itertools

import pytest
import torch

from pspnet.benchmarking import peak


def test_the_fastest_product_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    # Start and end of a warm-up product, and of three more of 0.5, 0.25 and 1 s.
    clock = iter([0.0, 0.001, 1.0, 1.5, 2.0, 2.25, 3.0, 4.0])
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(clock))
    assert peak.measure_peak(repeats=3, side=16) == 2 * 16**3 / 0.25
    assert list(itertools.islice(clock, 1)) == []


def test_other_dtypes() -> None:
    assert peak.measure_peak(dtype=torch.bfloat16, repeats=2, side=64) > 0
