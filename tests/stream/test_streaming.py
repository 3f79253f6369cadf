"""Streams from Python: settings, summary and completeness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pspnet.errors import ConfigError, PspnetError
from pspnet.stream import read_masks
from pspnet.stream.stream_settings import StreamSettings
from pspnet.stream.streaming import is_complete, run_stream
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
        source=str(folder), to=[str(tmp_path / "masks")], summary=tmp_path / "summary.json", max_frames=4
    )
    summary = run_stream(settings, InstantModel)
    assert (summary["read"], summary["masks"]) == (4, 4)
    assert is_complete(summary)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert [record.frame for record in read_masks(tmp_path / "masks")] == [0, 1, 2, 3]


def test_a_failed_frame_makes_a_summary_incomplete(folder: Path, tmp_path: Path) -> None:
    def fail(_value: int) -> None:
        raise PspnetError("no mask.")

    summary = run_stream(StreamSettings(source=str(folder), to=[str(tmp_path / "masks")]), lambda: InstantModel(fail))
    assert summary["failed"] == 5
    assert not is_complete(summary)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"to": ["a", "a"]}, "to: found a and a, which are one sink; give every sink once"),
        ({"to": ["masks", "./masks/"]}, "to: found masks and ./masks/, which are one sink; give every sink once"),
        ({"to": ["s3://b/p", "s3://b/p/"]}, "to: found s3://b/p and s3://b/p/, which are one sink"),
        ({"to": ["http://h/?k=1", "http://h/?k=1"]}, "to: found http://h/ and http://h/, which are one sink"),
        ({"to": ["-", "png:-"]}, "to: found - and png:-, which are one sink"),
        ({"to": ["web", "web:8090"]}, "to: found web and web:8090, which are one sink"),
        ({"to": ["web:no"]}, "to: found web:no; expected web or web:PORT with a port from 0 to 65535"),
        ({"to": ["s3:///x"]}, "to: found s3:///x; has no bucket; expected s3://BUCKET/PREFIX"),
        ({"to": ["http://u:secret@h/"]}, r"to: found http://\*\*\*@h/; The webhook URL has a password"),
        ({"to": []}, "to: missing; it is required: sinks"),
        ({"sink_setting": ["x"]}, "sink_setting: found 'x'; allowed: NAME=VALUE"),
        (
            {"sink_setting": ["segment_second=1"]},
            "sink_setting: segment_second: unknown key; did you mean segment_seconds",
        ),
        ({"sink_setting": ["s3_spool=x"]}, "sink_setting: s3_spool: unknown key; did you mean --spill?"),
        ({"sink_setting": ["key_every=3"]}, "sink_setting: key_every: unknown key"),
        ({"sink_setting": ["self=3"]}, "sink_setting: self: unknown key"),
        (
            {"sink_setting": ["mask_encoding=temporal"]},
            "sink_setting: mask_encoding: found 'temporal'; allowed: runs, png or files",
        ),
        ({"sink_setting": ["segment_seconds=0"]}, "segment_seconds: found '0'; allowed: a number, greater than 0"),
        ({"sink_setting": ["webhook_headers=x"]}, "sink_setting: webhook_headers: invalid header; expected NAME"),
        ({"rate": "fast"}, "rate: found 'fast'; allowed: own, or frames per second above 0 up to 1000"),
        ({"rate": 0}, "rate: found 0; allowed: own"),
        ({"size": "640"}, "size: found '640'; allowed: WIDTHxHEIGHT"),
        ({"start": "yesterday"}, "start: found 'yesterday'; allowed: now, earliest, seconds since the epoch"),
    ],
)
def test_invalid_settings_raise(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        StreamSettings(**{"source": "film.mkv", "to": ["a"], **values})
    assert len(str(caught.value).splitlines()) == 2
    assert "secret" not in str(caught.value)


def test_valid_settings() -> None:
    settings = StreamSettings(
        source="kvs://car", to="-", rate="own", start="1763.5", size="640x480",
        sink_setting=["segment-frames=7", "webhook_headers=A: b=c"],
    )  # fmt: skip
    assert (settings.to, settings.rate, settings.start) == (("-",), "own", "1763.5")
    assert settings.sink_settings().segments().frames == 7
    assert settings.sink_settings().headers({}) == {"A": "b=c"}
    assert StreamSettings(source="a", to="b", rate="7").rate == 7.0
