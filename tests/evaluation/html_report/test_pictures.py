"""Pictures of a report: sizes, colours, and checks of saved masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import voc_palette
from pspnet.data.channels import Pair
from pspnet.data.io.images import read_annotation, write_palette_png
from pspnet.evaluation.html_report.pictures import Picture, collect_samples, draw_sample, mask_picture, photo
from pspnet.evaluation.per_image import read_records


def decoded(picture: Picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))


def test_pictures_are_bounded_and_masks_keep_their_colours() -> None:
    mask = np.zeros((900, 1600), dtype=np.uint8)
    mask[:, 800:] = 7
    found = mask_picture(mask, voc_palette())
    assert (found.width, found.height) == (640, 360)
    colours = {colour for _, colour in decoded(found).convert("RGB").getcolors()}
    assert colours == {(0, 0, 0), tuple(voc_palette()[7])}
    small = photo(Image.new("RGB", (30, 20)))
    assert (small.width, small.height) == (30, 20)
    assert small.uri.startswith("data:image/jpeg;base64,")


def test_the_error_map_marks_wrong_and_ignored_pixels() -> None:
    image = np.full((32, 48, 3), 90, dtype=np.uint8)
    target, prediction = np.zeros((32, 48), dtype=np.uint8), np.zeros((32, 48), dtype=np.uint8)
    prediction[:, 16:] = 2
    target[:, 32:] = 255
    sample = draw_sample("x", 0.5, image, target, prediction, voc_palette())
    errors = np.asarray(decoded(sample.pictures["errors"])).astype(int)
    assert np.abs(errors[8, 8] - 195).max() < 8  # correct: light grey
    assert np.abs(errors[8, 24] - [213, 94, 0]).max() < 25  # wrong: orange, up to JPEG loss
    assert errors[8, 40, 2] > errors[8, 40, 0] + 30  # ignored: blue
    assert sample.classes == [0, 2]
    assert list(sample.pictures) == ["image", "ground_truth", "prediction", "errors"]


@pytest.fixture
def collected(make_evaluation: Callable[..., Path]) -> Callable[..., object]:
    folder = make_evaluation()
    data = folder.parent / "data"

    def collect(known: bool = True, count: int = 2) -> object:
        record = read_records(folder / "per_image.npz")["whole"]

        def find_pair(name: str) -> Pair | None:
            return Pair(data / "images" / f"{name}.png", data / "targets" / f"{name}.png") if known else None

        return collect_samples(folder, "whole", record, find_pair, voc_palette(), count=count)

    return collect


def test_best_median_and_worst_are_collected(collected: Callable[..., object]) -> None:
    found = collected()
    assert {group: len(samples) for group, samples in found.groups.items()} == {"best": 2, "median": 2, "worst": 2}
    scores = [sample.score for samples in found.groups.values() for sample in samples]
    assert scores == sorted(scores, reverse=True)
    assert found.note == ""


def test_the_note_names_images_that_cannot_be_shown(
    collected: Callable[..., object], make_evaluation: Callable[..., Path]
) -> None:
    missing = collected(known=False)
    assert not any(missing.groups.values())
    assert missing.note.startswith("6 images are not shown")
    folder = make_evaluation()
    for path in (folder / "samples" / "whole").iterdir():
        write_palette_png(path, (read_annotation(path) + 1) % 5, voc_palette())
    other = collected()
    assert not any(other.groups.values())
    assert "6 images are not shown because their saved mask is not the scored one" in other.note
