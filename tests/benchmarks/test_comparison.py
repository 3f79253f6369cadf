"""The comparison benchmark on a tiny data set: resumable runs and the summary table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import comparison
from pspnet.data.shapes import write_shapes
from pspnet.errors import ConfigError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=4, validation=1, size=(64, 48))
    return folder


def small(shapes: Path, output: Path, *more: object) -> list[str]:
    """One epoch of one step; sgd, whose checkpoints are small."""
    return [
        str(item)
        for item in (
            "--data", shapes, "--num_classes", 7, "--output", output, "--steps", 1, "--crop_size", 32,
            "--base_size", 64, "--mini_batch_size", 2, "--optimizer", "sgd", "--device", "cpu",
            "--precision", "float32", *more,
        )
    ]  # fmt: skip


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "runs.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_runs_are_recorded_and_finished_ones_skipped(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    command = small(shapes, tmp_path, "--networks", "smp-pspnet", "--seeds", 3, 4)
    assert comparison.main(command) == 0
    records = lines(tmp_path)
    assert [(record["network"], record["seed"], record["steps"]) for record in records] == [
        ("smp-pspnet", 3, 1),
        ("smp-pspnet", 4, 1),
    ]
    assert all(0 <= record["mIOU"] <= 1 and len(record["per_class_iou"]) == 7 for record in records)
    assert records[0]["parameters"] == records[1]["parameters"] > 20e6
    out = capsys.readouterr().out
    assert "LibraryNetwork resnet-50, 7 classes, 24.3 M parameters" in out
    assert out.count("validation:mIOU=") == 2

    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"network": "psp')  # a run truncated by a crash
    assert comparison.main(command) == 0
    again = capsys.readouterr().out
    assert "== run" not in again
    assert "| smp-pspnet |     24.3 M | " in again
    summary = json.loads((tmp_path / "summary.json").read_text())["networks"]
    scores = [100 * record["mIOU"] for record in records]
    assert summary["smp-pspnet"]["seeds"] == [3, 4]
    assert summary["smp-pspnet"]["mIOU"][0] == pytest.approx(sum(scores) / 2)
    assert summary["smp-pspnet"]["mIOU"][1] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)


def test_a_stop_leaves_no_record(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    args = comparison.parse(small(shapes, tmp_path))
    stop = comparison.StopRequest()
    stop.signal_number = 2
    assert comparison.run_one("smp-pspnet", 0, comparison.shared_settings(args), stop) is None


def test_steps_are_spread_over_epochs(shapes: Path, tmp_path: Path) -> None:
    def settings(*more: object) -> dict[str, Any]:
        shared: dict[str, Any] = comparison.shared_settings(comparison.parse(small(shapes, tmp_path, *more)))
        return shared

    assert [settings("--steps", 5)[key] for key in ("epochs", "max_steps_per_epoch", "validate_every")] == [3, 2, 3]
    assert settings("--steps", 1)["train_images"] == 4
    with pytest.raises(ConfigError, match="--steps: found 0; expected at least 1"):
        settings("--steps", 0)
    with pytest.raises(ConfigError, match="optimizer: found 'lion'"):
        settings("--optimizer", "lion")


@pytest.mark.slow
def test_library_networks_have_our_interface() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    config = comparison.Config(num_classes=5, data="x", use_pretrained_model=False, seed=4)
    for name in ("smp-pspnet", "smp-deeplabv3"):
        network = comparison.ENTRANTS[name].build(config, torch.device("cpu")).eval()
        images = torch.randint(0, 256, (1, 3, 45, 50), dtype=torch.uint8)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(images)
        assert logits.shape == (1, 5, 45, 50)
        assert logits.dtype == torch.float32
        with torch.no_grad():
            padded = torch.nn.functional.pad((images.float() - network.mean) / network.std, (0, 6, 0, 3))
            assert torch.equal(network(images), network.model(padded)[:, :, :45, :50])


def test_the_published_form_differs_only_in_stem_and_corners() -> None:
    base = comparison.Config(num_classes=5, data="x", use_pretrained_model=False)
    published = base.replace(**comparison.ENTRANTS["pspnet-published"].settings)
    before, after = base.to_dict(), published.to_dict()
    assert {key: after[key] for key in after if after[key] != before[key]} == {"stem": "deep", "align_corners": True}


def test_mean_spread_and_paired_difference() -> None:
    def record(network: str, seed: int, score: float) -> dict[str, Any]:
        return {"network": network, "seed": seed, "mIOU": score, "pixel_accuracy": 0.5, "seconds": 10.0,
                "parameters": 2_000_000, "steps": 4}  # fmt: skip

    records = [record("pspnet", 0, 0.2), record("pspnet", 1, 0.4), record("fcn", 0, 0.3), record("fcn", 1, 0.4)]
    summary = comparison.summarise(records, ["pspnet", "fcn"])
    assert summary["pspnet"]["mIOU"] == pytest.approx((30.0, 200**0.5))
    assert summary["fcn"]["difference"] == pytest.approx((5.0, 50**0.5))
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in comparison.table(summary, "pspnet").split("\n")
    ]
    assert rows[2:] == [
        ["pspnet", "2.0 M", "30.0 ± 14.1", "", "50.0 ± 0.0", "10 ± 0", "0, 1"],
        ["fcn", "2.0 M", "35.0 ± 7.1", "+5.0 ± 7.1", "50.0 ± 0.0", "10 ± 0", "0, 1"],
    ]
