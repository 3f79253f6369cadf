"""From a Config to a trained model directory: set-up, epochs, validation, checkpoints, and the results at the end.

The stages stand in the order in which `train` calls them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pspnet.config.schema import Config
from pspnet.data.dataset import Batch, load_batches
from pspnet.errors import WeightsError
from pspnet.evaluation.metrics import ConfusionMatrix, Scores
from pspnet.evaluation.protocols.whole import evaluate_whole
from pspnet.models.weights import load_state_strict
from pspnet.system.device import tuned_convolutions
from pspnet.system.signals import StopRequest
from pspnet.training.optimization.optimizer import ExponentialMovingAverage
from pspnet.training.performance.memory import memory_explained
from pspnet.training.performance.prefetch import ahead_on_device
from pspnet.training.results import write_results
from pspnet.training.run_log import RunLog
from pspnet.training.setup import Run, build_run, describe_run
from pspnet.training.state.checkpoint import BEST_NAME, LAST_NAME, load_checkpoint, save_checkpoint
from pspnet.training.state.position import Outcome, Position
from pspnet.training.state.resume import check_same_run, find_checkpoint, load_run_state, take_best_along

_TRAINING_MEMORY = "Train with {}, a smaller --crop_size, or --gradient_checkpointing True."
_VALIDATION_MEMORY = "Validate with a smaller --validation_mini_batch_size; images count at their full size there."


class Trainer:
    """A run in progress. Nothing global: all it works with is in `run`."""

    def __init__(self, run: Run, log: RunLog, stop: StopRequest) -> None:
        self.run = run
        self.log = log
        self.stop = stop
        self.config = run.config
        self.position = Position()
        self.best_epoch: int | None = None
        self.best_counts: torch.Tensor | None = None
        self.history: list[dict[str, float]] = []
        self._started = time.monotonic()
        self._loss = math.nan  # of the last step that was taken in

    def fit(self) -> bool:
        """Train and validate until the last epoch or an early stop; False if a signal asked to stop before."""
        while self.position.epoch <= self.config.epochs:
            if not self._train_epoch():
                self._save_last()
                return False
            if self._validation_due() and not self.position.validated:
                confusion = self._validate()
                if confusion is None:
                    self._save_last()
                    return False
                if self._record_validation(confusion):
                    self._finish_epoch(last=True)
                    return True
            self._finish_epoch()
        return True

    def _train_epoch(self) -> bool:
        """Train on what is left of the epoch; False if a signal came."""
        run, position = self.run, self.position
        steps = run.steps_per_epoch
        run.sampler.set_position(position.epoch, position.batch)
        run.model.train()
        self.log.start_epoch(position.epoch, self.config.epochs, steps, position.batch // self.config.accumulate_steps)
        started, first, stopped = time.monotonic(), position.step, False
        # Shared statistics are those of whole mini-batches: they cannot be cut.
        less = "a smaller --mini_batch_size" if self.config.syncbn else "--micro_batch_size auto"
        advice = _TRAINING_MEMORY.format(less)
        with tuned_convolutions(not self.config.deterministic), memory_explained(advice):
            for batches in self._step_batches():
                rate = run.schedule.apply(run.step.optimizer, position.step)
                run.step(batches, position.step, run.network, self.stop)
                position.step += 1
                position.batch += len(batches)
                logged = position.step % self.config.log_every == 0
                due = bool(self.config.checkpoint_every) and position.step % self.config.checkpoint_every == 0
                stopped = self._take_in(wait=logged or due)
                images_per_second = (position.step - first) * run.images_per_step / (time.monotonic() - started)
                self._log_step(rate, images_per_second)
                if stopped:
                    break
                if due:
                    self._save_last()
            stopped = self._take_in(wait=True) or stopped
        self.log.end_epoch()
        if stopped:
            return False
        if position.loss_steps and not position.validated:
            self._log_epoch(rate_now=run.schedule.rate(max(0, position.step - 1)), started=started, first=first)
        return True

    def _take_in(self, wait: bool) -> bool:
        """Count what came of the steps before, see `TrainingStep.take_in`; True if a process wants to stop.

        Nothing is saved or scored before every step is taken in: one of them may have spoilt the weights.
        """
        outcomes = self.run.step.take_in(wait)
        for outcome in outcomes:
            self.position.loss_sum += outcome.loss
            self.position.loss_steps += 1
            self._loss = outcome.loss
        return any(outcome.stop for outcome in outcomes)

    def _step_batches(self) -> Iterator[list[Batch]]:
        """The mini-batches of each optimizer step; the last step of an epoch takes what is left."""
        run, group = self.run, []
        left = run.batches_per_epoch - self.position.batch
        if left <= 0:
            return
        batches = itertools.islice(load_batches(run.train_loader), left)
        for batch in ahead_on_device(batches, run.device, self.config.channels_last):
            group.append(batch)
            left -= 1
            if len(group) == self.config.accumulate_steps or left == 0:
                yield group
                group = []

    def _log_step(self, rate: float, images_per_second: float) -> None:
        position, steps, loss = self.position, self.run.steps_per_epoch, self._loss
        number = -(-position.batch // self.config.accumulate_steps)
        self.log.step(loss=f"{loss:.4f}", rate=f"{rate:.2e}")
        if position.step % self.config.log_every:
            return
        if not self.log.bar_wanted:
            self.log.line(
                f"epoch={position.epoch} step={number}/{steps} loss={loss:.4f} learning_rate={rate:.3e} "
                f"images_per_second={images_per_second:.2f}"
            )
        self.log.record(position.step, position.epoch, loss=loss, learning_rate=rate)

    def _log_epoch(self, rate_now: float, started: float, first: int) -> None:
        position = self.position
        loss = position.loss_sum / position.loss_steps
        elapsed = time.monotonic() - started
        values = {"train:loss": loss}
        if position.step > first:
            values["train:throughput"] = (position.step - first) * self.run.images_per_step / elapsed
        words = " ".join(f"{name}={value:.4f}" for name, value in values.items())
        self.log.line(f"epoch={position.epoch} {words} learning_rate={rate_now:.3e}")
        self.log.record(position.step, position.epoch, **values)
        # Said once: a run that is stopped while it validates does not say it again when it goes on.
        position.loss_sum, position.loss_steps = 0.0, 0

    def _stop_asked(self) -> bool:
        return self.run.processes.any(bool(self.stop), self.run.device)

    def _validation_due(self) -> bool:
        return self.position.epoch % self.config.validate_every == 0 or self.position.epoch == self.config.epochs

    def _validate(self) -> ConfusionMatrix | None:
        """The confusion matrix over the whole validation channel, all processes together; None if a signal came."""
        run = self.run
        with run.averaged_weights(), memory_explained(_VALIDATION_MEMORY):
            # Batch norm's statistics are each process's own; the ones that are saved must be the ones that are scored.
            run.processes.copy_from_main(run.network.buffers())
            confusion = evaluate_whole(
                run.network,
                self._until_stopped(load_batches(run.validation_loader)),
                self.config.num_classes,
                run.device,
                run.precision.autocast_dtype,
                self.config.channels_last,
            )
        # Every process takes part in this sum, also one that a signal cut short, or the others would wait for ever.
        if self._stop_asked():
            return None
        confusion.counts = run.processes.sum(confusion.counts)
        return confusion

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self.stop:
                return
            yield batch

    def _record_validation(self, confusion: ConfusionMatrix) -> bool:
        """Log the scores and keep the model if it is the best so far; True if early stopping says to end."""
        scores, position = confusion.scores(), self.position
        position.validated = True
        self.log.line(
            f"epoch={position.epoch} validation:mIOU={scores.mIOU:.4f} "
            f"validation:pixel_accuracy={scores.pixel_accuracy:.4f}"
        )
        values = {"validation:mIOU": scores.mIOU, "validation:pixel_accuracy": scores.pixel_accuracy}
        self.log.record(position.step, position.epoch, **values)
        self.history.append({"epoch": float(position.epoch), **values})
        best = None if self.best_counts is None else Scores.from_counts(self.best_counts.numpy())
        if best is None or scores.mIOU > best.mIOU:
            self.best_epoch, self.best_counts = position.epoch, confusion.counts.cpu()
            self._save_best()
        if self.run.early_stopping is None:
            return False
        ended = self.run.early_stopping.should_stop(position.epoch, scores.mIOU)
        if ended:
            self.log.line(
                f"Early stopping after epoch {position.epoch}: no mIoU gain for "
                f"{self.run.early_stopping.epochs_without_gain} epochs."
            )
        return ended

    def _finish_epoch(self, last: bool = False) -> None:
        position = self.position
        self.position = Position(
            epoch=self.config.epochs + 1 if last else position.epoch + 1, step=position.step, seconds=position.seconds
        )
        self._save_last()

    def _save_best(self) -> None:
        if not self.run.processes.is_main:
            return
        with self.run.averaged_weights():
            save_checkpoint(
                self.run.checkpoint_dir / BEST_NAME,
                {"model": self.run.network.state_dict(), "epoch": self.best_epoch, "counts": self.best_counts},
            )

    def _save_last(self) -> None:
        self.position.seconds += time.monotonic() - self._started
        self._started = time.monotonic()
        if not self.run.processes.is_main:
            return
        save_checkpoint(self.run.checkpoint_dir / LAST_NAME, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on from here."""
        early = self.run.early_stopping
        return {
            "config": self.config.to_json(),
            "train_images": len(self.run.data.train),
            "model": self.run.network.state_dict(),
            "step": self.run.step.state_dict(),
            "position": vars(self.position),
            "early_stopping": None if early is None else early.state_dict(),
            "best_epoch": self.best_epoch,
            "best_counts": self.best_counts,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any], source: Path) -> None:
        """Go on from a checkpoint's state; WeightsError if its weights are another architecture's."""
        load_state_strict(self.run.network, state["model"], str(source))
        self.run.step.load_state_dict(state["step"])
        if self.run.step.ema is not None and state["step"]["ema"] is None:
            # The average is new in this run: it begins at the checkpoint's weights, not at the random ones before.
            self.run.step.ema = ExponentialMovingAverage(self.run.network, self.config.ema_decay)
        self.position = Position(**state["position"])
        if self.run.early_stopping is not None and state["early_stopping"] is not None:
            self.run.early_stopping.load_state_dict(state["early_stopping"])
        self.best_epoch, self.best_counts = state["best_epoch"], state["best_counts"]
        self.history = state["history"]


def train(config: Config, stop: StopRequest | None = None) -> Outcome:
    """Train, validate and save as `config` says.

    Writes checkpoints to checkpoint_dir, the best model to model_dir, and scores, curves and pictures to output_dir.
    A stop that was asked for leaves a checkpoint, and the best model so far if there is one.

    Raises PspnetError subclasses for what a user can mend and OSError where a folder cannot be written.
    """
    run = build_run(config)
    try:
        source = find_checkpoint(config.resume, run.checkpoint_dir)
        state, notes = (None, []) if source is None else _state_of_this_run(run, source)
        # Only now, when nothing speaks against going on, may files of an earlier run be written to.
        log = RunLog(
            Path(config.output_dir),
            silent=not run.processes.is_main,
            bar={"bar": True, "lines": False}.get(config.progress),
            tensorboard=config.tensorboard,
            resume_step=None if state is None else state["position"]["step"],
        )
        try:
            with StopRequest() if stop is None else stop as stop:
                describe_run(run, log)
                trainer = Trainer(run, log, stop)
                if state is not None and source is not None:
                    trainer.load_state_dict(state, source)
                    _announce_resume(trainer, source, notes)
                outcome = _conclude(trainer, finished=trainer.fit())
                # torchrun ends a machine's processes soon after the first of them, and the main one was still writing.
                run.processes.barrier()
                return outcome
        finally:
            log.close()
    finally:
        run.processes.shutdown()


def _state_of_this_run(run: Run, source: Path) -> tuple[dict[str, Any], list[str]]:
    """The state to go on from, and what is different from then; WeightsError if it belongs to another run."""
    state = load_run_state(source)
    notes = check_same_run(state["config"], run.config.to_json(), state["train_images"], len(run.data.train), source)
    lost = take_best_along(state, source, run.checkpoint_dir, copy=run.processes.is_main)
    if lost is not None and state["position"]["epoch"] > run.config.epochs:
        raise WeightsError(f"{source}: this run is complete, but {lost}. Train anew with --resume never.")
    return state, [f"resuming with {note}" for note in notes] + ([] if lost is None else [lost])


def _announce_resume(trainer: Trainer, source: Path, notes: list[str]) -> None:
    position, config = trainer.position, trainer.config
    for note in notes:
        trainer.log.line(f"Note: {note}")
    if position.epoch > config.epochs:
        trainer.log.line(
            f"{source}: this run is already complete. Its results are written again; to train anew use --resume never."
        )
    else:
        trainer.log.line(f"Resuming from {source}: epoch {position.epoch}, step {position.step}.")


def _conclude(trainer: Trainer, finished: bool) -> Outcome:
    """Put the best weights into the model directory and say what came out."""
    run, log = trainer.run, trainer.log
    exit_code = 0 if finished else trainer.stop.exit_code
    if not finished:
        log.line(f"Stopped. Checkpoint: {run.checkpoint_dir / LAST_NAME}. The same command goes on from it.")
    if trainer.best_counts is None:
        return Outcome(exit_code, history=trainer.history)
    if run.processes.is_main:
        best = load_checkpoint(run.checkpoint_dir / BEST_NAME)
        load_state_strict(run.network, best["model"], str(run.checkpoint_dir / BEST_NAME))
        write_results(run, log, best["counts"].numpy(), best["epoch"], trainer.position.seconds, trainer.position.step)
    scores = Scores.from_counts(trainer.best_counts.numpy())
    return Outcome(exit_code, scores, trainer.best_epoch, trainer.history)
