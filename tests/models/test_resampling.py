"""Pooling and interpolation as matrices, against PyTorch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pspnet.models.resampling import average_grids, pooling_weights

BINS = (1, 2, 3, 6)


@pytest.mark.parametrize("size", [(30, 30), (45, 60), (7, 11), (4, 3), (1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_average_grids_equal_adaptive_pooling(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 5, *size, dtype=torch.float64).to(memory_format=memory_format)
    for grid, bins in zip(average_grids(x, BINS), BINS):
        torch.testing.assert_close(grid, F.adaptive_avg_pool2d(x, bins), rtol=1e-12, atol=1e-12)


def test_low_precision_is_pooled_without_bias() -> None:
    x = torch.full((1, 2, 30, 30), 1.5, dtype=torch.bfloat16)
    for grid in average_grids(x, BINS):
        assert grid.dtype == torch.bfloat16
        assert torch.equal(grid, torch.full_like(grid, 1.5))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced_pooling_follows_the_size() -> None:
    def pool(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([grid.flatten(2) for grid in average_grids(x, BINS)], dim=2)

    graph = torch.jit.trace(pool, torch.randn(1, 3, 12, 12), check_trace=False)
    for size in ((13, 7), (6, 29)):
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(graph(x), pool(x))


def test_weights_of_a_cell_sum_to_one() -> None:
    weights = pooling_weights(7, 3, torch.empty(0, dtype=torch.float64))
    assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert (weights > 0).sum(1).tolist() == [3, 3, 3]  # 0..2, 2..4, 4..6: neighbours share a position
