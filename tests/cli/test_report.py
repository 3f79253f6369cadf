"""`pspnet report`, and the page that `pspnet evaluate` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.cli.dispatch import dispatch
from pspnet.config.schema import Config
from pspnet.data.shapes import write_shapes
from pspnet.evaluation.per_image import read_records
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/, run/model/ and out/, the evaluation by two protocols."""
    root = tmp_path_factory.mktemp("report")
    write_shapes(root / "data", train=1, validation=4, size=(48, 40))
    config = Config(num_classes=7, class_names="shapes", data="shapes", width=4, use_pretrained_model=False)
    torch.manual_seed(1)
    save_artifact(root / "run" / "model", build_model(**architecture_of(config)), config, {}, {"epoch": 3})
    folders = ["--images", str(root / "data" / "validation"), "--annotations"]
    command = ["evaluate", str(root / "run" / "model"), *folders, str(root / "data" / "validation_annotation")]
    sizes = ["--protocol", "whole,builtin", "--crop_size", "40", "--workers", "0"]
    assert dispatch([*command, *sizes, "--output", str(root / "out")]) == 0
    return root


def report(*arguments: object) -> int:
    return run_guarded(dispatch, ["report", *(str(argument) for argument in arguments)])


def test_evaluate_writes_a_page_and_its_provenance(evaluated: Path) -> None:
    page = (evaluated / "out" / "report.html").read_text()
    assert "Protocols side by side" in page
    assert page.count("<fieldset") == 4
    assert "no differences: the ground truth of 4 images differs" in page  # builtin scores crops
    facts = json.loads((evaluated / "out" / "provenance.json").read_text())
    assert facts["command"].startswith(f"pspnet evaluate {evaluated / 'run' / 'model'} --images ")
    assert facts["data"]["count"] == 4
    assert re.fullmatch("[0-9a-f]{64}", facts["model"]["sha256"])
    assert facts["model"]["training"]["epoch"] == 3
    assert facts["precision"] == "float32"
    entries = json.loads((evaluated / "out" / "metrics.json").read_text())["protocols"]
    assert 0 <= entries["whole"]["boundary_mIOU"] <= 1
    assert 0 <= entries["builtin"]["calibration_error"] <= 1


def test_the_saved_masks_are_the_models(evaluated: Path) -> None:
    predictor = Predictor.load(evaluated / "run" / "model", device="cpu")
    masks = sorted((evaluated / "out" / "samples" / "whole").iterdir())
    assert len(masks) == 4
    for path in masks:
        image = next((evaluated / "data" / "validation").glob(f"{path.stem}.*"))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), predictor(image))
    assert [path.name for path in (evaluated / "out" / "samples").iterdir()] == ["whole"]


def test_confidences_are_those_of_the_network(evaluated: Path) -> None:
    record = read_records(evaluated / "out" / "per_image.npz")["whole"]
    predictor = Predictor.load(evaluated / "run" / "model", device="cpu")
    for index, name in enumerate(record.names):
        image = np.asarray(Image.open(next((evaluated / "data" / "validation").glob(f"{name}.*"))))
        ground_truth = np.asarray(Image.open(evaluated / "data" / "validation_annotation" / f"{name}.png"))
        with torch.no_grad():
            logits = predictor.model(torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0))
        confidences = logits.softmax(dim=1).amax(dim=1)[0].numpy()[ground_truth != 255]
        counts = record.detail("confidence")[index]
        assert counts[0].sum() == confidences.size
        assert counts[1].sum() == np.trace(record.matrix(name))
        assert counts[2].sum() / 1500 == pytest.approx(confidences.sum(), rel=1e-3)


def test_report_writes_to_the_output(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(evaluated / "out", "--output", tmp_path / "page.html", "--protocol", "whole", "--samples", "1") == 0
    assert f"Written: {tmp_path / 'page.html'}" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert page.count("<fieldset") == 3
    assert "side by side</h2>" not in page


def test_mask_files_have_a_page(evaluated: Path, tmp_path: Path) -> None:
    masks = evaluated / "out" / "samples" / "whole"
    command = ["evaluate", "--predictions", masks, "--annotations", evaluated / "data" / "validation_annotation"]
    more = ["--num_classes", "7", "--images", evaluated / "data" / "validation", "--output", tmp_path / "out"]
    assert run_guarded(dispatch, [str(part) for part in (*command, *more)]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<fieldset") == 4
    assert "Boundary mIoU" in page
    assert 'id="calibration-1"' not in page
    # The masks of the model's evaluation, so the two do not differ.
    assert report(evaluated / "out", tmp_path / "out", "--output", tmp_path / "two.html") == 0
    assert "The intervals of 0 differences exclude 0." in (tmp_path / "two.html").read_text()


@pytest.mark.slow
def test_details_and_page_can_be_omitted(evaluated: Path, tmp_path: Path) -> None:
    folders = ["--images", evaluated / "data" / "validation", "--annotations"]
    command = ["evaluate", evaluated / "run" / "model", *folders, evaluated / "data" / "validation_annotation"]
    more = ["--output", tmp_path, "--workers", "0", "--details", "False", "--report", "False"]
    assert run_guarded(dispatch, [str(part) for part in (*command, *more)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "per_image.npz", "provenance.json"]
    assert read_records(tmp_path / "per_image.npz")["whole"].detail("boundary") is None


def test_errors_are_one_sentence(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page = evaluated / "out", tmp_path / "page.html"
    for code, arguments, text in (
        (1, [tmp_path / "nowhere", "--output", page], "no such folder"),
        (2, [out, out, "--output", page], "the same folder is given twice"),
        (2, [out, "--output", tmp_path], "is a folder (flag --output); give the name of the HTML file"),
        (
            2,
            [out, "--output", page, "--samples", "-1"],
            "samples: found '-1' (flag --samples); allowed: a whole number from 0",
        ),
        (2, [out, "--output", page, "--protocol", "slide"], "--protocol: found 'slide'"),
        (1, [out, "--output", page, "--images", tmp_path / "x"], "does not exist"),
        (1, [out, "--output", page, "--run", tmp_path], "holds no metrics.jsonl"),
    ):
        assert report(*arguments) == code, arguments
        error = capsys.readouterr().err
        assert text in error
        assert "Traceback" not in error
    assert not page.exists()
