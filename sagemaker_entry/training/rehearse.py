"""`rehearse`: the job that `train` would submit, run here by the training toolkit that AWS's images carry."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pspnet.config.folders import CHANNELS
from pspnet.config.parsing import parse_arguments
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.reference import dump_yaml, help_text
from pspnet.errors import ConfigError, PspnetError
from sagemaker_entry.training.container import Container
from sagemaker_entry.training.job_request import hyperparameters, is_s3, local_channels
from sagemaker_entry.training.job_settings import add_flag, add_job_arguments, read_settings
from sagemaker_entry.training.preflight import check_machine, count_local, print_warnings, require_fit_data
from sagemaker_entry.training.training_images import P2_VERSION, parse_instance_type

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
    if parsed.help_requested or parsed.print_config:
        print(help_text() if parsed.help_requested else dump_yaml(parsed.config), end="")
        return 0
    check_machine(settings)
    channels = _folders_of(parsed.config)
    print_warnings(parsed.config, settings)
    python = arguments.toolkit_python or sys.executable
    _warn_of_another_python(_toolkit_version(python), settings.instance_type)
    require_fit_data(channels, parsed.config, settings)
    sent = hyperparameters(parsed, count_local(parsed.config))
    limit = settings.max_run if arguments.time_limit is None else arguments.time_limit
    try:
        archive = rehearse(sent, channels, limit, arguments.output, settings.instance_type, python)
    except JobStoppedError as error:
        print(error, file=sys.stderr)
        return STOPPED
    print(f"The rehearsal is complete. Model: {archive}")
    return 0


def _folders_of(config: Any) -> dict[str, Path]:
    """The channels, all of them folders here; raises ConfigError for places in S3."""
    values = {key: getattr(config, key) for key in CHANNELS}
    remote = [key for key, value in values.items() if value is not None and is_s3(value)]
    if remote:
        fix = "a rehearsal reads folders here: give --data FOLDER"
        raise InvalidConfigError([Problem(key, f"found {values[key]!r}", fix) for key in remote])
    return local_channels(config)


def _warn_of_another_python(version: tuple[int, ...], instance_type: str) -> None:
    if parse_instance_type(instance_type)[0] == "p2" and version != (3, 8):
        print(
            f"warning: the job on {instance_type} would run Python 3.8 with PyTorch {P2_VERSION}, and this rehearsal "
            f"runs Python {'.'.join(map(str, version))}; --toolkit_python names another one.",
            file=sys.stderr,
        )


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
    with _alone_in(output) as lock:
        if container.lay_out(sent, channels, instance_type, python38):
            print(f"Going on from the checkpoints in {container.checkpoints}.", flush=True)
        job = _Job([python, "-m", "sagemaker_training.cli.train"], container, lock)
        return _result(job, job.run(time_limit_s), container, output)


def _result(job: _Job, exit_code: int, container: Container, output: Path) -> Path:
    """The packed model of a job that has ended; raises what `rehearse` raises."""
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


@contextmanager
def _alone_in(output: Path) -> Iterator[int]:
    """Hold the folder's lock, whose file descriptor this yields; PspnetError where another rehearsal has it."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PspnetError(
                f"{output}: another rehearsal is running in this folder; wait for its end, or give another --output."
            ) from error
        yield file.fileno()


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
    """The toolkit's process and all that it starts, which share a process group.

    The process holds the folder's `lock` as well: it may outlive this one, if that is killed.
    """

    def __init__(self, command: list[str], container: Container, lock: int) -> None:
        self.stopped_by: str | None = None
        self._command, self._container, self._lock = command, container, lock
        self._process: subprocess.Popen[str] | None = None
        self._killer: threading.Timer | None = None

    def run(self, time_limit_s: float) -> int:
        """Start, pass the output on until the last process has closed it, and return the exit code."""
        with self._signals(), subprocess.Popen(
            self._command, cwd=self._container.base, env=self._container.environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            errors="replace", pass_fds=(self._lock,),
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
