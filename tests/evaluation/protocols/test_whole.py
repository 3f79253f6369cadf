"""Whole-image protocol: every image at its own size, independent of the batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pspnet.data.loader import Batch
from pspnet.evaluation.metrics import ConfusionMatrix
from pspnet.evaluation.protocols.whole import evaluate_whole, predict_whole
from pspnet.models.build import build_model

CPU = torch.device("cpu")
CLASSES = 3


class Brightest(nn.Module):
    """Class = the brightest of the three colour channels: exact, so that scores can be compared exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.modes: list[bool] = []
        self.contiguous: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        self.contiguous.append(images.is_contiguous(memory_format=torch.channels_last))
        return images.float()


def make_batch(count: int, height: int, width: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES + 1, (count, height, width), generator=generator)
    return Batch(
        torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8),
        torch.where(targets == CLASSES, torch.full_like(targets, 255), targets).to(torch.uint8),
        [f"{seed}_{index}" for index in range(count)],
    )


def mixed_sizes() -> list[Batch]:
    return [make_batch(3, 33, 47, 0), make_batch(1, 64, 40, 1), make_batch(2, 40, 33, 2)]


def singles(batches: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        for index in range(len(batch.names)):
            chosen = slice(index, index + 1)
            yield Batch(batch.images[chosen], batch.targets[chosen], batch.names[chosen])


def test_scores_equal_a_loop_over_single_images() -> None:
    by_hand = ConfusionMatrix(CLASSES)
    for single in singles(mixed_sizes()):
        by_hand.update(single.images[0].float().argmax(dim=0), single.targets[0])
    confusion = evaluate_whole(Brightest(), mixed_sizes(), CLASSES, CPU)
    assert torch.equal(confusion.counts, by_hand.counts)
    assert int(confusion.counts.sum()) == sum(int((batch.targets != 255).sum()) for batch in mixed_sizes())
    assert torch.equal(evaluate_whole(Brightest(), singles(mixed_sizes()), CLASSES, CPU).counts, by_hand.counts)


def test_pspnet_scores_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    model = build_model(CLASSES, width=4).double()
    batched = evaluate_whole(model, mixed_sizes(), CLASSES, CPU)
    alone = evaluate_whole(model, singles(mixed_sizes()), CLASSES, CPU)
    assert torch.equal(batched.counts, alone.counts)
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored(training: bool) -> None:
    model = Brightest().train(training)
    evaluate_whole(model, mixed_sizes(), CLASSES, CPU)
    assert model.modes == [False, False, False]
    assert model.training is training
    assert model.norm.training is training


def test_the_mode_is_restored_after_an_error() -> None:
    def broken() -> Iterator[Batch]:
        yield from mixed_sizes()
        raise OSError("disk gone")

    model = Brightest().train()
    with pytest.raises(OSError, match="disk gone"):
        evaluate_whole(model, broken(), CLASSES, CPU)
    assert model.training


def test_statistics_and_gradients_are_unchanged() -> None:
    torch.manual_seed(0)
    model = build_model(CLASSES, width=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_whole(model, [make_batch(2, 40, 48, 0)], CLASSES, CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_no_batches_score_0() -> None:
    confusion = evaluate_whole(Brightest(), [], CLASSES, CPU)
    assert confusion.counts.tolist() == [[0, 0, 0]] * 3
    assert confusion.scores().mIOU == 0


def test_the_memory_layout_does_not_change_scores() -> None:
    plain, last = Brightest(), Brightest()
    expected = evaluate_whole(plain, mixed_sizes(), CLASSES, CPU, channels_last=False)
    confusion = evaluate_whole(last, mixed_sizes(), CLASSES, CPU, channels_last=True)
    assert torch.equal(confusion.counts, expected.counts)
    assert not any(plain.contiguous)
    assert all(last.contiguous)


@pytest.mark.parametrize("size", [(32, 32), (33, 61), (80, 35)])
def test_predictions_are_the_argmax_at_the_images_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build_model(CLASSES, width=4).eval()
    images = make_batch(2, *size, seed=5).images
    masks = predict_whole(model, images)
    assert masks.dtype == torch.int64
    assert masks.shape == (2, *size)
    with torch.no_grad():
        logits = model(images)
    assert torch.equal(masks, logits.argmax(dim=1))
    assert not masks.requires_grad


def test_bfloat16_predicts_nearly_the_same() -> None:
    torch.manual_seed(0)
    model = build_model(CLASSES, width=4).eval()
    images = make_batch(1, 48, 64, seed=5).images
    exact, half = predict_whole(model, images), predict_whole(model, images, torch.bfloat16)
    assert (exact == half).float().mean() > 0.8
    assert not torch.is_autocast_enabled()
