"""The cache of CUDA graphs: capture, eviction and held tensors. The capture itself needs a GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pspnet.inference.runtimes import eager
from pspnet.inference.runtimes.cuda_graphs import GraphCache, MaskGraph, lasting_tensors
from pspnet.inference.runtimes.eager import EagerRuntime
from pspnet.models.build import build_model
from tests.inference.runtimes.tiny_exports import Brightest


def numbered(limit: int = 2, sightings: int = 3) -> tuple[GraphCache[str], list[tuple[int, ...]]]:
    captured: list[tuple[int, ...]] = []

    def capture(size: tuple[int, ...]) -> str:
        captured.append(size)
        return f"graph {len(captured)}"

    return GraphCache(capture, limit, sightings), captured


def test_a_recurring_size_is_captured() -> None:
    graphs, captured = numbered()
    assert [graphs.find((1, 40, 40)) for _ in range(4)] == [None, None, "graph 1", "graph 1"]
    assert graphs.find((2, 40, 40)) is None
    assert captured == [(1, 40, 40)]


def test_a_prepared_size_is_captured_immediately() -> None:
    graphs, captured = numbered()
    assert graphs.prepare((1, 40, 40)) == "graph 1"
    assert graphs.find((1, 40, 40)) == "graph 1"
    assert graphs.prepare((1, 40, 40)) == "graph 1"
    assert len(captured) == 1


def test_the_least_recently_used_graph_is_evicted() -> None:
    graphs, captured = numbered()
    a, b, c = (1, 32, 32), (1, 40, 40), (1, 48, 48)
    graphs.prepare(a)
    graphs.prepare(b)
    graphs.find(a)
    graphs.prepare(c)
    assert graphs.find(a) == "graph 1"
    assert graphs.find(b) is None
    assert captured == [a, b, c]
    graphs.clear()
    assert graphs.find(a) is None


def test_a_size_that_does_not_fit_is_not_captured_again() -> None:
    captured: list[tuple[int, ...]] = []

    def capture(size: tuple[int, ...]) -> str:
        captured.append(size)
        if size[0] > 1:
            try:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            finally:  # like the end of an aborted capture
                raise RuntimeError("operation failed due to a previous error during capture")
        if size[1] > 100:
            raise RuntimeError("no kernel image")
        return "graph"

    graphs: GraphCache[str] = GraphCache(capture, sightings=2)
    assert graphs.prepare((1, 40, 40)) == "graph"
    assert graphs.prepare((8, 40, 40)) is None
    assert len(graphs) == 0  # released for their memory
    assert [graphs.find((8, 40, 40)) for _ in range(4)] == [None] * 4
    assert [graphs.find((4, 40, 40)) for _ in range(4)] == [None] * 4
    assert captured == [(1, 40, 40), (8, 40, 40), (4, 40, 40)]
    assert graphs.prepare((1, 40, 40)) == "graph"
    with pytest.raises(RuntimeError, match="no kernel image"):
        graphs.prepare((1, 400, 40))


def test_many_sizes_cost_no_memory() -> None:
    graphs, captured = numbered()
    for side in range(5000):
        graphs.find((1, side, side))
    assert captured == []
    assert len(graphs._seen) == 1024


def test_a_graph_holds_weights_and_tensors_cached_for_a_size() -> None:
    runtime = EagerRuntime(build_model(3, width=4).eval(), torch.device("cpu"))
    with torch.no_grad():
        held = lasting_tensors(runtime._classes, torch.zeros((1, 40, 56, 3), dtype=torch.uint8))
    gc.collect()
    pointers = {tensor.data_ptr() for tensor in held}
    assert {weight.data_ptr() for name, weight in runtime.model.named_buffers() if name.endswith("weight")} <= pointers
    shapes = {tuple(tensor.shape) for tensor in held}
    assert (5, 18) in shapes  # the spread matrix of 6 cells over the 5 rows of the map
    assert (1, 3, 40, 56) not in shapes  # activations are not held


class FakeGraph:
    def __init__(self, finite: bool = True) -> None:
        self.finite = finite
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, bool]:
        self.sizes.append(images.shape)
        return np.full(images.shape[:3], 7, np.uint8), self.finite


def test_eager_uses_a_captured_graph() -> None:
    runtime = EagerRuntime(Brightest(), torch.device("cpu"))
    graph = FakeGraph()
    runtime._graphs = GraphCache(lambda _: graph)  # type: ignore[assignment,arg-type,return-value]
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    for _ in range(2):
        np.testing.assert_array_equal(runtime.masks(images), images.argmax(axis=3))
    assert (runtime.masks(images) == 7).all()
    np.testing.assert_array_equal(runtime.logits(images).argmax(dim=1).numpy(), images.argmax(axis=3))
    runtime.prepare(48, 64, 2)
    assert (runtime.masks(np.zeros((2, 48, 64, 3), np.uint8)) == 7).all()
    assert graph.sizes == [(1, 40, 56, 3), (2, 48, 64, 3)]


def test_non_finite_logits_of_a_graph_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "fastest_dtype", lambda device: torch.float16)
    monkeypatch.setattr(eager, "build_inference_model", lambda network, dtype: network)
    runtime = EagerRuntime(Brightest(), torch.device("cpu"))
    graphs = runtime._graphs = GraphCache(lambda _: FakeGraph(finite=False))  # type: ignore[assignment,arg-type,return-value]
    runtime.prepare(40, 56)
    assert len(graphs) == 1
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="overflow float16"):
        np.testing.assert_array_equal(runtime.masks(images), images.argmax(axis=3))
    assert runtime.dtype == torch.float32
    assert len(graphs) == 0


def test_graphs_are_released_when_a_pass_runs_out_of_memory() -> None:
    runtime = EagerRuntime(Brightest(), torch.device("cpu"))
    graphs = runtime._graphs = GraphCache(lambda _: FakeGraph())  # type: ignore[assignment,arg-type,return-value]

    class Full(Brightest):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(graphs) or images.shape[2] > 100:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().forward(images)

    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    acts: tuple[Callable[[], Any], ...] = (
        lambda: runtime.masks(images),
        lambda: runtime.logits(images).argmax(dim=1).numpy(),
        lambda: runtime.prepare(40, 56),
    )
    for act in acts:
        runtime.model = Brightest()
        runtime.prepare(48, 64)
        runtime.model = Full()
        found = act()
        assert len(graphs) == (1 if found is None else 0)  # prepare captures again
        if found is not None:
            np.testing.assert_array_equal(found, images.argmax(axis=3))
    with pytest.raises(RuntimeError, match="out of memory"):
        runtime.masks(np.zeros((1, 400, 56, 3), np.uint8))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_gives_the_masks_of_the_network() -> None:
    device = torch.device("cuda")
    runtime = EagerRuntime(build_model(5, width=8).eval(), device, torch.float32)
    first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 96, 128, 3), dtype=np.uint8)
    expected = [runtime.masks(images) for images in (first, second)]
    runtime.prepare(96, 128)
    assert runtime._graphs is not None
    assert isinstance(runtime._graphs.find((1, 96, 128)), MaskGraph)
    for images, masks in zip((first, second), expected):
        assert (runtime.masks(images) == masks).mean() > 0.999
