"""The record of a benchmark run."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from pspnet.benchmarking import record
from pspnet.system.cpu import available_cores


def test_record_has_command_machine_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks/inference.py", "--model", "my model"])
    found = record.run_record()
    assert found["command"] == "python benchmarks/inference.py --model 'my model'"
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cores"] == available_cores()
    assert len(found["machine"]["load_average"]) == 3
    assert record.run_record("pspnet benchmark")["command"] == "pspnet benchmark"


def test_a_record_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "new" / "inference.json"
    record.write_record(path, {"machine": {"cores": 2}})
    assert json.loads(path.read_text()) == {"machine": {"cores": 2}}
    with pytest.raises(TypeError):
        record.write_record(path, {"machine": object()})
    assert json.loads(path.read_text()) == {"machine": {"cores": 2}}
    assert list(path.parent.iterdir()) == [path]


def test_systems_with_less_information(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sched_getaffinity", "getloadavg", "sysconf"):
        monkeypatch.delattr(os, name, raising=False)
    found = record.machine()
    assert (found["cores"], found["memory_gib"], found["load_average"]) == (available_cores(), None, [])
    assert record.machine_text(found) == f"{found['processor']}, {available_cores()} cores"


def test_a_machine_in_one_line() -> None:
    found = {"processor": "A CPU", "cores": 2, "memory_gib": 15.6, "load_average": [0.25, 0.5, 0.75]}
    assert record.machine_text(found) == "A CPU, 2 cores, 15.6 GiB, load 0.25"
    assert record.machine_text({**found, "gpu": "A GPU"}) == "A CPU, 2 cores, A GPU, 15.6 GiB, load 0.25"
