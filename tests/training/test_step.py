"""Optimizer step: equal to one large batch for any split, and safe for a non-finite loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from pspnet.data.loader import Batch
from pspnet.errors import NonFiniteLossError
from pspnet.models.build import build_model
from pspnet.system.distributed import Processes
from pspnet.system.precision import Precision
from pspnet.training.optimization.ema import ExponentialMovingAverage
from pspnet.training.optimization.losses import build_loss, loss_weight
from pspnet.training.optimization.optimizer import build_optimizer, is_fused, parameter_groups
from pspnet.training.step import TrainingStep

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", None)
BFLOAT16 = Precision("bfloat16", torch.bfloat16)
CLASSES = 4
WEIGHTS = [None, torch.tensor([0.25, 1.0, 2.0, 5.0])]


class Tiny(nn.Module):
    """Two convolutions and an auxiliary output, without batch norm: results are independent of the split."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(6, CLASSES, 1)
        self.auxiliary = nn.Conv2d(6, CLASSES, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.dropout(torch.tanh(self.backbone(images.to(self.head.weight.dtype) / 255)))
        return self.head(features), self.auxiliary(features)


def tiny(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Tiny:
    torch.manual_seed(0)
    return Tiny(dropout).to(dtype)


def make_batch(count: int = 4, size: int = 10, seed: int = 0) -> Batch:
    """Images with different numbers of ignored pixels: 0, 3, 6, ... rows of `size`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, CLASSES, (count, size, size), generator=generator, dtype=torch.uint8)
    for index in range(count):
        targets[index, : 3 * index] = 255
    return Batch(images, targets, [f"image_{index}.jpg" for index in range(count)])


def split_batch(batch: Batch, *sizes: int) -> list[Batch]:
    parts, first = [], 0
    for size in sizes:
        chosen = slice(first, first + size)
        parts.append(Batch(batch.images[chosen], batch.targets[chosen], batch.names[chosen]))
        first += size
    assert first == len(batch.names)
    return parts


def step_of(model: nn.Module, optimizer: str = "sgd", rate: float = 0.1, **settings: Any) -> TrainingStep:
    loss, weights = settings.pop("loss", "cross_entropy"), settings.get("class_weights")
    criterion = build_loss(loss, class_weights=None if weights is None else weights.tolist())
    groups = parameter_groups(model, rate)
    return TrainingStep(
        model,
        criterion,
        build_optimizer(optimizer, groups, rate, momentum=0.0, weight_decay=0.0),
        CPU,
        settings.pop("precision", FLOAT32),
        settings.pop("processes", Processes()),
        **settings,
    )


def weights_after(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


# --- accumulation and data parallelism --------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2), (3, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("class_weights", WEIGHTS)
def test_accumulation_equals_the_large_batch(sizes: tuple[int, ...], class_weights: torch.Tensor | None) -> None:
    batch = make_batch()
    unsplit, in_parts = tiny(), tiny()
    start = weights_after(unsplit)
    loss = step_of(unsplit, class_weights=class_weights)([batch], 0, unsplit)
    parts_loss = step_of(in_parts, class_weights=class_weights)(split_batch(batch, *sizes), 0, in_parts)
    assert (weights_after(unsplit) - start).abs().max() > 1e-4
    torch.testing.assert_close(weights_after(in_parts), weights_after(unsplit), rtol=0, atol=1e-14)
    torch.testing.assert_close(parts_loss, loss, rtol=1e-13, atol=0)


def test_the_loss_is_the_mean_over_all_scored_pixels() -> None:
    batch, model = make_batch(), tiny()
    with torch.no_grad():
        expected = build_loss("cross_entropy")(model(batch.images), batch.targets)
    loss = step_of(model)(split_batch(batch, 3, 1), 0, model)
    assert loss.dtype == torch.float64
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)


def test_a_mini_batch_without_scored_pixels_changes_nothing() -> None:
    batch = make_batch()
    empty = Batch(batch.images, torch.full_like(batch.targets, 255), batch.names)
    alone, with_empty, only_empty = tiny(), tiny(), tiny()
    start = weights_after(alone)
    step_of(alone)([batch], 0, alone)
    step_of(with_empty)([empty, batch], 0, with_empty)
    torch.testing.assert_close(weights_after(with_empty), weights_after(alone), rtol=0, atol=1e-14)
    assert float(step_of(only_empty)([empty], 0, only_empty)) == 0
    assert torch.equal(weights_after(only_empty), start)


@pytest.mark.slow
def test_pspnet_accumulates_exactly_with_fixed_statistics() -> None:
    torch.manual_seed(0)
    unsplit = build_model(CLASSES, width=4).double().eval()  # evaluation mode: no batch statistics, no dropout
    in_parts = copy.deepcopy(unsplit)
    batch = make_batch(count=3, size=32)
    step_of(unsplit, rate=0.01)([batch], 0, unsplit)
    step_of(in_parts, rate=0.01)(split_batch(batch, 2, 1), 0, in_parts)
    torch.testing.assert_close(weights_after(in_parts), weights_after(unsplit), rtol=1e-9, atol=1e-12)


class OneOfTwo(Processes):
    """Process whose only peer's summands are predefined."""

    peer: list[torch.Tensor]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value + self.peer.pop(0).to(value.dtype)


@pytest.mark.parametrize("class_weights", WEIGHTS)
def test_two_processes_equal_one(class_weights: torch.Tensor | None) -> None:
    """Data parallelism averages gradients, and plain SGD is linear in them: the mean of both results must be right."""
    batch = make_batch()
    alone = tiny()
    loss = step_of(alone, class_weights=class_weights)([batch], 0, alone)
    parts = split_batch(batch, 3, 1)
    counts = [loss_weight(part.targets, class_weights) for part in parts]
    own_losses = [build_loss("cross_entropy", class_weights=None if class_weights is None else class_weights.tolist())(
        tiny()(part.images), part.targets).detach() for part in parts]  # fmt: skip
    results, losses = [], []
    for rank in (0, 1):
        other = 1 - rank
        processes = OneOfTwo(rank, 2)
        weight = counts[other] * 2 / sum(counts)
        # Summands in order: the loss weight, then loss, number of non-finite losses and stop requests together.
        sums = torch.tensor([float(own_losses[other] * weight) / 2, 0.0, 0.0], dtype=torch.float64)
        object.__setattr__(processes, "peer", [counts[other], sums])
        model = tiny()
        losses.append(step_of(model, class_weights=class_weights, processes=processes)([parts[rank]], 0, model))
        results.append(weights_after(model))
    torch.testing.assert_close((results[0] + results[1]) / 2, weights_after(alone), rtol=0, atol=1e-14)
    for value in losses:
        torch.testing.assert_close(value, loss, rtol=1e-12, atol=0)


def test_a_non_finite_loss_in_another_process_stops_every_process() -> None:
    processes = OneOfTwo(0, 2)
    object.__setattr__(processes, "peer", [torch.tensor(10.0), torch.tensor([0.0, 1.0, 0.0])])
    model = tiny()
    start = weights_after(model)
    with pytest.raises(NonFiniteLossError, match="in another process; training stopped there"):
        step_of(model, processes=processes)([make_batch()], 0, model)
    assert torch.equal(weights_after(model), start)


# --- clipping ---------------------------------------------------------------------------------------------------------


def test_gradients_are_clipped_to_their_norm() -> None:
    free, clipped, loose = tiny(), tiny(), tiny()
    start = weights_after(free)
    for model, max_norm in ((free, 0.0), (clipped, 0.01), (loose, 1e6)):
        step_of(model, rate=1.0, max_norm=max_norm)([make_batch()], 0, model)
    change, clipped_change = weights_after(free) - start, weights_after(clipped) - start
    assert change.norm() > 0.02
    assert clipped_change.norm() == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(clipped_change / clipped_change.norm(), change / change.norm(), rtol=1e-9, atol=1e-12)
    assert torch.equal(weights_after(loose), weights_after(free))


def test_the_accumulated_gradient_is_clipped_not_its_parts() -> None:
    unsplit, in_parts = tiny(), tiny()
    step_of(unsplit, rate=1.0, max_norm=0.01)([make_batch()], 0, unsplit)
    step_of(in_parts, rate=1.0, max_norm=0.01)(split_batch(make_batch(), 2, 2), 0, in_parts)
    torch.testing.assert_close(weights_after(in_parts), weights_after(unsplit), rtol=0, atol=1e-14)


# --- non-finite loss --------------------------------------------------------------------------------------------------


class Poisoned(Tiny):
    """Returns `poison` as logits for every batch with an all-white image."""

    def __init__(self, poison: float) -> None:
        super().__init__()
        self.poison = poison

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, auxiliary = super().forward(images)
        bad = (images == 255).all(dim=3).all(dim=2).all(dim=1).any()
        return torch.where(bad, torch.full_like(logits, self.poison), logits), auxiliary


@pytest.mark.parametrize(("poison", "shown"), [(math.nan, "nan"), (math.inf, "nan")])
def test_a_non_finite_loss_names_the_files_and_keeps_the_weights(poison: float, shown: str) -> None:
    torch.manual_seed(0)
    model = Poisoned(poison)
    average = ExponentialMovingAverage(model, 0.5)
    step = step_of(model, "adam", ema=average)
    batch = make_batch()
    batch.images[3] = 255
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(
        NonFiniteLossError, match=rf"The loss is {shown}; training stopped before the optimizer step"
    ) as caught:
        step(split_batch(batch, 2, 2), 0, model)
    text = str(caught.value)
    assert "image_2.jpg\n  image_3.jpg\n" in text
    assert "image_0.jpg" not in text  # in the finite mini-batch
    assert "clip_grad_norm" in text
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert step.optimizer.state_dict()["state"] == {}
    assert average.steps == 0
    # The step still works with a finite batch.
    assert math.isfinite(float(step(split_batch(batch, 2, 2)[:1], 1, model)))


def test_an_infinite_loss_stops_too() -> None:
    model = tiny()
    with torch.no_grad():
        model.head.bias[0] = -1e308
        model.head.bias[1] = 1e308
    with pytest.raises(NonFiniteLossError, match=r"The loss is inf"):
        step_of(model)([make_batch(1)], 0, model)


def test_only_the_first_file_names_are_listed() -> None:
    model = Poisoned(math.nan)
    batch = make_batch(12)
    batch.targets[:] = 0
    batch.images[0] = 255
    with pytest.raises(NonFiniteLossError, match=r"image_7\.jpg\n  and 4 more\n") as caught:
        step_of(model)([batch], 0, model)
    assert "image_8.jpg" not in str(caught.value)


# --- deferred steps ---------------------------------------------------------------------------------------------------


def test_a_deferred_step_equals_an_immediate_one() -> None:
    now, later = tiny(), tiny()
    one, other = step_of(now, max_norm=0.01), step_of(later, max_norm=0.01, deferred=True)
    batches = [make_batch(seed=number) for number in range(3)]
    losses = [float(one([batch], number, now)) for number, batch in enumerate(batches)]
    read = []
    for number, batch in enumerate(batches):
        other([batch], number, later, stop=number == 1)
        results = other.drain(wait=False)
        assert len(results) == min(number, 1), "the latest step must not be awaited"
        read += results
    read += other.drain()
    assert [result.loss for result in read] == losses
    assert [result.stop for result in read] == [False, True, False]
    assert [result.loss for result in one.drain(wait=False)] == losses
    assert other.drain() == []
    assert torch.equal(weights_after(later), weights_after(now))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad"])
def test_a_deferred_step_with_a_bad_loss_and_later_steps_are_skipped(optimizer: str) -> None:
    torch.manual_seed(0)
    model = Poisoned(math.nan)
    step = step_of(model, optimizer, deferred=True)
    if not is_fused(step.optimizer):
        pytest.skip("this PyTorch has no fused optimizers here")
    step([make_batch()], 0, model)
    start, bad = weights_after(model), make_batch(seed=1)
    bad.images[3] = 255
    step([bad], 1, model)
    step([make_batch(seed=2)], 2, model)
    assert torch.equal(weights_after(model), start)
    with pytest.raises(NonFiniteLossError, match=r"The loss is nan; training stopped before the optimizer step") as e:
        step.drain()
    assert "image_3.jpg" in str(e.value)


def test_a_deferred_step_without_a_fused_optimizer_reports_that_it_was_not_saved() -> None:
    torch.manual_seed(0)
    model = Poisoned(math.nan)
    step = step_of(model, "rmsprop", deferred=True)
    bad = make_batch()
    bad.images[0] = 255
    step([bad], 0, model)
    with pytest.raises(NonFiniteLossError, match=r"stopped after this step, which was not saved\. The mini"):
        step.drain()


def test_a_deferred_step_reports_a_non_finite_gradient_norm() -> None:
    model = tiny()
    start = weights_after(model)
    model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    step = step_of(model, max_norm=1.0, deferred=True)
    step([make_batch()], 0, model)
    with pytest.raises(NonFiniteLossError, match=r"The norm of the gradient is (inf|nan) although the loss is finite"):
        step.drain()
    if is_fused(step.optimizer):
        assert torch.equal(weights_after(model), start)


# --- micro-batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [1, 2, 3, 4, 9])
def test_micro_batches_equal_the_mini_batch(largest: int) -> None:
    whole, parts = tiny(), tiny()
    loss = step_of(whole)([make_batch()], 0, whole)
    parts_loss = step_of(parts, micro_batch_size=largest)([make_batch()], 0, parts)
    torch.testing.assert_close(weights_after(parts), weights_after(whole), rtol=0, atol=1e-14)
    torch.testing.assert_close(parts_loss, loss, rtol=1e-13, atol=0)


# --- precisions and sizes ---------------------------------------------------------------------------------------------


def pspnet_after_a_step(count: int, precision: Precision, optimizer: str = "sgd") -> tuple[nn.Module, float, float]:
    """A width-4 PSPNet in training mode after one step: the model, the loss and the distance that the weights moved."""
    torch.manual_seed(0)
    model = build_model(CLASSES, width=4).train()
    start = weights_after(model)
    loss = step_of(model, optimizer, rate=0.01, precision=precision)([make_batch(count, 40)], 0, model)
    return model, float(loss), float((weights_after(model) - start).norm())


def test_one_image_is_enough() -> None:
    model, loss, moved = pspnet_after_a_step(1, FLOAT32)
    assert math.isfinite(loss)
    assert moved > 0
    assert all(torch.isfinite(value).all() for value in model.state_dict().values() if value.is_floating_point())


def test_bfloat16_on_a_cpu() -> None:
    model, loss, moved = pspnet_after_a_step(2, BFLOAT16)
    _, exact, exact_move = pspnet_after_a_step(2, FLOAT32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert loss == pytest.approx(exact, rel=0.1)
    assert loss != exact
    assert moved == pytest.approx(exact_move, rel=0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_float16_on_a_gpu() -> None:
    device = torch.device("cuda")
    torch.manual_seed(0)
    model = build_model(CLASSES, width=4).to(device).train()
    optimizer = build_optimizer("sgd", parameter_groups(model, 0.01), 0.01)
    step = TrainingStep(
        model, build_loss("cross_entropy").to(device), optimizer, device, Precision("float16", torch.float16, True),
        Processes(), max_norm=1.0, ema=ExponentialMovingAverage(model, 0.9),
    )  # fmt: skip
    start = weights_after(model)
    losses = [float(step([make_batch(2, 40)], number, model)) for number in range(20)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    assert (weights_after(model) - start).norm() > 0
    assert step.state_dict()["scaler"]["scale"] > 0


# --- randomness and state ---------------------------------------------------------------------------------------------


def test_dropout_depends_only_on_seed_and_step() -> None:
    def result(seed: int, number: int, disturbance: int) -> torch.Tensor:
        model = tiny(dropout=0.5)
        torch.manual_seed(disturbance)
        step_of(model, seed=seed)([make_batch()], number, model)
        return weights_after(model)

    assert torch.equal(result(0, 3, disturbance=1), result(0, 3, disturbance=2))
    assert not torch.equal(result(0, 3, disturbance=1), result(0, 4, disturbance=1))
    assert not torch.equal(result(0, 3, disturbance=1), result(1, 3, disturbance=1))


@pytest.mark.parametrize("optimizer", ["sgd", "nag", "adam", "adagrad", "rmsprop"])
def test_a_restored_step_continues_bit_for_bit(optimizer: str) -> None:
    def build(model: Tiny) -> TrainingStep:
        groups = parameter_groups(model, 0.01, head_lr_multiplier=10.0)
        return TrainingStep(
            model, build_loss("cross_entropy"), build_optimizer(optimizer, groups, 0.01), CPU, FLOAT32, Processes(),
            ema=ExponentialMovingAverage(model, 0.9),
        )  # fmt: skip

    model = tiny(torch.float32)
    step = build(model)
    for number in range(2):
        step([make_batch(seed=number)], number, model)
    saved = copy.deepcopy((model.state_dict(), step.state_dict()))
    step([make_batch(seed=2)], 2, model)

    resumed = Tiny()
    resumed_step = build(resumed)
    resumed.load_state_dict(saved[0])
    resumed_step.load_state_dict(saved[1])
    resumed_step([make_batch(seed=2)], 2, resumed)
    assert torch.equal(weights_after(resumed), weights_after(model))
    assert step.ema is not None
    assert resumed_step.ema is not None
    assert resumed_step.ema.steps == 3
    assert all(torch.equal(value, step.ema.shadow[name]) for name, value in resumed_step.ema.shadow.items())
