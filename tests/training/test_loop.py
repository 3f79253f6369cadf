"""Complete small training runs: files, log lines, and lossless stop and resume."""

from __future__ import annotations

import io
import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pspnet.artifact.model_directory import load_artifact
from pspnet.config.schema import Config
from pspnet.data.shapes import write_shapes
from pspnet.errors import DataError, NonFiniteLossError, WeightsError
from pspnet.system.signals import StopRequest
from pspnet.training import loop
from pspnet.training.loop import Trainer, train
from pspnet.training.run_log import RunLog
from pspnet.training.setup import build_run
from pspnet.training.state.checkpoint import load_checkpoint, save_checkpoint
from pspnet.training.state.position import Outcome
from pspnet.training.step import TrainingStep

TRAIN_IMAGES = 7
SMALL: dict[str, Any] = {
    "num_classes": 7, "use_pretrained_model": False, "width": 4, "crop_size": 32, "base_size": 64, "epochs": 3,
    "mini_batch_size": 2, "validation_mini_batch_size": 2, "learning_rate": 0.01, "optimizer": "adam", "workers": 0,
    "device": "cpu", "precision": "float32", "progress": "lines", "log_every": 1, "tensorboard": False,
    "sample_images": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=TRAIN_IMAGES, validation=3, size=(64, 48))
    return folder


def small_config(shapes: Path, run: Path, **changes: Any) -> Config:
    """Config of three epochs with all folders in `run`."""
    folders = {"output_dir": str(run), "model_dir": str(run / "model"), "checkpoint_dir": str(run / "checkpoints")}
    return Config(**{**SMALL, "data": str(shapes), **folders, **changes})


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> StopRequest:
    """Return a stop request that arrives during step number `steps` of this process."""
    stop, taken, original = StopRequest(), [0], TrainingStep.__call__

    def step(self: TrainingStep, *arguments: Any) -> torch.Tensor:
        taken[0] += 1
        if taken[0] == steps:
            stop.signal_number = int(signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", step)
    return stop


def tensors_of(state: Any, name: str = "") -> dict[str, Any]:
    """Return all tensors and other values of a nested state by path."""
    if isinstance(state, dict):
        items = list(state.items())
    elif isinstance(state, (list, tuple)):
        items = list(enumerate(state))
    else:
        return {name: state}
    return {path: value for key, item in items for path, value in tensors_of(item, f"{name}/{key}").items()}


def assert_same_run(first: Path, second: Path) -> None:
    """Assert bit-identical checkpoints, models, scores and records of two runs, except for folders and times."""
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (load_checkpoint(run / "checkpoints" / name) for run in (first, second))
        for state in (one, other):
            state.pop("config", None)
            state.get("position", {}).pop("seconds", None)
        one, other = tensors_of(one), tensors_of(other)
        assert list(one) == list(other)
        differing = [
            path
            for path in one
            if not (torch.equal(one[path], other[path]) if torch.is_tensor(one[path]) else one[path] == other[path])
        ]
        assert differing == []
    assert (first / "model" / "model.safetensors").read_bytes() == (second / "model" / "model.safetensors").read_bytes()
    assert (first / "metrics.json").read_bytes() == (second / "metrics.json").read_bytes()
    records = []
    for run in (first, second):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        records.append([{key: line[key] for key in line if key != "train:throughput"} for line in lines])
    assert records[0] == records[1]


def test_run_writes_model_scores_curves_and_pictures(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, tmp_path, epochs=2, class_names="shapes", sample_images=2, tensorboard=True)
    outcome = train(config)
    assert outcome.exit_code == 0
    assert [entry["epoch"] for entry in outcome.history] == [1, 2]

    artifact = load_artifact(tmp_path / "model")
    assert artifact.class_names == ("background", "disc", "square", "triangle", "ring", "cross", "star")
    assert artifact.training["epoch"] == outcome.best_epoch
    assert artifact.training["steps"] == 8
    assert artifact.training["config"] == {**config.to_json(), "contract_dilation": False, "dilate_both": True}

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert artifact.scores == metrics
    assert list(metrics) == [
        "mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "per_class_iou", "pixels", "images",
    ]  # fmt: skip
    assert outcome.scores is not None
    assert metrics["mIOU"] == outcome.scores.mIOU == max(entry["validation:mIOU"] for entry in outcome.history)
    assert list(metrics["per_class_iou"]) == list(artifact.class_names)
    assert metrics["images"] == 3
    masks = [np.asarray(Image.open(path)) for path in (shapes / "validation_annotation").glob("*.png")]
    assert metrics["pixels"] == sum(int((mask != 255).sum()) for mask in masks)

    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (4 * 324 + 4, 16 + 2 * 240 + 3 * 4)
    check_tensorboard(tmp_path / "tensorboard", steps=8)
    assert f"Pictures: {tmp_path / 'samples.png'}" in capsys.readouterr().out


def check_tensorboard(folder: Path, steps: int) -> None:
    """Check scalars under the names of metrics.jsonl, and a strip of four pictures per sample image."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert {"train/loss", "validation/mIOU", "validation/pixel_accuracy", "loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == list(range(1, steps + 1))
    assert sorted(events.Tags()["images"]) == ["validation/0", "validation/1"]
    (picture,) = events.Images("validation/1")
    assert (picture.width, picture.height, picture.step) == (4 * 64, 48, steps)
    assert np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))).shape == (48, 4 * 64, 3)


def test_log_lines_match_the_metric_definitions(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_config(shapes, tmp_path, epochs=2, log_every=3))
    lines = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d{4}"
    for epoch in (1, 2):
        pattern = rf"epoch={epoch} train:loss={number} train:throughput={number} learning_rate=\d\.\d{{3}}e-\d\d"
        assert len([line for line in lines if re.fullmatch(pattern, line)]) == 1
        pattern = rf"epoch={epoch} validation:mIOU=0\.\d{{4}} validation:pixel_accuracy=0\.\d{{4}}"
        assert len([line for line in lines if re.fullmatch(pattern, line)]) == 1
    steps = [
        re.match(rf"epoch=(\d) step=(\d)/4 loss={number} learning_rate=\S+ images_per_second=", line) for line in lines
    ]
    assert [match.groups() for match in steps if match] == [("1", "3"), ("2", "2")]
    assert lines[0].startswith("PSPNet resnet-50, 7 classes, 0.2 M parameters, on CPU with ")
    assert lines[1] == "7 training and 3 validation images; 2 epochs of 4 steps, 2 images each, crop 32"

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    kinds = [(record["step"], record["epoch"], sorted(set(record) - {"step", "epoch"})[0]) for record in records]
    assert kinds == [
        (3, 1, "learning_rate"), (4, 1, "train:loss"), (4, 1, "validation:mIOU"),
        (6, 2, "learning_rate"), (8, 2, "train:loss"), (8, 2, "validation:mIOU"),
    ]  # fmt: skip


def test_progress_bar_leaves_the_log_lines_on_standard_output(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_config(shapes, tmp_path, epochs=1, progress="bar"))
    captured = capsys.readouterr()
    assert "epoch 1/1" in captured.err
    assert re.search(r"^epoch=1 train:loss=", captured.out, re.MULTILINE)
    assert re.search(r"^epoch=1 validation:mIOU=", captured.out, re.MULTILINE)
    assert "step=1/4" not in captured.out


# All stateful features are on; batches of one image, and a last step of a single batch.
STATEFUL: dict[str, Any] = {
    "mini_batch_size": 1, "accumulate_steps": 2, "ema_decay": 0.9, "early_stopping": True,
    "early_stopping_min_epochs": 1, "early_stopping_patience": 9, "clip_grad_norm": 1.0, "head_lr_multiplier": 2.0,
    "warmup_epochs": 0.5, "rotation": 10.0, "blur": 0.5, "learning_rate": 0.003, "log_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module", params=["adam", "rmsprop"])
def uninterrupted(
    request: pytest.FixtureRequest, shapes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Return an optimizer and the folder of an uninterrupted run with it."""
    run = tmp_path_factory.mktemp(request.param)
    outcome = train(small_config(shapes, run, optimizer=request.param, **STATEFUL))
    assert outcome.exit_code == 0
    assert len(outcome.history) == 3
    return request.param, run


def resume(config: Config) -> Outcome:
    outcome = train(config)
    assert outcome.exit_code == 0
    return outcome


@pytest.mark.slow
def test_resume_after_an_epoch_is_bit_identical(
    shapes: Path, tmp_path: Path, uninterrupted: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer, expected = uninterrupted
    config = small_config(shapes, tmp_path, optimizer=optimizer, **STATEFUL)
    original = Trainer._finish_epoch

    def killed_afterwards(self: Trainer, last: bool = False) -> None:
        original(self, last)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_finish_epoch", killed_afterwards)
        train(config)
    resume(config)
    assert_same_run(expected, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 6])
def test_resume_from_within_an_epoch_is_bit_identical(
    shapes: Path,
    tmp_path: Path,
    uninterrupted: tuple[str, Path],
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Four steps per epoch: stop after the first one, at the end of an epoch, and after a best model exists."""
    optimizer, expected = uninterrupted
    config = small_config(shapes, tmp_path, optimizer=optimizer, **STATEFUL)
    with monkeypatch.context() as patch:
        outcome = train(config, stop_after(patch, steps))
    assert outcome.exit_code == 143
    assert (tmp_path / "model").joinpath("model.safetensors").is_file() == (steps > 4)
    last = tmp_path / "checkpoints" / "last.safetensors"
    assert f"Stopped. Checkpoint: {last}. The same command resumes from it." in capsys.readouterr().out
    assert load_checkpoint(last)["position"]["step"] == steps
    resume(config)
    epoch = 1 if steps <= 4 else 2
    assert f"Resuming from {last}: epoch {epoch}, step {steps}.\n" in capsys.readouterr().out
    assert_same_run(expected, tmp_path)


@pytest.mark.slow
def test_resume_after_a_stop_while_validating_is_bit_identical(
    shapes: Path,
    tmp_path: Path,
    uninterrupted: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    optimizer, expected = uninterrupted
    config = small_config(shapes, tmp_path, optimizer=optimizer, **STATEFUL)
    stop, original, seen = StopRequest(), loop.evaluate_whole, []

    def interrupted(model: Any, batches: Any, *arguments: Any) -> Any:
        def watched() -> Any:
            for batch in batches:
                seen.append(batch)
                stop.signal_number = int(signal.SIGINT)
                yield batch

        return original(model, watched(), *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_whole", interrupted)
        outcome = train(config, stop)
    assert outcome.exit_code == 130
    assert len(seen) == 1, "the rest of the validation images should not be scored"
    assert outcome.history == []
    resume(config)
    lines = re.findall(r"^epoch=1 train:loss", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == 1, "the epoch's loss should be reported once"
    assert_same_run(expected, tmp_path)


def test_signal_of_another_process_counts_as_sigterm() -> None:
    assert StopRequest().exit_code == 143


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_result(shapes: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        run = tmp_path / str(workers)
        train(small_config(shapes, run, epochs=2, workers=workers, max_steps_per_epoch=2))
    assert_same_run(tmp_path / "0", tmp_path / "2")


@pytest.mark.slow
def test_resumed_optimizer_state_has_the_memory_layout_of_its_parameters(shapes: Path, tmp_path: Path) -> None:
    """Files do not store the layout; fused updates on a GPU need the parameter's layout."""
    config = small_config(shapes, tmp_path, epochs=1)
    train(config)
    source = tmp_path / "checkpoints" / "last.safetensors"
    run = build_run(config)
    state = load_checkpoint(source)
    Trainer(run, RunLog(tmp_path, silent=True), StopRequest()).load_state_dict(state, source)
    kernels = 0
    for parameter, values in run.step.optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert values[name].stride() == parameter.stride()
        if parameter.dim() == 4:
            kernels += parameter.is_contiguous(memory_format=torch.channels_last) and not parameter.is_contiguous()
    assert kernels > 10


@pytest.mark.slow
def test_resume_with_other_settings_is_rejected_and_changes_no_file(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    pattern = (
        r"last\.safetensors: this checkpoint belongs to another run: mini_batch_size was 2 and is now 3; "
        r"optimizer was adam and is now sgd; seed was 0 and is now 5\. .* --name, or start again with --resume never"
    )
    with pytest.raises(WeightsError, match=pattern):
        train(config.replace(optimizer="sgd", mini_batch_size=3, seed=5))
    with pytest.raises(WeightsError, match="the train channel had 7 images and now has 4"):
        train(config.replace(max_train_images=4))
    with pytest.raises(WeightsError, match="width was 4 and is now 8"):
        train(config.replace(width=8))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_settings_that_may_change_are_logged(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config)
    outcome = train(config.replace(epochs=2, learning_rate=0.005, ema_decay=0.5, log_every=2))
    out = capsys.readouterr().out
    assert "Note: resuming with epochs=2 (the checkpoint had 1)\n" in out
    assert "Note: resuming with learning_rate=0.005 (the checkpoint had 0.01)\n" in out
    assert "log_every=" not in out
    assert [entry["epoch"] for entry in outcome.history] == [1, 2]


@pytest.mark.slow
def test_a_new_average_on_resume_starts_at_the_checkpoints_weights(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config)
    path = tmp_path / "checkpoints" / "last.safetensors"
    weights = load_checkpoint(path)["model"]
    train(config.replace(epochs=2, max_steps_per_epoch=0, learning_rate=1e-12, ema_decay=0.99))
    shadow = load_checkpoint(path)["step"]["ema"]["shadow"]
    for name, value in weights.items():
        if name.endswith("weight"):
            assert torch.allclose(shadow[name], value, atol=1e-6), name


def test_resume_of_a_complete_run_writes_its_results_again(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, tmp_path, epochs=2)
    first = train(config)
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "metrics.json").unlink()
    capsys.readouterr()
    second = train(config)
    out = capsys.readouterr().out
    assert "this run is already complete. Its results are written again; use --resume never to train again." in out
    assert "epoch=" not in out
    assert second == first
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "metrics.json").read_text())["mIOU"] == first.scores.mIOU


@pytest.mark.slow
def test_resume_never_starts_a_new_run(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    first = train(config)
    capsys.readouterr()
    assert train(config.replace(resume="never")) == first
    assert "Resuming" not in capsys.readouterr().out
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4 + 2


@pytest.mark.slow
def test_resume_from_a_path_copies_the_best_weights(shapes: Path, tmp_path: Path) -> None:
    first = train(small_config(shapes, tmp_path / "a", epochs=2))
    source = tmp_path / "a" / "checkpoints" / "last.safetensors"
    # The rate is too low for a gain: the best epoch stays one of the first run.
    other = small_config(shapes, tmp_path / "b", epochs=3, resume=str(source), learning_rate=1e-12)
    outcome = train(other)
    assert outcome.best_epoch == first.best_epoch
    models = [load_file(str(tmp_path / run / "model" / "model.safetensors")) for run in "ab"]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.slow
def test_lost_best_weights_are_reported_before_training(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config)
    best = tmp_path / "checkpoints" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"this run is complete, but the best weights so far are lost.*damaged"):
        train(config)
    best.unlink()
    outcome = train(config.replace(epochs=2))
    assert (
        "Note: the best weights so far are lost, and the best is chosen among later epochs" in capsys.readouterr().out
    )
    assert outcome.best_epoch == 2
    assert load_artifact(tmp_path / "model").training["epoch"] == 2


def test_checkpoints_that_cannot_be_resumed_from(shapes: Path, tmp_path: Path) -> None:
    config = small_config(shapes, tmp_path, epochs=1)
    train(config)
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(
        WeightsError, match=r"best\.safetensors: holds the best weights .* Resume from last\.safetensors"
    ):
        train(config.replace(resume=str(checkpoints / "best.safetensors")))
    with pytest.raises(WeightsError, match=r"not a checkpoint of this program .*pass it with `--model`"):
        train(config.replace(resume=str(tmp_path / "model" / "model.safetensors")))
    with pytest.raises(WeightsError, match="no such checkpoint"):
        train(config.replace(resume=str(tmp_path / "other")))
    last = checkpoints / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"last\.safetensors: the checkpoint is damaged or truncated"):
        train(config)


@pytest.mark.slow
def test_best_and_last_are_both_kept(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the second of three epochs as the best one, the model directory contains its weights."""
    weights = {}
    original = Trainer._validate

    def scripted(self: Trainer) -> Any:
        confusion = original(self)
        hits = {1: 5, 2: 9, 3: 7}[self.position.epoch]
        confusion.counts = torch.tensor([[hits, 10 - hits], [10 - hits, hits]])
        weights[self.position.epoch] = {name: value.clone() for name, value in self.run.network.state_dict().items()}
        return confusion

    monkeypatch.setattr(Trainer, "_validate", scripted)
    outcome = train(small_config(shapes, tmp_path))
    assert outcome.best_epoch == 2
    assert [round(entry["validation:mIOU"], 4) for entry in outcome.history] == [0.3333, 0.8182, 0.5385]
    best = load_checkpoint(tmp_path / "checkpoints" / "best.safetensors")
    last = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    model = load_file(str(tmp_path / "model" / "model.safetensors"))
    for name in weights[2]:
        assert torch.equal(best["model"][name], weights[2][name])
        assert torch.equal(model[name], weights[2][name])
        assert torch.equal(last["model"][name], weights[3][name])
    assert not all(torch.equal(best["model"][name], last["model"][name]) for name in best["model"])
    assert last["best_epoch"] == 2
    assert last["position"]["epoch"] == 4


@pytest.mark.slow
def test_early_stopping_ends_the_run(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Trainer._validate

    def falling(self: Trainer) -> Any:
        confusion = original(self)
        hits = 10 - self.position.epoch
        confusion.counts = torch.tensor([[hits, 10 - hits], [10 - hits, hits]])
        return confusion

    monkeypatch.setattr(Trainer, "_validate", falling)
    config = small_config(
        shapes, tmp_path, epochs=9, early_stopping=True, early_stopping_min_epochs=2, early_stopping_patience=2
    )
    outcome = train(config)
    assert outcome.exit_code == 0
    assert [entry["epoch"] for entry in outcome.history] == [1, 2, 3]
    assert outcome.best_epoch == 1
    assert "Early stopping after epoch 3: no mIoU gain for 2 epochs.\n" in capsys.readouterr().out
    assert train(config).history == outcome.history, "a run that stopped early is complete"

    again = config.replace(checkpoint_dir=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        assert train(again, stop_after(patch, 2 * 4 + 1)).exit_code == 143
    assert train(again).history == outcome.history, "counting epochs without gain continues after a stop"


@pytest.mark.slow
def test_validate_every_counts_epochs_and_includes_the_last(shapes: Path, tmp_path: Path) -> None:
    outcome = train(small_config(shapes, tmp_path, epochs=5, validate_every=2, max_steps_per_epoch=1))
    assert [entry["epoch"] for entry in outcome.history] == [2, 4, 5]


@pytest.mark.slow
def test_limits_for_trial_runs(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(
        shapes, tmp_path, epochs=2, max_steps_per_epoch=2, max_train_images=5, max_validation_images=1
    )
    outcome = train(config)
    out = capsys.readouterr().out
    assert "5 training and 1 validation images; 2 epochs of 2 steps" in out
    assert len(re.findall(r"^epoch=\d step=", out, re.MULTILINE)) == 4
    assert load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")["position"]["step"] == 4
    assert outcome.scores.pixels <= 64 * 48


@pytest.mark.slow
def test_last_batch_of_one_image_and_images_smaller_than_the_crop(shapes: Path, tmp_path: Path) -> None:
    """7 images in batches of 3, crops of 96 from images of 64 x 48."""
    config = small_config(shapes, tmp_path, epochs=1, mini_batch_size=3, crop_size=96, output_stride=16)
    assert train(config).exit_code == 0
    assert load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")["position"]["step"] == 3


@pytest.mark.slow
def test_checkpoints_within_an_epoch(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = []

    def noted(path: Path, state: dict[str, Any]) -> None:
        if path.name == "last.safetensors":
            positions.append((state["position"]["epoch"], state["position"]["batch"]))
        save_checkpoint(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", noted)
    train(small_config(shapes, tmp_path, epochs=1, mini_batch_size=1, checkpoint_every=3))
    assert positions == [(1, 3), (1, 6), (2, 0)]


@pytest.mark.slow
def test_averaged_weights_are_scored_and_saved(shapes: Path, tmp_path: Path) -> None:
    train(small_config(shapes, tmp_path, epochs=1, ema_decay=0.9))
    last = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    model = load_file(str(tmp_path / "model" / "model.safetensors"))
    shadow = last["step"]["ema"]["shadow"]
    assert last["step"]["ema"]["steps"] == 4
    assert all(torch.equal(model[name], shadow[name]) for name in model)
    name = "head.classifier.weight"
    assert not torch.equal(shadow[name], last["model"][name])
    assert torch.equal(shadow["head.bn.running_mean"], last["model"]["head.bn.running_mean"])


@pytest.mark.slow
def test_four_images_are_overfitted(tmp_path: Path) -> None:
    """Four images without augmentation are memorised."""
    write_shapes(tmp_path / "four", train=4, validation=1, size=(96, 72))
    images, masks = str(tmp_path / "four" / "train"), str(tmp_path / "four" / "train_annotation")
    channels = {"train": images, "train_annotation": masks, "validation": images, "validation_annotation": masks}
    config = small_config(
        tmp_path, tmp_path, data=None, **channels, epochs=120, mini_batch_size=4, crop_size=96, base_size=96,
        scale_min=1, scale_max=1, flip=0, dropout=0, head_lr_multiplier=3, validate_every=120, log_every=1000,
    )  # fmt: skip
    outcome = train(config)
    assert outcome.scores.pixel_accuracy > 0.95
    assert outcome.scores.mIOU > 0.8


def test_a_non_finite_loss_names_the_files_and_keeps_the_checkpoint(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(shapes, tmp_path, epochs=2)
    broken: list[str] = []
    original = TrainingStep._backward

    def poisoned(self: TrainingStep, batch: Any, weight: torch.Tensor) -> torch.Tensor:
        loss = original(self, batch, weight)
        if self.optimizer.state and next(iter(self.optimizer.state.values()))["step"] >= 6:
            broken.extend(batch.names)
            return loss * float("nan")
        return loss

    monkeypatch.setattr(TrainingStep, "_backward", poisoned)
    with pytest.raises(
        NonFiniteLossError, match=r"The loss is nan; training stopped before the optimizer step\."
    ) as caught:
        train(config)
    assert len(broken) == 2
    assert all(name in str(caught.value) for name in broken)
    assert "Lower learning_rate, set clip_grad_norm" in str(caught.value)
    state = load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")
    assert (state["position"]["epoch"], state["position"]["step"]) == (2, 4)
    assert all(torch.isfinite(value).all() for value in state["model"].values())


@pytest.mark.slow
def test_a_broken_training_file_keeps_the_checkpoint(shapes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("train", "train_annotation", "validation", "validation_annotation"):
        (data / folder).mkdir(parents=True)
        for path in (shapes / folder).iterdir():
            (data / folder / path.name).write_bytes(path.read_bytes())
    config = small_config(data, tmp_path / "run", epochs=2, workers=1)
    stopped = StopRequest()
    stopped.signal_number = int(signal.SIGTERM)
    assert train(config, stopped).exit_code == 143
    for image in (data / "train").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train_\d+\.jpg: not a readable image .*Replace or remove the file"):
        train(config)
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")["position"]["step"] == 1


@pytest.mark.slow
def test_incremental_training_starts_from_the_model_channel(shapes: Path, tmp_path: Path) -> None:
    train(small_config(shapes, tmp_path / "first", epochs=1))
    model = tmp_path / "first" / "model"
    config = small_config(shapes, tmp_path / "second", epochs=1, model=str(model), seed=9, learning_rate=1e-12)
    train(config)
    first, second = (
        load_file(str(model / "model.safetensors")),
        load_file(str(tmp_path / "second" / "model" / "model.safetensors")),
    )
    for name in first:
        if name.endswith("weight"):
            assert torch.allclose(first[name], second[name], atol=1e-6), name


@pytest.mark.slow
def test_model_channel_of_another_architecture_is_rejected(shapes: Path, tmp_path: Path) -> None:
    train(small_config(shapes, tmp_path / "first", epochs=1, max_steps_per_epoch=1))
    model = tmp_path / "first" / "model"
    config = small_config(shapes, tmp_path / "second", model=str(model), num_classes=9, output_stride=16, aux_weight=0)
    pattern = (
        r"channel model: .* holds another architecture: num_classes is 7 there and 9 here; "
        r"auxiliary_head is True there and False here; output_stride is 8 there and 16 here\. .*leave the model channel"
    )
    with pytest.raises(WeightsError, match=pattern):
        train(config)
    (model / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: the weights file is missing"):
        train(small_config(shapes, tmp_path / "second", model=str(model)))
    with pytest.raises(WeightsError, match="not a model directory"):
        train(small_config(shapes, tmp_path / "second", model=str(shapes)))
    assert not (tmp_path / "second" / "metrics.jsonl").exists()
