"""The inference benchmark on a tiny network: figures, skipped cases, record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import inference
from benchmarks.support import cold_start
from benchmarks.support.cases import CASES, open_case
from benchmarks.support.gluoncv_process import GluonProcess
from pspnet.errors import PspnetError
from pspnet.system.exit_codes import run_guarded

TINY = ("--width", "4", "--num_classes", "3", "--rounds", "2", "--device", "cpu")

# Same protocol as gluoncv_child.py, without masks. Called with -c for versions.
_CHILD = """#!/usr/bin/env python3
import json, sys
if sys.argv[1] == "-c":
    sys.exit(print(json.dumps({"mxnet": "1.9.1"})))
while True:
    line = sys.stdin.buffer.readline()
    if not line: break
    height, width = map(int, line.split())
    body = sys.stdin.buffer.read(3 * height * width)
    print(json.dumps({"seconds": float(body[0]), "pixels": height * width, "peak_mib": 12.5}), flush=True)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "measure_peak", lambda device: 1e11)
    monkeypatch.setattr(inference, "PAUSE", 0.0)


@pytest.fixture
def child(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(_CHILD)
    path.chmod(0o755)
    return path


def run(*arguments: object) -> int:
    return run_guarded(inference.main, [*TINY, *(str(argument) for argument in arguments)])


@pytest.mark.slow
def test_cases_are_timed_at_each_size_and_compared_with_plain(
    tmp_path: Path, child: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "inference.json"
    arguments = ("--sizes", "32x40", "48x32", "--cases", "plain", "eager", "gluoncv", "--gluon_python", child)
    assert run(*arguments, "--frame_path", "--output", output) == 0
    found: dict[str, Any] = json.loads(output.read_text())
    assert found["benchmark"] == "inference"
    assert found["settings"]["model"] == "random weights, width 4"
    assert list(found["sizes"]) == ["32x40", "48x32"]
    assert found["versions_of_gluoncv"] == {"mxnet": "1.9.1"}
    first, second = found["sizes"].values()
    assert list(first) == ["plain", "eager", "gluoncv"]
    assert first["eager"]["logit_difference"] < 1e-3
    assert second["eager"]["logit_difference"] is None
    assert min(size["eager"]["same_pixels"] for size in (first, second)) > 0.99
    assert first["plain"]["gflop"] == first["eager"]["gflop"] < first["gluoncv"]["gflop"]
    plain, eager = (first[name]["rounds_ms"] for name in ("plain", "eager"))
    low, _, high = first["eager"]["gain"]
    assert low <= np.median(np.divide(plain, eager)) * 1.001
    assert high >= np.median(np.divide(plain, eager)) * 0.999
    assert list(found["frame_path"]["32x40"]) == [
        "decode", "copy", "forward", "arg-max", "back", "PNG", "copy to back, the runtime's own", "whole"
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "32x40, batch 1, 2 rounds" in out
    assert "From JPEG" in out


@pytest.mark.slow
def test_unavailable_cases_are_reported_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "inference.json"
    cases = ("--cases", "eager", "openvino:int8", "tensorrt", "gluoncv")
    assert run("--sizes", "32x32", *cases, "--output", output) == 0
    found = json.loads(output.read_text())
    assert set(found["skipped"]) == {"openvino:int8", "tensorrt", "gluoncv"}
    assert found["skipped"]["gluoncv"] == "no Python with mxnet and gluoncv was given (--gluon_python)."
    assert list(found["sizes"]["32x32"]) == ["eager"]
    assert "left out: gluoncv: no Python with mxnet" in capsys.readouterr().out
    assert run("--sizes", "32x32", "--cases", "gluoncv") == 1
    assert "none of the cases can run here: no Python with mxnet" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_and_starts_are_measured_in_separate_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def ask(model: Path, case: str, size: object, device: str, cache: Path, **more: object) -> dict[str, float]:
        asked.append((case, size, cache, more["batch"]))
        assert cache.is_dir()
        return {"open_s": 1.25, "first_mask_s": 2.5, "second_mask_s": 0.5, "peak_mib": 700.0, "held_mib": 600.0}

    monkeypatch.setattr(cold_start, "ask", ask)
    output = tmp_path / "inference.json"
    assert run("--sizes", "32x32", "40x40", "--cases", "plain", "eager", "--memory", "--output", output) == 0
    assert [call[:2] for call in asked] == [("plain", (40, 40))] * 2 + [("eager", (40, 40))] * 2
    assert asked[0][2] == asked[1][2] != asked[2][2]
    assert "| eager |      700 |" in capsys.readouterr().out
    assert json.loads(output.read_text())["starts"]["eager"]["later"]["open_s"] == 1.25


@pytest.mark.slow
def test_a_start_is_measured(tmp_path: Path) -> None:
    with inference.random_model(3, 4) as model:
        found = cold_start.ask(model, "eager", (32, 32), "cpu", tmp_path / "cache", num_classes=3)
        with pytest.raises(PspnetError, match=r"a process ended with [12]: error:"):
            cold_start.ask(model, "openvino:int8", (32, 32), "cpu", tmp_path / "cache")
    assert found["open_s"] > 0
    assert found["first_mask_s"] > 0
    assert found["peak_mib"] is None or found["peak_mib"] > 100


def test_gluoncv_reports_its_own_time(child: Path) -> None:
    process = GluonProcess(child, 3, 1)
    images = np.full((2, 4, 5, 3), 7, np.uint8)
    assert process.masks(images) == 14.0
    assert process.peak_mib == 12.5
    process.close()


def test_a_failed_gluoncv_process_reports_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho 'No module named mxnet' >&2\nexit 1\n")
    path.chmod(0o755)
    process = GluonProcess(path, 3, 1)
    with pytest.raises(PspnetError, match="its process ended: No module named mxnet"):
        process.prepare(400, 400)
    process.close()
    with pytest.raises(PspnetError, match="cannot be started"):
        GluonProcess(tmp_path / "none", 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision-deeplabv3", "smp-pspnet", "smp-deeplabv3"])
def test_other_libraries_networks(name: str, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    subject = inference.Subject(tmp_path, inference.torch.device("cpu"), 3)
    case = open_case(name, subject)
    images = np.zeros((1, 40, 50, 3), np.uint8)
    assert case.masks(images).shape == (1, 40, 50)
    assert case.masks(images).max() < 3
    assert inference.case_flops(name, subject, case, (40, 50)) > 1e8


def test_wrong_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, text in ((("--rounds", "0"), "--rounds: found 0"), (("--cases", "fast"), "invalid choice: 'fast'")):
        with pytest.raises(SystemExit, match="2"):
            inference.main([*flags])
        assert text in capsys.readouterr().err
    assert len(set(CASES)) == len(CASES)
