"""Resume: the checkpoint to resume from, a check that it belongs to this run, and its best weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pspnet.errors import WeightsError
from pspnet.system.atomic_files import atomic_write
from pspnet.training.state.checkpoint import BEST_NAME, LAST_NAME, load_checkpoint

# Settings that must not change on resume: weights, optimizer state or data position would no longer match.
_FIXED_KEYS = (
    "algorithm", "backbone", "stem", "output_stride", "align_corners", "contract_dilation", "dilations",
    "dilate_both", "width", "num_classes", "aux_weight", "optimizer", "mini_batch_size", "accumulate_steps", "seed",
    "max_train_images", "max_steps_per_epoch",
)  # fmt: skip
# Settings that affect paths and speed, but not the result.
_FREE_KEYS = (
    "name", "model_dir", "output_dir", "checkpoint_dir", "workers", "log_every", "tensorboard", "progress", "resume",
    "sample_images", "data", "train", "train_annotation", "validation", "validation_annotation", "label_map", "model",
    "checkpoint_every", "validation_mini_batch_size", "gradient_checkpointing", "cache_images", "cache_limit_gb",
    "cache_dir",
)  # fmt: skip


def find_checkpoint(resume: str, checkpoint_dir: Path) -> Path | None:
    """Return the checkpoint that the setting `resume` (auto, never or a path) selects; None for a new run."""
    if resume == "never":
        return None
    if resume == "auto":
        path = checkpoint_dir / LAST_NAME
        return path if path.is_file() else None
    return Path(resume)


def load_run_state(path: Path) -> dict[str, Any]:
    """Load the state of a run; WeightsError also for a weights-only checkpoint such as the best one."""
    state = load_checkpoint(path)
    if "position" not in state:
        raise WeightsError(
            f"{path}: holds the best weights of a run, but not the state to resume from. Resume from {LAST_NAME} in "
            "that folder, or start a new run from the finished model directory with --model."
        )
    return state


def check_same_run(
    before: dict[str, Any], now: dict[str, Any], images_before: int, images_now: int, source: Path
) -> list[str]:
    """Return a note for each setting that changed; WeightsError for one that must not change.

    Args:
        before, now: the settings of the checkpoint and of this run, by key.
        images_before, images_now: the length of the train channel.
    """
    # Missing in older checkpoints.
    before = {"contract_dilation": False, "dilate_both": True, "tf32": True, **before}
    differing = [key for key in now if key not in _FREE_KEYS and before.get(key) != now[key]]
    wrong = [f"{key} was {before.get(key)} and is now {now[key]}" for key in differing if key in _FIXED_KEYS]
    if images_before != images_now:
        wrong.append(f"the train channel had {images_before} images and now has {images_now}")
    if wrong:
        raise WeightsError(
            f"{source}: this checkpoint belongs to another run: {'; '.join(wrong)}. Use the settings of that run, give "
            "this one another --name, or start again with --resume never."
        )
    return [f"{key}={now[key]} (the checkpoint had {before.get(key)})" for key in differing]


def adopt_best_weights(state: dict[str, Any], source: Path, checkpoint_dir: Path, copy: bool) -> str | None:
    """Copy the best weights of the run at `source` to `checkpoint_dir` before training, if they are elsewhere.

    Returns None, or the reason if they cannot be read; the best epoch is then removed from the state.

    Args:
        copy: True in the process that writes files.
    """
    if state["best_counts"] is None:
        return None
    best = source.with_name(BEST_NAME)
    try:
        load_checkpoint(best)
    except WeightsError as error:
        state["best_epoch"] = state["best_counts"] = None
        return f"the best weights so far are lost, and the best is chosen among later epochs ({error})"
    if copy and best.parent.resolve() != checkpoint_dir.resolve():
        with atomic_write(checkpoint_dir / BEST_NAME) as temporary:
            shutil.copyfile(best, temporary)
    return None
