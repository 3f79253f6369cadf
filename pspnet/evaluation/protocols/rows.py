"""Streaming bilinear resizing of a map whose rows arrive from top to bottom, without storing the full map.

Legend: N images, C classes; h, w the map that arrives; H, W the map that is added to.
"""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F

_ROWS_PER_PART = 64


class ResizedRows:
    """Accumulator that adds a map of h rows, resized like F.interpolate (bilinear, align_corners False), to `total`.

    Args:
        total: (N, C, H, W), added to in place.
        height: h.
    """

    def __init__(self, total: torch.Tensor, height: int) -> None:
        self.total = total
        self.height = height
        full = total.shape[2]
        # The two map rows around each output row, and its fractional distance from the upper one.
        position = ((torch.arange(full, dtype=torch.float64) + 0.5) * (height / full) - 0.5).clamp_(min=0)
        self.upper = position.long()  # (H,)
        self.lower = (self.upper + 1).clamp_(max=height - 1)  # (H,)
        self.fraction = position - self.upper  # (H,)
        self.received = 0  # rows of the map
        self.done = 0  # rows of the total
        self.last: Optional[torch.Tensor] = None

    def push(self, rows: torch.Tensor) -> None:
        """Add the next rows, (N, C, r, w). Only a copy of the last one is kept."""
        if rows.shape[3] != self.total.shape[3]:
            rows = F.interpolate(rows, (rows.shape[2], self.total.shape[3]), mode="bilinear", align_corners=False)
        if self.height == self.total.shape[2]:
            self.total[:, :, self.done : self.done + rows.shape[2]] += rows
            self.done += rows.shape[2]
            return
        first = self.received  # map row of rows[0]
        self.received += rows.shape[2]
        if self.last is not None:
            rows, first = torch.cat([self.last, rows], dim=2), first - 1
        ready = int((self.lower < self.received).sum())
        for start in range(self.done, ready, _ROWS_PER_PART):
            self._add(rows, first, slice(start, min(start + _ROWS_PER_PART, ready)))
        self.done, self.last = ready, rows[:, :, -1:].clone()

    def _add(self, rows: torch.Tensor, first: int, out: slice) -> None:
        upper = rows.index_select(2, (self.upper[out] - first).to(rows.device))
        lower = rows.index_select(2, (self.lower[out] - first).to(rows.device))
        fraction = self.fraction[out].to(rows.device, rows.dtype).unsqueeze(1)  # (rows, 1)
        self.total[:, :, out] += upper.lerp_(lower, fraction)
