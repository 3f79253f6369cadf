"""Launcher of train.py in a SageMaker job: one process on at most one GPU, else one process per GPU under torchrun.

`python -m pspnet.training.launch` is the job's command. `exec` makes it the container's PID 1, the only process that
receives SageMaker's SIGTERM; the SDK's own drivers do not forward signals. Hosts and GPUs come from the container's
environment (SM_HOSTS, SM_CURRENT_HOST, SM_NUM_GPUS); train.py reads its hyperparameters from SM_HPS.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pspnet.errors import ConfigError, PspnetError
from pspnet.system.exit_codes import USER_ERROR, run_guarded
from pspnet.system.sagemaker_job import report_failure

SCRIPT = "train.py"
MASTER_PORT = 7777
GRACE_SECONDS = 110
"""Grace period of the processes after SIGTERM. SageMaker kills the container after 120 seconds."""
RESOLVE_SECONDS = 600.0
"""Timeout for resolving another host's name: SageMaker starts the instances of a job one after another."""


def torchrun_arguments(env: Mapping[str, str]) -> list[str]:
    """Return torchrun's arguments for this host; none for a job of one process.

    Raises ConfigError outside a SageMaker job.
    """
    try:
        hosts, current = sorted(json.loads(env["SM_HOSTS"])), env["SM_CURRENT_HOST"]
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} is not set: this module starts {SCRIPT} inside a SageMaker job; elsewhere run {SCRIPT} "
            "itself, or torchrun."
        ) from error
    processes = max(1, int(env.get("SM_NUM_GPUS") or 0))
    if len(hosts) == 1 and processes == 1:
        return []
    return [
        f"--nnodes={len(hosts)}",
        f"--node_rank={hosts.index(current)}",
        f"--nproc_per_node={processes}",
        f"--master_addr={hosts[0] if len(hosts) > 1 else '127.0.0.1'}",
        f"--master_port={MASTER_PORT}",
    ]


def network_environment(env: Mapping[str, str], machines: int) -> dict[str, str]:
    """Return the network variables that the SDK's own torchrun driver sets, except those the user has set."""
    interface = env.get("SM_NETWORK_INTERFACE_NAME", "eth0")
    defaults = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    if machines > 1:
        defaults["NCCL_PROTO"] = "simple"
    return {key: value for key, value in defaults.items() if key not in env}


def wait_for_host(name: str, seconds: float = RESOLVE_SECONDS) -> None:
    """Wait until the host's name resolves. Raises PspnetError after the timeout."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(name, MASTER_PORT)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PspnetError(
                    f"{name}: the job's first host did not resolve within {seconds:g} s ({error.strerror}); "
                    "start the job again."
                ) from error
        time.sleep(1)


def launch(argv: Sequence[str]) -> int:
    """Replace this process by train.py, or run it under torchrun and return torchrun's exit code."""
    if argv:
        raise ConfigError(f"found {' '.join(argv)!r}; expected no flags: the job's settings are its hyperparameters.")
    arguments = torchrun_arguments(os.environ)
    if not arguments:
        os.execv(sys.executable, [sys.executable, SCRIPT])
    # PID 1 ignores signals without a handler. torchrun sets its own handlers later.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    hosts = json.loads(os.environ["SM_HOSTS"])
    os.environ.update(network_environment(os.environ, len(hosts)))
    if len(hosts) > 1:
        wait_for_host(min(hosts))
    print(f"torchrun {' '.join(arguments)} {SCRIPT}", flush=True)
    return run_torchrun([*arguments, SCRIPT])


def run_torchrun(arguments: Sequence[str]) -> int:
    """Run torchrun in this process, with a grace period for a checkpoint after SIGTERM and without tracebacks.

    Returns the exit code of the process that failed first, or 143 after SIGTERM.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    extend_grace_period()
    try:
        run.run(run.parse_args(list(arguments)))
    except SignalException as stop:
        report_failure(f"The job was stopped by {signal.Signals(stop.sigval).name}.", os.environ)
        return 128 + stop.sigval
    except ChildFailedError as error:
        # If one process was killed, the others failed because of it.
        failures = sorted(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        return _report_failure(failures[0][0], failures[0][1].exitcode)
    return 0


def extend_grace_period() -> None:
    """Make torchrun wait GRACE_SECONDS after SIGTERM before it kills its processes.

    Its default is 30 s, and only the newest versions have a setting for it. After a process has failed, 30 s remain:
    the others may hang in a collective operation that never ends.
    """
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException

    close = PContext.close

    def close_with_grace(self: Any, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        stopped = isinstance(sys.exc_info()[1], SignalException)
        close(self, death_sig, GRACE_SECONDS if stopped else timeout)

    PContext.close = close_with_grace  # type: ignore[method-assign]


def _report_failure(rank: int, exit_code: int) -> int:
    """Report a process that failed without a message, and return its exit code as shells do."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        text = f"The training process of rank {rank} was killed by {name}"
        text += "; it may be out of memory: use fewer workers, or a larger instance." if name == "SIGKILL" else "."
    else:
        text = f"The training process of rank {rank} failed with exit code {exit_code}; see its message in the log."
    report_failure(text, os.environ)
    print(f"error: {text}", file=sys.stderr)
    return 128 - exit_code if exit_code < 0 else exit_code or USER_ERROR


if __name__ == "__main__":
    sys.exit(run_guarded(launch, sys.argv[1:]))
