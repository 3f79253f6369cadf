"""Gradient checkpointing changes nothing but memory."""

from __future__ import annotations

import copy

import torch

from pspnet.models.pspnet import build_model
from pspnet.training.recompute import recompute_blocks


def test_outputs_gradients_and_statistics_are_those_of_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = build_model(4, width=4, dropout=0.0).double().train()
    recomputed = copy.deepcopy(plain)
    assert recompute_blocks(recomputed) == 6 + 3
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


def test_less_is_kept_for_the_backward_pass() -> None:
    sizes = []
    for change in (lambda network: None, recompute_blocks):
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
