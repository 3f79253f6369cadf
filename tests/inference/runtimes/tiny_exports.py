"""Small graphs with the interface of an export, which are fast to build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pspnet.artifact.export_record import ExportRecord, folder_name, hash_weights
from pspnet.artifact.file_names import EXPORTS_NAME

CLASSES = 3


class Brightest(torch.nn.Module):
    """The class of a pixel is its brightest channel: (N, 3, H, W) uint8 -> logits (N, 3, H, W) float32."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def write_onnx(model_dir: Path, **changes: Any) -> Path:
    """Write `Brightest` as the ONNX export of a model directory. `changes`: fields of the record."""
    import onnx
    from onnx import TensorProto, helper

    shape: list[Any] = ["n", 3, "h", "w"]
    nodes = [
        helper.make_node("Cast", ["images"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["logits"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "brightest",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)],
        [
            helper.make_tensor_value_info("mask", TensorProto.UINT8, ["n", "h", "w"]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape),
        ],
    )
    folder = _folder(model_dir, "onnx", changes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    return _record(model_dir, folder, "onnx", "model.onnx", changes)


def write_openvino(model_dir: Path, **changes: Any) -> Path:
    """The same as the OpenVINO export."""
    import openvino
    from openvino import opset13 as ops

    images = ops.parameter([-1, 3, -1, -1], np.uint8, name="images")
    logits = ops.convert(images, "f32")
    ids = ops.topk(logits, ops.constant(1, np.int64), 1, "max", "none", index_element_type="i64").output(1)
    mask = ops.convert(ops.squeeze(ids, ops.constant([1], np.int64)), "u8")
    images.output(0).tensor.set_names({"images"})
    logits.output(0).tensor.set_names({"logits"})
    mask.output(0).tensor.set_names({"mask"})
    folder = _folder(model_dir, "openvino", changes)
    openvino.save_model(openvino.Model([mask, logits], [images], "brightest"), str(folder / "model.xml"))
    return _record(model_dir, folder, "openvino", "model.xml", changes)


def _folder(model_dir: Path, kind: str, changes: dict[str, Any]) -> Path:
    folder = model_dir / EXPORTS_NAME / folder_name(kind, changes.get("precision", "float32"))
    folder.mkdir(parents=True)
    return folder


def _record(model_dir: Path, folder: Path, kind: str, file: str, changes: dict[str, Any]) -> Path:
    fields = {
        "format": kind, "precision": "float32", "file": file, "weights_sha256": hash_weights(model_dir),
        "align_corners": False, "num_classes": CLASSES, **changes,
    }  # fmt: skip
    ExportRecord(**fields).write(folder)
    return folder
