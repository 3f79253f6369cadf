"""Candidates of `auto`: never 8 bits, never what is missing, and plain eager without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pspnet.inference.runtimes import compiled
from pspnet.inference.runtimes import factory as opening
from pspnet.inference.runtimes.automatic import AutomaticRuntime
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.inference.runtimes.trials import Choice
from tests.inference.runtimes.tiny_exports import Brightest, write_onnx, write_openvino

CPU = torch.device("cpu")


def source(model_dir: Path | None, dtype: torch.dtype | None = None, slower: int = 0) -> Source:
    class Slow(Brightest):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for _ in range(slower):
                images = images.roll(1, 1)
            return super().forward(images)

    return Source(Slow, CPU, dtype, model_dir)


def test_without_exports_auto_is_eager_itself(model_dir: Path) -> None:
    assert type(open_runtime("auto", source(model_dir))) is EagerRuntime
    assert type(open_runtime("auto", source(None))) is EagerRuntime
    assert type(open_runtime("eager", source(model_dir))) is EagerRuntime


def test_int8_and_missing_packages_are_no_candidates(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    write_openvino(model_dir, precision="int8")
    assert type(open_runtime("auto", source(model_dir))) is EagerRuntime
    write_openvino(model_dir)
    assert type(open_runtime("auto", source(model_dir))) is AutomaticRuntime
    assert type(open_runtime("auto", source(model_dir, torch.bfloat16))) is EagerRuntime
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    assert type(open_runtime("auto", source(model_dir))) is EagerRuntime


def test_unsupported_runtimes_are_no_candidates(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    write_openvino(model_dir)
    gpu = Source(Brightest, torch.device("cuda"), None, model_dir)
    assert opening._exported_runtimes(gpu) == []
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert not opening._has_compiler(torch.device("cpu"))
    monkeypatch.setattr(compiled.shutil, "which", lambda name: f"/bin/{name}")
    assert opening._has_compiler(torch.device("cpu"))
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    assert not opening._has_compiler(torch.device("cuda"))


@pytest.mark.slow
def test_auto_tries_the_existing_exports(model_dir: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_openvino(model_dir)
    write_onnx(model_dir)
    runtime: Any = open_runtime("auto", source(model_dir, slower=3000))
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    np.testing.assert_array_equal(runtime.masks(images), images.argmax(axis=3))
    assert runtime.choices == {}
    runtime.prepare(40, 56)
    choice: Choice = runtime.choices[40, 56, 1]
    assert set(choice.milliseconds) == {"eager", "onnxruntime", "openvino"}
    assert choice.agreement == dict.fromkeys(choice.milliseconds, 1.0)
    assert choice.runtime != "eager"
    np.testing.assert_array_equal(runtime.masks(images), images.argmax(axis=3))
    # Another process finds the choice without a trial.
    again: Any = open_runtime("auto", source(model_dir))
    assert again.runtime_for(40, 56).name == choice.runtime
    assert again.runtime_for(48, 64).name == "eager"


def test_an_export_of_other_weights_is_skipped(model_dir: Path) -> None:
    pytest.importorskip("openvino")
    write_openvino(model_dir, weights_sha256="0" * 64)
    runtime: Any = open_runtime("auto", source(model_dir))
    runtime.prepare(40, 56)
    assert runtime.runtime_for(40, 56).name == "eager"
    assert "exported from other weights" in runtime.choices[40, 56, 1].failed["openvino"]


def test_an_export_with_other_masks_is_skipped(model_dir: Path) -> None:
    pytest.importorskip("openvino")
    write_openvino(model_dir)

    class Darkest(Brightest):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return -super().forward(images)

    runtime: Any = open_runtime("auto", Source(Darkest, CPU, None, model_dir))
    runtime.prepare(40, 56)
    assert runtime.choices[40, 56, 1].runtime == "eager"
    assert runtime.choices[40, 56, 1].agreement["openvino"] < 0.5
