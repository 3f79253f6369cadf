"""Failure file and hyperparameters of a SageMaker job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pspnet.cli.train import train_command
from pspnet.config.parsing import parse_arguments
from pspnet.errors import ConfigError, DataError
from pspnet.system.exit_codes import run_guarded
from pspnet.system.sagemaker_job import describe_exception, failure_file, job_arguments, report_failure


def test_failure_file_of_toolkit_and_drivers() -> None:
    assert failure_file({}) is None
    assert failure_file({"SM_OUTPUT_DIR": "/opt/ml/output"}) == Path("/opt/ml/output/failure")
    assert failure_file({"SM_OUTPUT_DIR": "/x", "SM_OUTPUT_FAILURE": "/y/failure"}) == Path("/y/failure")


def test_the_first_reason_is_kept(tmp_path: Path) -> None:
    env = {"SM_OUTPUT_DIR": str(tmp_path / "output")}
    report_failure("the mask is empty", env)
    report_failure("another process ended", env)
    assert (tmp_path / "output" / "failure").read_text() == "the mask is empty\n"


def test_an_unwritable_failure_file_does_not_hide_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    report_failure("the mask is empty", {"SM_OUTPUT_DIR": str(tmp_path / "file")})
    assert "warning: " in capsys.readouterr().err


def fail(error: Exception) -> int:
    def command(argv: object) -> int:
        raise error

    return run_guarded(command, [])


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("epochs: found 0"), 2, "epochs: found 0\n"),
        (DataError("a.png: empty"), 1, "a.png: empty\n"),
        (FileNotFoundError(2, "No such file", "/x/y"), 1, "/x/y: No such file\n"),
    ],
)
def test_user_errors_are_written_to_the_failure_file(
    error: Exception, code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path))
    assert fail(error) == code
    assert (tmp_path / "failure").read_text() == text
    assert capsys.readouterr().err == f"error: {text}"


def test_an_unexpected_exception_starts_with_its_message_and_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SM_OUTPUT_FAILURE", str(tmp_path / "failure"))
    with pytest.raises(KeyError):
        fail(KeyError("lost"))
    text = (tmp_path / "failure").read_text()
    assert text.startswith("KeyError: 'lost'\n\nTraceback")
    assert "in command" in text
    assert len(describe_exception(RuntimeError("x" * 5000)).split("\n")[0]) == 512


def test_outside_a_job_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fail(DataError("a.png: empty")) == 1
    assert list(tmp_path.iterdir()) == []


SENT = {"early_stopping": "True", "epochs": "3", "learning_rate": "1e-4", "lr_scheduler_step": "10, 20", "ignore": ""}


@pytest.mark.parametrize(
    "read_back",
    [
        pytest.param(SENT, id="as sent"),
        pytest.param(
            {"early_stopping": True, "epochs": 3, "learning_rate": 1e-4, "lr_scheduler_step": [10, 20], "ignore": None},
            id="as JSON types",
        ),
    ],
)
def test_hyperparameters_of_a_script_without_flags(read_back: dict[str, object]) -> None:
    argv = job_arguments([], {"SM_HPS": json.dumps(read_back)})
    config = parse_arguments([*argv, "--num_classes", "3", "--data", "shapes"], {}).config
    assert (config.early_stopping, config.epochs, config.learning_rate) == (True, 3, 1e-4)
    assert (config.lr_scheduler_step, config.ignore) == ((10, 20), 255)


def test_flags_precede_sm_hps_and_invalid_json_is_ignored() -> None:
    assert job_arguments(["--epochs", "2"], {"SM_HPS": '{"epochs": 5}'}) == ["--epochs", "2"]
    assert job_arguments([], {"SM_HPS": '{"name": "--x"}'}) == ["--name=--x"]
    assert [job_arguments([], {"SM_HPS": text}) for text in ("{", "[1]", "{}")] == [[], [], []]
    assert job_arguments([], {}) == []


def test_invalid_hyperparameters_of_sm_hps_are_written_to_the_failure_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SM_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("SM_HPS", '{"epochs": 0, "num_classes": 3}')
    assert run_guarded(train_command, []) == 2
    assert "epochs: found '0'" in (tmp_path / "failure").read_text()
