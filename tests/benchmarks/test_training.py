"""The training benchmark on a network of width 4: the step of every case, and the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import training
from benchmarks.training import case_precision, main, make_batch, open_case, parse
from pspnet.errors import ConfigError

TINY = ["--crop", "64", "--batch", "2", "--width", "4", "--num_classes", "3", "--device", "cpu", "--rounds", "2"]
CPU = torch.device("cpu")


@pytest.mark.slow
def test_table_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "measure_peak", lambda *arguments, **settings: 1e11)
    path = tmp_path / "training.json"
    cases = ["plain", "ours", "ours-upsampled", "ours-nchw", "ours-recompute"]
    assert main([*TINY, "--cases", *cases, "plain-autocast", "--output", str(path)]) == 0
    record = json.loads(path.read_text())
    measured = [name for name in record["cases"] if name != "plain-autocast"]
    assert measured == cases
    assert list(record["missing"]) in ([], ["plain-autocast"])
    assert record["settings"] == {"crop": 64, "batch": 2, "num_classes": 3}
    plain, ours = record["cases"]["plain"], record["cases"]["ours"]
    assert plain["ratio"]["median"] == 1
    assert ours["flops"] == plain["flops"] > 1e8
    assert len(ours["rounds_ms"]) == 2
    assert ours["images_per_second"] == pytest.approx(2000 / ours["median_ms"], rel=1e-3)
    assert ours["share_of_peak"] == pytest.approx(ours["flops"] * ours["images_per_second"] / 2 / 1e11, rel=0.05)
    out = capsys.readouterr().out
    assert "| case " in out
    assert "| ours-recompute" in out


def test_our_cases_compute_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of each case has the loss of the same weights, batch and dropout."""
    arguments = parse(TINY)
    batch, original = make_batch(arguments), training.TrainingStep.drain
    losses: list[float] = []

    def noted(self: training.TrainingStep, wait: bool = True) -> object:
        outcomes = original(self, wait)
        losses.extend(outcome.loss for outcome in outcomes)
        return outcomes

    monkeypatch.setattr(training.TrainingStep, "drain", noted)
    for name in ("ours", "ours-upsampled", "ours-recompute", "ours-nchw"):
        open_case(name, arguments, CPU, batch)()
    assert len(losses) == 4
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4)


def test_the_plain_case_is_required() -> None:
    with pytest.raises(ConfigError, match="plain is the reference of the others"):
        main([*TINY, "--cases", "ours"])


def test_autocast_needs_a_faster_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda device: False)
    with pytest.raises(ConfigError, match="no precision that is faster than float32"):
        case_precision("ours-autocast", CPU)
    monkeypatch.setattr(training, "has_fast_bfloat16", lambda device: True)
    assert case_precision("ours-autocast", CPU).dtype == torch.bfloat16


def test_invalid_flags_are_refused() -> None:
    with pytest.raises(SystemExit):
        parse(["--batch", "0"])
