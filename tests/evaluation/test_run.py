"""Every protocol over a small data set: equal to a plain loop, stopped and gone on with, masks written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pspnet.data.channels import load_pairs
from pspnet.errors import DataError
from pspnet.evaluation.metrics import count_by_image
from pspnet.evaluation.partial_results import pair_signature
from pspnet.evaluation.per_image import Record
from pspnet.evaluation.protocols.builtin import CentreView
from pspnet.evaluation.protocols.factory import Protocol, choose_protocols
from pspnet.evaluation.run import Evaluator, Scored
from pspnet.system.distributed import Processes

CLASSES = 3
SIZES = [(40, 50), (33, 64), (40, 50), (70, 40), (40, 50), (33, 64), (40, 50)]  # height, width
COLOUR = torch.full((1, 3, 1, 1), 128.0)


class Brightest(nn.Module):
    """Class = the brightest of the three colour channels; counts what goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(images))
        return images.float() / 20


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    rng = np.random.default_rng(0)
    for folder in ("images", "truths"):
        (tmp_path / folder).mkdir()
    for index, size in enumerate(SIZES):
        truth = rng.integers(0, CLASSES, (size[0] // 8 + 1, size[1] // 8 + 1)).repeat(8, 0).repeat(8, 1)
        truth = truth[: size[0], : size[1]]
        image = rng.integers(0, 200, (*size, 3)) + 55 * np.eye(3, dtype=int)[truth]
        truth[rng.random(size) < 0.1] = 255
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "truths" / f"{index}.png")
    pairs = load_pairs(tmp_path / "images", tmp_path / "truths")
    return Scored(pairs, {pair.stem: pair_signature(pair) for pair in pairs})


def evaluator(model: nn.Module, batch_size: int = 2) -> Evaluator:
    return Evaluator(model, CLASSES, COLOUR, torch.device("cpu"), Processes(), batch_size=batch_size)


def protocol(name: str) -> Protocol:
    return next(found for found in choose_protocols([name], 32, 0, [1.0, 1.5]) if found.name == name)


def run(name: str, scored: Scored, batch_size: int = 2) -> tuple[Record, Brightest]:
    record, model = Record(CLASSES), Brightest()
    evaluator(model, batch_size).run(protocol(name), scored, record)
    return record, model


@pytest.mark.parametrize("name", ["whole", "slide"])
def test_counts_equal_a_plain_loop(scored: Scored, name: str) -> None:
    record, _ = run(name, scored)
    assert record.names == [str(index) for index in range(len(SIZES))]
    for pair in scored.pairs:
        image, truth = (torch.from_numpy(np.array(Image.open(path))) for path in (pair.image, pair.annotation))
        # A function of the pixel alone: windows can change nothing.
        expected = count_by_image(image.argmax(dim=2).unsqueeze(0), truth.unsqueeze(0), CLASSES)[0]
        np.testing.assert_array_equal(record.matrix(pair.stem), expected.numpy())
        assert record.signatures[pair.stem] == scored.signatures[pair.stem]
    assert record.about["seconds"] > 0


def test_builtin_scores_what_its_view_shows(scored: Scored) -> None:
    record, model = run("builtin", scored)
    for pair in scored.pairs:
        image, truth = CentreView(32)(np.array(Image.open(pair.image)), np.array(Image.open(pair.annotation)))
        pixels, targets = torch.from_numpy(np.array(image)), torch.from_numpy(np.array(truth))
        expected = count_by_image(pixels.argmax(dim=2).unsqueeze(0), targets.unsqueeze(0), CLASSES)[0]
        np.testing.assert_array_equal(record.matrix(pair.stem), expected.numpy())
    assert model.batches == [2, 2, 2, 1]  # all views have one size


@pytest.mark.parametrize("name", ["whole", "slide", "multiscale", "builtin"])
def test_batches_change_nothing_and_passes_are_as_foretold(scored: Scored, name: str) -> None:
    one, model = run(name, scored, batch_size=1)
    many, other = run(name, scored, batch_size=5)
    assert {image: one.matrix(image).tolist() for image in one.names} == {
        image: many.matrix(image).tolist() for image in many.names
    }
    expected = sum(protocol(name).passes(height, width) for height, width in SIZES)
    assert sum(model.batches) == sum(other.batches) == expected


@pytest.mark.parametrize("name", ["whole", "multiscale", "builtin"])
def test_a_stopped_evaluation_goes_on_where_it_was(scored: Scored, name: str) -> None:
    straight, whole_model = run(name, scored)
    record, first, second, saves = Record(CLASSES), Brightest(), Brightest(), [0]

    def stop_at_the_second() -> None:
        saves[0] += 1
        if saves[0] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(first).run(protocol(name), scored, record, save=stop_at_the_second)
    assert 0 < len(record) < len(SIZES)
    evaluator(second).run(protocol(name), scored, record)
    assert first.batches + second.batches == whole_model.batches  # batched as if it had not been stopped
    assert record.names == straight.names
    for image in record.names:
        np.testing.assert_array_equal(record.matrix(image), straight.matrix(image))
    complete = Brightest()
    evaluator(complete).run(protocol(name), scored, record)
    assert complete.batches == []


def test_masks_are_those_that_were_scored(scored: Scored) -> None:
    masks: dict[str, np.ndarray] = {}
    record = Record(CLASSES)
    evaluator(Brightest()).run(protocol("slide"), scored, record, write_mask=masks.__setitem__)
    assert sorted(masks) == record.names
    for pair in scored.pairs:
        mask, truth = masks[pair.stem], np.array(Image.open(pair.annotation))
        assert mask.dtype == np.uint8
        assert mask.shape == truth.shape
        counted = count_by_image(torch.from_numpy(mask)[None], torch.from_numpy(truth)[None], CLASSES)[0]
        np.testing.assert_array_equal(counted.numpy(), record.matrix(pair.stem))


@pytest.mark.parametrize("name", ["whole", "multiscale"])
def test_a_broken_file_is_named_and_the_rest_is_kept(scored: Scored, name: str) -> None:
    scored.pairs[-1].image.write_bytes(b"no image")
    record = Record(CLASSES)
    with pytest.raises(DataError, match=r"6\.png: not a readable image"):
        evaluator(Brightest()).run(protocol(name), scored, record)
    assert record.names == ["0", "1", "2", "3", "4", "5"]
