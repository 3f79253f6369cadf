"""CUDA graphs of a network, one per image size: a complete forward pass launched by one call.

With a batch of one image a GPU idles between a hundred small kernels; a graph launches them together. A graph is bound
to the memory that it was captured with, so each has its own input and output, and their number is bounded.

Legend: N images in a batch, H, W image height and width.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pspnet.errors import is_out_of_memory

GRAPHS = 8
"""Number of cached graphs; each holds its activations in GPU memory."""
SIGHTINGS = 3
"""Requests of a size before it is captured, unless it was prepared: a capture costs several forward passes."""

_WARMUPS = 3
_REMEMBERED = 1024

_Graph = TypeVar("_Graph")


class GraphCache(Generic[_Graph]):
    """LRU cache of graphs by size. Not thread-safe.

    A size whose graph does not fit into memory is never captured again: it runs without a graph, which needs less.

    Args:
        capture: captures the graph for a size (N, H, W).
        limit: maximum number of graphs.
        sightings: requests of a size before it is captured.
    """

    def __init__(
        self, capture: Callable[[tuple[int, ...]], _Graph], limit: int = GRAPHS, sightings: int = SIGHTINGS
    ) -> None:
        self._capture, self._limit, self._sightings = capture, limit, sightings
        self._graphs: OrderedDict[tuple[int, ...], _Graph] = OrderedDict()
        self._seen: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._too_large: set[tuple[int, ...]] = set()

    def __len__(self) -> int:
        return len(self._graphs)

    def find(self, size: tuple[int, ...]) -> _Graph | None:
        """The graph of a size, captured now if it was requested often enough; None if not, or if it does not fit."""
        if size in self._graphs:
            self._graphs.move_to_end(size)
            return self._graphs[size]
        self._seen[size] = self._seen.get(size, 0) + 1
        self._seen.move_to_end(size)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return self.prepare(size) if self._seen[size] >= self._sightings else None

    def prepare(self, size: tuple[int, ...]) -> _Graph | None:
        """The graph of a size, captured now if it is missing; the least recently used one is evicted.

        None if it does not fit into memory; then the cache is empty.
        """
        if size not in self._graphs:
            if size in self._too_large:
                return None
            while len(self._graphs) >= self._limit:
                self._graphs.popitem(last=False)
            try:
                self._graphs[size] = self._capture(size)
            except Exception as error:
                if not _has_memory_error(error):
                    raise
                self.clear()
                self._too_large.add(size)
                return None
            self._seen.pop(size, None)
        self._graphs.move_to_end(size)
        return self._graphs[size]

    def clear(self) -> None:
        """Release all graphs and their memory."""
        self._graphs.clear()
        self._seen.clear()


def _has_memory_error(error: BaseException | None) -> bool:
    """True if an error or one of its contexts is out-of-memory: a failed capture raises another error on exit."""
    while error is not None:
        if is_out_of_memory(error):
            return True
        error = error.__context__
    return False


class MaskGraph:
    """A captured forward pass from pixels to class ids, with its host and device buffers. Not thread-safe.

    Args:
        forward: (N, H, W, 3) uint8 -> (N, H, W) uint8 and whether all logits are finite, () bool, or None without
            that check; all on the device.
        size: (N, H, W).
        device: a CUDA device.
        held: tensors that the pass reads and that must live as long as the graph; see `lasting_tensors`.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        size: tuple[int, ...],
        device: torch.device,
        held: list[Tensor],
    ) -> None:
        self._device, self._held = device, held
        self._pinned_input = torch.zeros((*size, 3), dtype=torch.uint8, pin_memory=True)
        self._pinned_output = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._pinned_finite = torch.ones((), dtype=torch.bool, pin_memory=True)
        self._input = torch.zeros((*size, 3), dtype=torch.uint8, device=device)
        self._graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            # The first passes select algorithms and allocate workspaces, which must not be captured.
            stream: Any = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARMUPS):
                    forward(self._input)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output, self._finite = forward(self._input)

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, bool]:
        """(N, H, W, 3) uint8 -> (N, H, W) uint8, a new array, and whether all logits are finite."""
        np.copyto(self._pinned_input.numpy(), images)
        with torch.cuda.device(self._device):
            self._input.copy_(self._pinned_input, non_blocking=True)
            self._graph.replay()
            self._pinned_output.copy_(self._output, non_blocking=True)
            if self._finite is not None:
                self._pinned_finite.copy_(self._finite, non_blocking=True)
            torch.cuda.current_stream().synchronize()
        classes: np.ndarray = self._pinned_output.numpy().copy()
        return classes, bool(self._pinned_finite)


def lasting_tensors(forward: Callable[[Tensor], object], images: Tensor) -> list[Tensor]:
    """The tensors that a pass reads and that outlive it: weights, and what modules cache for a size.

    A graph reads them at their addresses at capture time, so its owner must keep them alive: a module may evict what
    it caches for a size.
    """
    seen: dict[int, weakref.ReferenceType[Tensor]] = {}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for value in tree_flatten((args, kwargs or {}))[0]:
                if isinstance(value, Tensor):
                    seen[id(value)] = weakref.ref(value)
            return function(*args, **(kwargs or {}))

    with Recorder():
        forward(images)
    found = (reference() for reference in seen.values())
    return [tensor for tensor in found if tensor is not None]
