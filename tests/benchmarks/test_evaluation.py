"""The evaluation benchmark on tiny masks: equal counts, and figures for every step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import evaluation as benchmark


def test_masks_are_as_described() -> None:
    predictions, targets = benchmark.draw_masks(4, 5, 100, 90)
    assert predictions.shape == targets.shape == (4, 100, 90)
    assert targets.dtype == torch.uint8
    scored = targets != 255
    assert scored.float().mean().item() == pytest.approx(0.95, abs=0.01)
    assert (predictions == targets)[scored].float().mean().item() == pytest.approx(0.8 + 0.2 / 5, abs=0.02)


@pytest.mark.slow
def test_the_figures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "SIZES", {"tiny": (3, 24, 32)})
    assert benchmark.main(["--masks", "2", "--rounds", "1", "--output", str(tmp_path / "evaluation.json")]) == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())
    ours = record["confusion_matrix"]["ours, uint8 predictions"]
    assert ours["median_ms"] > 0
    assert list(record["steps"]["tiny"])[-1] == "boundaries"
    assert "| confusion matrix of 2 masks" in capsys.readouterr().out
