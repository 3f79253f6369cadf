"""Early stopping by the built-in algorithm's rule."""

from __future__ import annotations


class EarlyStopping:
    """The built-in algorithm's rule, over validated epochs.

    From epoch `min_epochs` on, epochs are counted that do not raise the mIoU above the best one that counted by at
    least the relative `tolerance`; after `patience` of them in a row training ends. An equal score is no gain, also
    with a tolerance of 0: a model that is stuck has to stop some time.
    """

    def __init__(self, min_epochs: int = 5, patience: int = 4, tolerance: float = 0.0) -> None:
        self.min_epochs = min_epochs
        self.patience = patience
        self.tolerance = tolerance
        self.best: float | None = None
        self.epochs_without_gain = 0

    def should_stop(self, epoch: int, score: float) -> bool:
        """Tell the mIoU of `epoch` (counted from 1); True where training should end."""
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
