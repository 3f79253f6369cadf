"""Private folder with the layout of a SageMaker training container's /opt/ml, for the training toolkit."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagemaker_entry.training.job_source import stage_source

# The toolkit waits 15 minutes for a host name that does not resolve.
HOST = "localhost"

# Variables of a job or distributed run that contains this process.
_FOREIGN = ("SM_", "SAGEMAKER_", "TRAINING_JOB_")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHONPATH")


@dataclass(frozen=True)
class Container:
    """Local replacement of /opt/ml. Checkpoints outlive a run; everything else is recreated for each."""

    base: Path

    @property
    def model(self) -> Path:
        """SM_MODEL_DIR."""
        return self.base / "model"

    @property
    def checkpoints(self) -> Path:
        """The folder that SageMaker would synchronize with S3."""
        return self.base / "checkpoints"

    @property
    def failure(self) -> Path:
        """The file whose beginning SageMaker shows as the failure reason."""
        return self.base / "output" / "failure"

    def lay_out(
        self, hyperparameters: Mapping[str, str], channels: Mapping[str, Path], instance_type: str, python38: bool
    ) -> bool:
        """Prepare a run of this job; return True if it resumes from checkpoints of an earlier run of the same job.

        Args:
            channels: local folder of each channel; they are linked, not copied.
        """
        job = {"hyperparameters": dict(hyperparameters), "channels": {key: str(path) for key, path in channels.items()}}
        resumes = self._keep_checkpoints(json.dumps(job, sort_keys=True, indent=1))
        for name in ("input", "model", "output", "code"):
            shutil.rmtree(self.base / name, ignore_errors=True)
        for name in ("input/config", "input/data", "model", "output/data", "code", "checkpoints"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, folder in channels.items():
            (self.base / "input" / "data" / name).symlink_to(folder.resolve(), target_is_directory=True)
        stage_source(self.base / "code", python38)
        self._write_config(hyperparameters, channels, instance_type)
        return resumes

    def _keep_checkpoints(self, job: str) -> bool:
        """Return True if checkpoints of the same job exist; remove those of another one."""
        note = self.base / "job.json"
        same = note.is_file() and note.read_text(encoding="utf-8") == job
        if not same:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.base.mkdir(parents=True, exist_ok=True)
        note.write_text(job, encoding="utf-8")
        return same and any(self.checkpoints.glob("*.safetensors"))

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of a completed job: its next run is a new job."""
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
        """Return the environment of the toolkit's `train` command, without the variables of other jobs."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN) and key not in _RANKS}
        return {
            **env,
            "SAGEMAKER_BASE_DIR": str(self.base),
            "SAGEMAKER_PROGRAM": "train.py",
            "SAGEMAKER_SUBMIT_DIRECTORY": str(self.base / "code"),
            "TRAINING_JOB_NAME": "rehearsal",
            # A rehearsal needs no network: unmet requirements are an error, not a download.
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def pack_model(self, archive: Path) -> Path:
        """Write model.tar.gz as SageMaker does, with the model directory's content at the top level."""
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
