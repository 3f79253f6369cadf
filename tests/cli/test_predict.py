"""`pspnet predict` on a tiny model and tiny data, with valid and invalid input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.cli.dispatch import dispatch
from pspnet.config.schema import Config
from pspnet.data.inputs import find_images
from pspnet.data.shapes import write_shapes
from pspnet.errors import DataError
from pspnet.inference.predictor import Predictor
from pspnet.inference.runtimes.base import RuntimeMissingError
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=1, validation=5, size=(72, 48))
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Config(num_classes=7, class_names="shapes", data="shapes", width=4, use_pretrained_model=False)
    folder = tmp_path_factory.mktemp("model")
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    return folder


def test_predict_writes_palette_masks_and_overlays(model_dir: Path, shapes: Path, tmp_path: Path) -> None:
    code = run_guarded(
        dispatch, ["predict", str(model_dir), str(shapes / "validation"), "--output", str(tmp_path), "--overlay"]
    )
    assert code == 0
    predictor = Predictor.load(model_dir, device="cpu")
    for path in (shapes / "validation").iterdir():
        with Image.open(tmp_path / f"{path.stem}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
            np.testing.assert_array_equal(np.asarray(mask), predictor(path))
        with Image.open(tmp_path / f"{path.stem}_overlay.jpg") as picture:
            assert picture.size == (72, 48)


def test_predict_skips_and_reports_unreadable_images(
    model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((shapes / "validation").iterdir())
    broken, small = tmp_path / "broken.jpg", tmp_path / "small.png"
    broken.write_bytes(good.read_bytes()[:300])
    Image.new("RGB", (20, 20)).save(small)
    output = tmp_path / "out"
    code = run_guarded(
        dispatch, ["predict", str(model_dir), str(broken), str(small), str(good), "--output", str(output)]
    )
    captured = capsys.readouterr()
    assert code == 1
    assert sorted(path.name for path in output.iterdir()) == ["small.png", f"{good.stem}.png"]
    with Image.open(output / "small.png") as mask:
        assert mask.size == (20, 20)
    assert f"{broken}: not a readable image" in captured.err
    assert "2 masks in" in captured.out
    assert "1 images failed" in captured.out


def test_a_runtime_that_fails_at_the_first_image_is_reported_once(
    model_dir: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeMissingError("runtime compile: PyTorch cannot compile this network here; use the runtime eager.")

    monkeypatch.setattr(Predictor, "predict", fail)
    code = run_guarded(dispatch, ["predict", str(model_dir), str(shapes / "validation"), "--output", str(tmp_path)])
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err == (
        "error: runtime compile: PyTorch cannot compile this network here; use the runtime eager.\n"
    )
    assert "masks in" not in captured.out


def test_find_images_accepts_files_folders_and_patterns(shapes: Path, tmp_path: Path) -> None:
    folder = sorted((shapes / "validation").iterdir())
    assert find_images([str(shapes / "validation")]) == folder
    assert find_images([str(shapes / "validation" / "*.jpg")]) == folder
    assert find_images([str(folder[1]), str(shapes / "validation")]) == [folder[1], folder[0], *folder[2:]]
    with pytest.raises(DataError, match=r"nothing\.jpg: no such image file"):
        find_images([str(tmp_path / "nothing.jpg")])
    copy = tmp_path / folder[0].name
    copy.write_bytes(folder[0].read_bytes())
    with pytest.raises(DataError, match="predict them into different folders"):
        find_images([str(folder[0]), str(copy)])


def test_an_unknown_command_names_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(dispatch, ["evalute"]) == 2
    assert capsys.readouterr().err == "error: pspnet: unknown command 'evalute'; did you mean evaluate?\n"
    assert run_guarded(dispatch, []) == 2
    assert capsys.readouterr().err == "error: pspnet: no command; pspnet --help lists them.\n"
