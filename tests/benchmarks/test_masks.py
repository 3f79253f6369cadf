"""The mask encodings benchmark on small masks: lossless round trips, and bytes that match the files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import masks as benchmark
from pspnet.errors import DataError
from pspnet.masks.codec import encode_runs


def write(folder: Path, count: int = 4) -> list[np.ndarray]:
    found = []
    folder.mkdir()
    for index in range(count):
        mask = np.zeros((16, 20), dtype=np.uint8)
        mask[4:9, index : index + 7] = 3
        Image.fromarray(mask).save(folder / f"{index}.png")
        Image.fromarray(mask).save(folder / f"{index}.jpg")
        found.append(mask)
    return found


def test_table_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = write(tmp_path / "masks")
    folder, output = str(tmp_path / "masks"), tmp_path / "out.json"
    code = benchmark.main(
        ["--masks", folder, "--frames", folder, "--no_times", "--every", "2", "--output", str(output)]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "2 masks of 20x16; 6.2 % of the pixels change" in printed
    assert "| not measured |" in printed
    record = json.loads(output.read_text())
    rows = {row["name"]: row["bytes"] for row in record["rows"]}
    assert rows["runs"] == np.mean([len(encode_runs(mask)) for mask in masks[::2]])
    assert rows["segment, runs"] > rows["runs"]
    assert {name for name in rows if name.startswith("PNG, 2 bit")}
    assert record["jpeg_bytes"] == np.mean([(tmp_path / "masks" / f"{index}.jpg").stat().st_size for index in (0, 2)])
    assert record["machine"]["cores"] >= 1


def test_every_nth_mask_is_paired_with_its_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "masks")
    (tmp_path / "masks" / "1.jpg").unlink()
    with open(tmp_path / "masks" / "2.jpg", "ab") as file:
        file.write(bytes(1000))
    folder, output = str(tmp_path / "masks"), tmp_path / "out.json"
    arguments = ["--masks", folder, "--frames", folder, "--no_times", "--every", "2", "--output", str(output)]
    assert benchmark.main([*arguments, "--only", "runs"]) == 0
    record = json.loads(output.read_text())
    assert record["jpeg_bytes"] == np.mean([(tmp_path / "masks" / f"{index}.jpg").stat().st_size for index in (0, 2)])


def test_times_of_selected_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "masks")
    assert benchmark.main(["--masks", str(tmp_path / "masks"), "--only", "quality 100"]) == 0
    rows = capsys.readouterr().out.splitlines()[3:]
    assert len(rows) == 1
    assert rows[0].startswith("| WebP lossless, method 6, quality 100 |")
    assert "not measured" not in rows[0]


def test_missing_masks_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected at least two masks"):
        benchmark.main(["--masks", str(tmp_path)])
