"""Tests that `pspnet serve`, SageMaker's toolkit, `pspnet predict` and Predictor return the same mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.support.hosts import Host
from pspnet.benchmarking.record import versions
from pspnet.cli.dispatch import dispatch
from pspnet.data.io.images import read_image
from pspnet.data.shapes import draw_scene
from pspnet.inference.predictor import Predictor
from pspnet.masks.png import encode_mask
from tests.hosts.exchange import assert_same_mask, decoded, picture, post

FRAME = Image.fromarray(draw_scene(np.random.default_rng(5), (480, 360))[0])
SMALL = FRAME.resize((200, 150))


def write(folder: Path) -> list[Path]:
    """Write one image in the file types of cameras and programs."""
    folder.mkdir()
    rotated = Image.Exif()
    rotated[274] = 6  # orientation: rotated by 90 degrees, which no host applies
    FRAME.save(folder / "frame.jpg", quality=85)
    SMALL.save(folder / "small.png")
    SMALL.save(folder / "progressive.jpg", progressive=True, quality=60)
    SMALL.save(folder / "rotated.jpg", exif=rotated)
    SMALL.convert("L").save(folder / "grey.jpg")
    SMALL.convert("CMYK").save(folder / "cmyk.jpg")
    SMALL.convert("P").save(folder / "palette.png")
    SMALL.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(SMALL.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(picture(33, 47)).save(folder / "odd.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write(tmp_path_factory.mktemp("agree") / "images")


def content_type(path: Path) -> str:
    return "image/jpeg" if path.suffix == ".jpg" else "image/png"


@pytest.mark.slow
def test_serve_is_byte_identical_to_the_predictor(serve: Host, predictor: Predictor, files: list[Path]) -> None:
    for path in files:
        reply = post(serve, path.read_bytes(), content_type(path))
        assert reply.status == 200, (path.name, reply.body)
        assert reply.body == encode_mask(predictor(path)), path.name


def test_predict_command_equals_the_predictor(
    predictor: Predictor, model_dir: Path, files: list[Path], tmp_path: Path
) -> None:
    command = ["predict", str(model_dir), *map(str, files), "--output", str(tmp_path), "--device", "cpu"]
    assert dispatch(command) == 0
    for path in files:
        mask = decoded((tmp_path / f"{path.stem}.png").read_bytes())
        np.testing.assert_array_equal(mask, predictor(path), err_msg=path.name)


def test_toolkit_equals_the_predictor(
    toolkit: Host, toolkit_python: Path, predictor: Predictor, files: list[Path]
) -> None:
    same_torch = versions(toolkit_python)["torch"] == versions()["torch"]
    for path in files:
        reply = post(toolkit, path.read_bytes(), content_type(path))
        assert reply.status == 200, (path.name, reply.body)
        assert_same_mask(decoded(reply.body), predictor.predict([read_image(path)], probabilities=True)[0])
        if same_torch:
            np.testing.assert_array_equal(decoded(reply.body), predictor(path), err_msg=path.name)
