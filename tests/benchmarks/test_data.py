"""The data benchmark on a tiny data set: samples of every chain, and the record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import data as benchmark
from benchmarks.support.pipelines import PIPELINES, normalise
from pspnet.data.channels import load_pairs


def test_every_chain_returns_normalised_samples(tmp_path: Path) -> None:
    benchmark.draw_channel(tmp_path, 1)
    pair = load_pairs(tmp_path / "train", tmp_path / "train_annotation")[0]
    for name, build in PIPELINES.items():
        sample = build(64, 520)
        if sample is None:
            continue
        image, mask = sample(pair, np.random.default_rng(0))
        assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32), name
        assert (mask.shape, mask.dtype) == ((64, 64), torch.int64), name
        assert 0.01 < image.abs().mean() < 3, name
        assert set(mask.unique().tolist()) <= {*range(7), 255}, name


def test_normalised_as_the_network_does() -> None:
    from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD

    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (images.double() - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(
        1, 3, 1, 1
    )
    assert torch.allclose(normalise(images).double(), expected, atol=1e-5)


@pytest.mark.slow
def test_the_figures_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--images 2 --crop_size 32 --base_size 64 --rounds 1 --cases ours,Pillow --workers 0 --loader_images 16"
    assert benchmark.main([*arguments.split(), "--output", str(tmp_path / "data.json")]) == 0
    record = json.loads((tmp_path / "data.json").read_text())
    assert set(record["chains"]) == {"ours", "Pillow"}
    assert all(entry["images_per_second"] > 0 for entry in record["chains"].values())
    assert set(record["loader"]) >= {"none", "disk"}
    assert all(value >= 0 for value in record["stages_ms"].values())
    shown = capsys.readouterr().out
    assert "| ours " in shown
    assert "decode the image: simplejpeg" in shown
