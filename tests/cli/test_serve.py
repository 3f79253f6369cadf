"""Tests of `pspnet serve`: help and the error message of every failed start."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks.support import hosts
from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.cli import dispatch as cli
from pspnet.cli import serve as cli_serve
from pspnet.config.schema import Config
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded
from tests.serving.pictures import encoded, noise

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    config = Config(num_classes=3, data="x", width=4, use_pretrained_model=False)
    torch.manual_seed(1)
    save_artifact(tmp_path / "model", build_model(**architecture_of(config)), config, {}, {})
    return tmp_path / "model"


def serve(*arguments: str, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pspnet.cli", "serve", *arguments, "--port", "0"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.dispatch(["serve", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--max_batch" in text
    assert "--host: default 127.0.0.1;" in text
    assert "PSPNET_PORT" in text


def test_invalid_settings_are_reported_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PSPNET_QUEUE", "0")
    monkeypatch.setenv("PSPNET_PIXELS", "all")
    assert run_guarded(cli.dispatch, ["serve", "model", "--port", "http", "--quue", "3"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: The configuration has 4 problems:",
        "  quue: unknown key (flag --quue); did you mean queue?",
        "  pixels: found 'all' (environment PSPNET_PIXELS); allowed: a whole number from 1024 to 1000000000",
        "  port: found 'http' (flag --port); allowed: a whole number from 0 to 65535",
        "  queue: found '0' (environment PSPNET_QUEUE); allowed: a whole number from 1 to 10000",
    ]


def test_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_serve, "_PACKAGES", ("starlette_is_not_here", "json"))
    assert run_guarded(cli.dispatch, ["serve", "model"]) == 2
    assert capsys.readouterr().err == (
        "error: serving needs the package starlette_is_not_here; install it with: pip install 'pspnet[serve]'.\n"
    )


@pytest.mark.slow
def test_missing_model_is_reported_once(tmp_path: Path) -> None:
    result = serve(str(tmp_path), "--workers", "2")
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith(f"error: {tmp_path}: not a model directory")
    assert "Listening on http://127.0.0.1:" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_unavailable_device_is_reported(model_dir: Path) -> None:
    result = serve(str(model_dir), "--device", "cuda")
    assert result.returncode == 2
    assert "error: --device cuda: this PyTorch" in result.stderr


@pytest.mark.slow
def test_packed_model_is_served(model_dir: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "model.tar.gz", "w:gz") as archive:
        for path in model_dir.iterdir():
            archive.add(path, path.name)
    with hosts.serve(packed, tmp_path, arguments=("--warmup-size", "32x32", "--threads", "1")) as host:
        host.wait_ready(encoded(noise(40, 32)), "image/png")
        assert len(host.workers()) == 1
