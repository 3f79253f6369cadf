"""Training job under the SDK's own drivers (sm_train.sh), in a mount and process namespace with a real /opt/ml.

PSPNET_PYTHON38 may name a Python 3.8 with torch 1.12.1, to also start and stop a multi-GPU job under it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pspnet.artifact.model_directory import load_artifact
from pspnet.data.shapes import write_shapes
from sagemaker_entry.training.container import Container
from sagemaker_entry.training.job_request import COMMAND, ENTRYPOINT, ENTRYPOINT_ARGUMENTS

TINY = {
    "num_classes": "7", "use_pretrained_model": "false", "width": "4", "crop_size": "32", "base_size": "64",
    "mini_batch_size": "4", "workers": "0", "epochs": "2", "sample_images": "0", "class_names": "shapes",
}  # fmt: skip

HOSTS = ("algo-1", "algo-2")

# Set the host names without a name server, mount a tmpfs over /opt with the old content of /opt and `ml`, then exec the
# container's first process.
NAMESPACE = """
ip link set lo up 2>/dev/null || true
mount --bind "$3" /etc/hosts && mount --bind /dev/null /etc/resolv.conf
mount -t tmpfs none "$1"
for entry in /opt/*/; do
  [ -d "$entry" ] && [ "$entry" != /opt/ml/ ] && mkdir "$1/$(basename "$entry")" \
    && mount --rbind "$entry" "$1/$(basename "$entry")"
done
mkdir "$1/ml" && mount --rbind "$2" "$1/ml" && mount --rbind "$1" /opt
exec "${@:4}"
"""


def can_unshare() -> bool:
    command = ["unshare", "-rmnpf", "--mount-proc", "--kill-child", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("sagemaker") is None, reason="the sagemaker SDK is not installed"),
    pytest.mark.skipif(not can_unshare(), reason="no user namespaces: unshare -rmnpf does not work here"),
]


class Job:
    """A folder mounted as /opt/ml, with the SDK's drivers; one host of the job's `hosts`."""

    def __init__(self, folder: Path, data: Path, host: str = "localhost") -> None:
        self.folder, self.data, self.host = folder, data, host
        self.container = Container(folder / "ml")
        self.mount = folder / "mount"
        self.mount.mkdir(parents=True)
        self.hosts_file = folder / "hosts"
        names = ["localhost", socket.gethostname(), *HOSTS]
        self.hosts_file.write_text("".join(f"{address} {' '.join(names)}\n" for address in ("127.0.0.1", "::1")))

    def prepare(
        self, hyperparameters: dict[str, str], command: str | None = None, processes: int = 0,
        hosts: tuple[str, ...] = (), gpus: int = 0, python38: bool = False,
    ) -> None:  # fmt: skip
        """Prepare the job; with a `command`, as this project starts it, else as the SDK's own drivers do."""
        from sagemaker.core.utils import install_requirements
        from sagemaker.train import templates
        from sagemaker.train.constants import DEFAULT_CONTAINER_ARGUMENTS, SM_DRIVERS_LOCAL_PATH

        channels = {path.name: path for path in sorted(self.data.iterdir()) if path.is_dir()}
        self.container.lay_out(hyperparameters, channels, "ml.m5.large", python38=python38)
        self._name_machines(hosts or (self.host,))
        self._show_gpus(gpus)
        inputs = self.container.base / "input" / "data"
        # As in the job: the source is a channel.
        (self.container.base / "code").rename(inputs / "code")
        drivers = inputs / "sm_drivers"
        shutil.copytree(SM_DRIVERS_LOCAL_PATH, drivers)
        shutil.copy(install_requirements.__file__, drivers / "scripts" / "install_requirements.py")
        (drivers / "sourcecode.json").write_text(json.dumps({"entry_script": "train.py"}))
        execute = templates.EXECUTE_BASIC_SCRIPT_DRIVER
        if command is not None:
            execute = templates.EXECUTE_BASE_COMMANDS.format(base_command=command)
        if processes:
            (drivers / "distributed.json").write_text(json.dumps({"process_count_per_node": processes}))
            execute = templates.EXEUCTE_DISTRIBUTED_DRIVER.format(
                driver_name="Torchrun", driver_script="torchrun_driver.py"
            )
        script = templates.TRAIN_SCRIPT_TEMPLATE.format(
            working_dir="cd /opt/ml/input/data/code",
            install_requirements=templates.INSTALL_REQUIREMENTS.format(requirements_file="requirements.txt"),
            execute_driver=execute,
        )
        (drivers / "sm_train.sh").write_text(script)
        self.arguments = DEFAULT_CONTAINER_ARGUMENTS if command is None else ENTRYPOINT_ARGUMENTS

    def _name_machines(self, hosts: tuple[str, ...]) -> None:
        path = self.container.base / "input" / "config" / "resourceconfig.json"
        resources = json.loads(path.read_text())
        path.write_text(json.dumps({**resources, "hosts": list(hosts), "current_host": self.host}))

    def _show_gpus(self, count: int) -> None:
        """Fake nvidia-smi for the SDK's environment.py; torch finds no GPU, so the processes use gloo."""
        tool = self.folder / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {number}: a name'\n" for number in range(count)))
        tool.chmod(0o755)

    def start(self, python: str = sys.executable, network: int | None = None) -> subprocess.Popen[str]:
        """Start the container in a private network namespace or in that of another process."""
        env = {key: value for key, value in self.container.environment().items() if not key.startswith("SAGEMAKER_")}
        env["PATH"] = os.pathsep.join([str(self.folder / "bin"), str(Path(python).parent), env["PATH"]])
        env["OMP_NUM_THREADS"] = "1"
        namespace = ["unshare", "-rmnpf", "--mount-proc", "--kill-child"]
        if network is not None:
            joined = ["nsenter", "-t", str(network), "-U", "-n", "--preserve-credentials"]
            namespace = [*joined, "unshare", "-mpf", "--mount-proc", "--kill-child"]
        places = [str(self.mount), str(self.container.base), str(self.hosts_file)]
        return subprocess.Popen(
            [*namespace, "bash", "-c", NAMESPACE, "-", *places, *ENTRYPOINT, *self.arguments],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, python: str = sys.executable) -> tuple[int, str]:
        process = self.start(python)
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    def start_anew(self, hyperparameters: dict[str, str], checkpoints: Path, **how: Any) -> None:
        """Return the same job on a new host: SageMaker restores the checkpoints from S3."""
        kept = self.container.base.parent / "s3"
        shutil.copytree(checkpoints, kept)
        self.prepare(hyperparameters, COMMAND, **how)
        shutil.rmtree(self.container.checkpoints)
        kept.rename(self.container.checkpoints)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "shapes"
    write_shapes(folder, train=8, validation=4, size=(72, 48))
    return folder


@pytest.fixture
def job(tmp_path: Path, data: Path) -> Job:
    return Job(tmp_path / "job", data)


def history(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if " validation:mIOU=" in line]


@pytest.mark.slow
def test_the_basic_driver_trains_and_writes_a_model(job: Job) -> None:
    job.prepare(TINY)
    exit_code, printed = job.run()
    assert exit_code == 0, printed[-3000:]
    # This driver keeps the order of the hyperparameters, and JSON's false.
    assert "train.py --num_classes 7 --use_pretrained_model false --width 4" in printed
    assert len(history(printed)) == 2
    assert load_artifact(job.container.model).class_names[1] == "disc"
    assert (job.container.model / "code" / "inference.py").is_file()
    assert (job.container.checkpoints / "last.safetensors").is_file()
    assert not job.container.failure.exists()


@pytest.mark.slow
def test_the_failure_file_has_the_scripts_reason(job: Job) -> None:
    job.prepare({**TINY, "epochs": "0"})
    exit_code, printed = job.run()
    assert exit_code == 2, printed[-3000:]
    assert job.container.failure.read_text().startswith("The configuration has 1 problem:\n  epochs: found '0'")


@pytest.mark.slow
def test_torchrun_with_two_processes_trains_one_model(job: Job) -> None:
    job.prepare(TINY, processes=2)
    exit_code, printed = job.run()
    assert exit_code == 0, printed[-3000:]
    assert "--nproc_per_node=2 train.py" in printed
    assert len(history(printed)) == 2  # only rank 0 logs
    assert load_artifact(job.container.model).architecture["num_classes"] == 7


@pytest.mark.slow
def test_torchrun_reports_the_first_reason(job: Job) -> None:
    for path in (job.data / "train_annotation").iterdir():
        path.write_bytes(b"no image")
    job.prepare(TINY, processes=2)
    exit_code, printed = job.run()
    assert exit_code != 0, printed[-3000:]
    reason = job.container.failure.read_text()
    assert "not a readable annotation" in reason.splitlines()[0]
    assert "Traceback" not in reason


def first_process(process: subprocess.Popen[Any]) -> int:
    """Return the host's process id of the namespace's PID 1."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def stop_when_trained(process: subprocess.Popen[str], stopped: subprocess.Popen[str]) -> str:
    """Send SIGTERM to the container `stopped` in the third epoch; return the output of `process`."""
    assert process.stdout is not None
    lines, asked = [], 0.0
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch=3 train:loss"):
            asked = time.monotonic()
            os.kill(first_process(stopped), signal.SIGTERM)
    process.wait(timeout=60)
    printed = "".join(lines)
    assert asked, printed[-3000:]
    assert time.monotonic() - asked < 60
    return printed


def resumed(printed: str) -> bool:
    """Return True if a run started from the checkpoint."""
    again = [line for line in history(printed) if line.startswith(("epoch=1 ", "epoch=2 "))]
    return "Resuming from /opt/ml/checkpoints/last.safetensors" in printed and not again


FOREVER, FIVE = {**TINY, "epochs": "100000"}, {**TINY, "epochs": "5"}
STOPPED = "The job was stopped by a signal (exit code 143)"


@pytest.mark.slow
def test_sigterm_to_the_container_reaches_the_script(job: Job) -> None:
    # Neither bash nor the drivers forward SIGTERM. A command that replaces them makes the script PID 1.
    job.prepare(FOREVER, COMMAND)
    process = job.start()
    printed = stop_when_trained(process, process)
    assert process.returncode == 143, printed[-3000:]
    assert (job.container.checkpoints / "last.safetensors").is_file()
    assert job.container.failure.read_text().startswith(STOPPED)

    job.start_anew(FIVE, job.container.checkpoints)
    exit_code, printed = job.run()
    assert exit_code == 0, printed[-3000:]
    assert resumed(printed)


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, os.environ.get("PSPNET_PYTHON38")], ids=["this Python", "python38"])
def test_sigterm_reaches_all_processes_of_a_machine_with_several_gpus(job: Job, python: str | None) -> None:
    if python is None:
        pytest.skip("PSPNET_PYTHON38 names no Python 3.8 with torch 1.12.1 (.ci/python38.sh makes one)")
    job.prepare(FOREVER, COMMAND, gpus=2, python38=python != sys.executable)
    process = job.start(python)
    printed = stop_when_trained(process, process)
    assert process.returncode == 143, printed[-3000:]
    assert "torchrun --nnodes=1 --node_rank=0 --nproc_per_node=2 --master_addr=127.0.0.1" in printed
    assert "Traceback" not in printed
    assert (job.container.checkpoints / "last.safetensors").is_file()
    assert job.container.failure.read_text().startswith(STOPPED)

    job.start_anew(FIVE, job.container.checkpoints, gpus=2, python38=python != sys.executable)
    exit_code, printed = job.run(python)
    assert exit_code == 0, printed[-3000:]
    assert resumed(printed)
    assert len(history(printed)) == len(set(history(printed)))  # only rank 0 logs
    assert load_artifact(job.container.model).architecture["num_classes"] == 7
    assert not job.container.failure.exists()


@pytest.fixture
def network() -> Iterator[int]:
    """A process whose network namespace the hosts of a job share."""
    ready = "ip link set lo up && echo ready && exec sleep 600"
    with subprocess.Popen(["unshare", "-rn", "sh", "-c", ready], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.kill()


@pytest.mark.slow
def test_sigterm_to_one_of_two_machines_stops_both_with_a_checkpoint(
    tmp_path: Path, data: Path, network: int
) -> None:  # fmt: skip
    machines = [Job(tmp_path / host, data, host) for host in HOSTS]
    for machine in machines:
        machine.prepare(FOREVER, COMMAND, hosts=HOSTS)
    first, second = (machine.start(network=network) for machine in machines)
    printed = stop_when_trained(first, second)
    also, _ = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (143, 143), (printed + also)[-6000:]
    assert "torchrun --nnodes=2 --node_rank=0 --nproc_per_node=1 --master_addr=algo-1 --master_port=7777" in printed
    assert "torchrun --nnodes=2 --node_rank=1 --nproc_per_node=1 --master_addr=algo-1 --master_port=7777" in also
    assert not history(also)  # only rank 0 logs
    assert (machines[0].container.checkpoints / "last.safetensors").is_file()
    for machine in machines:
        assert machine.container.failure.read_text().startswith(STOPPED)
