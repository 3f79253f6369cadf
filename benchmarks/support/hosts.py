"""Endpoint hosts on 127.0.0.1 for benchmarks and tests: `pspnet serve` and SageMaker's toolkit.

Each runs in its own process group, with files in a folder of the caller, and is ended through that group. Linux only,
since the processes are read from /proc.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TOOLKIT_MAIN = Path(__file__).resolve().with_name("toolkit_main.py")


class HostError(RuntimeError):
    """A host that did not start, or that ended; the message contains the end of its log."""


@dataclass(frozen=True)
class Reply:
    """One HTTP reply. Header names are lower case; `seconds` from sending to the last byte received."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


@dataclass
class Host:
    """A running host. `worker_pattern` matches the command lines of the processes that hold the model.

    `expected_workers`: number of workers that /metrics must report as ready; None if it does not report them.
    `shutdown_timeout`: seconds for a graceful shutdown.
    """

    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    worker_pattern: str
    expected_workers: int | None = None
    shutdown_timeout: float = 30.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> dict[int, str]:
        """Id and command line of every live process of the group."""
        return _group(self.process.pid)

    def workers(self) -> list[int]:
        """The ids of the processes that hold the model."""
        return sorted(pid for pid, command in self.processes().items() if re.search(self.worker_pattern, command))

    def client(self, seconds: float = 120.0) -> Client:
        return Client(self.port, seconds)

    def tail(self, lines: int = 40) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_ready(self, body: bytes, content_type: str, seconds: float = 180.0) -> None:
        """Wait until an invocation succeeds and all expected workers report ready.

        The toolkit's /ping returns 200 while its workers still crash. Raises HostError after `seconds`, or if the host
        ended.
        """
        deadline = time.monotonic() + seconds
        last: object = None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise HostError(f"{self.name} ended with code {self.process.returncode}:\n{self.tail()}")
            try:
                with self.client() as client:
                    reply = client.post(body, content_type)
                    if reply.status == 200 and self._all_ready(client):
                        return
                last = f"{reply.status} {reply.body[:300]!r}"
            except (OSError, http.client.HTTPException) as error:
                last = error
            time.sleep(0.2)
        raise HostError(f"{self.name} was not ready after {seconds:.0f} s ({last}):\n{self.tail()}")

    def _all_ready(self, client: Client) -> bool:
        if self.expected_workers is None:
            return True
        found = re.search(rb"^pspnet_workers_ready (\d+)", client.get("/metrics").body, re.MULTILINE)
        return found is not None and int(found[1]) == self.expected_workers

    def stop(self) -> None:
        """End every process of the group: SIGTERM, then SIGKILL."""
        deadline = time.monotonic() + self.shutdown_timeout
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            while time.monotonic() < deadline:
                self.process.poll()  # reaps the first process, which is a zombie otherwise
                if not self.processes():
                    return
                time.sleep(0.05)
            deadline = time.monotonic() + 10.0
        raise HostError(f"{self.name} does not end: {self.processes()}")


class Client:
    """One keep-alive connection, reopened after a failure. Not thread-safe."""

    def __init__(self, port: int, seconds: float = 120.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def post(
        self,
        body: bytes,
        content_type: str | None,
        accept: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """POST /invocations."""
        sent = {"Content-Type": content_type, "Accept": accept, **(headers or {})}
        return self.request(
            "POST", "/invocations", body, {name: text for name, text in sent.items() if text is not None}
        )

    def get(self, path: str) -> Reply:
        return self.request("GET", path, None, {})

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """One exchange. Raises OSError or http.client.HTTPException if the host disconnects."""
        if self._connection.sock is None:
            self._connection.connect()
        start = time.perf_counter()
        try:
            self._connection.request(method, path, body, dict(headers))
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        seconds = time.perf_counter() - start
        return Reply(answer.status, {name.lower(): text for name, text in answer.getheaders()}, content, seconds)


@contextlib.contextmanager
def serve(
    model_dir: Path,
    folder: Path,
    workers: int = 1,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[Host]:
    """`pspnet serve MODEL_DIR --workers N ...` on a free port; its log is folder/serve.log."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = _free_ports(1)
    command = [python, "-m", "pspnet.cli", "serve", str(model_dir.resolve()), "--port", str(port)]
    command += ["--workers", str(workers), *arguments]
    # PYTHONPATH: the checkout may not be installed, and the workers are new interpreters.
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
    with _running("serve", port, command, folder, variables, worker_pattern=r"multiprocessing\.spawn") as host:
        host.expected_workers = workers
        yield host


@contextlib.contextmanager
def toolkit(
    model_dir: Path,
    folder: Path,
    python: Path,
    workers: int | None = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Host]:
    """SageMaker's PyTorch inference toolkit with TorchServe over a model directory with `code/`.

    Args:
        folder: for its logs (toolkit.log, logs/) and temporary files.
        python: of an environment with sagemaker-pytorch-inference, torchserve and the code/requirements.txt.
        workers: processes that hold the model; None for TorchServe's default, one per core.
        environment: additional variables, as of a deployed model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = _free_ports(5)
    temporary, base = folder / "tmp", folder / "ml"
    for path in (temporary, base):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    (base / "model").symlink_to(model_dir.resolve())
    variables = _toolkit_environment(folder, python, ports, workers) | dict(environment or {})
    command = [str(python), str(_TOOLKIT_MAIN), *map(str, ports[:3])]
    with _running("toolkit", ports[0], command, folder, variables, worker_pattern="model_service_worker") as host:
        host.shutdown_timeout = 2.0  # TorchServe waits for its own metrics, which are not needed
        yield host


def find_java() -> Path | None:
    """The folder of `java`: in JAVA_HOME, or on the path."""
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    return Path(found).parent if found else None


def _toolkit_environment(folder: Path, python: Path, ports: Sequence[int], workers: int | None) -> dict[str, str]:
    """The variables of a SageMaker container; of the caller's environment only the number of threads."""
    java = find_java()
    variables = {
        "PATH": os.pathsep.join(str(part) for part in (python.parent, java, "/usr/bin", "/bin") if part),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "TEMP": str(folder / "tmp"),
        "SAGEMAKER_BASE_DIR": str(folder / "ml"),
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": str(folder / "ml" / "model" / "code"),
        "SM_MODEL_DIR": str(folder / "ml" / "model"),
        "SAGEMAKER_BIND_TO_PORT": str(ports[0]),
        "TS_GRPC_INFERENCE_PORT": str(ports[3]),
        "TS_GRPC_MANAGEMENT_PORT": str(ports[4]),
        # The toolkit runs pip on code/requirements.txt; all of it must be installed already.
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if workers is not None:
        variables["SAGEMAKER_MODEL_SERVER_WORKERS"] = str(workers)
    if "OMP_NUM_THREADS" in os.environ:
        variables["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    return variables


@contextlib.contextmanager
def _running(
    name: str, port: int, command: Sequence[str], folder: Path, variables: Mapping[str, str], worker_pattern: str
) -> Iterator[Host]:
    log = folder / f"{name}.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    host = Host(name, port, log, process, worker_pattern)
    try:
        yield host
    finally:
        host.stop()


def _free_ports(count: int) -> list[int]:
    """Different ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _group(leader: int) -> dict[int, str]:
    """Id and command line of the live processes of a process group, without zombies."""
    found = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            # "pid (name) state parent group ...": the name may contain spaces and parentheses.
            state, _, group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended meanwhile
            continue
        if int(group) == leader and state not in ("Z", "X"):
            found[int(path.name)] = command
    return found


def memory_of(pid: int) -> int:
    """Bytes of a process's private memory and its part of shared memory; 0 if it ended.

    Pages of program and library files are excluded, since their attribution depends on the other processes.
    """
    with contextlib.suppress(OSError):
        found = re.findall(
            r"^Pss_(?:Anon|Shmem):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE
        )
        return 1024 * sum(map(int, found))
    return 0
