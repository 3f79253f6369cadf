"""Every format against PyTorch at odd sizes, read back from its files like a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pspnet.artifact.export_record import Export, load_export
from pspnet.errors import ConfigError
from pspnet.exporting import formats as graph
from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.formats import find_format
from pspnet.models.pspnet import PSPNet
from tests.exporting.conftest import tiny_network

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch", "torch_export": "torch"}
# (N, H, W): the smallest, odd sides, more rows than columns, a batch of another number than it was traced with.
SIZES = ((1, 32, 32), (3, 33, 47), (1, 61, 40), (2, 97, 129))


def images_of(size: tuple[int, int, int]) -> np.ndarray:
    count, height, width = size
    return np.random.default_rng(sum(size)).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def assert_equal_to_pytorch(run: graph.Run, network: PSPNet, size: tuple[int, int, int]) -> None:
    images = images_of(size)
    mask, logits = run(images)
    with torch.no_grad():
        expected = network(torch.from_numpy(images))  # (N, K, H, W)
    assert (mask.dtype, mask.shape) == (np.uint8, size)
    stride = network.backbone.output_stride
    assert (logits.dtype, logits.shape) == (np.float32, (size[0], 7, -(-size[1] // stride), -(-size[2] // stride)))
    full = F.interpolate(
        torch.from_numpy(np.array(logits)), size[1:], mode="bilinear", align_corners=network.align_corners
    )
    assert float((full - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert (torch.from_numpy(np.array(mask)) == expected.argmax(dim=1)).float().mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript", "torch_export"])
def test_a_graph_equals_pytorch_at_every_size(
    format: str, network: PSPNet, model_dir: Path, exported: Callable[[str], Export]
) -> None:
    pytest.importorskip(PACKAGES[format])
    exported(format)
    export = load_export(model_dir, format)
    run = find_format(format).open_graph(export.path)
    for size in SIZES:
        assert_equal_to_pytorch(run, network, size)


@pytest.mark.parametrize("format", ["onnx", "openvino", "torchscript", "torch_export"])
@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet-18", "width": 8},
        {"backbone": "resnet-18", "stem": "deep-narrow", "contract_dilation": True, "dilate_both": False},
        {"output_stride": 32, "dilations": (2, 4), "contract_dilation": True},
    ],
)
def test_other_backbones(format: str, options: dict[str, Any], tmp_path: Path) -> None:
    from pspnet.exporting.export_network import export_network

    pytest.importorskip(PACKAGES[format])
    network, module = tiny_network(**options), find_format(format)
    run = module.open_graph(tmp_path / module.write(export_network(network), tmp_path))
    for size in SIZES[1:]:
        assert_equal_to_pytorch(run, network, size)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_align_corners_is_kept(format: str, tmp_path: Path) -> None:
    from pspnet.exporting.export_network import export_network

    pytest.importorskip(PACKAGES[format])
    network, module = tiny_network(align_corners=True), find_format(format)
    run = module.open_graph(tmp_path / module.write(export_network(network), tmp_path))
    for size in SIZES[:2]:
        assert_equal_to_pytorch(run, network, size)


def test_the_graph_has_dynamic_sizes(exported: Callable[[str], Export]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(exported("onnx").path))
    (images,) = model.graph.input
    assert images.name == "images"
    assert [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim] == [
        "images", 3, "height", "width",
    ]  # fmt: skip
    assert [output.name for output in model.graph.output] == ["mask", "logits"]


def test_a_missing_package_is_reported_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> object:
        if package == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return object()

    monkeypatch.setattr(graph, "_find", lambda name: graph.require("onnxruntime", f"--format {name}"))
    monkeypatch.setattr(graph.importlib, "import_module", missing)
    with pytest.raises(
        ConfigError, match=r"^--format onnx needs the package onnxruntime, .* install it: pip install 'psp"
    ):
        find_format("onnx")


@pytest.mark.parametrize("format", ["torchscript", "torch_export"])
def test_formats_without_8_bits_are_reported(format: str) -> None:
    with pytest.raises(ConfigError, match=f"int8: {format} has no 8-bit form here; use the format onnx or openvino"):
        ExportRequest(model_dir="model", format=format, int8=True, calibration="data")


def test_torch_export_reports_the_required_pytorch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pspnet.exporting import torch_program

    monkeypatch.setattr(torch_program.torch.export, "Dim", object)
    with pytest.raises(ConfigError, match=r"needs PyTorch 2\.5 or newer for dynamic sizes"):
        torch_program.write(None, tmp_path)
