"""Losses against PyTorch's own and against numbers computed by hand."""

from __future__ import annotations

import importlib.util
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from pspnet.errors import ConfigError
from pspnet.training.optimization import losses
from pspnet.training.optimization.losses import (
    CrossEntropy,
    OhemCrossEntropy,
    SegmentationLoss,
    build_loss,
    loss_weight,
)

LIBRARY_LOSSES = ("dice", "lovasz", "focal")


def logits_and_targets(classes: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Random (2, C, 5, 6) logits that require a gradient and (2, 5, 6) targets, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, 5, 6, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, classes, (2, 5, 6), generator=generator)
    targets[:, 0] = 255
    return logits, targets


def pixels(*probabilities: float) -> torch.Tensor:
    """Return (1, 2, 1, K) logits whose class 0 has these probabilities."""
    return torch.tensor([[math.log(p) for p in probabilities], [math.log(1 - p) for p in probabilities]]).view(
        1, 2, 1, len(probabilities)
    )


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
def test_cross_entropy_is_pytorchs_mean_over_scored_pixels(weights: list[float] | None) -> None:
    logits, targets = logits_and_targets()
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    ours = build_loss("cross_entropy", class_weights=weights)(logits, targets)
    (gradient,) = torch.autograd.grad(ours, logits)
    theirs = F.cross_entropy(logits, targets, tensor, ignore_index=255)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-12, atol=1e-15)
    assert (gradient[:, :, 0] == 0).all()  # the ignored row


def test_class_weights_by_hand() -> None:
    targets = torch.tensor([[[0, 1, 255]]])
    loss = CrossEntropy(torch.tensor([1.0, 3.0]))(pixels(0.5, 0.75, 0.1), targets)
    # Pixel 1 is of class 1, whose probability is 0.25.
    assert float(loss) == pytest.approx((math.log(2) + 3 * math.log(4)) / 4, rel=1e-6)


@pytest.mark.parametrize("name", ["cross_entropy", "ohem", *LIBRARY_LOSSES])
def test_no_scored_pixels_give_a_loss_and_gradients_of_0(name: str) -> None:
    if name in LIBRARY_LOSSES:
        pytest.importorskip("segmentation_models_pytorch")
    logits, _ = logits_and_targets(dtype=torch.float32)
    loss = build_loss(name)((logits, logits), torch.full((2, 5, 6), 255, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_no_scored_pixels_with_class_weights() -> None:
    logits, _ = logits_and_targets(dtype=torch.float32)
    for name in ("cross_entropy", "ohem"):
        loss = build_loss(name, class_weights=[1.0, 2.0, 3.0, 4.0])(logits, torch.full((2, 5, 6), 255))
        assert loss.item() == 0.0


# --- weight of a mini-batch -------------------------------------------------------------------------------------------


def test_loss_weight_counts_scored_pixels() -> None:
    targets = torch.tensor([[[0, 1, 1], [255, 2, 255]]], dtype=torch.uint8)
    weight = loss_weight(targets)
    assert weight.dtype == torch.float64
    assert float(weight) == 4
    assert float(loss_weight(targets, torch.tensor([0.5, 2.0, 10.0]))) == 0.5 + 2 * 2.0 + 10.0
    assert float(loss_weight(torch.full((1, 2, 2), 255))) == 0


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
def test_means_weighted_by_loss_weight_give_the_overall_mean(weights: list[float] | None) -> None:
    logits, targets = logits_and_targets()
    logits = logits.detach()
    targets[1, 1:4] = 255  # the two images have different weights
    tensor = None if weights is None else torch.tensor(weights)
    loss = build_loss("cross_entropy", class_weights=weights)
    parts = [
        (float(loss_weight(targets[i : i + 1], tensor)), loss(logits[i : i + 1], targets[i : i + 1])) for i in (0, 1)
    ]
    joined = sum(weight * float(mean) for weight, mean in parts) / sum(weight for weight, _ in parts)
    assert joined == pytest.approx(float(loss(logits, targets)), rel=1e-12)


# --- online hard example mining ---------------------------------------------------------------------------------------


def test_ohem_keeps_the_pixels_below_the_threshold() -> None:
    logits, targets = pixels(0.9, 0.6, 0.5, 0.8, 0.1), torch.tensor([[[0, 0, 0, 0, 255]]])
    loss = OhemCrossEntropy(threshold=0.7, min_kept=0.25)(logits, targets)
    assert float(loss) == pytest.approx(-(math.log(0.6) + math.log(0.5)) / 2, rel=1e-5)


def test_ohem_keeps_the_hardest_fraction_if_all_are_easy() -> None:
    logits, targets = pixels(0.9, 0.95, 0.8, 0.99, 0.1), torch.tensor([[[0, 0, 0, 0, 255]]])
    half = OhemCrossEntropy(threshold=0.7, min_kept=0.5)(logits, targets)
    assert float(half) == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2, rel=1e-5)
    # A fraction of less than one pixel still keeps the hardest one.
    one = OhemCrossEntropy(threshold=0.7, min_kept=0.01)(logits, targets)
    assert float(one) == pytest.approx(-math.log(0.8), rel=1e-5)


def test_ohem_applies_class_weights() -> None:
    logits, targets = pixels(0.9, 0.6, 0.75), torch.tensor([[[0, 0, 1]]])  # 0.25 for the last one's class
    loss = OhemCrossEntropy(0.7, 0.1, torch.tensor([1.0, 3.0]))(logits, targets)
    assert float(loss) == pytest.approx(-(math.log(0.6) + 3 * math.log(0.25)) / 4, rel=1e-5)


def test_ohem_that_keeps_everything_is_cross_entropy() -> None:
    logits, targets = logits_and_targets()
    for weights in (None, [0.5, 1.0, 2.0, 4.0]):
        ohem = build_loss("ohem", class_weights=weights, ohem_threshold=1.0, ohem_min_kept=1.0)(logits, targets)
        plain = build_loss("cross_entropy", class_weights=weights)(logits, targets)
        torch.testing.assert_close(ohem, plain, rtol=1e-12, atol=0)


def test_ohem_passes_no_gradient_to_easy_pixels() -> None:
    logits = pixels(0.9, 0.6, 0.5, 0.8).requires_grad_()
    OhemCrossEntropy(0.7, 0.25)(logits, torch.zeros(1, 1, 4, dtype=torch.long)).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0, 0] != 0).tolist() == [False, True, True, False]


# --- main and auxiliary loss ------------------------------------------------------------------------------------------


def test_the_auxiliary_loss_is_added_with_its_weight() -> None:
    logits, targets = logits_and_targets()
    auxiliary = logits.detach().flip(0)
    main, aux = (F.cross_entropy(x, targets, ignore_index=255) for x in (logits, auxiliary))
    both = build_loss("cross_entropy", aux_weight=0.4)((logits, auxiliary), targets)
    torch.testing.assert_close(both, main + 0.4 * aux, rtol=1e-12, atol=0)
    torch.testing.assert_close(build_loss("cross_entropy")(logits, targets), main, rtol=1e-12, atol=0)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits, targets = logits_and_targets(dtype=torch.float32)
    loss = SegmentationLoss(CrossEntropy())(logits.detach().bfloat16(), targets.to(torch.uint8))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.detach().bfloat16().float(), targets, ignore_index=255))


def test_class_weights_move_with_the_loss() -> None:
    loss = build_loss("cross_entropy", class_weights=[1.0, 2.0]).to(torch.float64)
    assert [buffer.dtype for buffer in loss.buffers()] == [torch.float64]
    assert loss.state_dict() == {}


# --- the library's losses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARY_LOSSES)
def test_library_losses_fall_with_better_logits_and_skip_ignored_pixels(name: str) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    logits, targets = logits_and_targets(dtype=torch.float32)
    loss = build_loss(name)
    loss(logits, targets).backward()
    value = loss(logits.detach(), targets)
    assert math.isfinite(float(value))
    assert float(value) > 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0
    right = 20 * F.one_hot(targets.clamp(max=3), 4).permute(0, 3, 1, 2).float() - 10
    assert float(loss(right, targets)) < 0.05 * float(value)
    changed = logits.detach().clone()
    changed[:, :, 0] += torch.tensor([5.0, -5.0, 3.0, 0.0])[:, None]  # the ignored row
    assert float(loss(changed, targets)) == pytest.approx(float(value), rel=1e-5)


def test_a_missing_library_error_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    build_loss("cross_entropy")  # does not need it
    with pytest.raises(
        ConfigError, match=r"loss = dice .*not installed: run `pip install segmentation-models-pytorch`"
    ):
        build_loss("dice")


def test_an_unknown_loss_is_rejected() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ConfigError, match=r"loss = hinge: unknown; allowed are cross_entropy, ohem, dice, lovasz"):
        build_loss("hinge")


def test_the_library_is_imported_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)  # makes its import fail
    spec = importlib.util.spec_from_file_location("losses_again", losses.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert type(again.build_loss("ohem").function).__name__ == "OhemCrossEntropy"
