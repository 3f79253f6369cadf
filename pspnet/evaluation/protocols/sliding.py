"""Protocols `slide` and `multiscale`: overlapping windows whose probabilities are averaged at the image's own size.

Source: hszhao/semseg, tool/test.py, functions `test`, `scale_process` and `net_process`: each scale is predicted in
windows of crop_size, two thirds of it apart, images smaller than a window padded with the mean colour; a pixel's
probabilities are averaged over the windows that cover it, resized to the image's own size and averaged over the scales
before the arg-max. That code averages every window with its mirror image, also at a single scale; here this is `flip`.

Legend: N images, C classes, H, W the image's own height and width; h, w those of a scaled and padded image; S
crop_size.

Memory in bytes, in addition to the network's for `window_batch` windows of S x S, in float32 and for one image:
4 C (H W + S w + 2 S W) for the sum at the image's size, one strip of windows and its resized copy, and
12 C S S window_batch for logits and probabilities. A map of a full scaled image is never stored. For 2048x1024, 150
classes, S = 473 and scale 1.75 (3584 wide) that is 1.3 + 1.0 + 1.2 GB and 0.4 GB for each window of a batch. The peak
measured on a CPU with a trivial network was 3.5 GB with one window per batch and 4.0 GB with four.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import nn

from pspnet.evaluation.protocols.rows import ResizedRows
from pspnet.evaluation.protocols.windows import WindowSettings, coverage, pad_images, resize_images, window_starts

# Small images share forward passes as long as the sums of their probabilities stay below this.
_SUM_BYTES = 2**29

Advance = Callable[[int], object]
"""Callback with the number of windows predicted since the last call."""


def _ignore(_windows: int) -> None:
    return None


class SlidingPredictor:
    """Prediction of images of any size through windows of one size.

    Args:
        model: (n, 3, S, S) RGB 0..255 -> logits (n, C, S, S), in evaluation mode.
        num_classes: C.
        settings: window, scales and flip.
        colour: (1, 3, 1, 1) padding of small images, 0..255: the colour that normalises to zero.
        window_batch: windows per forward pass, including mirror images.
        dtype: dtype of the sums.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        settings: WindowSettings,
        colour: torch.Tensor,
        window_batch: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.num_classes = num_classes
        self.settings = settings
        self.colour = colour
        self.window_batch = window_batch
        self.dtype = dtype

    @torch.no_grad()
    def masks(self, images: torch.Tensor, advance: Advance = _ignore) -> torch.Tensor:
        """(N, 3, H, W) RGB 0..255 -> (N, H, W) int64 class ids."""
        return self.masks_with_confidence(images, advance)[0]

    @torch.no_grad()
    def masks_with_confidence(
        self, images: torch.Tensor, advance: Advance = _ignore
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Like `masks`, plus (N, H, W): the averaged probability of each pixel's class."""
        height, width = images.shape[-2:]
        images_per_part = max(1, _SUM_BYTES // (4 * self.num_classes * height * width))
        masks, confidences = [], []
        for part in images.split(images_per_part):
            probabilities = self.probabilities(part, advance)
            masks.append(probabilities.argmax(dim=1))
            confidences.append(probabilities.amax(dim=1))
        return torch.cat(masks), torch.cat(confidences)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, advance: Advance = _ignore) -> torch.Tensor:
        """(N, 3, H, W) RGB 0..255 -> (N, C, H, W), averaged over windows, mirror images and scales."""
        count, _, height, width = images.shape
        total = torch.zeros(count, self.num_classes, height, width, dtype=self.dtype, device=images.device)
        for size in self.settings.scaled_sizes(height, width):
            self._add_scale(total, resize_images(images, size), advance)
        return total.div_(len(self.settings.scales))

    def _add_scale(self, total: torch.Tensor, images: torch.Tensor, advance: Advance) -> None:
        """Add the probabilities of (N, 3, h, w), resized to (H, W), to the total (N, C, H, W)."""
        side, height, width = self.settings.crop_size, *images.shape[-2:]
        padded, top, left = pad_images(images, side, self.colour)
        full_height, full_width = padded.shape[-2:]
        starts = window_starts(full_height, side, self.settings.stride)
        columns = window_starts(full_width, side, self.settings.stride)
        per_row = coverage(full_height, side, starts).to(total)
        per_column = coverage(full_width, side, columns).to(total)[left : left + width]
        rows = ResizedRows(total, height)
        strip = total.new_zeros(*total.shape[:2], side, full_width)  # (N, C, S, w): rows y to y + S of the scaled map
        for y, following in zip(starts, [*starts[1:], full_height]):
            self._add_row_of_windows(strip, padded[:, :, y : y + side], columns, advance)
            # No later window reaches above `following`: these rows are complete. Padding is removed.
            first, last = max(y, top), min(following, top + height)
            if first < last:
                complete = strip[:, :, first - y : last - y, left : left + width]
                rows.push(complete.div_(per_row[first:last, None] * per_column))
            kept = side - (following - y)
            if kept:
                strip[:, :, :kept] = strip[:, :, side - kept :].clone()
            strip[:, :, kept:].zero_()

    def _add_row_of_windows(
        self, strip: torch.Tensor, images: torch.Tensor, columns: list[int], advance: Advance
    ) -> None:
        """Add the probabilities of all windows of (N, 3, S, w), of all images, to (N, C, S, w)."""
        side, mirrors = self.settings.crop_size, 2 if self.settings.flip else 1
        positions = [(number, x) for number in range(len(images)) for x in columns]
        windows_per_pass = max(1, self.window_batch // mirrors)
        for first in range(0, len(positions), windows_per_pass):
            chosen = positions[first : first + windows_per_pass]
            windows = torch.stack([images[number, :, :, x : x + side] for number, x in chosen])  # (n, 3, S, S)
            for (number, x), probabilities in zip(chosen, self._window_probabilities(windows)):
                strip[number, :, :, x : x + side] += probabilities
            advance(len(chosen) * mirrors)

    def _window_probabilities(self, windows: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) -> (n, C, S, S)."""
        count = len(windows)
        if self.settings.flip:
            windows = torch.cat([windows, windows.flip(3)])
        windows = windows.contiguous(memory_format=torch.channels_last)
        logits = self.model(windows)  # (n or 2 n, C, S, S)
        probabilities: torch.Tensor = logits.to(self.dtype).softmax(dim=1)
        if self.settings.flip:
            probabilities = (probabilities[:count] + probabilities[count:].flip(3)).div_(2)
        return probabilities
