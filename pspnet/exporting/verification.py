"""Verification of an export: its logits and masks against those of the network in PyTorch.

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

# Limits of float32. A different summation order changes logits by about 1e-6 to 1e-5 relatively; a wrong weight,
# layout or interpolation by far more than the limits.
LOGITS_LIMIT = 1e-3
MASKS_LIMIT = 0.999

# Larger images are cropped: PyTorch takes seconds per image.
_LARGEST_SIDE = 640
_SCENE_SIZES = ((160, 120), (131, 97), (97, 140))  # (width, height)


class ExportError(PspnetError):
    """An export whose output differs from its network's, or whose mIoU loss exceeds the bound."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of an export with its network.

    Attributes:
        cases: (N, H, W) of every compared batch.
        logits_difference: maximum over the cases of max |difference| / max |logit in PyTorch|.
        mask_agreement: fraction of all pixels with the same class, 0..1.
    """

    cases: tuple[tuple[int, int, int], ...]
    logits_difference: float
    mask_agreement: float

    def to_json(self, source: str, images: int, limited: bool) -> dict[str, Any]:
        """The entry of export.json. `limited`: whether the limits were enforced."""
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
        """Raise ExportError if the limits of float32 are exceeded."""
        # Written so that NaN fails.
        if self.logits_difference <= LOGITS_LIMIT and self.mask_agreement >= MASKS_LIMIT:
            return
        raise ExportError(
            f"{name}: the output of the graph differs from the network in PyTorch: logits differ by up to "
            f"{self.logits_difference:.2g} of their size (at most {LOGITS_LIMIT:g}), {100 * self.mask_agreement:.2f} % "
            f"of the mask pixels agree (at least {100 * MASKS_LIMIT:g} %). Nothing was written. Try another version of "
            "the format's package, or another format."
        )


def scenes() -> list[np.ndarray]:
    """Synthetic images (H, W, 3) uint8, used when no images are given."""
    return [draw_scene(np.random.default_rng([0, number]), size)[0] for number, size in enumerate(_SCENE_SIZES)]


def compare(run: Run, model: SegmentationNetwork, images: Sequence[np.ndarray]) -> Agreement:
    """Run an opened graph and its network on each image at its own size, on a batch of two with odd sides, on a strip.

    Args:
        run: the graph.
        model: the network, not its fused inference model; it is switched to evaluation mode.
        images: (H, W, 3) uint8 RGB, one or more.

    Raises ExportError if the graph cannot run a size, or returns another shape or dtype.
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
    # Python's max() ignores a NaN that is not the first value.
    return Agreement(tuple(cases), float(np.max(differences)), same / pixels)


def _batches(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The compared batches (N, 3, H, W) uint8."""
    cut = [pad(image[:_LARGEST_SIDE, :_LARGEST_SIDE]) for image in images]
    for image in cut:
        yield _planes([image])
    first, second = cut[0], cut[1] if len(cut) > 1 else cut[0][:, ::-1]
    height, width = (_odd(min(first.shape[axis], second.shape[axis])) for axis in (0, 1))
    yield _planes([first[:height, :width], second[:height, :width]])
    yield _planes([first[:MIN_SIZE]])


def _odd(side: int) -> int:
    """The largest odd number up to `side`, but at least MIN_SIZE."""
    return max(side - 1 + side % 2, MIN_SIZE)


def _planes(images: Sequence[np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def _run(run: Run, batch: np.ndarray, case: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    try:
        return run(batch)
    except Exception as error:  # the runtimes' exceptions have no other common base class
        raise ExportError(f"the graph cannot run {_name(case)}: {str(error).splitlines()[0][:300]}") from error


def _check_shapes(mask: np.ndarray, logits: np.ndarray, case: tuple[int, int, int], classes: int) -> None:
    if mask.shape != case or mask.dtype != np.uint8:
        raise ExportError(f"the graph returns a mask of shape {mask.shape} and dtype {mask.dtype} for {_name(case)}.")
    if logits.ndim != 4 or logits.shape[:2] != (case[0], classes) or logits.dtype != np.float32:
        raise ExportError(
            f"the graph returns logits of shape {logits.shape} and dtype {logits.dtype} for {_name(case)}."
        )


def _name(case: tuple[int, int, int]) -> str:
    count, height, width = case
    return f"{count} image{'s' if count > 1 else ''} of {width}x{height} px"
