"""Rehearsal under the real training toolkit: success, user errors, SIGTERM and resume.

PSPNET_PYTHON38 may name a Python 3.8 with torch 1.12.1 and sagemaker-training, for the job of ml.p2 instances.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pspnet.cli.dispatch import dispatch as pspnet_dispatch
from pspnet.data.shapes import write_shapes
from pspnet.errors import ConfigError, PspnetError
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.commands import dispatch
from sagemaker_entry.training import rehearse as rehearsals
from sagemaker_entry.training.rehearse import JobStoppedError, rehearse

ROOT = Path(__file__).resolve().parents[3]
TINY = {
    "num_classes": "7", "use_pretrained_model": "False", "width": "4", "crop_size": "32", "base_size": "64",
    "mini_batch_size": "3", "workers": "0", "epochs": "2", "sample_images": "0", "early_stopping": "True",
}  # fmt: skip
CHANNELS = ("train", "train_annotation", "validation", "validation_annotation")

needs_toolkit = pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None, reason="sagemaker-training is not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=6, validation=4, size=(72, 48))
    return folder


@pytest.fixture
def channels(data: Path) -> dict[str, Path]:
    return {name: data / name for name in CHANNELS}


def flags(**settings: str) -> list[str]:
    return [word for key, value in {**TINY, **settings}.items() for word in (f"--{key}", value)]


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar if item.isfile()}  # type: ignore[union-attr]


def start(output: Path, data: Path, **settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sagemaker_entry", "rehearse", "--data", str(data), "--output", str(output)]
    return subprocess.Popen(
        [*command, *flags(**settings)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stop_at(process: subprocess.Popen[str], beginning: str, act: Callable[[], None]) -> str:
    """Read the output, call `act` once at a line with this beginning, and return the whole output."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(beginning):
            beginning = "\0"
            act()
    process.wait(timeout=60)
    return "".join(lines)


@pytest.mark.slow
@needs_toolkit
def test_a_rehearsal_writes_a_model_that_evaluate_accepts(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in data.rglob("*"))
    argv = ["rehearse", "--data", str(data), "--output", str(tmp_path / "job"), *flags()]
    assert run_guarded(dispatch, argv) == 0
    printed = capsys.readouterr().out
    # The toolkit sorts the hyperparameters, parses numbers and leaves True unchanged.
    assert '"--base_size","64","--crop_size","32","--early_stopping","True"' in printed
    assert "6 training and 4 validation images" in printed
    assert "epoch=2 validation:mIOU=" in printed
    base = tmp_path / "job" / "opt" / "ml"
    assert all((base / "input" / "data" / name).is_symlink() for name in CHANNELS)
    assert json.loads((base / "input" / "config" / "hyperparameters.json").read_text())["num_training_samples"] == "6"
    assert not (base / "output" / "failure").exists()
    assert (base / "output" / "data" / "metrics.json").is_file()
    assert sorted(path for path in data.rglob("*")) == before

    names = set(members(tmp_path / "job" / "model.tar.gz"))
    assert {"config.json", "model.safetensors", "code/inference.py", "code/requirements.txt"} <= names
    assert "code/pspnet/inference/predictor.py" in names
    with tarfile.open(tmp_path / "job" / "model.tar.gz") as tar:
        for name in ("config.json", "model.safetensors"):
            tar.extract(name, tmp_path / "model")
    scores = ["--images", str(data / "validation"), "--annotations", str(data / "validation_annotation")]
    argv = ["evaluate", str(tmp_path / "model"), *scores, "--output", str(tmp_path / "scores"), "--workers", "0"]
    assert run_guarded(pspnet_dispatch, argv) == 0
    trained = json.loads((base / "output" / "data" / "metrics.json").read_text())
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["mIOU"] == pytest.approx(trained["mIOU"])


@pytest.mark.slow
@needs_toolkit
def test_a_failed_job_reports_its_reason(channels: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "empty"
    broken.mkdir()
    with pytest.raises(PspnetError, match=r"exit code 1\. Its failure file:\n.*train_annotation") as caught:
        rehearse(TINY, {**channels, "train_annotation": broken}, 120, tmp_path / "job")
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "job" / "model.tar.gz").exists()


@pytest.mark.slow
@needs_toolkit
def test_a_wrong_hyperparameter_is_the_failure_reason(channels: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PspnetError, match="exit code"):
        rehearse({**TINY, "epochs": "0", "optimiser": "sgd"}, channels, 120, tmp_path)
    reason = (tmp_path / "opt" / "ml" / "output" / "failure").read_text()[:1024]
    assert reason.startswith("The configuration has 2 problems:")
    assert "epochs: found '0'" in reason
    assert "did you mean optimizer?" in reason


@pytest.mark.slow
@needs_toolkit
def test_a_stopped_rehearsal_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", data, epochs="30")
    assert "Reporting training SUCCESS" in stop_at(whole, "\0", lambda: None)
    assert whole.returncode == 0

    killed = start(tmp_path / "killed", data, epochs="30")
    asked: list[float] = []

    def stop() -> None:
        asked.append(time.monotonic())
        os.kill(killed.pid, signal.SIGTERM)

    printed = stop_at(killed, "epoch=3 train:loss", stop)
    assert asked
    assert time.monotonic() - asked[0] < 60
    assert killed.returncode == 143, printed
    assert "The job was stopped by SIGTERM: its checkpoint is in" in printed
    base = tmp_path / "killed" / "opt" / "ml"
    assert (base / "checkpoints" / "last.safetensors").is_file()
    assert (base / "output" / "failure").read_text().startswith("The job was stopped by a signal (exit code 143)")
    assert not (tmp_path / "killed" / "model.tar.gz").exists()

    again = start(tmp_path / "killed", data, epochs="30")
    printed = stop_at(again, "\0", lambda: None)
    assert again.returncode == 0, printed
    assert "Resuming from the checkpoints in" in printed
    assert "Resuming from" in printed
    assert "epoch=1 train:loss" not in printed
    name = "model.safetensors"
    assert members(tmp_path / "killed" / "model.tar.gz")[name] == members(tmp_path / "whole" / "model.tar.gz")[name]


@pytest.mark.slow
@needs_toolkit
def test_the_time_limit_stops_the_job_with_a_checkpoint(channels: dict[str, Path], tmp_path: Path) -> None:
    forever = {**TINY, "epochs": "100000", "early_stopping": "False"}
    for limit in (12, 60, 240):  # a busy machine needs longer to reach its first step
        with pytest.raises(JobStoppedError, match=f"stopped by its time limit of {limit} s: it") as caught:
            rehearse(forever, channels, limit, tmp_path)
        if "its checkpoint is in" in str(caught.value):
            break
    assert "its checkpoint is in" in str(caught.value)
    # Another job in the same folder starts from the beginning, as a new job on SageMaker does.
    assert rehearse(TINY, channels, 120, tmp_path) == tmp_path / "model.tar.gz"


@pytest.mark.slow
@needs_toolkit
def test_incremental_training_starts_from_a_packed_model(
    channels: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = rehearse(TINY, channels, 120, tmp_path / "first")
    packed = tmp_path / "packed"
    packed.mkdir()
    first.rename(packed / "model.tar.gz")
    rehearse(TINY, {**channels, "model": packed}, 120, tmp_path / "second")
    with pytest.raises(PspnetError, match="holds another architecture: width is 4 there and 8 here"):
        rehearse({**TINY, "width": "8"}, {**channels, "model": packed}, 120, tmp_path / "third")


@pytest.mark.skipif(
    "PSPNET_PYTHON38" not in os.environ,
    reason="PSPNET_PYTHON38 names no Python 3.8 with torch 1.12.1 and the training toolkit (.ci/python38.sh makes one)",
)
def test_the_job_of_a_p2_instance_runs_under_python38(channels: dict[str, Path], tmp_path: Path) -> None:
    archive = rehearse(TINY, channels, 300, tmp_path, "ml.p2.xlarge", os.environ["PSPNET_PYTHON38"])
    versions = json.loads(members(archive)["config.json"])["versions"]
    assert versions["python"].startswith("3.8.")
    assert versions["torch"].startswith("1.12.1")
    assert "albumentations==1.4.18" in (tmp_path / "opt" / "ml" / "code" / "requirements.txt").read_text()


def test_a_python_without_the_toolkit_is_reported(channels: dict[str, Path], tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 3 11\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(ConfigError, match=r"lacks sagemaker-training.*-m pip install sagemaker-training"):
        rehearse(TINY, channels, 60, tmp_path / "job", python=str(fake))
    with pytest.raises(ConfigError, match=r"toolkit_python: cannot run .*missing"):
        rehearse(TINY, channels, 60, tmp_path / "job", python=str(tmp_path / "missing"))
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--epochs", "0"], "epochs: found '0'"),
        (["--data", "s3://bucket/voc"], "a rehearsal reads local folders: give --data FOLDER"),
        (["--data", "missing"], "no such folder"),
        (["--label_map", "s3://bucket/maps"], "label_map: found 's3://bucket/maps'"),
        (["--volume_size", "0"], "volume_size: found '0'"),
        (["--instance_type", "nonsense"], "instance_type: "),
        (["--pytorch_version", "2.6.0"], "ml.p2.xlarge (K80) runs PyTorch up to 1.12.1"),
    ],
)
def test_user_errors_are_found_before_anything_is_started(
    more: list[str], text: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(rehearsals, "rehearse", lambda *_: pytest.fail("a job was started"))
    argv = ["rehearse", "--data", str(data), "--output", str(tmp_path / "job"), *flags(), *more]
    assert run_guarded(dispatch, argv) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "job").exists()


@pytest.mark.slow
@needs_toolkit
def test_the_data_are_checked_as_before_an_upload(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(rehearsals, "rehearse", lambda sent, *_: started.append(sent))
    shutil.copytree(data, tmp_path / "data")
    argv = ["rehearse", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "job"), *flags()]
    assert run_guarded(dispatch, argv) == 0
    captured = capsys.readouterr()
    assert "0 errors, 0 warnings: ready to train." in captured.out
    # The warnings of train, and that this is not the Python of a p2 instance.
    assert "warning: early_stopping has no effect: early_stopping_min_epochs 5 is not below epochs 2." in captured.err
    assert "warning: AWS has retired the P2 family (K80)" in captured.err
    assert "warning: the job on ml.p2.xlarge would run Python 3.8 with PyTorch 1.12.1" in captured.err

    next((tmp_path / "data" / "validation_annotation").iterdir()).write_bytes(b"no image")
    assert run_guarded(dispatch, argv) == 1
    assert "error: the data are not fit for training; nothing was sent or started." in capsys.readouterr().err
    assert run_guarded(dispatch, [*argv, "--skip_check"]) == 0
    assert [sent["num_training_samples"] for sent in started] == ["6", "6"]


@pytest.mark.slow
@needs_toolkit
def test_concurrent_rehearsals_need_separate_folders(data: Path, tmp_path: Path) -> None:
    first = start(tmp_path, data, epochs="100000", early_stopping="False")
    refused: list[subprocess.CompletedProcess[str]] = []

    def start_another() -> None:
        command = [*first.args, "--skip_check"]  # type: ignore[misc]
        refused.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120))
        os.kill(first.pid, signal.SIGTERM)

    stop_at(first, "epoch=1 train:loss", start_another)
    assert refused[0].returncode == 1
    text = (
        f"error: {tmp_path}: another rehearsal is running in this folder; wait until it ends, or give another --output"
    )
    assert text in refused[0].stderr
    assert first.returncode == 143
