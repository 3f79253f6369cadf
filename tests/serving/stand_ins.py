"""Fake predictor without a network, controlled by a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from pspnet.classes import palette_for
from pspnet.inference.prediction import Prediction

NAMES = ("a", "b", "c")


class StandIn:
    """Answers every image with a mask of its red channel modulo 3, once `go` is set.

    batches: the image shapes of each call. `before` runs in each of the `passes` forward passes of a call, and may
    raise.
    """

    class_names = NAMES
    device = torch.device("cpu")
    runtime: Any = None

    def __init__(self, before: Callable[[list[np.ndarray]], None] = lambda _: None) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.go.set()
        self.before = before
        self.passes = 1
        self.before_pass: Callable[[], None] = lambda: None
        self.batches: list[list[tuple[int, ...]]] = []
        self.prepared: list[tuple[list[tuple[int, int]], int]] = []

    def prepare(self, sizes: Iterable[tuple[int, int]], batch: int = 1) -> None:
        self.prepared.append((list(sizes), batch))

    def predict(self, images: list[np.ndarray], probabilities: bool = False) -> list[Prediction]:
        self.entered.set()
        assert self.go.wait(60)
        self.batches.append([image.shape[:2] for image in images])
        for _ in range(self.passes):
            self.before_pass()
            self.before(images)
        return [self._one(image, probabilities) for image in images]

    def _one(self, image: np.ndarray, probabilities: bool) -> Prediction:
        mask = image[..., 0] % 3
        scores = np.stack([mask == index for index in range(3)]).astype(np.float32) if probabilities else None
        return Prediction(mask, NAMES, palette_for(NAMES), image, scores)

    def hold(self) -> None:
        """Block the next call until `go` is set; `entered` is set when it starts."""
        self.entered.clear()
        self.go.clear()
