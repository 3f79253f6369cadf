"""What is said of a case beside others: its time, its gain, its share of the peak, and whether it computes the same.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pspnet.benchmarking.interleave import Quartiles, Timing, ratio_quartiles
from pspnet.benchmarking.table import factor, markdown, milliseconds, percent

if TYPE_CHECKING:
    from pspnet.inference.runtimes.base import Runtime


@dataclass(frozen=True)
class Agreement:
    """How far logits are from the reference's.

    same_pixels: share of the pixels that get the same class.
    difference: largest absolute difference, as a share of the reference's largest absolute logit; None where the
        logits were not compared.
    """

    same_pixels: float
    difference: float | None = None


@dataclass(frozen=True)
class Entry:
    """A case at one size of images.

    timing: seconds for the whole batch.
    gain: how many times as long the reference takes; None for the reference itself.
    flops: operations for the batch in the plain form of its network; None where they are not known.
    agreement: with the reference; None for another network.
    ready: seconds from nothing to the first mask; None where it was not looked at.
    """

    name: str
    timing: Timing
    gain: Quartiles | None = None
    flops: int | None = None
    agreement: Agreement | None = None
    ready: float | None = None

    def share_of_peak(self, peak: float) -> float | None:
        """Operations of the plain form per second, as a share of `peak`: work saved counts as work done."""
        return None if self.flops is None else self.flops / self.timing.median / peak

    def record(self, peak: float, images: int = 1) -> dict[str, Any]:
        """What a JSON file keeps of it."""
        found: dict[str, Any] = {
            **self.timing.record(),
            "images_per_second": round(images / self.timing.median, 4),
            "gain": None if self.gain is None else [round(value, 4) for value in self.gain],
            "gflop": None if self.flops is None else round(self.flops / 1e9, 3),
            "share_of_peak": _rounded(self.share_of_peak(peak), 4),
            "ready_s": _rounded(self.ready, 3),
        }
        if self.agreement is not None:
            found.update(logit_difference=self.agreement.difference, same_pixels=self.agreement.same_pixels)
        return found


def compare(
    timings: Mapping[str, Timing],
    reference: str,
    flops: Mapping[str, int],
    agreements: Mapping[str, Agreement],
    ready: Mapping[str, float],
) -> list[Entry]:
    """One entry for each timing, in their order; the other mappings may lack cases, and `timings` the reference."""
    entries = []
    for name, timing in timings.items():
        is_reference = name == reference or reference not in timings
        gain = None if is_reference else ratio_quartiles(timings[reference], timing)
        entries.append(Entry(name, timing, gain, flops.get(name), agreements.get(name), ready.get(name)))
    return entries


def agree(runtime: Runtime, images: np.ndarray, reference: Tensor, with_logits: bool = True) -> Agreement:
    """How far a runtime is from the reference's logits (N, K, H, W) of images (N, H, W, 3).

    Without `with_logits` the classes alone are compared: some runtimes compile a network of their own for logits.
    """
    reference = reference.detach().float().cpu()
    masks = torch.from_numpy(runtime.masks(images).astype(np.int64))  # (N, H, W)
    same = float((masks == reference.argmax(dim=1)).to(torch.float64).mean())
    if not with_logits:
        return Agreement(same)
    difference = float((runtime.logits(images).detach().float().cpu() - reference).abs().max())
    return Agreement(same, difference / max(float(reference.abs().max()), 1e-30))


def table(entries: Sequence[Entry], peak: float, reference: str, images: int = 1) -> str:
    """A Markdown table; columns that no entry fills are left out."""
    columns = {
        "case": [entry.name for entry in entries],
        "ms (quartiles)": [milliseconds(entry.timing) for entry in entries],
        "images/s": [f"{images / entry.timing.median:.2f}" for entry in entries],
        f"to {reference}": ["" if entry.gain is None else factor(entry.gain) for entry in entries],
        "GFLOP": ["" if entry.flops is None else f"{entry.flops / 1e9:.1f}" for entry in entries],
        "of the peak": [_percent(entry.share_of_peak(peak)) for entry in entries],
        "logits differ by": [_difference(entry.agreement) for entry in entries],
        "same pixels": [_same(entry.agreement) for entry in entries],
        "first mask after": ["" if entry.ready is None else f"{entry.ready:.1f} s" for entry in entries],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return markdown(list(filled), list(zip(*filled.values())))


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)


def _difference(agreement: Agreement | None) -> str:
    return "" if agreement is None or agreement.difference is None else f"{agreement.difference:.1e}"


def _same(agreement: Agreement | None) -> str:
    return "" if agreement is None else f"{100 * agreement.same_pixels:.3f} %"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
