"""`pspnet benchmark` on a small model, and its error messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.benchmarking.benchmark import benchmark, load_warning
from pspnet.benchmarking.benchmark_request import BenchmarkRequest
from pspnet.cli.dispatch import dispatch
from pspnet.config.schema import Config
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PSPNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pspnet.benchmarking.benchmark.measure_peak", lambda device: 1e11)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = Config(num_classes=5, data="none", width=4, use_pretrained_model=False)
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {})
    return folder


def run(*arguments: object) -> int:
    return run_guarded(dispatch, ["benchmark", *(str(argument) for argument in arguments)])


@pytest.mark.slow
def test_a_model_is_timed_against_its_published_form(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "benchmark.json"
    assert run(model_dir, "--size", "40x64", "--runtimes", "eager", "--rounds", 2, "--output", output) == 0
    out = capsys.readouterr().out
    assert f"PSPNet, 5 classes, {model_dir}; 40x64, batch 1, 2 rounds" in out
    assert "a large matrix product: 100 GFLOP/s in float32" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("| ")][2:] == ["plain", "eager"]
    assert "--runtime auto uses eager for this size here." in out
    found = json.loads(output.read_text())
    assert list(found["runtimes"]) == ["plain", "eager"]
    eager = found["runtimes"]["eager"]
    assert len(eager["rounds_ms"]) == 2
    assert eager["images_per_second"] == pytest.approx(1000 / eager["median_ms"], rel=1e-2)
    assert eager["logit_difference"] < 1e-3
    assert eager["same_pixels"] > 0.99
    assert eager["ready_s"] > 0
    assert eager["gflop"] == found["runtimes"]["plain"]["gflop"] > 0
    assert found["runtimes"]["plain"]["gain"] is None
    assert (found["auto"], found["size"], found["peak_gflop_per_second"]) == ("eager", [40, 64], 100.0)
    assert found["command"].startswith("pspnet benchmark ")
    assert found["machine"]["cores"] >= 1


@pytest.mark.slow
def test_unavailable_runtimes_are_left_out_with_a_reason(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (model_dir, "--size", "32x32", "--rounds", 1)
    assert run(*arguments, "--runtimes", "eager", "tensorrt", "--device", "cpu") == 0
    assert "left out: tensorrt: runtime tensorrt needs an NVIDIA GPU" in capsys.readouterr().out
    assert run(*arguments, "--runtimes", "tensorrt", "--device", "cpu") == 2
    assert "error: tensorrt: runtime tensorrt needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_random_weights_and_an_image_at_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pspnet.benchmarking.benchmark.build_model", lambda classes: build_model(classes, width=4))
    path = tmp_path / "frame.png"
    Image.fromarray(np.zeros((36, 50, 3), np.uint8)).save(path)
    assert run("--image", path, "--rounds", 1, "--runtimes", "eager", "--batch", 2) == 0
    out = capsys.readouterr().out
    assert "PSPNet, 21 classes, random weights; 36x50, batch 2, 1 rounds" in out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["no/such/folder"], 1, "error: no/such/folder: not a model directory"),
        (["--runtimes", "eager", "fastest"], 2, "runtimes: found 'fastest' (flag --runtimes); allowed: one or more of"),
        (["--runtimes", "auto"], 2, "runtimes: found ['auto'] (flag --runtimes); allowed: one or more of eager, comp"),
        (["--rounds", "0"], 2, "rounds: found '0' (flag --rounds); allowed: a whole number, at least 1"),
        (["--batch", "-1"], 2, "batch: found '-1' (flag --batch); allowed: a whole number, at least 1"),
        (["--image", "missing.jpg"], 1, "error: missing.jpg: not a readable image"),
    ],
)
def test_wrong_input_is_reported(
    arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == code  # settings are listed below a heading
    assert captured.out == ""


@pytest.mark.parametrize("size", ["abc", "360", "16x480", "360x"])
def test_a_wrong_size_reports_the_expected_format(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--size", size) == 2
    assert f"size: found '{size}' (flag --size); allowed: HEIGHTxWIDTH in pixels, such" in capsys.readouterr().err


def test_a_busy_machine_gives_a_warning() -> None:
    warning = load_warning({"load_average": [1.5, 1.0, 1.0], "cores": 2})
    assert warning is not None
    assert warning.startswith("Other programs keep this machine busy (load 1.5 on 2 cores)")
    assert load_warning({"load_average": [0.9, 1.0, 1.0], "cores": 2}) is None
    assert load_warning({"load_average": [], "cores": 2}) is None


@pytest.mark.slow
def test_benchmark_from_python(model_dir: Path) -> None:
    lines: list[str] = []
    request = BenchmarkRequest(model_dir=model_dir, size=(32, 32), runtimes=["eager"], device="cpu", rounds=1)
    found = benchmark(request, lines.append)
    assert list(found["runtimes"]) == ["plain", "eager"]
    assert lines[-1] == "\n--runtime auto uses eager for this size here."
