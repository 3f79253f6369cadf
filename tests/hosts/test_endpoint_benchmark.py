"""A short run of the endpoint benchmark, and the arithmetic of its figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import endpoint
from benchmarks.support import soak
from benchmarks.support.hosts import Reply
from benchmarks.support.load import Times, server_timing, summary

QUICK = ["--width", "4", "--size", "64x48", "--requests", "4", "--rounds", "2", "--clients", "2", "--seconds", "0.5"]


@pytest.mark.slow
def test_serve_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "endpoint.json"
    assert endpoint.main([*QUICK, "--hosts", "serve", "--soak", "0.02", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    overhead = found["overhead"]["serve"]
    assert overhead["requests"] == 8
    assert len(overhead["median_of_each_round_ms"]) == 2
    assert set(overhead["stages_ms"]) == {"queue", "decode", "predict", "encode"}
    assert 0 < overhead["overhead_ms"]["median"] < overhead["whole_ms"]["max"]
    (load,) = found["load"]
    assert (load["host"], load["clients"], set(load["statuses"])) == ("serve", 2, {"200"})
    assert load["images_per_second"] > 0
    watched = found["soak"]["serve"]
    assert watched["same_workers"]
    assert set(watched["statuses"]) <= {"200", "400"}
    assert watched["mib"][0][1] > 10
    assert found["versions"]["serve"]["torch"]
    assert "Overhead of a request in ms" in capsys.readouterr().out


def test_the_toolkit_is_measured(toolkit_python: Path, tmp_path: Path) -> None:
    output = tmp_path / "endpoint.json"
    command = [*QUICK, "--hosts", "toolkit", "--toolkit_python", str(toolkit_python), "--output", str(output)]
    assert endpoint.main(command) == 0
    overhead = json.loads(output.read_text())["overhead"]["toolkit"]
    assert 0 < overhead["stages_ms"]["predict"]["median"] < overhead["whole_ms"]["median"]


def test_wrong_arguments_give_an_error_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PSPNET_TOOLKIT_PYTHON", raising=False)
    with pytest.raises(SystemExit):
        endpoint.main(["--hosts", "serve,nginx"])
    assert "expected serve, toolkit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        endpoint.main(["--hosts", "toolkit"])
    assert "--toolkit_python" in capsys.readouterr().err


def test_overhead_is_the_total_without_the_predictor() -> None:
    times = Times()
    times.add(Reply(200, {"server-timing": "queue;dur=0.1, predict;dur=7.5"}, b"", 0.01))
    assert times.overhead == [2.5]
    with pytest.raises(ValueError, match="503"):
        times.add(Reply(503, {}, b"busy", 0.01))
    assert server_timing(Reply(200, {}, b"", 0.0)) == {}


def test_summary_of_a_hundred_values() -> None:
    assert summary(range(101)) == {"median": 50, "p90": 90, "p99": 99, "min": 0, "max": 100}
    assert summary([]) == {}


def test_slope_distinguishes_growth_from_noise() -> None:
    mib = 2**20
    noise = [(float(second), 500 * mib + (second % 3) * mib) for second in range(0, 600, 5)]
    assert soak.slope(noise, 200.0)["flat"] is True
    growing = [(float(second), 500 * mib + second * mib // 10) for second in range(0, 600, 5)]
    found = soak.slope(growing, 200.0)
    assert (found["flat"], found["mib_per_minute"]) == (False, pytest.approx(6.0, abs=0.01))
    assert soak.slope(noise[:2], 0.0)["flat"] is None


def test_the_soak_mixes_sizes_accept_types_and_a_damaged_file() -> None:
    requests = soak.mixture(endpoint.scene((64, 48)))
    assert len(requests) == 50
    assert Counter(sent.accept for sent in requests)["image/png"] == 47
    assert len({sent.body for sent in requests}) == 7
