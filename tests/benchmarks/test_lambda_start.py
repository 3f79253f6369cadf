"""The cold start benchmark of the Lambda function on small masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")

from benchmarks.support import lambda_start as benchmark
from pspnet.errors import DataError
from sagemaker_entry.pipeline import lambda_package


def write_masks(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        mask = np.zeros((24, 32), dtype=np.uint8)
        mask[12 + index :] = 3
        Image.fromarray(mask).save(folder / f"{index}.png")


@pytest.mark.slow
def test_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = np.ones(600 * 2**20, dtype=np.uint8)
    write_masks(tmp_path / "masks", 3)
    output = tmp_path / "out.json"
    arguments = ["--masks", str(tmp_path / "masks"), "--frames", "2", "--drivable", "3", "--starts", "2"]
    assert benchmark.main([*arguments, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "2 masks of 32x24, " in printed
    assert "| median of 2 starts |" in printed
    record = json.loads(output.read_text())
    assert len(record["starts"]) == 2
    for start in record["starts"]:
        assert set(start["seconds"]) == {"import", "first event", "same event"}
        assert all(0 < seconds < 60 for seconds in start["seconds"].values())
        # The memory of the child, not of this process.
        assert start["peak_mib"] is None or 10 < start["peak_mib"] < 500
    assert record["versions"]["python"]
    assert held.all()


@pytest.mark.slow
def test_a_file_missing_from_the_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout must not replace the files of the package."""
    kept = tuple(name for name in lambda_package.CODE if not name.endswith("lambda_masks.py"))
    monkeypatch.setattr(lambda_package, "CODE", kept)
    with pytest.raises(Exception, match="lambda_masks"):
        benchmark.measure(1, benchmark.write_segment(None, 1)[0], "0")


def test_too_few_masks_and_other_sizes_are_errors(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", 2)
    with pytest.raises(DataError, match="found 2 PNG files, expected 3; use fewer --frames"):
        benchmark.write_segment(tmp_path / "masks", 3)
    Image.fromarray(np.zeros((5, 5), dtype=np.uint8)).save(tmp_path / "masks" / "9.png")
    with pytest.raises(DataError, match="expected masks of one size"):
        benchmark.write_segment(tmp_path / "masks", 3)
