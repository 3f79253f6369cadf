"""Reuse of earlier records, and the records that are dropped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pspnet.data.channels import Pair
from pspnet.evaluation.partial_results import EvaluationState, file_hash, pair_signature
from pspnet.evaluation.per_image import read_records

COMMON = {"model": "abc", "precision": "float32", "scales": (1.0, 2.0)}
SETTINGS = {"crop_size": 32}
SIGNATURES = {"a": "1", "b": "2", "c": "3"}


def open_state(folder: Path, common: dict[str, Any] = COMMON, **options: Any) -> EvaluationState:
    return EvaluationState(folder, common, **options)


def write_two_of_three(folder: Path, masks: Path | None = None) -> None:
    state = open_state(folder)
    record = state.record("slide", 2, SETTINGS, SIGNATURES, masks)
    for name in ("a", "b"):
        record.add(name, np.eye(2, dtype=np.int64), SIGNATURES[name])
        if masks is not None:
            masks.mkdir(exist_ok=True)
            (masks / f"{name}.png").write_bytes(b"")
    record.about["seconds"] = 2.5
    state.save()


def test_the_same_evaluation_is_resumed(tmp_path: Path) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path)
    record = state.record("slide", 2, SETTINGS, SIGNATURES)
    assert record.names == ["a", "b"]
    assert record.about["seconds"] == 2.5
    assert record.total().tolist() == [[2, 0], [0, 2]]
    assert len(state.notes) == 1
    assert "slide: 2 of 3 images were scored before" in state.notes[0]


def test_never_starts_over(tmp_path: Path) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path, resume=False)
    assert len(state.record("slide", 2, SETTINGS, SIGNATURES)) == 0
    assert state.notes == []


@pytest.mark.parametrize(
    ("common", "text"),
    [
        ({**COMMON, "model": "other"}, "slide was scored with another model; starting again"),
        ({**COMMON, "precision": "bfloat16"}, "slide was scored with precision float32 and not bfloat16"),
        ({**COMMON, "label_map": "x"}, "slide was scored with another label map"),
    ],
)
def test_another_model_or_precision_starts_again(tmp_path: Path, common: dict[str, Any], text: str) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path, common)
    assert len(state.record("slide", 2, SETTINGS, SIGNATURES)) == 0
    assert len(state.notes) == 1
    assert text in state.notes[0]


def test_another_setting_restarts_that_protocol(tmp_path: Path) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path)
    assert len(state.record("slide", 2, {"crop_size": 64}, SIGNATURES)) == 0
    assert "slide was scored with crop_size 32 and not 64; starting again" in state.notes[0]


def test_only_changed_and_removed_images_are_scored_again(tmp_path: Path) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path)
    assert state.record("slide", 2, SETTINGS, {"a": "1", "b": "changed", "c": "3"}).names == ["a"]
    assert "1 of the 2 images scored before were changed or are missing" in state.notes[0]
    state = open_state(tmp_path)
    assert state.record("slide", 2, SETTINGS, {"b": "2"}).names == ["b"]


def test_requested_masks_must_exist(tmp_path: Path) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path)
    assert len(state.record("slide", 2, SETTINGS, SIGNATURES, tmp_path / "masks")) == 0
    assert "no masks written to this folder" in state.notes[0]
    write_two_of_three(tmp_path, tmp_path / "masks")
    assert open_state(tmp_path).record("slide", 2, SETTINGS, SIGNATURES, tmp_path / "masks").names == ["a", "b"]
    assert open_state(tmp_path).record("slide", 2, SETTINGS, SIGNATURES).names == ["a", "b"]
    (tmp_path / "masks" / "a.png").unlink()
    assert open_state(tmp_path).record("slide", 2, SETTINGS, SIGNATURES, tmp_path / "masks").names == ["b"]


def test_other_protocols_of_the_same_model_stay(tmp_path: Path) -> None:
    write_two_of_three(tmp_path)
    state = open_state(tmp_path)
    state.record("whole", 2, {}, SIGNATURES).add("a", np.eye(2, dtype=np.int64), "1")
    state.save()
    assert {name: record.names for name, record in read_records(tmp_path / "per_image.npz").items()} == {
        "slide": ["a", "b"],
        "whole": ["a"],
    }


def test_a_damaged_file_starts_again(tmp_path: Path) -> None:
    (tmp_path / "per_image.npz").write_bytes(b"nonsense")
    state = open_state(tmp_path)
    assert len(state.record("slide", 2, SETTINGS, SIGNATURES)) == 0
    assert "damaged" in state.notes[0]
    assert "Starting again" in state.notes[0]


def test_the_file_is_written_at_most_once_per_interval(tmp_path: Path) -> None:
    state = open_state(tmp_path, save_seconds=3600)
    state.save_if_due()
    assert not state.path.exists()
    state.save_seconds = 0
    state.save_if_due()
    assert state.path.exists()


def test_signatures_depend_on_both_files(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "a.jpg", tmp_path / "a.png")
    for path in (pair.image, pair.annotation):
        path.write_bytes(b"12")
    seen = {pair_signature(pair)}
    pair.annotation.write_bytes(b"123")
    seen.add(pair_signature(pair))
    os.utime(pair.image, ns=(5, 5))
    seen.add(pair_signature(pair))
    assert len(seen) == 3


def test_hashes_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_hash(tmp_path / "file").startswith("ba7816bf8f01cfea414140de5dae2223")
