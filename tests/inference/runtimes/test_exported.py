"""ONNX Runtime, OpenVINO and TensorRT: results and error messages."""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch

from pspnet.artifact.export_record import hash_weights
from pspnet.errors import ConfigError, WeightsError
from pspnet.inference.runtimes import exported
from pspnet.inference.runtimes.base import NAMES, Runtime, RuntimeMissingError, check_name
from pspnet.inference.runtimes.exported import enlarge_logits
from pspnet.inference.runtimes.factory import Source, open_runtime
from tests.inference.runtimes.tiny_exports import write_onnx, write_openvino

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WRITERS = {"onnxruntime": write_onnx, "openvino": write_openvino}


def opened(name: str, model_dir: Path, device: torch.device = CPU, dtype: torch.dtype | None = None) -> Runtime:
    def network() -> Any:
        raise AssertionError("an export needs no network")

    return open_runtime(name, Source(network, device, dtype, model_dir))


def written(name: str, model_dir: Path, **changes: Any) -> Path:
    package = name.partition(":")[0]
    pytest.importorskip(package)
    if package == "onnxruntime":
        pytest.importorskip("onnx")
    return WRITERS[package](model_dir, **changes)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "onnxruntime:int8", "openvino:int8"])
def test_masks_and_logits_are_the_graphs(model_dir: Path, name: str) -> None:
    written(name, model_dir, precision=name.partition(":")[2] or "float32")
    runtime = opened(name, model_dir)
    assert runtime.name == name
    runtime.prepare(40, 56)
    for shape in ((1, 40, 56), (3, 33, 47), (1, 32, 32), (1, 40, 56)):
        images = pictures(*shape)
        masks = runtime.masks(images)
        assert masks.dtype == np.uint8
        np.testing.assert_array_equal(masks, images.argmax(axis=3))
        logits = runtime.logits(images)
        assert logits.dtype == torch.float32
        np.testing.assert_array_equal(logits.numpy(), images.transpose(0, 3, 1, 2).astype(np.float32))
    flipped = pictures(1, 40, 56)[:, :, ::-1]
    np.testing.assert_array_equal(runtime.masks(flipped), flipped.argmax(axis=3))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runtimes_are_thread_safe(model_dir: Path, name: str) -> None:
    written(name, model_dir)
    runtime = opened(name, model_dir)
    images = [np.full((1, 40, 56, 3), 0, np.uint8) for _ in range(12)]
    for number, image in enumerate(images):
        image[..., number % 3] = 200
    with ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(runtime.masks, images))
    assert [set(np.unique(mask)) for mask in masks] == [{number % 3} for number in range(12)]


def test_openvino_compiles_into_the_cache_once(model_dir: Path, tmp_path: Path) -> None:
    written("openvino", model_dir)
    opened("openvino", model_dir)
    kept = sorted((tmp_path / "cache" / "openvino").rglob("*.blob"))
    assert len(kept) == 1
    opened("openvino", model_dir)
    assert sorted((tmp_path / "cache" / "openvino").rglob("*.blob")) == kept


def test_a_read_only_cache_is_accepted(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written("openvino", model_dir)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PSPNET_CACHE", str(tmp_path / "file"))
    images = pictures(1, 40, 56)
    np.testing.assert_array_equal(opened("openvino", model_dir).masks(images), images.argmax(axis=3))


def test_logits_are_enlarged_as_in_the_network() -> None:
    small = np.random.default_rng(0).normal(size=(1, 3, 5, 7)).astype(np.float32)
    small.flags.writeable = False
    for align_corners in (False, True):
        expected = torch.nn.functional.interpolate(
            torch.tensor(small), (40, 56), mode="bilinear", align_corners=align_corners
        )
        torch.testing.assert_close(enlarge_logits(small, 40, 56, align_corners), expected)


# --- missing requirements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("onnxruntime", r"--format onnx`"),
        ("openvino", r"--format openvino`"),
        ("openvino:int8", r"--format openvino --int8 --calibration DATA`"),
    ],
)
def test_a_missing_export_is_reported_with_its_command(model_dir: Path, name: str, command: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(WeightsError, match=rf"Create it with `pspnet export {model_dir} {command}"):
        opened(name, model_dir)


def test_an_export_of_other_weights_is_refused(model_dir: Path) -> None:
    written("openvino", model_dir, weights_sha256="0" * 64)
    with pytest.raises(WeightsError, match=r"exported from other weights .* Export again"):
        opened("openvino", model_dir)


@pytest.mark.parametrize(("name", "file"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
def test_a_damaged_graph_is_reported(model_dir: Path, name: str, file: str) -> None:
    folder = written(name, model_dir)
    (folder / file).write_bytes(b"<no graph")
    with pytest.raises(RuntimeMissingError, match=rf"{file}: .* cannot run this graph.*export it again, or use the"):
        opened(name, model_dir)


@pytest.mark.parametrize(("name", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_package_is_reported_with_its_install_command(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str
) -> None:
    real = importlib.import_module
    monkeypatch.setattr(
        exported.importlib, "import_module", lambda wanted: _refuse(wanted) if wanted == name else real(wanted)
    )
    with pytest.raises(RuntimeMissingError, match=rf"needs the package {name}, .*pip install 'pspnet\[{extra}\]'"):
        opened(name, model_dir)


def _refuse(name: str) -> Any:
    raise ImportError(f"No module named {name!r}")


def test_openvino_is_for_cpus(model_dir: Path) -> None:
    with pytest.raises(RuntimeMissingError, match="runtime openvino runs on CPUs and device is cuda"):
        opened("openvino", model_dir, GPU)


def test_an_onnx_runtime_without_cuda_is_reported(model_dir: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(RuntimeMissingError, match=r"runtime onnxruntime: .* has no CUDA; install onnxruntime-gpu"):
        opened("onnxruntime", model_dir, GPU)
    with pytest.raises(RuntimeMissingError, match=r"runtime tensorrt: .* has no TensorRT; install"):
        opened("tensorrt", model_dir, GPU)


def test_tensorrt_needs_a_gpu(model_dir: Path) -> None:
    with pytest.raises(RuntimeMissingError, match="runtime tensorrt needs an NVIDIA GPU"):
        opened("tensorrt", model_dir)


def session_of(providers: list[str]) -> Callable[..., Any]:
    class Session:
        def __init__(self, path: str, options: Any, providers: list[Any]) -> None:
            self.asked = providers

        def get_providers(self) -> list[str]:
            return providers

    return Session


def test_tensorrt_runs_float16_and_caches_its_engines(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written("onnxruntime", model_dir)
    onnxruntime = pytest.importorskip("onnxruntime")
    there = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_of(there))
    runtime: Any = opened("tensorrt", model_dir, torch.device("cuda", 1))
    (name, options), cuda, cpu = runtime._session.asked
    assert (runtime.name, name, cuda[0], cpu) == ("tensorrt", *there)
    assert options["trt_fp16_enable"] is True
    assert options["device_id"] == 1
    kept = tmp_path / "cache" / "tensorrt" / hash_weights(model_dir)[:16]  # one folder per model
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(kept)
    assert kept.is_dir()
    exact: Any = opened("tensorrt", model_dir, GPU, torch.float32)
    assert exact._session.asked[0][1]["trt_fp16_enable"] is False
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PSPNET_CACHE", str(tmp_path / "file"))
    without: Any = opened("tensorrt", model_dir, GPU)
    assert set(without._session.asked[0][1]) == {"device_id", "trt_fp16_enable"}
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_of(there[1:]))
    with pytest.raises(RuntimeMissingError, match="cannot load the libraries of its TensorrtExecutionProvider"):
        opened("tensorrt", model_dir, GPU)


def test_names() -> None:
    for name in NAMES:
        assert check_name(name) == name
    with pytest.raises(ConfigError, match="runtime: found 'onnx'; use auto, eager, compile,"):
        open_runtime("onnx", Source(lambda: torch.nn.Identity(), CPU))


def test_an_export_has_its_own_dtype_and_a_directory(model_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match="runtime openvino runs an export unchanged; bfloat16 needs the runtime eager"
    ):
        opened("openvino", model_dir, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="runtime tensorrt runs in float16 or float32; bfloat16 needs the runtime"):
        opened("tensorrt", model_dir, GPU, torch.bfloat16)
    with pytest.raises(ConfigError, match="needs an export in a model directory; load the model from one"):
        open_runtime("openvino", Source(lambda: torch.nn.Identity(), CPU))


def test_a_foreign_record_is_reported(model_dir: Path) -> None:
    folder = written("openvino", model_dir)
    content = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**content, "file": "../model.xml"}))
    with pytest.raises(WeightsError, match=r"export\.json: `file` is '\.\./model\.xml'"):
        opened("openvino", model_dir)
