"""Counts and percentiles of a stream."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pspnet.stream.statistics import LatencyDigest, Statistics, final_report


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.95, 0.99, 1.0])
def test_percentiles_are_within_one_per_cent(fraction: float) -> None:
    values = np.random.default_rng(0).lognormal(mean=-3, sigma=1.2, size=20_000)
    digest = LatencyDigest()
    for value in values:
        digest.add(float(value))
    expected = float(np.quantile(values, fraction, method="inverted_cdf"))
    assert digest.percentile(fraction) == pytest.approx(expected, rel=0.0101)
    assert digest.count == 20_000
    assert digest.longest == values.max()


def test_a_digest_has_constant_size_and_accepts_any_value() -> None:
    digest = LatencyDigest()
    size = digest._bins.nbytes
    for value in (0.0, -0.0, 1e-9, 1e9):
        digest.add(value)
    assert digest._bins.nbytes == size
    assert digest.percentile(1.0) is not None
    assert digest.percentile(0.25) == pytest.approx(1e-4, rel=0.02)
    assert LatencyDigest().percentile(0.5) is None


def test_summary_counts_everything_once() -> None:
    statistics = Statistics()
    sink = statistics.sink("s")
    for index in range(4):
        statistics.count("read")
        statistics.inferred(arrived=10.0 + index, taken=10.25 + index, inferred=10.5 + index)
        sink.delivered(time.time() - 2.0)
    statistics.count("late", 3)
    sink.count("retries")
    summary = statistics.summary()
    assert (summary["read"], summary["masks"], summary["late"], summary["failed"]) == (4, 4, 3, 0)
    assert summary["masks_per_second"] == pytest.approx(1.0)
    assert summary["waited"]["p50_ms"] == pytest.approx(250, rel=0.011)
    assert summary["inference"]["p99_ms"] == pytest.approx(250, rel=0.011)
    assert summary["sinks"]["s"]["latency"]["p50_ms"] == pytest.approx(2000, rel=0.05)
    text = final_report(summary)
    assert "4 frames read, 4 masks, 3 dropped as late" in text
    assert "s: 4 delivered, 1 retries, capture to delivery p50/p95/p99" in text


def test_status_line_shows_nonzero_problem_counts() -> None:
    statistics = Statistics()
    sink = statistics.sink("s3")
    sink.delivered(time.time() - 0.5)
    sink.on_disk = 7
    statistics.count("late", 2)
    line = statistics.line()
    assert "2 late" in line
    assert "s3: 7 on disk" in line
    assert "latency p50/p95/p99" in line
    assert "failed" not in line
