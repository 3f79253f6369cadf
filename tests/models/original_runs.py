"""Comparison of imported networks with the original programs, each run in its own interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspnet.models.pspnet import PSPNet

SCRIPTS = Path(__file__).parent / "originals"


def run_original(variable: str, script: str, folder: Path, *arguments: str) -> Iterator[Path]:
    """Run a script that writes its network's weights and logits into `folder`, which is deleted afterwards.

    Skips the test if the environment variable does not name an interpreter: see .ci/originals.sh.
    """
    interpreter = os.environ.get(variable)
    if not interpreter:
        pytest.skip(f"{variable} names no interpreter; .ci/originals.sh creates one and runs this test")
    folder.mkdir()
    command = [interpreter, str(SCRIPTS / script), str(folder), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    yield folder
    shutil.rmtree(folder)  # 200 MB


def assert_same_logits(model: PSPNet, folder: Path, sizes: tuple[str, ...]) -> None:
    """Assert that all logits of the original for images of these sizes agree to 1e-4."""
    model.eval()
    for size in sizes:
        stored = np.load(folder / f"{size}.npz")
        image = torch.from_numpy(stored["image"])
        with torch.no_grad():
            found = {"logits": model(image), "auxiliary": auxiliary_logits(model, image)}
        found["trained"] = found["logits"]
        names = set(stored.files) - {"image"}
        assert "logits" in names
        for name in names:
            expected = torch.from_numpy(stored[name])
            assert expected.std() > 0.01, "nearly constant logits would match anything"
            worst = float((found[name] - expected).abs().max())
            assert worst <= 1e-4, f"{name} of {size} differ by {worst}"


def difference(model: PSPNet, folder: Path, size: str) -> float:
    """Return the largest difference between our logits and the original's."""
    stored = np.load(folder / f"{size}.npz")
    with torch.no_grad():
        return float((model.eval()(torch.from_numpy(stored["image"])) - torch.from_numpy(stored["logits"])).abs().max())


def auxiliary_logits(model: PSPNet, image: Tensor) -> Tensor:
    """Logits of the auxiliary head in evaluation mode, where forward skips it."""
    assert model.auxiliary_head is not None
    layer3, _ = model.backbone((image - model.mean) / model.std)
    logits = model.auxiliary_head(layer3)
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=model.align_corners)
