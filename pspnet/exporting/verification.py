"""The check of an export: its logits and masks against those of the network in PyTorch.

Legend: N images in a batch, H, W image height and width, K classes, h, w rows and columns of the head's map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pspnet.data.shapes import draw_scene
from pspnet.errors import PspnetError
from pspnet.exporting.formats import Run
from pspnet.inference.tiling import pad
from pspnet.models.constants import MIN_SIZE
from pspnet.models.pspnet import SegmentationNetwork

# What float32 must keep. The other order of the sums costs about 1e-6 to 1e-5 of the logits' size; a wrong weight,
# layout or interpolation costs far more than these.
LOGITS_LIMIT = 1e-3
MASKS_LIMIT = 0.999

# Larger images are cut: PyTorch takes seconds for each as it is.
_LARGEST_SIDE = 640
_SCENE_SIZES = ((160, 120), (131, 97), (97, 140))  # (width, height)


class ExportError(PspnetError):
    """An export that does not compute what its network computes, or costs more than it may."""


@dataclass(frozen=True)
class Agreement:
    """How an export compares with its network.

    Attributes:
        cases: (N, H, W) of every batch that was compared.
        logits_difference: the largest, over the cases, of max |difference| / max |logit in PyTorch|.
        mask_agreement: share of all pixels that have the same class, 0..1.
    """

    cases: tuple[tuple[int, int, int], ...]
    logits_difference: float
    mask_agreement: float

    def to_json(self, source: str, images: int, limited: bool) -> dict[str, Any]:
        """What export.json keeps. `limited`: whether the limits were held against it."""
        limits = {"logits_difference": LOGITS_LIMIT, "mask_agreement": MASKS_LIMIT}
        return {
            "passed": True,
            "source": source,
            "images": images,
            "cases": [list(case) for case in self.cases],
            "logits_difference": self.logits_difference,
            "mask_agreement": self.mask_agreement,
            "limits": limits if limited else None,
        }

    def require(self, name: str) -> None:
        """Raise ExportError where the limits of float32 are not held."""
        # Written so that NaN fails.
        if self.logits_difference <= LOGITS_LIMIT and self.mask_agreement >= MASKS_LIMIT:
            return
        raise ExportError(
            f"{name}: the graph does not compute what the network computes in PyTorch: logits differ by up to "
            f"{self.logits_difference:.2g} of their size (at most {LOGITS_LIMIT:g}), {100 * self.mask_agreement:.2f} % "
            f"of the mask pixels agree (at least {100 * MASKS_LIMIT:g} %). Nothing was kept. Try another version of "
            "the format's package, or another format."
        )


def scenes() -> list[np.ndarray]:
    """Generated pictures (H, W, 3) uint8, for who has no images at hand."""
    return [draw_scene(np.random.default_rng([0, number]), size)[0] for number, size in enumerate(_SCENE_SIZES)]


def compare(run: Run, model: SegmentationNetwork, images: Sequence[np.ndarray]) -> Agreement:
    """Run an opened graph and its network on images: each at its own size, two of an odd size at once, a low strip.

    Args:
        run: the graph.
        model: the network itself, not its inference form; it is put into evaluation mode.
        images: (H, W, 3) uint8 RGB, one or more.

    Raises ExportError where the graph cannot run a size, or answers in another shape or type.
    """
    model = model.cpu().eval()
    cases, differences, same, pixels = [], [], 0, 0
    for batch in _batches(images):
        case = (batch.shape[0], batch.shape[2], batch.shape[3])
        mask, logits = _run(run, batch, case)
        with torch.no_grad():
            expected = model(torch.from_numpy(batch))  # (N, K, H, W)
        _check_shapes(mask, logits, case, expected.shape[1])
        full = F.interpolate(
            torch.from_numpy(np.array(logits)), case[1:], mode="bilinear", align_corners=model.align_corners
        )
        differences.append(float((full - expected).abs().max() / expected.abs().max()))
        same += int((torch.from_numpy(np.array(mask)) == expected.argmax(dim=1)).sum())
        pixels += mask.size
        cases.append(case)
    # max() of Python would pass over a NaN that does not come first.
    return Agreement(tuple(cases), float(np.max(differences)), same / pixels)


def _batches(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """(N, 3, H, W) uint8: the batches that are compared."""
    cut = [pad(image[:_LARGEST_SIDE, :_LARGEST_SIDE]) for image in images]
    for image in cut:
        yield _planes([image])
    first, second = cut[0], cut[1] if len(cut) > 1 else cut[0][:, ::-1]
    height, width = (_odd(min(first.shape[axis], second.shape[axis])) for axis in (0, 1))
    yield _planes([first[:height, :width], second[:height, :width]])
    yield _planes([first[:MIN_SIZE]])


def _odd(side: int) -> int:
    """The largest odd number up to `side`, but no less than the network takes."""
    return max(side - 1 + side % 2, MIN_SIZE)


def _planes(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _run(run: Run, batch: np.ndarray, case: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        return run(batch)
    except Exception as error:  # each runtime has errors of its own kind, with no base but this
        raise ExportError(f"the graph cannot run {_name(case)}: {str(error).splitlines()[0][:300]}") from error


def _check_shapes(mask: np.ndarray, logits: np.ndarray, case: tuple[int, int, int], classes: int) -> None:
    if mask.shape != case or mask.dtype != np.uint8:
        raise ExportError(f"the graph answers {_name(case)} with a mask of shape {mask.shape} and type {mask.dtype}.")
    if logits.ndim != 4 or logits.shape[:2] != (case[0], classes) or logits.dtype != np.float32:
        raise ExportError(f"the graph answers {_name(case)} with logits {logits.shape} of type {logits.dtype}.")


def _name(case: tuple[int, int, int]) -> str:
    count, height, width = case
    return f"{count} image{'s' if count > 1 else ''} of {width}x{height} px"
