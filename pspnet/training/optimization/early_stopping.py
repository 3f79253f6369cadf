"""Early stopping by the built-in algorithm's rule."""

from __future__ import annotations


class EarlyStopping:
    """Early stopping rule of the built-in algorithm over validated epochs.

    An epoch is a gain if its mIoU exceeds the best one so far by at least the relative `tolerance`; an equal score is
    not, even with a tolerance of 0. Training ends after `patience` epochs in a row without a gain, counted from epoch
    `min_epochs`.
    """

    def __init__(self, min_epochs: int = 5, patience: int = 4, tolerance: float = 0.0) -> None:
        self.min_epochs = min_epochs
        self.patience = patience
        self.tolerance = tolerance
        self.best: float | None = None
        self.epochs_without_gain = 0

    def should_stop(self, epoch: int, score: float) -> bool:
        """Record the mIoU of `epoch` (counted from 1); return True if training should end."""
        if self.best is None or (score > self.best and score >= self.best * (1.0 + self.tolerance)):
            self.best, self.epochs_without_gain = score, 0
        elif epoch >= self.min_epochs:
            self.epochs_without_gain += 1
        return epoch >= self.min_epochs and self.epochs_without_gain >= self.patience

    def state_dict(self) -> dict[str, float | int | None]:
        return {"best": self.best, "epochs_without_gain": self.epochs_without_gain}

    def load_state_dict(self, state: dict[str, float | int | None]) -> None:
        self.best = state["best"]
        self.epochs_without_gain = int(state["epochs_without_gain"] or 0)
