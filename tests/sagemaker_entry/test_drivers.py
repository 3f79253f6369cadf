"""The job under the SDK's own drivers (sm_train.sh), in a mount and process namespace with a real /opt/ml."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pspnet.data.shapes import write_shapes
from pspnet.serving.artifact import load_artifact
from sagemaker_entry.container import Container

TINY = {
    "num_classes": "7", "use_pretrained_model": "false", "width": "4", "crop_size": "32", "base_size": "64",
    "mini_batch_size": "4", "workers": "0", "epochs": "2", "sample_images": "0", "class_names": "shapes",
}  # fmt: skip

# A tmpfs over /opt that shows all of the old /opt and `ml` beside it, then the container's own first process.
NAMESPACE = """
ip link set lo up 2>/dev/null || true
mount -t tmpfs none "$1"
for entry in /opt/*/; do
  [ -d "$entry" ] && [ "$entry" != /opt/ml/ ] && mkdir "$1/$(basename "$entry")" \
    && mount --rbind "$entry" "$1/$(basename "$entry")"
done
mkdir "$1/ml" && mount --rbind "$2" "$1/ml" && mount --rbind "$1" /opt
exec "${@:3}"
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
    """A folder that becomes /opt/ml, with the drivers as the SDK uploads them."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.container = Container(folder / "ml")
        self.mount = folder / "mount"
        self.mount.mkdir()
        self.data = data

    def prepare(self, hyperparameters: dict[str, str], command: str | None = None, processes: int = 0) -> None:
        from sagemaker.core.utils import install_requirements
        from sagemaker.train import templates
        from sagemaker.train.constants import DEFAULT_CONTAINER_ARGUMENTS, SM_DRIVERS_LOCAL_PATH

        channels = {path.name: path for path in sorted(self.data.iterdir()) if path.is_dir()}
        self.container.lay_out(hyperparameters, channels, "ml.m5.large", python38=False)
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
        self.arguments = list(DEFAULT_CONTAINER_ARGUMENTS)

    def start(self) -> subprocess.Popen[str]:
        env = {key: value for key, value in self.container.environment().items() if not key.startswith("SAGEMAKER_")}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        env["OMP_NUM_THREADS"] = "1"
        namespace = ["unshare", "-rmnpf", "--mount-proc", "--kill-child", "bash", "-c", NAMESPACE, "-"]
        return subprocess.Popen(
            [*namespace, str(self.mount), str(self.container.base), "/bin/bash", *self.arguments],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self) -> tuple[int, str]:
        process = self.start()
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed


@pytest.fixture
def job(tmp_path: Path) -> Job:
    data = tmp_path / "shapes"
    write_shapes(data, train=8, validation=4, size=(72, 48))
    return Job(tmp_path, data)


def history(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if " validation:mIOU=" in line]


def test_the_basic_driver_trains_and_leaves_a_model(job: Job) -> None:
    job.prepare(TINY)
    exit_code, printed = job.run()
    assert exit_code == 0, printed[-3000:]
    # What this driver makes of the hyperparameters: in the order in which they were sent, false as JSON has it.
    assert "train.py --num_classes 7 --use_pretrained_model false --width 4" in printed
    assert len(history(printed)) == 2
    assert load_artifact(job.container.model).class_names[1] == "disc"
    assert (job.container.model / "code" / "inference.py").is_file()
    assert (job.container.checkpoints / "last.safetensors").is_file()
    assert not job.container.failure.exists()


def test_the_reason_in_the_failure_file_is_the_scripts(job: Job) -> None:
    job.prepare({**TINY, "epochs": "0"})
    exit_code, printed = job.run()
    assert exit_code == 2, printed[-3000:]
    assert job.container.failure.read_text().startswith("The configuration has 1 problem:\n  epochs: found '0'")


def test_torchrun_with_two_processes_trains_one_model(job: Job) -> None:
    job.prepare(TINY, processes=2)
    exit_code, printed = job.run()
    assert exit_code == 0, printed[-3000:]
    assert "--nproc_per_node=2 train.py" in printed
    assert len(history(printed)) == 2  # one voice for both processes
    assert load_artifact(job.container.model).architecture["num_classes"] == 7


def test_torchrun_tells_the_first_reason(job: Job) -> None:
    for path in (job.data / "train_annotation").iterdir():
        path.write_bytes(b"no image")
    job.prepare(TINY, processes=2)
    exit_code, printed = job.run()
    assert exit_code != 0, printed[-3000:]
    reason = job.container.failure.read_text()
    assert "not a readable annotation" in reason.splitlines()[0]
    assert "Traceback" not in reason


def first_process(process: subprocess.Popen[Any]) -> int:
    """The namespace's process 1, seen from here."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def test_sigterm_to_the_container_reaches_a_script_that_took_its_place(job: Job) -> None:
    # Neither bash nor the drivers hand SIGTERM on. A command that replaces them makes the script process 1.
    job.prepare({**TINY, "epochs": "100000"}, command="exec python3 train.py")
    process = job.start()
    assert process.stdout is not None
    asked, lines = 0.0, []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch=3 train:loss"):
            asked = time.monotonic()
            os.kill(first_process(process), signal.SIGTERM)
    assert process.wait(timeout=60) == 143, "".join(lines)[-3000:]
    assert time.monotonic() - asked < 60
    assert (job.container.checkpoints / "last.safetensors").is_file()
    assert job.container.failure.read_text().startswith("The job was stopped by a signal (exit code 143)")

    # What SageMaker restores is what the next machine goes on from.
    checkpoints = job.container.checkpoints.rename(job.container.base.parent / "s3")
    job.prepare({**TINY, "epochs": "5"}, command="exec python3 train.py")
    shutil.rmtree(job.container.checkpoints)
    checkpoints.rename(job.container.checkpoints)
    exit_code, printed = job.run()
    assert exit_code == 0, printed[-3000:]
    assert "Resuming from /opt/ml/checkpoints/last.safetensors" in printed
    assert not [line for line in history(printed) if line.startswith(("epoch=1 ", "epoch=2 "))]
