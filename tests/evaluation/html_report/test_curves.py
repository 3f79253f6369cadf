"""Training log as curves over epochs: repeated steps, a truncated last line, damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pspnet.errors import DataError
from pspnet.evaluation.html_report.curves import read_curves


def write(path: Path, *entries: object) -> Path:
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))
    return path


def test_steps_become_epochs(tmp_path: Path) -> None:
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 5, "epoch": 1, "loss": 3.0, "learning_rate": 0.1},
        {"step": 10, "epoch": 1, "train:loss": 2.5},
        {"step": 10, "epoch": 1, "validation:mIOU": 0.25, "validation:pixel_accuracy": 0.5},
        {"step": 15, "epoch": 2, "loss": 2.0, "learning_rate": 0.05},
        {"step": 20, "epoch": 2, "train:loss": 1.5},
        {"step": 20, "epoch": 2, "validation:mIOU": float("nan")},
    )
    assert read_curves(path).lines == {
        "training loss": [(1.0, 2.5), (2.0, 1.5)],
        "mIoU": [(1.0, 0.25)],
        "pixel accuracy": [(1.0, 0.5)],
        "learning rate": [(0.5, 0.1), (1.5, 0.05)],
    }


def test_the_later_record_of_a_step_is_used_and_a_truncated_line_ignored(tmp_path: Path) -> None:
    first, again = ({"step": 4, "epoch": 1, "train:loss": loss} for loss in (2.0, 1.0))
    path = write(tmp_path / "metrics.jsonl", first, again, '{"step": 8, "epo')
    assert read_curves(path).lines == {"training loss": [(1.0, 1.0)]}


def test_a_run_without_a_full_epoch_is_shown_by_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", {"step": 3, "epoch": 1, "learning_rate": 0.5})
    assert read_curves(path).lines == {"learning rate": [(3.0, 0.5)]}


def test_long_logs_are_thinned_to_their_end(tmp_path: Path) -> None:
    entries = [{"step": step, "epoch": 1, "learning_rate": step / 1e4} for step in range(1, 5001)]
    line = read_curves(write(tmp_path / "metrics.jsonl", *entries)).lines["learning rate"]
    assert 200 < len(line) <= 401
    assert line[-1] == (5000.0, 0.5)
    assert line[0] == (1.0, 0.0001)


def test_damage_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", "rubbish", {"step": 3, "epoch": 1, "learning_rate": 0.5})
    with pytest.raises(DataError, match=r"metrics.jsonl: line 1 is not a record of a training run"):
        read_curves(path)
    with pytest.raises(DataError, match=r"cannot be read"):
        read_curves(tmp_path / "nowhere.jsonl")
