"""Start train.py in a SageMaker job: alone in a machine with one GPU or none, else one process a GPU under torchrun.

`python -m pspnet.training.launch` is the job's command. It replaces the shell in front of it and so becomes the
container's first process, the only one that SageMaker's SIGTERM goes to; the SDK's own drivers would hand no signal on.
Machines and GPUs are those that the container finds (SM_HOSTS, SM_CURRENT_HOST, SM_NUM_GPUS); train.py reads its
hyperparameters from SM_HPS.
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
"""How long the processes may take to end after SIGTERM. SageMaker kills the container 120 seconds after it."""
RESOLVE_SECONDS = 600.0
"""How long another machine's name may take to be known: SageMaker starts the machines of a job one after another."""


def torchrun_arguments(env: Mapping[str, str]) -> list[str]:
    """What torchrun is told in this machine; nothing where one process is the whole job.

    Raises ConfigError outside a SageMaker job.
    """
    try:
        hosts, current = sorted(json.loads(env["SM_HOSTS"])), env["SM_CURRENT_HOST"]
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} is not set: this starts {SCRIPT} inside a SageMaker job; elsewhere run {SCRIPT} itself, "
            "or torchrun."
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
    """What the processes need to find each other, as the SDK's own torchrun driver sets it; the user's values stay."""
    interface = env.get("SM_NETWORK_INTERFACE_NAME", "eth0")
    wanted = {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    if machines > 1:
        wanted["NCCL_PROTO"] = "simple"
    return {key: value for key, value in wanted.items() if key not in env}


def wait_for_host(name: str, seconds: float = RESOLVE_SECONDS) -> None:
    """Return when the machine's name is known; PspnetError if that takes too long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(name, MASTER_PORT)
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise PspnetError(
                    f"{name}: the job's first machine is still unknown after {seconds:g} s ({error.strerror}); "
                    "start the job again."
                ) from error
        time.sleep(1)


def launch(argv: Sequence[str]) -> int:
    """Become train.py, or torchrun around it; returns torchrun's exit code."""
    if argv:
        raise ConfigError(f"found {' '.join(argv)!r}; the job's settings are its hyperparameters, and no flags.")
    arguments = torchrun_arguments(os.environ)
    if not arguments:
        os.execv(sys.executable, [sys.executable, SCRIPT])
    # The first process of a container ignores signals that it has no handler for. torchrun sets its own later.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    hosts = json.loads(os.environ["SM_HOSTS"])
    os.environ.update(network_environment(os.environ, len(hosts)))
    if len(hosts) > 1:
        wait_for_host(min(hosts))
    print(f"torchrun {' '.join(arguments)} {SCRIPT}", flush=True)
    return run_torchrun([*arguments, SCRIPT])


def run_torchrun(arguments: Sequence[str]) -> int:
    """torchrun in this process, with time for a checkpoint after SIGTERM, and an exit code in place of tracebacks.

    The exit code is that of the process that failed first, or 143 after SIGTERM.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    give_time_to_stop()
    try:
        run.run(run.parse_args(list(arguments)))
    except SignalException as stop:
        report_failure(f"The job was stopped by {signal.Signals(stop.sigval).name}.", os.environ)
        return 128 + stop.sigval
    except ChildFailedError as error:
        # Where one was killed, the others have only lost it.
        failures = sorted(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        return _tell_failure(failures[0][0], failures[0][1].exitcode)
    return 0


def give_time_to_stop() -> None:
    """Let torchrun wait GRACE_SECONDS after SIGTERM before it kills its processes.

    It waits 30 s, and all but the newest versions have no setting for it. Where a process has failed, 30 s stay: the
    others may hang in a collective operation that will never end.
    """
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException

    close = PContext.close

    def patient(self: Any, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        stopped = isinstance(sys.exc_info()[1], SignalException)
        close(self, death_sig, GRACE_SECONDS if stopped else timeout)

    PContext.close = patient  # type: ignore[method-assign]


def _tell_failure(rank: int, exit_code: int) -> int:
    """Report a process that ended without a word of its own, and return its exit code as shells do."""
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        text = f"The training process of rank {rank} was ended by {name}"
        text += "; the machine's memory may be full: fewer workers, or a larger machine." if name == "SIGKILL" else "."
    else:
        text = f"The training process of rank {rank} ended with exit code {exit_code}; the log has its own message."
    report_failure(text, os.environ)
    print(f"error: {text}", file=sys.stderr)
    return 128 - exit_code if exit_code < 0 else exit_code or USER_ERROR


if __name__ == "__main__":
    sys.exit(run_guarded(launch, sys.argv[1:]))
