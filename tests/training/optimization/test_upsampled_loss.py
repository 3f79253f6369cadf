"""Cross-entropy of head logits equals that of up-sampled logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pspnet.models.build import build_model
from pspnet.training.optimization import upsampled_loss as upsampled
from pspnet.training.optimization.losses import build_loss

WEIGHTS = [None, [0.5, 1.0, 2.0, 4.0, 0.1]]


def logits_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 5, 7, 9) logits that require a gradient, and (3, 50, 61) targets with ignored ones."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, 9, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.randint(0, 5, (3, 50, 61), generator=generator)
    targets[:, :9] = 255
    return logits, targets


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("strip", [1, 2000, 20000, 2**24])
def test_value_and_gradient_equal_those_of_up_sampled_logits(
    monkeypatch: pytest.MonkeyPatch, align_corners: bool, weights: list[float] | None, strip: int
) -> None:
    monkeypatch.setitem(upsampled._STRIP, "cpu", strip)
    logits, targets = logits_and_targets()
    ours = build_loss("cross_entropy", class_weights=weights, align_corners=align_corners)((logits, logits), targets)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    large = F.interpolate(logits, (50, 61), mode="bilinear", align_corners=align_corners)
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32).double()
    theirs = 1.4 * F.cross_entropy(large, targets, tensor, ignore_index=255)
    (their_gradient,) = torch.autograd.grad(3 * theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-10, atol=1e-14)


def test_no_scored_pixels_give_a_loss_of_0() -> None:
    logits, targets = logits_and_targets()
    loss = build_loss("cross_entropy")(logits, torch.full_like(targets, 255))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_a_non_finite_logit_gives_a_non_finite_loss() -> None:
    logits, targets = logits_and_targets()
    with torch.no_grad():
        logits[1, 2, 3, 4] = float("nan")
    assert build_loss("cross_entropy")(logits, targets).isnan()


def test_other_losses_up_sample_the_heads_logits() -> None:
    logits, targets = logits_and_targets()
    large = F.interpolate(logits, (50, 61), mode="bilinear", align_corners=True)
    loss = build_loss("ohem", align_corners=True)
    torch.testing.assert_close(loss(logits, targets), loss(large, targets), rtol=0, atol=0)


def test_a_network_skips_up_sampling_in_training_mode_only() -> None:
    network = build_model(5, width=4)
    images = torch.zeros(2, 3, 64, 48, dtype=torch.uint8)
    network.upsampled_in_training = False
    assert [tuple(output.shape) for output in network.train()(images)] == [(2, 5, 8, 6)] * 2
    assert tuple(network.eval()(images).shape) == (2, 5, 64, 48)
