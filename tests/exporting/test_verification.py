"""Verification of an export with correct and wrong hand-made graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pspnet.exporting.export_network import export_network
from pspnet.exporting.formats import Run
from pspnet.exporting.verification import Agreement, ExportError, compare, scenes
from pspnet.models.pspnet import PSPNet


def graph(network: PSPNet) -> Run:
    exported = export_network(network)

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            mask, logits = exported(torch.from_numpy(images))
        return mask.numpy(), logits.numpy()

    return run


def test_the_exported_network_agrees_and_the_model_is_unchanged(network: PSPNet) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    agreement = compare(graph(network), network, scenes())
    agreement.require("graph")
    assert agreement.logits_difference < 1e-5
    assert agreement.mask_agreement > 0.9999
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_cases_are_own_sizes_a_batch_with_odd_sides_and_a_strip(network: PSPNet) -> None:
    images = [np.zeros((40, 64, 3), np.uint8), np.full((50, 36, 3), 9, np.uint8)]
    cases = compare(graph(network), network, images).cases
    assert cases == ((1, 40, 64), (1, 50, 36), (2, 39, 35), (1, 32, 64))


def test_one_small_image_is_padded_and_flipped(network: PSPNet) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 60, 3), dtype=np.uint8)
    seen: list[np.ndarray] = []
    run = graph(network)

    def spy(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(images)
        return run(images)

    assert compare(spy, network, [image]).cases == ((1, 32, 60), (2, 32, 59), (1, 32, 60))
    np.testing.assert_array_equal(seen[0][0, :, :20], image.transpose(2, 0, 1))
    np.testing.assert_array_equal(seen[1][1], seen[0][0, :, :, ::-1][..., :59])


def test_wrong_logits_fail_despite_a_correct_mask(network: PSPNet) -> None:
    run = graph(network)

    def larger(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, logits = run(images)
        return mask, logits * np.float32(1.01)

    agreement = compare(larger, network, scenes())
    assert agreement.logits_difference == pytest.approx(0.01, rel=0.01)
    with pytest.raises(ExportError, match=r"^onnx export: the output of the graph differs .* differ by up to 0\.01 of"):
        agreement.require("onnx export")


def test_wrong_masks_fail_despite_correct_logits(network: PSPNet) -> None:
    run = graph(network)

    def shifted(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, logits = run(images)
        return ((mask + 1) % 7).astype(np.uint8), logits

    agreement = compare(shifted, network, scenes())
    assert agreement.mask_agreement < 1e-3
    with pytest.raises(ExportError, match="of the mask pixels agree"):
        agreement.require("graph")


def test_nan_fails() -> None:
    for agreement in (Agreement(((1, 32, 32),), float("nan"), 1.0), Agreement(((1, 32, 32),), 0.0, float("nan"))):
        with pytest.raises(ExportError):
            agreement.require("graph")


def test_nan_in_the_first_case_fails(network: PSPNet) -> None:
    run, calls = graph(network), []

    def broken(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, logits = run(images)
        calls.append(images.shape)
        return mask, logits * np.float32("nan") if len(calls) == 2 else logits

    with pytest.raises(ExportError):
        compare(broken, network, scenes()).require("graph")


def test_a_size_that_cannot_run_is_reported(network: PSPNet) -> None:
    def refuse(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise ValueError("Got invalid dimensions\nfor input images")

    with pytest.raises(ExportError, match=r"^the graph cannot run 1 image of 160x120 px: Got invalid dimensions$"):
        compare(refuse, network, scenes())


def test_other_shapes_and_types_are_refused(network: PSPNet) -> None:
    run = graph(network)

    def wide(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, logits = run(images)
        return mask.astype(np.int64), logits

    def full(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mask, logits = run(images)
        return mask, F.pad(torch.from_numpy(logits), (0, 0, 0, 0, 0, 1)).numpy()

    with pytest.raises(ExportError, match=r"a mask of shape .* and dtype int64"):
        compare(wide, network, scenes())
    with pytest.raises(ExportError, match=r"logits of shape \(1, 8, "):
        compare(full, network, scenes())
