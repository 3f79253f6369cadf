"""`pspnet doctor` and `pspnet prepare`: output, exit codes and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pspnet.cli.dispatch import dispatch
from pspnet.errors import ConfigError, DataError, PspnetError


def run(*argv: object) -> int:
    return dispatch([str(item) for item in argv])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cli") / "shapes"
    assert run("prepare", "shapes", output, "--train", 12, "--validation", 8, "--width", 96, "--height", 72) == 0
    return output


def test_prepared_shapes_have_no_errors(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert run("doctor", shapes, "--class-names", "shapes", "--workers", 1, "--json", report) == 0
    text = capsys.readouterr().out
    assert "6   star" in text
    assert "0 errors, 0 warnings: ready to train." in text
    content = json.loads(report.read_text())
    assert content["ok"] is True
    assert content["num_classes"] == 7
    assert [channel["images"] for channel in content["channels"]] == [12, 8]
    assert f"class_weights: [{', '.join(f'{weight:g}' for weight in content['class_weights'])}]" in text


def test_too_few_classes_exit_with_1(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", shapes, "--num-classes", 4, "--workers", 1) == 1
    assert "ERROR train: annotations with class ids outside 0..3" in capsys.readouterr().out


@pytest.mark.parametrize("spelling", ["train_annotation", "train-annotation"])
def test_one_channel_by_its_folders(shapes: Path, capsys: pytest.CaptureFixture[str], spelling: str) -> None:
    assert run("doctor", "--train", shapes / "train", f"--{spelling}", shapes / "train_annotation") == 0
    text = capsys.readouterr().out
    assert "train       12     96x72" in text
    assert "validation" not in text


def test_a_label_map_folder_is_found_next_to_the_channels(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for folder in ("train", "train_annotation", "validation", "validation_annotation"):
        (data / folder).symlink_to(shapes / folder)
    (data / "label_map").mkdir()
    (data / "label_map" / "train_label_map.json").write_text('{"map": {"0": 0, "1": 1}}')
    assert run("doctor", data, "--num_classes", 7, "--workers", 1) == 0
    text = capsys.readouterr().out
    assert "WARNING train: annotations with pixel values that are missing from the label map" in text
    assert "WARNING validation" not in text


@pytest.mark.parametrize(
    ("argv", "kind", "message"),
    [
        (["doctor"], ConfigError, "data: missing; give DATA_DIR, or --train and --train_annotation"),
        (["doctor", "nowhere"], DataError, "nowhere: is not a folder; expected one that contains train"),
        (["doctor", "--train", "x"], ConfigError, "train_annotation: missing; a channel has images and annotations"),
        (["doctor", "--validation_annotation", "x"], ConfigError, "  validation: missing; a channel has images and"),
        (["doctor", ".", "--num_classes", 1], ConfigError, "num_classes: found '1' .*: a whole number from 2 to 254"),
        (["doctor", ".", "--ignore_index", 256], ConfigError, "ignore_index: found '256' .*whole number from 0 to 255"),
        (["doctor", ".", "--class_names", "a,b,a"], ConfigError, "class_names: found 'a,b,a' .*2 to 254 unique names"),
        (["doctor", ".", "--class_names", "a"], ConfigError, "class_names: found 'a' .*2 to 254 unique names"),
        (["doctor", ".", "--class_names", "a,b", "--num-classes", 3], ConfigError, "found 3 .*class_names has 2 names"),
        (["prepare", "voc", "out"], DataError, "no source. Give a VOCdevkit folder or the tar with --source"),
        (["prepare", "voc", "out", "--source", "gone"], DataError, "gone: does not exist"),
        (["prepare", "shapes", "out", "--width", 8], ConfigError, "width: found '8' .*a whole number, at least 32"),
        (["prepare", "shaps", "out"], ConfigError, "pspnet prepare: unknown command 'shaps'; did you mean shapes?"),
    ],
)
def test_invalid_arguments_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[object], kind: type[PspnetError], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        run(*argv)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_an_error(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json: the report cannot be written \(No such file or directory\)"):
        run("doctor", shapes, "--workers", 1, "--json", tmp_path / "gone" / "report.json")


def test_shapes_do_not_overwrite_other_data(shapes: Path) -> None:
    with pytest.raises(DataError, match="requested was"):
        run("prepare", "shapes", shapes, "--seed", 5)
