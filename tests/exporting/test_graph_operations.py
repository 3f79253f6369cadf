"""Operations that stay in float32, in hand-made and in converted graphs."""

from __future__ import annotations

from pspnet.exporting.graph_operations import Operation, count_quantised, first_and_last_convolutions, kept_in_float

# images -> conv1 -> conv2 -> pool (with weights from the size) -> branch -> add(conv2's head) -> classifier -> resize
GRAPH = [
    Operation("images", "Parameter", ()),
    Operation("kernel", "Constant", ()),
    Operation("conv1", "Convolution", ("images", "kernel")),
    Operation("shape", "ShapeOf", ("conv1",)),
    Operation("one", "Constant", ()),
    Operation("weights", "Divide", ("shape", "one")),
    Operation("pool", "MatMul", ("weights", "conv1")),
    Operation("branch", "Convolution", ("pool", "kernel")),
    Operation("head", "Convolution", ("conv1", "kernel")),
    Operation("spread", "MatMul", ("branch", "weights")),
    Operation("mix", "MatMul", ("branch", "kernel")),
    Operation("add", "Add", ("head", "spread", "mix")),
    Operation("classifier", "Convolution", ("add", "kernel")),
    Operation("resize", "Interpolate", ("classifier", "weights")),
]


def test_operations_on_the_size_stay_in_float() -> None:
    assert kept_in_float(GRAPH) == ["pool", "resize", "shape", "spread", "weights"]


def test_first_and_last_convolution() -> None:
    assert first_and_last_convolutions(GRAPH) == ["classifier", "conv1"]


def test_two_convolutions_of_the_image_are_both_first() -> None:
    nodes = [
        Operation("images", "Parameter", ()),
        Operation("a", "Conv", ("images",)),
        Operation("b", "Conv", ("images",)),
        Operation("c", "Conv", ("a", "b")),
        Operation("d", "Conv", ("c",)),
    ]
    assert first_and_last_convolutions(nodes) == ["a", "b", "d"]


def test_count_of_quantised_operations() -> None:
    nodes = [
        Operation("images", "Parameter", ()),
        Operation("weight", "Constant", ()),
        Operation("fake", "FakeQuantize", ("images",)),
        Operation("fake_weight", "FakeQuantize", ("weight",)),
        Operation("conv1", "Convolution", ("fake", "fake_weight")),
        Operation("pool", "MaxPool", ("fake",)),
        Operation("conv3", "Convolution", ("pool", "fake_weight")),
        # A quantised weight alone does not count.
        Operation("conv2", "Convolution", ("conv1", "fake_weight")),
        Operation("shape", "ShapeOf", ("conv2",)),
        # A product of sizes does not count.
        Operation("sizes", "MatMul", ("shape", "weight")),
        Operation("product", "MatMul", ("conv2", "sizes")),
    ]
    assert count_quantised(nodes) == (2, 4)
