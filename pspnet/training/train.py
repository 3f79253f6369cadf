"""`pspnet.train`: training as a function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pspnet.config.rules import check_channels
from pspnet.config.schema import Config
from pspnet.errors import TrainingStoppedError
from pspnet.evaluation.metrics import Scores
from pspnet.training import loop

if TYPE_CHECKING:
    from os import PathLike

    from pspnet.inference.predictor import Predictor


@dataclass(frozen=True)
class TrainingResult:
    """A finished training run.

    model_dir: directory of the best model.
    scores: its scores on the validation channel at full resolution.
    history: epoch, validation:mIOU and validation:pixel_accuracy of every validation.
    """

    model_dir: Path
    scores: Scores
    history: list[dict[str, float]]

    def predictor(self, device: str = "auto") -> Predictor:
        """Load the best model, see Predictor.load."""
        from pspnet.inference.predictor import Predictor  # imported on demand: training does not need the runtimes

        return Predictor.load(self.model_dir, device)


def train(data: str | PathLike[str] | None = None, num_classes: int | None = None, **settings: Any) -> TrainingResult:
    """Train, validate and save a model. The environment is not read, no config file either.

    The first SIGTERM or Ctrl-C in the main thread writes a checkpoint; the same call then resumes from it.

    Args:
        data: folder with train/, train_annotation/, validation/ and validation_annotation/, or "shapes".
        num_classes: number of classes, including background and excluding ignored pixels.
        settings: further settings of docs/configuration.md, such as epochs=20 or name="first".

    Raises:
        ConfigError: settings that cannot be used; the text lists all of them.
        TrainingStoppedError: a signal stopped the run before its last epoch.
        PspnetError: data, weights or a checkpoint that cannot be used.
        OSError: a folder that cannot be written.
    """
    config = Config(data=data, num_classes=num_classes, **settings)
    check_channels(config)
    outcome = loop.train(config)
    if outcome.exit_code:
        raise TrainingStoppedError(outcome.exit_code, config.checkpoint_dir)
    assert outcome.scores is not None  # the last epoch is always validated
    return TrainingResult(Path(config.model_dir), outcome.scores, outcome.history)
