"""Analysis of a converted graph, which selects by data flow the operations that must not be quantised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Names of the same operation in OpenVINO and in ONNX.
_INPUTS = {"Parameter"}
_SIZES = {"ShapeOf", "Shape"}
_CONVOLUTIONS = {"Convolution", "Conv"}
_WEIGHTED = _CONVOLUTIONS | {"MatMul", "Gemm"}
_QUANTISERS = {"FakeQuantize", "DequantizeLinear"}
# They only move values, so quantised values stay quantised.
_KEEPING = {"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Operation:
    """A node of a graph: name, kind, and the names of its input nodes."""

    name: str
    kind: str
    inputs: tuple[str, ...]


def operations(model: Any) -> list[Operation]:
    """The operations of an openvino.Model or an onnx.ModelProto in topological order."""
    if hasattr(model, "get_ordered_ops"):
        return [
            Operation(
                node.get_friendly_name(),
                node.get_type_name(),
                tuple(port.get_source_output().get_node().get_friendly_name() for port in node.inputs()),
            )
            for node in model.get_ordered_ops()
        ]
    graph = model.graph
    source = {output: node.name for node in graph.node for output in node.output}
    source.update({value.name: value.name for value in graph.input})
    found = [Operation(value.name, "Parameter", ()) for value in graph.input]
    return found + [
        Operation(node.name, node.op_type, tuple(source[name] for name in node.input if name in source))
        for node in graph.node
    ]


def kept_in_float(nodes: Iterable[Operation]) -> list[str]:
    """Names of operations that must not be quantised: those computed from the image's size, and products with them.

    Pooling and interpolation weights depend on the size, as do the positions that they are computed from: numbers up to
    the size of the map, too precise for eight bits. The matrix products with these weights are 1 % of the operations.
    """
    from_pixels: set[str] = set()
    from_size: set[str] = set()
    mixed: set[str] = set()
    for node in nodes:
        if node.kind in _INPUTS or (node.kind not in _SIZES and from_pixels.intersection(node.inputs)):
            from_pixels.add(node.name)
            if from_size.intersection(node.inputs):
                mixed.add(node.name)
        elif node.kind in _SIZES or from_size.intersection(node.inputs):
            from_size.add(node.name)
    return sorted(from_size | mixed)


def first_and_last_convolutions(nodes: Iterable[Operation]) -> list[str]:
    """Names of the convolutions without a preceding, or without a following one: the stem's first, the classifier."""
    reached: dict[str, set[str]] = {}  # node -> the convolutions on the paths to it
    first: set[str] = set()
    followed: set[str] = set()
    every: list[str] = []
    for node in nodes:
        before: set[str] = set().union(*(reached.get(name, set()) for name in node.inputs))
        if node.kind in _CONVOLUTIONS:
            every.append(node.name)
            followed |= before
            if not before:
                first.add(node.name)
            before = before | {node.name}
        reached[node.name] = before
    return sorted(name for name in every if name in first or name not in followed)


def count_quantised(nodes: Iterable[Operation]) -> tuple[int, int]:
    """Number of convolutions and matrix products of the pixels with quantised inputs, and their total number."""
    quantised = total = 0
    from_pixels: set[str] = set()
    eight_bit: set[str] = set()  # the subset with quantised values
    for node in nodes:
        if node.kind not in _INPUTS and (node.kind in _SIZES or not from_pixels.intersection(node.inputs)):
            continue
        from_pixels.add(node.name)
        takes_eight_bit = bool(eight_bit.intersection(node.inputs))
        if node.kind in _QUANTISERS or (node.kind in _KEEPING and takes_eight_bit):
            eight_bit.add(node.name)
        if node.kind in _WEIGHTED:
            total += 1
            quantised += takes_eight_bit
    return quantised, total
