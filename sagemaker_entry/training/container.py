"""A private folder laid out as a SageMaker training container's /opt/ml, for the training toolkit to work in."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagemaker_entry.training.job_source import stage_source

# The toolkit waits a quarter of an hour for a host name that does not resolve.
HOST = "localhost"

# Variables of a job or of a distributed run that this process itself may be part of.
_FOREIGN = ("SM_", "SAGEMAKER_", "TRAINING_JOB_")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")


@dataclass(frozen=True)
class Container:
    """The folder that stands for /opt/ml. Its checkpoints outlive a run; everything else is made anew for each."""

    base: Path

    @property
    def model(self) -> Path:
        """Where the job leaves its model: SM_MODEL_DIR."""
        return self.base / "model"

    @property
    def checkpoints(self) -> Path:
        """What SageMaker would restore from S3 and keep there."""
        return self.base / "checkpoints"

    @property
    def failure(self) -> Path:
        """The file whose beginning SageMaker shows as the reason of a failure."""
        return self.base / "output" / "failure"

    def lay_out(
        self, hyperparameters: Mapping[str, str], channels: Mapping[str, Path], instance_type: str, python38: bool
    ) -> bool:
        """Prepare for a run of this job; True if it goes on from the checkpoints of an earlier run of the same one.

        Args:
            channels: local folder of each channel; symbolic links stand for them, nothing is copied.
        """
        job = {"hyperparameters": dict(hyperparameters), "channels": {key: str(path) for key, path in channels.items()}}
        goes_on = self._keep_checkpoints(json.dumps(job, sort_keys=True, indent=1))
        for name in ("input", "model", "output", "code"):
            shutil.rmtree(self.base / name, ignore_errors=True)
        for name in ("input/config", "input/data", "model", "output/data", "code", "checkpoints"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in channels.items():
            (self.base / "input" / "data" / name).symlink_to(folder.resolve(), target_is_directory=True)
        stage_source(self.base / "code", python38)
        self._write_config(hyperparameters, channels, instance_type)
        return goes_on

    def _keep_checkpoints(self, job: str) -> bool:
        """Whether there are checkpoints of this very job; those of another one are removed, as a new job has none."""
        note = self.base / "job.json"
        same = note.is_file() and note.read_text(encoding="utf-8") == job
        if not same:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.base.mkdir(parents=True, exist_ok=True)
        note.write_text(job, encoding="utf-8")
        return same and any(self.checkpoints.glob("*.safetensors"))

    def forget(self) -> None:
        """Remove the checkpoints of a job that is done: its next run is a new job."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _write_config(
        self, hyperparameters: Mapping[str, str], channels: Mapping[str, Path], instance_type: str
    ) -> None:
        group = {"instance_group_name": "homogeneousCluster", "instance_type": instance_type, "hosts": [HOST]}
        resources = {
            "current_host": HOST,
            "current_instance_type": instance_type,
            "current_group_name": "homogeneousCluster",
            "hosts": [HOST],
            "instance_groups": [group],
            "network_interface_name": "lo",
        }
        channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
        for name, content in (
            ("hyperparameters", dict(hyperparameters)),
            ("inputdataconfig", dict.fromkeys(channels, channel)),
            ("resourceconfig", resources),
        ):
            (self.base / "input" / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """The environment of the toolkit's `train` command: this process's own, without what belongs to other jobs."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN) and key not in _RANKS}
        return {
            **env,
            "SAGEMAKER_BASE_DIR": str(self.base),
            "SAGEMAKER_PROGRAM": "train.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": str(self.base / "code"),
            "TRAINING_JOB_NAME": "rehearsal",
            # A rehearsal needs no network: requirements that are not met here are an error, not a download.
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def pack_model(self, archive: Path) -> Path:
        """Write model.tar.gz as SageMaker does, the model directory's content at its top."""
        temporary = archive.with_name(f".{archive.name}.{os.getpid()}.tmp")
        try:
            with tarfile.open(temporary, "w:gz", compresslevel=1) as tar:
                for path in sorted(self.model.iterdir()):
                    tar.add(path, arcname=path.name)
            os.replace(temporary, archive)
        finally:
            if temporary.exists():
                temporary.unlink()
        return archive
