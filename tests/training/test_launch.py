"""Launcher of a SageMaker job: number of processes, torchrun's arguments, failures and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pspnet.errors import ConfigError, PspnetError
from pspnet.training import launch
from pspnet.training.launch import (
    GRACE_SECONDS,
    extend_grace_period,
    network_environment,
    torchrun_arguments,
    wait_for_host,
)

ROOT = Path(__file__).resolve().parents[2]
THREE = '["algo-2", "algo-10", "algo-1"]'


@pytest.mark.parametrize("gpus", ["", "0", "1"])
def test_one_process_needs_no_torchrun(gpus: str) -> None:
    assert torchrun_arguments({"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1", "SM_NUM_GPUS": gpus}) == []


def test_one_process_per_gpu() -> None:
    env = {"SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1", "SM_NUM_GPUS": "8"}
    assert torchrun_arguments(env) == [
        "--nnodes=1", "--node_rank=0", "--nproc_per_node=8", "--master_addr=127.0.0.1", "--master_port=7777",
    ]  # fmt: skip


@pytest.mark.parametrize(("host", "rank"), [("algo-1", 0), ("algo-10", 1), ("algo-2", 2)])
def test_every_host_gets_its_rank(host: str, rank: int) -> None:
    env = {"SM_HOSTS": THREE, "SM_CURRENT_HOST": host, "SM_NUM_GPUS": "4"}
    assert torchrun_arguments(env) == [
        "--nnodes=3", f"--node_rank={rank}", "--nproc_per_node=4", "--master_addr=algo-1", "--master_port=7777",
    ]  # fmt: skip
    # Hosts without a GPU run one process each.
    assert "--nproc_per_node=1" in torchrun_arguments({**env, "SM_NUM_GPUS": "0"})


def test_network_variables_default_to_the_jobs_interface() -> None:
    env = {"SM_NETWORK_INTERFACE_NAME": "ethwe", "GLOO_SOCKET_IFNAME": "eth1"}
    assert network_environment(env, machines=1) == {"NCCL_SOCKET_IFNAME": "ethwe"}
    assert network_environment(env, machines=2) == {"NCCL_SOCKET_IFNAME": "ethwe", "NCCL_PROTO": "simple"}


def test_outside_a_job_the_error_names_the_fix() -> None:
    with pytest.raises(ConfigError, match=r"SM_HOSTS is not set: .* inside a SageMaker job; elsewhere run train\.py"):
        torchrun_arguments({})


def test_flags_are_refused() -> None:
    with pytest.raises(ConfigError, match="found '--epochs 3'; expected no flags"):
        launch.launch(["--epochs", "3"])


def test_a_single_process_replaces_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import os, sys; print(os.getpid(), sys.argv)")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SM_HOSTS": '["algo-1"]', "SM_CURRENT_HOST": "algo-1"}
    command = [sys.executable, "-m", "pspnet.training.launch"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.communicate(timeout=120)[0] == f"{process.pid} ['train.py']\n"


def test_waits_for_a_host_name_that_resolves_late(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def resolve(name: str, port: int) -> list[Any]:
        asked.append(name)
        if len(asked) < 3:
            raise socket.gaierror(-2, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(launch.time, "sleep", lambda _: None)
    wait_for_host("algo-1")
    assert asked == ["algo-1"] * 3
    asked.clear()
    with pytest.raises(PspnetError, match=r"algo-1: the job's first host did not resolve within 0 s \(Name or"):
        wait_for_host("algo-1", seconds=0)


def test_sigterm_grants_sagemakers_grace_period(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException

    given: list[int] = []
    monkeypatch.setattr(PContext, "close", lambda self, death_sig=None, timeout=30: given.append(timeout))
    extend_grace_period()
    context: Any = object()
    PContext.close(context)
    try:
        raise SignalException("SIGTERM", sigval=signal.SIGTERM)
    except SignalException:
        PContext.close(context, signal.SIGTERM)
    assert given == [30, GRACE_SECONDS]
    assert 30 < GRACE_SECONDS < 120


# Script of both processes -> exit code of the job, and its failure reason.
SCRIPTS = {
    "import os, sys\nsys.exit(3 if os.environ['RANK'] == '1' else 0)": (3, "rank 1 failed with exit code 3; see"),
    "import os, signal, time\nos.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(1)": (
        137, "rank 1 was killed by SIGKILL; it may be out of memory",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=["exit code", "killed"])
def test_the_failed_process_is_reported(script: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(script)
    code, text = SCRIPTS[script]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--nnodes=1", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}", "train.py"]
    program = f"import sys; from pspnet.training.launch import run_torchrun; sys.exit(run_torchrun({arguments!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SM_OUTPUT_DIR": str(tmp_path / "output"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == code, result.stderr
    assert text in (tmp_path / "output" / "failure").read_text()
    assert f"error: The training process of {text}" in result.stderr
    assert "Traceback" not in result.stderr
