"""Folders that can be reported on, and errors for others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pspnet.errors import ConfigError, DataError
from pspnet.evaluation.html_report.report_inputs import read_subjects
from pspnet.evaluation.per_image import read_records, write_records

Make = Callable[..., Path]


def test_every_protocol_is_a_subject_in_its_order(make_evaluation: Make, make_run: Make) -> None:
    folder, run = make_evaluation(protocols=("whole", "slide")), make_run()
    whole, slide = read_subjects(folder)
    assert (whole.protocol, slide.protocol) == ("whole", "slide")
    assert len(whole.record) == 8
    assert whole.class_names[:2] == ("class 0", "<script>alert(1)</script>")
    assert whole.palette[1].tolist() == [128, 0, 0]
    assert whole.metrics["settings"] == {"crop_size": 40}
    # The model is in run/model, so the log next to it belongs to its training.
    assert whole.curves.path == run / "metrics.jsonl"
    assert [subject.protocol for subject in read_subjects(folder, ["slide"])] == ["slide"]


def test_another_run_can_be_given(make_evaluation: Make, make_run: Make, tmp_path: Path) -> None:
    folder, run = make_evaluation(), make_run()
    moved = shutil.move(str(run), str(tmp_path / "moved"))
    assert read_subjects(folder)[0].curves is None
    assert read_subjects(folder, run=Path(moved))[0].curves.lines["mIoU"]
    with pytest.raises(DataError, match=r"--run: .* holds no metrics\.jsonl"):
        read_subjects(folder, run=tmp_path)


def test_an_evaluation_without_provenance_uses_the_names_of_its_scores(make_evaluation: Make) -> None:
    folder = make_evaluation()
    (folder / "provenance.json").unlink()
    subject = read_subjects(folder)[0]
    assert subject.class_names[1] == "<script>alert(1)</script>"
    assert subject.provenance == {}


def test_a_run_has_scores_and_curves(make_run: Make) -> None:
    subject = read_subjects(make_run())[0]
    assert subject.record is None
    assert subject.metrics["mIOU"] == 0.625
    assert len(subject.class_names) == 5
    assert set(subject.curves.lines) == {"training loss", "mIoU", "pixel accuracy", "learning rate"}


def test_unreadable_folders_are_reported(make_evaluation: Make, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_subjects(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"contains neither per_image\.npz .* nor metrics\.jsonl"):
        read_subjects(tmp_path / "empty")
    folder = make_evaluation()
    with pytest.raises(ConfigError, match=r"--protocol: found 'slide'; .* holds whole\."):
        read_subjects(folder, ["slide"])
    (folder / "provenance.json").write_text("{}")
    with pytest.raises(DataError, match="expected the format pspnet-provenance-1"):
        read_subjects(folder)
    (folder / "provenance.json").unlink()
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object, found list"):
        read_subjects(folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(DataError, match=r"metrics\.json: does not exist"):
        read_subjects(folder)


def test_an_incomplete_evaluation_is_rejected(make_evaluation: Make) -> None:
    folder = make_evaluation()
    records = read_records(folder / "per_image.npz")
    records["whole"].remove(records["whole"].names[0])
    write_records(folder / "per_image.npz", records)
    with pytest.raises(DataError, match=r"has 7 images of whole, metrics\.json another number"):
        read_subjects(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["protocols"] = {}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(DataError, match="names no protocol"):
        read_subjects(folder)
