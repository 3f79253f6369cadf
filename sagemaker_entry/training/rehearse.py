"""`rehearse`: run the job that `train` would submit locally, with the training toolkit of AWS's images."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspnet.config.folders import CHANNELS
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.settings import setting
from pspnet.errors import ConfigError, PspnetError
from sagemaker_entry.aws.container_images import parse_instance_type
from sagemaker_entry.aws.s3_objects import is_s3
from sagemaker_entry.training.container import Container
from sagemaker_entry.training.job_request import hyperparameters, local_channels
from sagemaker_entry.training.job_settings import JobSettings, parse_job
from sagemaker_entry.training.preflight import check_machine, count_local, print_warnings, require_fit_data
from sagemaker_entry.training.training_images import P2_VERSION

GRACE_SECONDS = 120.0
"""Seconds from SIGTERM to SIGKILL in SageMaker."""

STOPPED = 128 + signal.SIGTERM

_TEXT = """Run the job that `train` would submit on this machine: with the training toolkit of AWS's images, in a
private folder with the container's layout. Takes the same arguments as `train`; the channels are local folders (linked,
not copied). The same command resumes a stopped rehearsal."""


class JobStoppedError(PspnetError):
    """The job was stopped by a signal or its time limit."""


@dataclass(frozen=True, init=False)
class RehearseSettings(JobSettings):
    """Settings of `rehearse`."""

    output: Path = setting(Path("runs/rehearsal"), "folder of the rehearsal")
    time_limit: float | None = setting(None, "time limit in seconds; max_run if unset", gt=0)
    toolkit_python: str = setting(sys.executable, "Python interpreter for the job, such as a 3.8 for P2")


def rehearse_command(argv: Sequence[str], command: str) -> int:
    """Check the settings as `train` does, run the job, print the path of model.tar.gz."""
    parsed = parse_job(RehearseSettings, argv, {}, command, _TEXT)
    settings: RehearseSettings = parsed.more[0]
    check_machine(settings)
    channels = _folders_of(parsed.config)
    print_warnings(parsed.config, settings)
    python = settings.toolkit_python
    _warn_of_another_python(_toolkit_version(python), settings.instance_type)
    require_fit_data(channels, parsed.config, settings)
    sent = hyperparameters(parsed, count_local(parsed.config))
    limit = settings.time_limit or settings.max_run
    try:
        archive = rehearse(sent, channels, limit, settings.output, settings.instance_type, python)
    except JobStoppedError as error:
        print(error, file=sys.stderr)
        return STOPPED
    print(f"The rehearsal is complete. Model: {archive}")
    return 0


def _folders_of(config: Any) -> dict[str, Path]:
    """Return the channels' local folders. Raises ConfigError for S3 addresses."""
    values = {key: getattr(config, key) for key in CHANNELS}
    remote = [key for key, value in values.items() if value is not None and is_s3(value)]
    if remote:
        fix = "a rehearsal reads local folders: give --data FOLDER"
        raise InvalidConfigError([Problem(key, f"found {values[key]!r}", fix) for key in remote])
    return local_channels(config)


def _warn_of_another_python(version: tuple[int, ...], instance_type: str) -> None:
    if parse_instance_type(instance_type)[0] == "p2" and version != (3, 8):
        print(
            f"warning: the job on {instance_type} would run Python 3.8 with PyTorch {P2_VERSION}, and this rehearsal "
            f"runs Python {'.'.join(map(str, version))}; --toolkit_python selects another one.",
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
    checkpoints included, is `output`/opt/ml; the same job resumes from them.

    Args:
        sent: the job's hyperparameters.
        channels: local folder of each channel.
        python: an interpreter with torch, the package's dependencies and sagemaker-training.

    Raises:
        JobStoppedError: it was stopped. PspnetError: it failed, with the reason that SageMaker would show. ConfigError:
        the toolkit is not installed.
    """
    python38 = _toolkit_version(python) < (3, 9)
    container = Container((output / "opt" / "ml").absolute())
    with _locked(output) as lock:
        if container.lay_out(sent, channels, instance_type, python38):
            print(f"Resuming from the checkpoints in {container.checkpoints}.", flush=True)
        job = _Job([python, "-m", "sagemaker_training.cli.train"], container, lock)
        return _result(job, job.run(time_limit_s), container, output)


def _result(job: _Job, exit_code: int, container: Container, output: Path) -> Path:
    """Pack the model of a finished job. Raises the errors of `rehearse`."""
    if job.stopped_by is not None:
        kept = any(container.checkpoints.glob("last*.safetensors"))
        after = f"its checkpoint is in {container.checkpoints}; the same command resumes from it" if kept else (
            "it had no checkpoint yet"
        )  # fmt: skip
        raise JobStoppedError(f"The job was stopped by {job.stopped_by}: {after}.")
    if exit_code != 0:
        reason = container.failure.read_text(encoding="utf-8").strip() if container.failure.is_file() else "no reason"
        raise PspnetError(f"The job failed with exit code {exit_code}. Its failure file:\n{reason}")
    archive = container.pack_model(output / "model.tar.gz")
    container.remove_checkpoints()
    return archive


@contextmanager
def _locked(output: Path) -> Iterator[int]:
    """Hold the folder's lock and yield its file descriptor. Raises PspnetError if another rehearsal holds it."""
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PspnetError(
                f"{output}: another rehearsal is running in this folder; wait until it ends, or give another --output."
            ) from error
        yield file.fileno()


def _toolkit_version(python: str) -> tuple[int, ...]:
    """Return the Python version of an interpreter with the toolkit. Raises ConfigError if the toolkit is missing."""
    code = (
        "import sys, importlib.util as u; print(*sys.version_info[:2]); sys.exit(not u.find_spec('sagemaker_training'))"
    )
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"toolkit_python: cannot run {python} ({error}).") from error
    if found.returncode != 0:
        raise ConfigError(
            f"{python} lacks sagemaker-training, the toolkit of AWS's training images: "
            f"{python} -m pip install sagemaker-training, or give another Python with --toolkit_python."
        )
    return tuple(int(part) for part in found.stdout.split())


class _Job:
    """The toolkit's process and its children, which share a process group.

    The process inherits the folder's `lock`: it may outlive this one if this one is killed.
    """

    def __init__(self, command: list[str], container: Container, lock: int) -> None:
        self.stopped_by: str | None = None
        self._command, self._container, self._lock = command, container, lock
        self._process: subprocess.Popen[str] | None = None
        self._killer: threading.Timer | None = None

    def run(self, time_limit_s: float) -> int:
        """Start the process, forward its output until every process has closed it, and return the exit code."""
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
                if self.stopped_by is not None:  # a signal arrived before the process was started
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
        """Send SIGTERM to the process group, and SIGKILL after SageMaker's grace period or on a second call.

        To the group, because the toolkit does not forward signals to the script.
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
        with suppress(ProcessLookupError, PermissionError):  # every process has ended
            os.killpg(self._process.pid, number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Forward SIGTERM and Ctrl-C to the job while it runs."""
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
