"""Streams from Python: settings, summary and completeness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pspnet.errors import ConfigError, PspnetError
from pspnet.stream import read_masks
from pspnet.stream.streaming import StreamSettings, is_complete, run_stream
from tests.stream.fakes import InstantModel
from tests.stream.videos import frames


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PSPNET_CAMVID", raising=False)
    path = tmp_path / "frames"
    path.mkdir()
    for index, image in enumerate(frames(5)):
        Image.fromarray(image).save(path / f"{index}.png")
    return path


def test_run_stream_delivers_masks_and_returns_the_summary(folder: Path, tmp_path: Path) -> None:
    settings = StreamSettings(
        str(folder), to=[str(tmp_path / "masks")], summary=tmp_path / "summary.json", max_frames=4
    )
    summary = run_stream(settings, InstantModel)
    assert (summary["read"], summary["masks"]) == (4, 4)
    assert is_complete(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert [record.frame for record in read_masks(tmp_path / "masks")] == [0, 1, 2, 3]


def test_a_failed_frame_makes_a_summary_incomplete(folder: Path, tmp_path: Path) -> None:
    def fail(_value: int) -> None:
        raise PspnetError("no mask.")

    summary = run_stream(StreamSettings(str(folder), to=[str(tmp_path / "masks")]), lambda: InstantModel(fail))
    assert summary["failed"] == 5
    assert not is_complete(summary)


@pytest.mark.parametrize(
    ("to", "sink_settings", "message"),
    [
        (["a", "a"], {}, "--to: a is given twice"),
        (["a"], {"segment_second": "1"}, "no sink has the setting 'segment_second'; did you mean segment_seconds"),
    ],
)
def test_invalid_settings_raise(to: list[str], sink_settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamSettings("film.mkv", to=to, sink_settings=sink_settings)
