"""Activation checkpointing changes memory use only."""

from __future__ import annotations

import copy

import pytest
import torch

from pspnet.errors import ConfigError
from pspnet.models.build import build_model
from pspnet.system.precision import Precision
from pspnet.training.performance.activation_checkpointing import (
    check_precision_supported,
    checkpoint_activations,
)


def test_outputs_gradients_and_statistics_equal_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = build_model(4, width=4, dropout=0.0).double().train()
    recomputed = copy.deepcopy(plain)
    assert checkpoint_activations(recomputed) == 6 + 3
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    images = torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8)
    for network in (plain, recomputed):
        logits, auxiliary = network(images)
        (logits.square().mean() + auxiliary.square().mean()).backward()
    for (name, one), other in zip(plain.named_parameters(), recomputed.parameters()):
        assert one.grad is not None, name
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=0)
    for (name, one), other in zip(plain.named_buffers(), recomputed.buffers()):
        assert torch.equal(one, other), name
    assert int(recomputed.backbone.layer4[0].bn1.num_batches_tracked) == 1
    assert recomputed.backbone.layer4[0].bn1.momentum == 0.1

    plain.eval(), recomputed.eval()
    with torch.no_grad():
        assert torch.equal(plain(images), recomputed(images))


def test_fewer_activations_are_stored_for_the_backward_pass() -> None:
    sizes = []
    for change in (lambda network: None, checkpoint_activations):
        torch.manual_seed(0)
        network = build_model(4, width=4).train()
        change(network)
        kept = 0

        def pack(value: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            network(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        sizes.append(kept)
    assert sizes[1] < 0.7 * sizes[0]


def test_bfloat16_is_rejected_with_an_old_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    bfloat16, float32 = Precision("bfloat16", torch.bfloat16), Precision("float32", None)
    monkeypatch.setattr(torch, "__version__", "2.1.0+cu121")
    check_precision_supported(bfloat16)
    monkeypatch.setattr(torch, "__version__", "1.12.1")
    check_precision_supported(float32)
    with pytest.raises(ConfigError, match=r"found True with precision bfloat16 and PyTorch 1\.12\.1, which"):
        check_precision_supported(bfloat16)


@pytest.mark.skipif(not hasattr(torch, "compile"), reason="PyTorch 2.0 remembers the precision")
def test_the_second_forward_pass_has_the_precision_of_the_first() -> None:
    torch.manual_seed(0)
    plain = build_model(4, width=4, dropout=0.0).train()
    recomputed = copy.deepcopy(plain)
    checkpoint_activations(recomputed)
    images = torch.randint(0, 256, (2, 3, 48, 40), dtype=torch.uint8)
    for network in (plain, recomputed):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, auxiliary = network(images)
        (logits.float().square().mean() + auxiliary.float().square().mean()).backward()
    for (name, one), other in zip(plain.named_parameters(), recomputed.parameters()):
        assert torch.equal(one.grad, other.grad), name
