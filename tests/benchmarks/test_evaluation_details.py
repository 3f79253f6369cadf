"""The benchmark of evaluation details runs on a small image and prints a line for each case."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def benchmark() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "evaluation_details.py"
    specification = importlib.util.spec_from_file_location("evaluation_details", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_it_prints_a_line_for_each_case(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "CASES", ((3, 32, 48), (5, 40, 40)))
    benchmark.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["3", "32", "48"], ["5", "40", "40"]]
    assert all(float(part) >= 0 for line in lines[1:] for part in line.split()[3:])


def test_the_least_time_counts(benchmark: ModuleType) -> None:
    calls = []
    assert benchmark.milliseconds(lambda: calls.append(1), repeats=3) >= 0
    assert len(calls) == 3
