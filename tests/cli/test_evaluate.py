"""`pspnet evaluate` on a tiny model and tiny data: protocols, mask files, resume, two processes, invalid input."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.cli.dispatch import dispatch
from pspnet.config.schema import Config
from pspnet.data.shapes import write_shapes
from pspnet.evaluation.metrics import Scores
from pspnet.evaluation.per_image import read_records, write_records
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.system.exit_codes import run_guarded

ROOT = Path(__file__).resolve().parents[2]
PROTOCOLS = "whole,slide,multiscale,builtin"
NAMES = ["background", "disc", "square", "triangle", "ring", "cross", "star"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # As torchrun sets it: sums in another order would differ in the last bit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images of 72x48 and one, cut, of 40x44."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=1, validation=6, size=(72, 48))
    for path in (max((folder / name).iterdir()) for name in ("validation", "validation_annotation")):
        image = Image.open(path)
        image.crop((10, 0, 50, 44)).save(path)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose prediction varies over the image; it was trained on crops of 40 px of images of 60."""
    config = Config(
        num_classes=7, class_names="shapes", data="shapes", width=4, use_pretrained_model=False, crop_size=40,
        base_size=60,
    )  # fmt: skip
    torch.manual_seed(1)
    network = build_model(**architecture_of(config))
    with torch.no_grad():
        network.head.classifier.weight.mul_(30)
    folder = tmp_path_factory.mktemp("model")
    save_artifact(folder, network, config, {}, {"epoch": 1})
    return folder


def arguments_of(model_dir: Path, shapes: Path, output: Path, *more: str) -> list[str]:
    folders = ["--images", str(shapes / "validation"), "--annotations", str(shapes / "validation_annotation")]
    return ["evaluate", str(model_dir), *folders, "--output", str(output), "--workers", "0", *more]


def evaluate(model_dir: Path, shapes: Path, output: Path, *more: str) -> int:
    return run_guarded(dispatch, arguments_of(model_dir, shapes, output, *more))


def read_metrics(output: Path, seconds: bool = False) -> dict[str, Any]:
    """metrics.json without times. Calibration is rounded, because the batch size changes the last bits of logits."""
    content: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    if not seconds:
        for entry in content["protocols"].values():
            entry.pop("seconds", None)
            if "calibration_error" in entry:
                entry["calibration_error"] = pytest.approx(entry["calibration_error"], abs=1e-5)
    return content


def read_arrays(output: Path) -> dict[str, Any]:
    """The arrays of per_image.npz without times and confidences."""
    with np.load(output / "per_image.npz") as archive:
        return {key: archive[key].tolist() for key in archive.files if not key.endswith((".about", ".confidence"))}


@pytest.fixture(scope="module")
def scored(model_dir: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of all protocols, with masks."""
    output = tmp_path_factory.mktemp("scored")
    assert evaluate(model_dir, shapes, output, "--protocol", PROTOCOLS, "--save_masks", str(output / "masks")) == 0
    return output


@pytest.mark.slow
def test_evaluate_writes_the_scores_of_the_predicted_masks(
    model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model_dir, shapes, tmp_path / "scores") == 0
    metrics = read_metrics(tmp_path / "scores")
    assert list(metrics) == [
        "mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "per_class_iou", "pixels", "images", "protocol",
        "protocols",
    ]  # fmt: skip
    predictor = Predictor.load(model_dir, device="cpu")
    correct = total = 0
    for path in sorted((shapes / "validation").iterdir()):
        ground_truth = np.asarray(Image.open(shapes / "validation_annotation" / f"{path.stem}.png"))
        correct += int((predictor(path)[ground_truth != 255] == ground_truth[ground_truth != 255]).sum())
        total += int((ground_truth != 255).sum())
    assert metrics["images"] == 6
    assert metrics["pixels"] == total
    assert metrics["pixel_accuracy"] == correct / total
    assert list(metrics["per_class_iou"]) == NAMES
    assert metrics["protocol"] == "whole"
    assert metrics["protocols"]["whole"]["mIOU"] == metrics["mIOU"]
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert "commonest class" in printed


@pytest.mark.slow
def test_all_protocols_are_scored(scored: Path) -> None:
    metrics = read_metrics(scored, seconds=True)
    assert list(metrics["protocols"]) == ["whole", "slide", "multiscale", "builtin"]
    assert metrics["protocol"] == "whole"
    slide = {"crop_size": 40, "base_size": 60, "stride": 27, "scales": [1.0], "flip": False}
    assert metrics["protocols"]["slide"]["settings"] == slide
    assert metrics["protocols"]["multiscale"]["settings"]["flip"] is True
    assert metrics["protocols"]["builtin"]["settings"] == {"crop_size": 40}
    # 72x48 at long side 60 is 60x40: windows at 0 and 20. 40x44 becomes 55x60: two by two.
    assert metrics["protocols"]["slide"]["passes"] == 5 * 2 + 4
    assert [metrics["protocols"][name]["passes"] for name in ("whole", "builtin")] == [6, 6]
    assert all(entry["images"] == 6 and entry["seconds"] > 0 for entry in metrics["protocols"].values())
    assert metrics["protocols"]["builtin"]["pixels"] <= 6 * 40 * 40
    assert len({entry["mIOU"] for entry in metrics["protocols"].values()}) == 4
    records = read_records(scored / "per_image.npz")
    for name, record in records.items():
        assert Scores.from_counts(record.total()).pixel_accuracy == metrics["protocols"][name]["pixel_accuracy"]
        assert record.names == [f"validation_{index:05d}" for index in range(6)]


def test_saved_masks_score_the_same(scored: Path, model_dir: Path, shapes: Path, tmp_path: Path) -> None:
    annotations = ["--annotations", str(shapes / "validation_annotation")]
    metrics, records = read_metrics(scored), read_records(scored / "per_image.npz")
    assert sorted(path.name for path in (scored / "masks").iterdir()) == ["multiscale", "slide", "whole"]
    for name, classes in (
        ("whole", [str(model_dir)]),
        ("slide", ["--num_classes", "7"]),
        ("multiscale", [str(model_dir)]),
    ):
        output = tmp_path / name
        command = ["evaluate", *classes, "--predictions", str(scored / "masks" / name), *annotations]
        assert run_guarded(dispatch, [*command, "--output", str(output)]) == 0
        found = read_metrics(output)
        assert list(found["protocols"]) == ["predictions"]
        for key in ("mIOU", "pixel_accuracy", "mean_accuracy", "fw_iou", "pixels", "images"):
            assert found[key] == metrics["protocols"][name][key], (name, key)
        assert list(found["per_class_iou"].values()) == list(metrics["protocols"][name]["per_class_iou"].values())
        record = read_records(output / "per_image.npz")["predictions"]
        for image in record.names:
            np.testing.assert_array_equal(record.matrix(image), records[name].matrix(image))


@pytest.mark.slow
def test_the_masks_of_one_protocol_have_no_subfolder(model_dir: Path, shapes: Path, tmp_path: Path) -> None:
    more = ["--protocol", "builtin", "--save_masks", str(tmp_path / "masks")]
    assert evaluate(model_dir, shapes, tmp_path / "out", *more) == 0
    predictor = Predictor.load(model_dir, device="cpu")
    for path in (shapes / "validation").iterdir():
        mask = Image.open(tmp_path / "masks" / f"{path.stem}.png")
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), predictor(path))


def test_windows_over_the_whole_image_equal_whole(model_dir: Path, shapes: Path, tmp_path: Path) -> None:
    """The crop is as large as the images, which are square so that nothing is padded."""
    for channel in ("validation", "validation_annotation"):
        (tmp_path / channel).mkdir()
        for path in sorted((shapes / channel).iterdir())[:3]:
            Image.open(path).crop((0, 0, 48, 48)).save(tmp_path / channel / path.name)
    more = ["--protocol", "whole,slide,multiscale", "--crop_size", "48", "--base_size", "0", "--scales", "1"]
    assert evaluate(model_dir, tmp_path, tmp_path / "out", *more, "--flip", "False") == 0
    whole, slide, multiscale = read_metrics(tmp_path / "out")["protocols"].values()
    assert slide["passes"] == multiscale["passes"] == 3
    assert whole["mIOU"] == slide["mIOU"] == multiscale["mIOU"]
    records = read_records(tmp_path / "out" / "per_image.npz")
    for image in records["whole"].names:
        np.testing.assert_array_equal(records["whole"].matrix(image), records["slide"].matrix(image))


@pytest.mark.slow
def test_a_resumed_evaluation_equals_an_uninterrupted_one(
    scored: Path, model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed evaluation leaves the file with the images scored so far."""
    records = read_records(scored / "per_image.npz")
    del records["builtin"]
    for image in records["slide"].names[2:]:
        records["slide"].remove(image)
    for record in records.values():
        record.about["masks"] = None
    write_records(tmp_path / "per_image.npz", records)
    assert evaluate(model_dir, shapes, tmp_path, "--protocol", PROTOCOLS) == 0
    printed = capsys.readouterr().out
    assert "whole: 6 of 6 images were scored before" in printed
    assert "slide: 2 of 6 images were scored before" in printed
    assert "builtin:" not in printed
    assert read_metrics(tmp_path) == read_metrics(scored)
    assert read_arrays(tmp_path) == read_arrays(scored)


@pytest.mark.slow
def test_another_precision_or_crop_starts_again(
    model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(model_dir, shapes, tmp_path, "--protocol", "slide") == 0
    capsys.readouterr()
    assert evaluate(model_dir, shapes, tmp_path, "--protocol", "slide", "--crop_size", "48") == 0
    assert "slide was scored with crop_size 40 and not 48; starting again" in capsys.readouterr().out
    assert evaluate(model_dir, shapes, tmp_path, "--protocol", "slide", "--precision", "bfloat16") == 0
    assert "slide was scored with precision float32 and not bfloat16; starting again" in capsys.readouterr().out
    assert evaluate(model_dir, shapes, tmp_path, "--protocol", "slide", "--resume", "never") == 0
    assert "scored" not in capsys.readouterr().out.split("IoU")[0]


@pytest.mark.slow
def test_two_processes_equal_one(scored: Path, model_dir: Path, shapes: Path, tmp_path: Path) -> None:
    """Two processes, started by torchrun, resume the evaluation of one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2", "--master_addr",
        "127.0.0.1", "--master_port", port, "-m", "pspnet.cli",
    ]  # fmt: skip
    records = read_records(scored / "per_image.npz")
    records = {"whole": records["whole"]}
    for image in records["whole"].names[3:]:
        records["whole"].remove(image)
    write_records(tmp_path / "out" / "per_image.npz", records)
    more = ["--protocol", PROTOCOLS, "--save_masks", str(scored / "masks"), "--batch_size", "1"]
    command = [*launch, *arguments_of(model_dir, shapes, tmp_path / "out", *more)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.count("mIoU  ") == 1  # only the main process prints
    assert "whole: 3 of 6 images were scored before" in process.stdout
    assert read_metrics(tmp_path / "out") == read_metrics(scored)
    assert read_arrays(tmp_path / "out") == read_arrays(scored)


def test_evaluate_reports_unusable_folders(
    model_dir: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(tmp_path, shapes, tmp_path / "out") == 1
    assert "not a model directory" in capsys.readouterr().err
    assert evaluate(model_dir, tmp_path / "nowhere", tmp_path / "out") == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert evaluate(model_dir, shapes, tmp_path / "file" / "out") == 1
    assert "cannot be created" in capsys.readouterr().err
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--workers", "many", "workers: found 'many' (flag --workers); allowed: auto or a whole number, at least 0"),
        ("--batch_size", "0", "batch_size: found '0' (flag --batch_size); allowed: a whole number, at least 1"),
        ("--ignore", "256", "ignore: found '256' (flag --ignore); allowed: a whole number from 0 to 255"),
        ("--protocol", "whole,slides", "protocol: found 'slides' (flag --protocol); allowed: whole, slide, multisc"),
        ("--crop_size", "big", "crop_size: found 'big' (flag --crop_size); allowed: a whole number, at least 32"),
        ("--base_size", "-1", "base_size: found '-1' (flag --base_size); allowed: a whole number, at least 0"),
        ("--scales", "1,9", "scales: found '1,9' (flag --scales); allowed: numbers greater than 0 and at most 8"),
        ("--flip", "maybe", "command line: unexpected 'maybe'; expected MODEL_DIR and settings as --key value"),
        ("--resume", "always", "resume: found 'always' (flag --resume); allowed: auto or never"),
    ],
)
def test_invalid_options_are_named(
    model_dir: Path,
    shapes: Path,
    tmp_path: Path,
    option: str,
    value: str,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate(model_dir, shapes, tmp_path / "out", "--protocol", "multiscale", option, value) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_options_are_named(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--annotations", str(shapes / "validation_annotation"), "--output", str(tmp_path)]
    assert run_guarded(dispatch, ["evaluate", *rest]) == 2
    assert "model_dir: missing; it is required without --predictions\n  images: missing" in capsys.readouterr().err
    assert run_guarded(dispatch, ["evaluate", "--predictions", str(tmp_path), *rest]) == 2
    assert "num_classes: missing; --predictions needs it, or the MODEL_DIR" in capsys.readouterr().err
