"""The scaling benchmark on tiny networks, files and processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import scaling
from benchmarks.support import scaling_network, scaling_processes, scaling_workers
from benchmarks.support.scaling_network import Cost, Point
from benchmarks.support.small_model import random_model
from pspnet.benchmarking.interleave import Timing
from pspnet.errors import PspnetError
from pspnet.system.exit_codes import run_guarded

POINTS = [Point("32x32", (32, 32), num_classes=2), Point("two", (32, 48), batch=2, num_classes=2)]


def test_points_are_timed_for_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling_network.cold_start, "ask", lambda *_, **more: {"peak_mib": 100.0 * more["batch"]})
    costs = scaling_network.measure_points(POINTS, torch.device("cpu"), rounds=2, width=4, with_memory=True)
    assert [cost.point.label for cost in costs] == ["32x32", "two"]
    assert all(len(timing.seconds) == 2 for cost in costs for timing in (cost.plain, cost.ours))
    assert costs[1].flops == pytest.approx(3 * costs[0].flops, rel=0.1)
    assert [cost.memory for cost in costs] == [{"peak_mib": 100.0}, {"peak_mib": 200.0}]


def test_the_record_and_table_of_a_point() -> None:
    cost = Cost(POINTS[1], Timing((0.8,)), Timing((0.2,)), 4_000_000_000)
    record = cost.record(peak=1e11)
    assert (record["pixels"], record["batch"], record["gflop"], record["gain"]) == (1536, 2, 4.0, [4.0, 4.0, 4.0])
    assert (record["plain"]["share_of_peak"], record["ours"]["share_of_peak"]) == (0.05, 0.2)
    text = scaling_network.table("batch", [cost], 1e11)
    assert [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")] == [
        "two", "800.0 (800.0 to 800.0)", "200.0 (200.0 to 200.0)", "100.0", "4.00x (4.00 to 4.00)", "4.0", "5 %", "20 %"
    ]  # fmt: skip
    assert "peak MiB" not in text


def test_the_loader_runs_whole_epochs() -> None:
    timings = scaling_workers.measure_workers([0, 1], images=3, rounds=1)
    assert list(timings) == [0, 1]
    records = scaling_workers.record(timings, 3)
    assert records[0]["images_per_second"] == pytest.approx(3 / timings[0].median, abs=0.01)
    assert scaling_workers.table({2: Timing((0.5,))}, 64).splitlines()[-1].endswith("128 |")


def test_processes_share_the_work() -> None:
    with random_model(2, 4) as folder:
        one, two = scaling_processes.measure_processes(folder, (32, 32), [(1, 1), (2, 1)], masks=2, rounds=1)
    assert two.peak_mib > 1.5 * one.peak_mib > 100
    assert two.masks_per_second == pytest.approx(4 / two.timing.median)
    assert one.record()["masks_per_second"] == pytest.approx(2 / one.timing.median, abs=1e-4)
    assert scaling_processes.table([one, two]).count("\n") == 3


def test_a_process_that_ends_is_told(tmp_path: Path) -> None:
    group = scaling_processes.Group(tmp_path, (32, 32), 1, 1)
    with pytest.raises(PspnetError, match="a process that makes masks ended with 1"):
        group.make(1)
    group.close()


def test_the_script_writes_what_the_plot_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "measure_peak", lambda device: 1e11)
    monkeypatch.setitem(scaling_network.POINTS, "classes", POINTS[:1])
    output = tmp_path / "scaling.json"
    flags = ["--parts", "classes", "--width", "4", "--rounds", "1", "--output", str(output)]
    assert run_guarded(scaling.main, flags) == 0
    found = json.loads(output.read_text())
    assert found["benchmark"] == "scaling"
    assert [point["label"] for point in found["classes"]] == ["32x32"]
    assert "Cost against classes, 1 rounds" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--images", "0"])
    assert "--images: found 0; expected 1 or more" in capsys.readouterr().err
