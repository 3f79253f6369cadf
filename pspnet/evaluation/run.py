"""Evaluation of a network over a data set by one protocol, in one or several processes, with per-image counts.

Legend: N images in a batch, C classes, H, W image height and width.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from pspnet.classes import IGNORE_INDEX, LabelMap
from pspnet.data.channels import Pair
from pspnet.data.dataset import SegmentationDataset
from pspnet.data.loader import Batch, build_loader, load_batches
from pspnet.data.samplers import EvaluationBatchSampler, image_sizes
from pspnet.evaluation.calibration import predict_with_confidence
from pspnet.evaluation.image_counts import Tally
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.protocols.factory import Protocol
from pspnet.evaluation.protocols.sliding import SlidingPredictor
from pspnet.evaluation.protocols.whole import predict_whole
from pspnet.system.distributed import Processes

# Batches that each process scores before the processes sum their counts.
# How many batches each of several processes scores before they add up their counts.
_BATCHES_PER_EXCHANGE = 4
# Upper limit of forward passes per batch of images: an interruption loses the current batch.
_MAX_PASSES_PER_BATCH = 8

Predict = Callable[[torch.Tensor], "tuple[torch.Tensor, torch.Tensor | None]"]
"""(N, 3, H, W) -> (N, H, W) class ids, and their probabilities if these are counted."""


@dataclass(frozen=True)
class Scored:
    """Data to score: pairs of files, `pair_signature` of each by name, and how to read their annotations."""

    pairs: list[Pair]
    signatures: dict[str, str]
    label_map: LabelMap | None = None
    ignore_index: int = IGNORE_INDEX


class Evaluator:
    """Network in evaluation mode on its device, with the settings of its evaluation.

    Args:
        model: (N, 3, H, W) RGB 0..255 -> logits (N, C, H, W).
        num_classes: C.
        colour: (1, 3, 1, 1), padding of small images for windows: the network's mean.
        device: the model's.
        processes: the process group that shares the images.
        batch_size: images or windows per forward pass.
        workers: number of processes that load images.
        progress: whether to show a progress bar on standard error.
        details: subset of `image_counts.DETAILS` to count in addition to the confusion matrices.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        colour: torch.Tensor,
        device: torch.device,
        processes: Processes,
        batch_size: int = 4,
        workers: int = 0,
        progress: bool = False,
        details: tuple[str, ...] = (),
    ) -> None:
        self.tally = Tally(num_classes, details)
        self.model = model
        self.num_classes = num_classes
        self.colour = colour
        self.device = device
        self.processes = processes
        self.batch_size = batch_size
        self.workers = workers
        self.progress = progress

    def run(
        self,
        protocol: Protocol,
        scored: Scored,
        record: Record,
        save: Callable[[], None] | None = None,
        write_mask: Callable[[str, np.ndarray], None] | None = None,
    ) -> None:
        """Score all images that are missing in the main process's record, and add them to it.

        The batches do not depend on the number of processes, and counts are int64, so the sum is exactly that of one
        process. Only the main process's record is complete afterwards.

        Args:
            save: called by the main process after every few batches.
            write_mask: called with an image's name and its (H, W) uint8 mask in the process that predicted it.

        Raises DataError for the first unusable file.
        """
        pairs, view = scored.pairs, protocol.view
        sizes = image_sizes(pairs) if view is None else [(view.crop_size, view.crop_size)] * len(pairs)
        batches = self._batches(protocol, sizes, [pair.stem in record.entries for pair in pairs])
        sampler = EvaluationBatchSampler([], self.batch_size)
        sampler.batches = batches[self.processes.rank :: self.processes.world_size]
        dataset = SegmentationDataset(
            pairs, self.num_classes, view, scored.label_map, scored.ignore_index, channel="validation"
        )
        own_batches = load_batches(build_loader(dataset, sampler, self.workers, self.device.type == "cuda"))
        total = sum(protocol.passes(sizes[index][1], sizes[index][0]) for batch in sampler.batches for index in batch)
        started = time.monotonic()
        with tqdm(total=total, unit="pass", desc=protocol.name, disable=not self.progress, file=sys.stderr) as bar:
            predict = self._predictor(protocol, bar.update)
            for indices, counts in self._gathered_counts(predict, own_batches, batches, write_mask):
                for index, row in zip(indices, counts):
                    name = pairs[index].stem
                    matrix, details = self.tally.split(row)
                    record.add(name, matrix, scored.signatures[name], details)
                record.about["seconds"] = record.about.get("seconds", 0.0) + time.monotonic() - started
                started = time.monotonic()
                if save is not None and self.processes.is_main:
                    save()

    def predict_one(self, protocol: Protocol, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (H, W) uint8 class ids, for a protocol that scores full images."""
        pixels = torch.from_numpy(np.array(image)).unsqueeze(0).permute(0, 3, 1, 2).to(self.device)  # (1, 3, H, W)
        masks, _ = self._predictor(protocol, lambda _: None)(pixels.contiguous(memory_format=torch.channels_last))
        mask: np.ndarray = masks[0].to(torch.uint8).cpu().numpy()
        return mask

    def _batches(self, protocol: Protocol, sizes: list[tuple[int, int]], done: list[bool]) -> list[list[int]]:
        """Return batches of the indices of all images that the main process has not scored; equal in all processes.

        Scored images are removed from the batches of a fresh start, so that the rest is batched as before and gives
        bit-identical results. A batch has as many images as a forward pass, fewer if one image needs many passes.
        """
        most = max((protocol.passes(height, width) for width, height in sizes), default=1)
        images_per_batch = max(1, min(self.batch_size, _MAX_PASSES_PER_BATCH * self.batch_size // max(1, most)))
        flags = torch.tensor(done, dtype=torch.uint8, device=self.device)
        self.processes.copy_from_main([flags])
        is_done = flags.tolist()
        batches = EvaluationBatchSampler(sizes, images_per_batch).batches
        rest = ([index for index in batch if not is_done[index]] for batch in batches)
        return [batch for batch in rest if batch]

    def _predictor(self, protocol: Protocol, advance: Callable[[int], object]) -> Predict:
        """Return the prediction function of this protocol; it reports forward passes to `advance`."""
        if protocol.windows is not None:
            sliding = SlidingPredictor(self.model, self.num_classes, protocol.windows, self.colour, self.batch_size)
            return lambda images: sliding.masks_with_confidence(images, advance)

        def predict(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            confidences = None
            if "confidence" in self.tally.shapes:
                masks, confidences = predict_with_confidence(self.model, images)
            else:
                masks = predict_whole(self.model, images)
            advance(len(images))
            return masks, confidences

        return predict

    def _gathered_counts(
        self,
        predict: Predict,
        own_batches: Iterator[Batch],
        batches: list[list[int]],
        write_mask: Callable[[str, np.ndarray], None] | None,
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield image indices and their (n, length) rows of counts from all processes, in the order of the batches."""
        rank, world_size = self.processes.rank, self.processes.world_size
        step = world_size * _BATCHES_PER_EXCHANGE if world_size > 1 else 1
        for first in range(0, len(batches), step):
            shared = batches[first : first + step]
            together = [index for batch in shared for index in batch]
            counts = torch.zeros(len(together), self.tally.length, dtype=torch.int64, device=self.device)
            start = 0
            for number, indices in enumerate(shared):
                # `first` is a multiple of the number of processes: these are the sampler's batches of this rank.
                if number % world_size == rank:
                    counts[start : start + len(indices)] = self._count(predict, next(own_batches), write_mask)
                start += len(indices)
            yield together, self.processes.sum(counts).cpu().numpy()

    def _count(
        self,
        predict: Predict,
        batch: Batch,
        write_mask: Callable[[str, np.ndarray], None] | None,
    ) -> torch.Tensor:
        """Score one batch; return (N, length) int64 counts."""
        images = batch.images.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        masks, confidences = predict(images.contiguous(memory_format=torch.channels_last))
        if write_mask is not None:
            for name, mask in zip(batch.names, masks.to(torch.uint8).cpu().numpy()):
                write_mask(Path(name).stem, mask)
        return self.tally.rows(masks, targets, confidences)
