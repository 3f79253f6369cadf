"""The eager runtime: images of any layout, and a dtype that does not overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pspnet.inference.runtimes import eager
from pspnet.inference.runtimes.eager import EagerRuntime, all_finite, fastest_dtype
from pspnet.models.build import build_model
from tests.inference.runtimes.tiny_exports import Brightest

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(1, 33, 47), (3, 40, 61), (2, 32, 32)])
@pytest.mark.parametrize("stem", ["conv7", "deep"])
def test_masks_and_logits_are_those_of_the_plain_network(shape: tuple[int, int, int], stem: str) -> None:
    network = build_model(5, width=8, stem=stem).eval()
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    runtime = EagerRuntime(network, CPU)
    logits = runtime.logits(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    masks = runtime.masks(images)
    assert masks.dtype == np.uint8
    np.testing.assert_array_equal(masks, logits.argmax(dim=1).numpy())
    runtime.prepare(shape[1], shape[2], shape[0])
    np.testing.assert_array_equal(runtime.masks(images), masks)


def test_images_of_any_layout_are_unchanged() -> None:
    runtime = EagerRuntime(Brightest(), CPU)
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    frozen = image.copy()
    frozen.flags.writeable = False
    for array in (image, image[:, ::-1], frozen, np.asfortranarray(image)):
        before = array.copy()
        np.testing.assert_array_equal(runtime.masks(array[np.newaxis])[0], before.argmax(axis=2))
        np.testing.assert_array_equal(runtime.masks(np.stack([array, array]))[1], before.argmax(axis=2))
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((3, 7), torch.float32), ((6, 1), torch.float32), ((7, 0), torch.float16), ((9, 0), torch.float16)],
)
def test_the_dtype_depends_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest_dtype(torch.device("cuda")) == expected
    assert fastest_dtype(CPU) == torch.float32


class Narrow(nn.Module):
    """Returns infinite logits while its dtype is float16."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return images.float() * (float("inf") if self.dtype == torch.float16 else 1.0)


def test_a_network_that_overflows_float16_continues_in_a_wider_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "fastest_dtype", lambda device: torch.float16)
    monkeypatch.setattr(eager, "build_inference_model", lambda network, dtype: Narrow(dtype))
    runtime = EagerRuntime(Brightest(), CPU)
    images = np.random.default_rng(0).integers(1, 256, (1, 40, 56, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="overflow float16; it now runs in torch.float32"):
        masks = runtime.masks(images)
    np.testing.assert_array_equal(masks, images.argmax(axis=3))
    assert runtime.dtype == torch.float32
    asked = EagerRuntime(Brightest(), CPU, torch.float16)
    assert not asked.logits(images).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_all_finite_with_large_sums(dtype: torch.dtype) -> None:
    logits = torch.full((1, 5, 40, 56), 65_000.0, dtype=dtype)
    assert bool(all_finite(logits))
    for bad in ([float("inf")], [float("nan")], [float("inf"), float("-inf")]):
        spoilt = logits.clone()
        spoilt.view(-1)[: len(bad)] = torch.tensor(bad, dtype=dtype)
        assert not bool(all_finite(spoilt))
