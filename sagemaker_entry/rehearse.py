"""`rehearse`: the job that `train` would submit, run here by the training toolkit that AWS's images carry."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pspnet.config_checks import InvalidConfigError, Problem
from pspnet.config_sources import dump_yaml, parse_arguments
from pspnet.data.channels import pair_files
from pspnet.errors import ConfigError, PspnetError
from sagemaker_entry.container import Container
from sagemaker_entry.images import check_image, check_known, parse_instance_type
from sagemaker_entry.job import hyperparameters, is_s3, local_channels
from sagemaker_entry.settings import add_flag, add_job_arguments, read_settings

GRACE_SECONDS = 120.0
"""How long SageMaker lets a job end after SIGTERM."""

STOPPED = 128 + signal.SIGTERM

_TEXT = """Run the job that `train` would submit on this machine: with the training toolkit of AWS's images, in a
private folder laid out as the container's. Takes the same arguments as `train`; the channels are folders here (links to
them, no copy). A rehearsal that was stopped goes on where it was when the same command is given again."""


class JobStoppedError(PspnetError):
    """The job was asked to stop, by a signal or at its time limit, and ended with what it had."""


def register(subparsers: Any) -> None:
    """Add the command to the parser of `python -m sagemaker_entry`."""
    parser = subparsers.add_parser(
        "rehearse", help="run the job here, before paying for it", description=_TEXT, allow_abbrev=False
    )
    add_job_arguments(parser)
    add_flag(parser, "output", type=Path, default=Path("runs/rehearsal"), metavar="FOLDER", help="(%(default)s)")
    add_flag(parser, "time_limit", type=float, metavar="S", help="longest training here in seconds (max_run)")
    add_flag(parser, "toolkit_python", metavar="PATH", help="another Python to run the job with, such as a 3.8 for P2")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the settings as `train` does, run the job, say where model.tar.gz is."""
    settings = read_settings(arguments)
    parsed = parse_arguments(arguments.rest, {})
    if parsed.print_config:
        print(dump_yaml(parsed.config), end="")
        return 0
    parse_instance_type(settings.instance_type)
    if find_spec("botocore") is not None:  # a rehearsal itself needs no package of AWS's
        check_known(settings.instance_type)
    if settings.image_uri is not None:
        check_image(settings.instance_type, settings.image_uri)
    channels = _folders_of(parsed.config)
    samples = len(pair_files(channels["train"], channels["train_annotation"]).pairs) if channels else None
    sent = hyperparameters(parsed, samples)
    limit = settings.max_run if arguments.time_limit is None else arguments.time_limit
    try:
        archive = rehearse(
            sent, channels, limit, arguments.output, settings.instance_type, arguments.toolkit_python or sys.executable
        )
    except JobStoppedError as error:
        print(error, file=sys.stderr)
        return STOPPED
    print(f"The rehearsal is complete. Model: {archive}")
    return 0


def _folders_of(config: Any) -> dict[str, Path]:
    """The channels, all of them folders here; raises ConfigError for places in S3."""
    values = {key: getattr(config, key) for key in ("train", "train_annotation", "validation", "validation_annotation")}
    remote = [key for key, value in values.items() if value is not None and is_s3(value)]
    if remote:
        fix = "a rehearsal reads folders here: give --data FOLDER"
        raise InvalidConfigError([Problem(key, f"found {values[key]!r}", fix) for key in remote])
    return local_channels(config)


def rehearse(
    sent: Mapping[str, str],
    channels: Mapping[str, Path],
    time_limit_s: float,
    output: Path,
    instance_type: str = "local",
    python: str = sys.executable,
) -> Path:
    """Run a job with the training toolkit and return its model.tar.gz in `output`.

    SIGTERM, Ctrl-C and the time limit stop the job as SageMaker does: SIGTERM, then GRACE_SECONDS. The job's folder,
    checkpoints included, is `output`/opt/ml; the same job goes on from them.

    Args:
        sent: the job's hyperparameters.
        channels: local folder of each channel.
        python: the interpreter that has torch, the package's dependencies and sagemaker-training.

    Raises:
        JobStoppedError: it was stopped. PspnetError: it failed, with the reason that SageMaker would show. ConfigError:
        the toolkit is not installed.
    """
    python38 = _toolkit_version(python) < (3, 9)
    container = Container((output / "opt" / "ml").absolute())
    if container.lay_out(sent, channels, instance_type, python38):
        print(f"Going on from the checkpoints in {container.checkpoints}.", flush=True)
    job = _Job([python, "-m", "sagemaker_training.cli.train"], container)
    exit_code = job.run(time_limit_s)
    if job.stopped_by is not None:
        kept = any(container.checkpoints.glob("last*.safetensors"))
        after = f"its checkpoint is in {container.checkpoints}; the same command goes on from it" if kept else (
            "it had no checkpoint yet"
        )  # fmt: skip
        raise JobStoppedError(f"The job was stopped by {job.stopped_by}: {after}.")
    if exit_code != 0:
        reason = container.failure.read_text(encoding="utf-8").strip() if container.failure.is_file() else "no reason"
        raise PspnetError(f"The job failed with exit code {exit_code}. Its failure file says:\n{reason}")
    archive = container.pack_model(output / "model.tar.gz")
    container.forget()
    return archive


def _toolkit_version(python: str) -> tuple[int, ...]:
    """The Python version of an interpreter that has the toolkit; ConfigError where it has none."""
    code = (
        "import sys, importlib.util as u; print(*sys.version_info[:2]); sys.exit(not u.find_spec('sagemaker_training'))"
    )
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"toolkit_python: {python} is no Python that runs ({error}).") from error
    if found.returncode != 0:
        raise ConfigError(
            f"{python} has no sagemaker-training, the toolkit that AWS's images run jobs with: "
            f"{python} -m pip install sagemaker-training, or give another Python with --toolkit_python."
        )
    return tuple(int(part) for part in found.stdout.split())


class _Job:
    """The toolkit's process and all that it starts, which share a process group."""

    def __init__(self, command: list[str], container: Container) -> None:
        self.stopped_by: str | None = None
        self._command, self._container = command, container
        self._process: subprocess.Popen[str] | None = None
        self._killer: threading.Timer | None = None

    def run(self, time_limit_s: float) -> int:
        """Start, pass the output on until the last process has closed it, and return the exit code."""
        with self._signals(), subprocess.Popen(
            self._command, cwd=self._container.base, env=self._container.environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            errors="replace",
        ) as process:  # fmt: skip
            self._process = process
            limit = threading.Timer(time_limit_s, self.stop, [f"its time limit of {time_limit_s:g} s"])
            limit.daemon = True
            limit.start()
            try:
                if self.stopped_by is not None:  # a signal that came before there was a process
                    self._send(signal.SIGTERM)
                assert process.stdout is not None
                for line in process.stdout:
                    sys.stdout.write(line)
                    sys.stdout.flush()
                return process.wait()
            except BaseException:
                self._send(signal.SIGKILL)
                raise
            finally:
                limit.cancel()
                if self._killer is not None:
                    self._killer.cancel()

    def stop(self, reason: str) -> None:
        """SIGTERM to the whole group, and SIGKILL after the time that SageMaker gives; at once when asked again.

        To the group, because the toolkit hands no signal on to the script that it runs.
        """
        if self.stopped_by is not None:
            self._send(signal.SIGKILL)
            return
        self.stopped_by = reason
        self._killer = threading.Timer(GRACE_SECONDS, self._send, [signal.SIGKILL])
        self._killer.daemon = True
        self._killer.start()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):  # all of them have ended
            os.killpg(self._process.pid, number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While the job runs, SIGTERM and Ctrl-C are the job's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names: dict[int, str] = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
        before = {number: signal.signal(number, lambda got, _: self.stop(names[got])) for number in names}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
