"""Client of GluonCV's PSPNet, which runs in its own Python 3.8 behind pipes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.benchmarking.interleave import OwnTime
from pspnet.errors import PspnetError


class GluonProcess:
    """A running gluoncv_child.py; close it after use.

    Args:
        python: an interpreter that has mxnet and gluoncv.
        num_classes: classes K.
        threads: threads of MXNet.

    Raises PspnetError, with its last line of output, if it does not start.
    """

    name = "gluoncv"
    peak_mib: float | None = None
    """Peak memory of the process, as of its last answer."""

    def __init__(self, python: Path, num_classes: int, threads: int) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        command = [str(python), str(Path(__file__).with_name("gluoncv_child.py")), str(num_classes)]
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"},
            )
        except OSError as error:
            self._errors.close()
            raise PspnetError(f"{python} cannot be started ({error.strerror or error}).") from error

    def masks(self, images: np.ndarray) -> OwnTime:
        """Predict images (N, H, W, 3) uint8 one by one; returns the seconds that the process measured."""
        return OwnTime(sum(self._ask(image)["seconds"] for image in images))

    def prepare(self, height: int, width: int, batch: int = 1) -> None:
        """Run a forward pass at this size. PspnetError if the process fails."""
        self.masks(np.zeros((batch, height, width, 3), np.uint8))

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _ask(self, image: np.ndarray) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        height, width = image.shape[:2]
        try:
            self._process.stdin.write(f"{height} {width}\n".encode() + image.tobytes())
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["no output"]
            raise PspnetError(f"its process ended: {lines[-1]}")
        found: dict[str, Any] = json.loads(line)
        self.peak_mib = found["peak_mib"]
        return found
