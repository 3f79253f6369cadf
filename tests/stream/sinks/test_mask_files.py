"""Mask files in a folder and on S3: content, retries, and no overwritten or lost objects."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import CAMVID_CLASSES, palette_for
from pspnet.errors import ConfigError, PspnetError
from pspnet.masks.codec import MaskFileError
from pspnet.masks.writer import SegmentSettings
from pspnet.stream import read_masks
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.factory import open_sink
from pspnet.stream.sinks.mask_files import CONTENT_TYPE, FolderSink, S3Sink
from tests.masks.mask_items import START, item, scene

CONTEXT = SinkContext(CAMVID_CLASSES, palette_for(CAMVID_CLASSES), source="kvs://car")
FRAMES = SegmentSettings(frames=4)


def test_folder_stores_segments(tmp_path: Path) -> None:
    sink = open_sink(str(tmp_path / "new" / "masks"), CONTEXT)
    assert isinstance(sink, FolderSink)
    for index in range(10):
        sink.write(item(index))
    sink.close()
    (path,) = (tmp_path / "new" / "masks").iterdir()
    assert path.suffix == ".pspm"
    records = list(read_masks(path))
    assert all(np.array_equal(record.mask, scene(index)) for index, record in enumerate(records))
    assert records[9].class_names == CAMVID_CLASSES


def test_flush_finishes_a_segment_and_the_next_item_starts_one(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path, CONTEXT)
    sink.write(item(0))
    sink.flush()
    sink.flush()
    sink.write(item(1))
    sink.close()
    assert len(list(tmp_path.glob("*.pspm"))) == 2


def test_folder_of_palette_png_files(tmp_path: Path) -> None:
    context = SinkContext(CAMVID_CLASSES, palette_for(CAMVID_CLASSES), settings={"mask_encoding": "files"})
    for _ in range(2):  # the same item, as after a lost response
        sink = FolderSink(tmp_path, context)
        sink.write(item(3, fragment="7"))
        sink.close()
    sink.write(item(3, scene(4)))  # another mask of the same time
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["20231114T221320550000Z-000000003.1.png", "20231114T221320550000Z-000000003.png"]
    with Image.open(tmp_path / names[1]) as image:
        assert image.mode == "P"
        assert np.array_equal(np.array(image), scene(3))
        assert tuple(image.convert("RGB").getpixel((0, 0))) == tuple(palette_for(CAMVID_CLASSES)[scene(3)[0, 0]])
    (first, second) = read_masks(tmp_path, frames=[3])
    assert second.labels == {"fragment": "7"}
    assert np.array_equal(first.mask, scene(4))


def test_an_unusable_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SinkError, match="cannot store masks here") as caught:
        FolderSink(tmp_path / "file", CONTEXT)
    assert not caught.value.temporary


def test_a_removed_folder_is_a_temporary_error(tmp_path: Path) -> None:
    sink = FolderSink(tmp_path / "masks", CONTEXT, SegmentSettings("files"))
    (tmp_path / "masks").rmdir()
    (tmp_path / "masks").write_text("in the way")
    with pytest.raises(SinkError, match="cannot be written") as caught:
        sink.write(item(0))
    assert caught.value.temporary
    (tmp_path / "masks").unlink()
    sink.write(item(0))
    assert len(list(read_masks(tmp_path / "masks"))) == 1


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    moto = pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    boto3 = pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        found = boto3.client("s3")
        found.create_bucket(Bucket="car", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield found


def keys(client: Any) -> list[str]:
    return [one["Key"] for one in client.list_objects_v2(Bucket="car").get("Contents", [])]


def s3_sink(client: Any, tmp_path: Path, settings: SegmentSettings = FRAMES) -> S3Sink:
    return S3Sink("s3://car/run 1/masks/", CONTEXT, settings, client, tmp_path / "spool")


def test_s3_stores_segments(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path)
    for index in range(10):
        sink.write(item(index))
    assert len(keys(client)) == 2
    sink.flush()
    sink.close()
    assert keys(client) == sorted(keys(client))
    assert keys(client)[0] == ("run 1/masks/20231114T221320250000Z-20231114T221320550000Z-000000000-000000003.pspm")
    head = client.head_object(Bucket="car", Key=keys(client)[0])
    assert head["ContentType"] == CONTENT_TYPE
    assert head["Metadata"]["captured-from"] == f"{START:.6f}"
    assert head["Metadata"]["captured-to"] == f"{START + 0.3:.6f}"
    records = list(read_masks("s3://car/run 1/masks", client=client))
    assert [record.frame for record in records] == list(range(10))
    assert all(np.array_equal(record.mask, scene(index)) for index, record in enumerate(records))
    assert not (tmp_path / "spool").exists()


def test_s3_is_read_with_range_requests(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path, SegmentSettings(frames=1000, key_every=4))
    for index in range(300):
        sink.write(item(index))
    sink.flush()
    calls = []
    client.meta.events.register("before-call.s3", lambda model, params, **_: calls.append((model.name, params)))
    (record,) = read_masks("s3://car/run 1/masks", frames=155, client=client)
    assert np.array_equal(record.mask, scene(155))
    assert [name for name, _ in calls].count("ListObjectsV2") == 1
    ranges = [params["headers"]["Range"] for name, params in calls if name == "GetObject"]
    assert len(ranges) == 3
    first, last = ranges[-1].removeprefix("bytes=").split("-")
    assert int(last) - int(first) < 1000
    (record,) = read_masks(f"s3://car/{keys(client)[0]}", frames=7, client=client)
    assert record.frame == 7


def test_s3_never_overwrites_an_object(client: Any, tmp_path: Path) -> None:
    for shift in (0, 1):
        sink = s3_sink(client, tmp_path)
        for index in range(3):
            sink.write(item(index, scene(index + shift)))
        sink.flush()
    assert [key.rpartition("/")[2].partition("Z-0000")[2] for key in keys(client)] == [
        "00000-000000002.1.pspm",
        "00000-000000002.pspm",
    ]
    # An object that exists because only the response was lost is not stored again.
    sink.write(item(0, scene(1)))
    sink.write(item(1, scene(2)))
    sink.write(item(2, scene(3)))
    sink.flush()
    assert len(keys(client)) == 2


def test_s3_accepts_an_item_only_after_spooled_segments_are_uploaded(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path)
    failing = Failing(client, "SlowDown", 503)
    sink._client = failing
    for index in range(4):
        sink.write(item(index))
    for _ in range(3):
        with pytest.raises(SinkError, match="SlowDown") as caught:
            sink.write(item(4))
        assert caught.value.temporary
    failing.code = ""
    sink.write(item(4))
    sink.flush()
    assert [record.frame for record in read_masks("s3://car/run 1/masks", client=client)] == list(range(5))


def test_spooled_segments_survive_the_process(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path)
    sink._client = Failing(client, "AccessDenied", 403)
    for index in range(3):
        sink.write(item(index))
    with pytest.raises(SinkError, match="AccessDenied") as caught:
        sink.flush()
    assert not caught.value.temporary
    with pytest.raises(SinkError, match="1 segments were not uploaded; they are in"):
        sink.close()
    again = s3_sink(client, tmp_path)
    again.flush()
    again.close()
    assert [record.frame for record in read_masks("s3://car/run 1/masks", client=client)] == [0, 1, 2]


def test_spooled_segments_are_never_uploaded_to_another_destination(client: Any, tmp_path: Path) -> None:
    client.create_bucket(Bucket="car-1", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    refused = Failing(client, "AccessDenied", 403)
    sink = S3Sink("s3://car/1/x/", CONTEXT, FRAMES, refused, tmp_path / "spool")
    sink.write(item(0))
    with pytest.raises(SinkError, match="1 segments were not uploaded; they are in"):
        sink.close()
    for uri in ("s3://car/1-x", "s3://car-1/x"):
        other = S3Sink(uri, CONTEXT, FRAMES, client, tmp_path / "spool")
        other.flush()
        other.close()
    assert keys(client) == []
    assert "Contents" not in client.list_objects_v2(Bucket="car-1")
    same = S3Sink("s3://car/1/x", CONTEXT, FRAMES, client, tmp_path / "spool")
    same.flush()
    same.close()
    assert len(keys(client)) == 1


class Failing:
    """S3 client whose put_object fails with one error."""

    def __init__(self, client: Any, code: str, status: int) -> None:
        self._client, self.code, self._status = client, code, status

    def put_object(self, **arguments: Any) -> Any:
        from botocore.exceptions import ClientError, EndpointConnectionError

        if self.code == "unreachable":
            raise EndpointConnectionError(endpoint_url="https://s3")
        if self.code:
            answer = {"Error": {"Code": self.code}, "ResponseMetadata": {"HTTPStatusCode": self._status}}
            raise ClientError(answer, "PutObject")
        return self._client.put_object(**arguments)

    def head_object(self, **arguments: Any) -> Any:
        return self._client.head_object(**arguments)


@pytest.mark.parametrize(
    ("code", "status", "temporary"),
    [
        ("unreachable", 0, True),
        ("InternalError", 500, True),
        ("Throttling", 400, True),
        ("ExpiredToken", 400, True),
        ("NoSuchBucket", 404, False),
        ("AccessDenied", 403, False),
        ("InvalidRequest", 400, False),
    ],
)
def test_s3_errors(client: Any, tmp_path: Path, code: str, status: int, temporary: bool) -> None:
    sink = s3_sink(client, tmp_path, SegmentSettings("files"))
    sink._client = Failing(client, code, status)
    with pytest.raises(SinkError, match=r"s3://car/run 1/masks/.*\.png: was not stored") as caught:
        sink.write(item(0))
    assert caught.value.temporary is temporary


def test_s3_stores_png_files(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path, SegmentSettings("files"))
    sink.write(item(0))
    (key,) = keys(client)
    assert key == "run 1/masks/20231114T221320250000Z-000000000.png"
    stored = client.get_object(Bucket="car", Key=key)
    assert stored["ContentType"] == "image/png"
    assert np.array_equal(np.array(Image.open(io.BytesIO(stored["Body"].read()))), scene(0))


def test_s3_uris_and_spool_folder(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = SinkContext(settings={"s3_spool": str(tmp_path / "here"), "segment_frames": "1"}, region="eu-west-1")
    sink = open_sink("s3://car", context)
    sink.write(item(0))
    sink.write(item(1))
    sink.flush()
    sink.close()
    assert len(keys(client)) == 2
    assert "/" not in keys(client)[0]
    assert [record.frame for record in read_masks("s3://car")] == [0, 1]
    with pytest.raises(PspnetError, match="has no bucket"):
        open_sink("s3:///x", context)
    with pytest.raises(ConfigError, match="profile"):
        S3Sink("s3://car/x", SinkContext(profile="nobody"))
    with pytest.raises(MaskFileError, match="cannot be listed"):
        read_masks("s3://no-such-bucket/x", client=client)
