"""The picture of the inference benchmark, and the errors for other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import plot
from pspnet.system.exit_codes import run_guarded


def timing(milliseconds: float, **more: Any) -> dict[str, Any]:
    return {"median_ms": milliseconds, "quartiles_ms": [0.9 * milliseconds, 1.2 * milliseconds], **more}


INFERENCE = {
    "benchmark": "inference",
    "settings": {"batch": 1},
    "sizes": {
        "240x240": {
            "plain": timing(460.0, gain=None),
            "openvino:int8": timing(77.0, gain=[5.9, 6.0, 6.1]),
            "smp-pspnet": timing(50.0, gain=[9.0, 9.1, 9.2]),
        },
        "360x480": {"plain": timing(1400.0, gain=None)},
    },
}


def run(record: object, folder: Path, name: str) -> int:
    pytest.importorskip("matplotlib")
    (folder / "record.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return run_guarded(plot.main, [str(folder / "record.json"), str(folder / name)])


@pytest.mark.slow
def test_plot_names_cases_sizes_and_gains(tmp_path: Path) -> None:
    assert run(INFERENCE, tmp_path, "inference.svg") == 0
    text = (tmp_path / "inference.svg").read_text()
    for wanted in ("240x240 pixels", "360x480 pixels", "openvino:int8", "77 (6.00x)", ">460<", "ms for an image"):
        assert wanted in text
    assert len(text) < 100_000
    assert run(INFERENCE, tmp_path, "again.svg") == 0
    assert (tmp_path / "again.svg").read_text() == text


def test_a_png_is_written_too(tmp_path: Path) -> None:
    assert run(INFERENCE, tmp_path, "one.png") == 0
    with Image.open(tmp_path / "one.png") as picture:
        assert min(picture.size) > 150


@pytest.mark.parametrize(
    ("record", "name", "code", "text"),
    [
        ("{", "a.svg", 1, "record.json: not readable as JSON"),
        ({"benchmark": "other"}, "a.svg", 1, "record.json: expected a JSON file that inference.py writes"),
        ([], "a.svg", 1, "record.json: expected a JSON file that inference.py writes"),
        (INFERENCE, "a.gif", 2, "a.gif: expected a name that ends with .svg or .png."),
    ],
)
def test_wrong_files(
    record: object, name: str, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(record, tmp_path, name) == code
    assert text in capsys.readouterr().err
    assert not (tmp_path / name).exists()
