"""Tests of the shared metrics of several workers, read by Prometheus' own parser."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pspnet.serving.server_metrics import READY, STARTING, STOPPING, Table


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "table").touch()
    return tmp_path / "table"


def test_every_worker_reports_the_totals(path: Path) -> None:
    first, second = Table(2, path), Table(2, path)
    first.rows[0].count_request(200, 100, 10, [("predict", 0.02), ("total", 0.03)])
    first.rows[0].count_request(503, 0, 5, [("total", 0.0001)])
    second.rows[1].count_request(200, 50, 20, [("predict", 100.0), ("total", 120.0)])
    first.rows[0].count_batch(1)
    second.rows[1].count_batch(3)
    first.rows[0].set_depth(4, 1)
    second.rows[1].set_depth(2, 3)
    for text in (first.render(), second.render()):
        assert value(text, "pspnet_requests_total", status="200") == 2
        assert value(text, "pspnet_requests_total", status="503") == 1
        assert value(text, "pspnet_request_bytes_total") == 150
        assert value(text, "pspnet_response_bytes_total") == 35
        assert value(text, "pspnet_stage_seconds_bucket", stage="predict", le="0.025") == 1
        assert value(text, "pspnet_stage_seconds_bucket", stage="predict", le="60") == 1
        assert value(text, "pspnet_stage_seconds_bucket", stage="predict", le="+Inf") == 2
        assert value(text, "pspnet_stage_seconds_count", stage="predict") == 2
        assert value(text, "pspnet_stage_seconds_sum", stage="predict") == pytest.approx(100.02)
        assert value(text, "pspnet_stage_seconds_count", stage="total") == 3
        assert value(text, "pspnet_stage_seconds_count", stage="decode") == 0
        assert value(text, "pspnet_batch_images_sum") == 4
        assert value(text, "pspnet_batch_images_bucket", le="2") == 1
        assert value(text, "pspnet_queue_depth") == 6
        assert value(text, "pspnet_active_requests") == 4


def test_new_process_continues_the_counters_of_its_row(path: Path) -> None:
    row = Table(1, path).rows[0]
    row.begin()
    row.state = READY
    row.set_depth(3, 1)
    row.count_request(200, 1, 1, [])
    table = Table(1, path)
    assert value(table.render(), "pspnet_workers_ready") == 1
    table.rows[0].begin()
    assert (table.rows[0].state, table.rows[0].pid) == (STARTING, os.getpid())
    assert 0 <= table.rows[0].heartbeat_age < 60
    text = table.render()
    assert value(text, "pspnet_workers_ready") == 0
    assert value(text, "pspnet_queue_depth") == 0
    assert value(text, "pspnet_requests_total", status="200") == 1
    assert value(text, "pspnet_worker_resident_bytes", worker="0") > 1e6


def test_dead_worker_is_neither_ready_nor_busy(path: Path) -> None:
    table = Table(1, path)
    table.rows[0].begin()
    table.rows[0].state = READY
    table.rows[0].set_depth(3, 1)
    table.rows[0].count_request(200, 1, 1, [])
    Table(1, path).rows[0].mark_dead()
    text = table.render()
    for name in ("pspnet_workers_ready", "pspnet_queue_depth", "pspnet_active_requests"):
        assert value(text, name) == 0
    assert value(text, "pspnet_worker_resident_bytes", worker="0") == 0
    assert value(text, "pspnet_worker_restarts_total") == 1
    assert value(text, "pspnet_requests_total", status="200") == 1


def test_stopping_worker_is_not_ready() -> None:
    table = Table(1)
    table.rows[0].state = STOPPING
    assert value(table.render(), "pspnet_workers_ready") == 0


def test_bucket_bounds_are_inclusive() -> None:
    table = Table(1)
    table.rows[0].count_request(200, 0, 0, [("queue", 0.001)])
    assert value(table.render(), "pspnet_stage_seconds_bucket", stage="queue", le="0.001") == 1
    assert value(table.render(), "pspnet_stage_seconds_bucket", stage="queue", le="0.0005") == 0


def test_starting_up_ends_after_every_worker_was_ready_or_died(path: Path) -> None:
    table = Table(2, path)
    assert table.starting_up
    table.rows[0].state = READY
    assert table.starting_up
    table.rows[1].mark_dead()  # the endpoint must not wait for a worker that cannot start
    assert not table.starting_up
    other = Table(2, path)
    other.rows[1].state = READY
    assert not other.starting_up
