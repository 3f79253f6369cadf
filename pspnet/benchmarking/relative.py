"""Comparison of runtimes with a reference: time, speed-up, fraction of the peak and agreement of the masks.

Legend: N images in a batch, H, W image height and width, K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pspnet.benchmarking.interleave import Quartiles, Timing, measure, ratio_quartiles
from pspnet.benchmarking.table import factor, markdown, milliseconds, percent

if TYPE_CHECKING:
    from pspnet.inference.runtimes.base import Runtime


@dataclass(frozen=True)
class Agreement:
    """Agreement of a runtime with the reference.

    same_pixels: fraction of the pixels with the same class.
    difference: largest absolute difference of the logits, relative to the reference's largest absolute logit; None if
        the logits were not compared.
    """

    same_pixels: float
    difference: float | None = None


@dataclass(frozen=True)
class Entry:
    """Result of a case at one image size.

    timing: seconds for the whole batch.
    gain: speed-up over the reference; None for the reference itself.
    flops: operations for the batch in the plain form of the network; None if unknown.
    agreement: with the reference; None for a different network.
    ready: seconds from opening to the first mask; None if not measured.
    """

    name: str
    timing: Timing
    gain: Quartiles | None = None
    flops: int | None = None
    agreement: Agreement | None = None
    ready: float | None = None

    def fraction_of_peak(self, peak: float) -> float | None:
        """Operations of the plain form per second, as a fraction of `peak`: work saved counts as work done."""
        return None if self.flops is None else self.flops / self.timing.median / peak

    def record(self, peak: float, images: int = 1) -> dict[str, Any]:
        """The entry for a JSON file."""
        found: dict[str, Any] = {
            **self.timing.record(),
            "images_per_second": round(images / self.timing.median, 4),
            "gain": None if self.gain is None else [round(value, 4) for value in self.gain],
            "gflop": None if self.flops is None else round(self.flops / 1e9, 3),
            "share_of_peak": _rounded(self.fraction_of_peak(peak), 4),
            "ready_s": _rounded(self.ready, 3),
        }
        if self.agreement is not None:
            found.update(logit_difference=self.agreement.difference, same_pixels=self.agreement.same_pixels)
        return found


def compare_runtimes(
    runtimes: Mapping[str, Any],
    images: np.ndarray,
    reference: str,
    rounds: int,
    flops: Mapping[str, int],
    comparable: Collection[str],
    with_logits: Collection[str],
    ready: Mapping[str, float],
    pause: float,
) -> list[Entry]:
    """Time prepared runtimes on images (N, H, W, 3), interleaved, and compare them with the reference.

    Args:
        runtimes: by name; the reference may be missing.
        flops, ready: see Entry; may lack names.
        comparable: names of those that compute the reference's function.
        with_logits: names of those whose logits are compared too; some runtimes compile a second network for them.
        pause: see `measure`.
    """
    cases = {name: functools.partial(runtime.masks, images) for name, runtime in runtimes.items()}
    timings = measure(cases, rounds, pause=pause, settle=1)
    agreements = {}
    if reference in runtimes:
        expected = runtimes[reference].logits(images)
        names = [name for name in runtimes if name in comparable and name != reference]
        agreements = {name: agree(runtimes[name], images, expected, name in with_logits) for name in names}
    return compare(timings, reference, flops, agreements, ready)


def compare(
    timings: Mapping[str, Timing],
    reference: str,
    flops: Mapping[str, int],
    agreements: Mapping[str, Agreement],
    ready: Mapping[str, float],
) -> list[Entry]:
    """One entry per timing, in their order; the other mappings may lack cases, and `timings` the reference."""
    entries = []
    for name, timing in timings.items():
        is_reference = name == reference or reference not in timings
        gain = None if is_reference else ratio_quartiles(timings[reference], timing)
        entries.append(Entry(name, timing, gain, flops.get(name), agreements.get(name), ready.get(name)))
    return entries


def agree(runtime: Runtime, images: np.ndarray, reference: Tensor, with_logits: bool = True) -> Agreement:
    """Compare a runtime's masks, and its logits if `with_logits`, with logits (N, K, H, W) of images (N, H, W, 3)."""
    reference = reference.detach().float().cpu()
    masks = torch.from_numpy(runtime.masks(images).astype(np.int64))  # (N, H, W)
    same = float((masks == reference.argmax(dim=1)).to(torch.float64).mean())
    if not with_logits:
        return Agreement(same)
    difference = float((runtime.logits(images).detach().float().cpu() - reference).abs().max())
    return Agreement(same, difference / max(float(reference.abs().max()), 1e-30))


def table(entries: Sequence[Entry], peak: float, reference: str, images: int = 1) -> str:
    """A Markdown table without the columns that no entry fills."""
    columns = {
        "case": [entry.name for entry in entries],
        "ms (quartiles)": [milliseconds(entry.timing) for entry in entries],
        "images/s": [f"{images / entry.timing.median:.2f}" for entry in entries],
        f"to {reference}": ["" if entry.gain is None else factor(entry.gain) for entry in entries],
        "GFLOP": ["" if entry.flops is None else f"{entry.flops / 1e9:.1f}" for entry in entries],
        "of the peak": [_percent(entry.fraction_of_peak(peak)) for entry in entries],
        "logits differ by": [_difference(entry.agreement) for entry in entries],
        "same pixels": [_same(entry.agreement) for entry in entries],
        "first mask after": ["" if entry.ready is None else f"{entry.ready:.1f} s" for entry in entries],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    return markdown(list(filled), list(zip(*filled.values())))


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else percent(fraction)


def _difference(agreement: Agreement | None) -> str:
    return "" if agreement is None or agreement.difference is None else f"{agreement.difference:.1e}"


def _same(agreement: Agreement | None) -> str:
    return "" if agreement is None else f"{100 * agreement.same_pixels:.3f} %"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
