"""Mask files on S3: content, retries, a full disk, kill -9, and no overwritten or lost objects."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
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
from pspnet.stream.delivery import Delivery, DeliveryLimits
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.stream.sinks.factory import open_sink
from pspnet.stream.sinks.s3 import CONTENT_TYPE, S3Sink
from pspnet.stream.sinks.sink_settings import SinkSettings
from pspnet.stream.statistics import SinkStatistics
from tests.masks.mask_items import START, item, scene
from tests.stream.fakes import wait_until

ROOT = Path(__file__).resolve().parents[3]
CONTEXT = SinkContext(CAMVID_CLASSES, palette_for(CAMVID_CLASSES), source="kvs://car")
FRAMES = SegmentSettings(frames=4)


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(_credentials: None) -> Iterator[Any]:
    moto = pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    boto3 = pytest.importorskip("boto3")
    with moto.mock_aws():
        found = boto3.client("s3")
        found.create_bucket(Bucket="car", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield found


def keys(client: Any) -> list[str]:
    return [one["Key"] for one in client.list_objects_v2(Bucket="car").get("Contents", [])]


def s3_sink(client: Any, tmp_path: Path, settings: SegmentSettings = FRAMES) -> S3Sink:
    return S3Sink("s3://car/run 1/masks/", replace(CONTEXT, spill=tmp_path / "spool"), settings, client)


def finish(sink: S3Sink) -> None:
    sink.flush()
    sink.uploader.upload()
    sink.close()


def test_s3_stores_segments(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path)
    for index in range(10):
        sink.write(item(index))
    sink.uploader.upload()
    assert len(keys(client)) == 2
    finish(sink)
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
    sink = s3_sink(client, tmp_path, SegmentSettings(frames=1000))
    for index in range(300):
        sink.write(item(index))
    finish(sink)
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
        finish(sink)
    assert [key.rpartition("/")[2].partition("Z-0000")[2] for key in keys(client)] == [
        "00000-000000002.1.pspm",
        "00000-000000002.pspm",
    ]
    # An object that exists because only the response was lost is not stored again.
    sink = s3_sink(client, tmp_path)
    sink.write(item(0, scene(1)))
    sink.write(item(1, scene(2)))
    sink.write(item(2, scene(3)))
    finish(sink)
    assert len(keys(client)) == 2


class DeliveryRun:
    """A running delivery to an S3 sink and its messages."""

    def __init__(self, sink: S3Sink, patience: float | None = None, grace: float = 5.0) -> None:
        self.messages: list[str] = []
        self.sink, self.statistics = sink, SinkStatistics(sink.name)
        sink.uploader._report = self.messages.append
        limits = DeliveryLimits(depth=3, patience=patience, grace=grace, first_pause=0.01, longest_pause=0.05)
        self.delivery = Delivery(sink, None, self.statistics, self.messages.append, limits, sink.uploader)
        self.delivery.start()

    def end(self) -> None:
        self.delivery.finish()
        self.delivery.join()


def stored(client: Any) -> list[int]:
    return [record.frame for record in read_masks("s3://car/run 1/masks", client=client)]


def test_masks_are_kept_on_disk_while_s3_fails_and_uploaded_in_order(client: Any, tmp_path: Path) -> None:
    failing = Failing(client, "SlowDown", 503)
    run = DeliveryRun(s3_sink(failing, tmp_path))
    for index in range(30):
        run.delivery.put(item(index))
    wait_until(lambda: run.statistics["delivered"] == 30 and run.statistics["retries"] >= 1)
    assert keys(client) == []
    failing.code = ""
    run.end()
    assert stored(client) == list(range(30))
    assert "Retrying with exponential backoff; masks stay on disk." in run.messages[0]
    assert run.messages[1] == "s3://car/run 1/masks/: recovered; all queued files were uploaded."
    assert (run.statistics["lost"], run.statistics["unfinished"]) == (0, 0)
    assert not (tmp_path / "spool").exists()


def test_a_refused_upload_ends_the_stream_and_the_next_run_continues(client: Any, tmp_path: Path) -> None:
    run = DeliveryRun(s3_sink(Failing(client, "AccessDenied", 403), tmp_path))
    for index in range(5):
        run.delivery.put(item(index))
    wait_until(lambda: run.delivery.dead)
    run.delivery.put(item(5))
    run.end()
    assert "gave up uploading: s3://car/run 1/masks/" in run.messages[0]
    assert "2 files were not uploaded; they are in" in run.messages[1]
    assert run.statistics["unfinished"] == 1
    again = DeliveryRun(s3_sink(client, tmp_path))
    again.end()
    assert again.messages == []
    assert stored(client) == list(range(6))


def test_the_grace_period_limits_the_uploads_at_the_end(client: Any, tmp_path: Path) -> None:
    run = DeliveryRun(s3_sink(Failing(client, "unreachable", 0), tmp_path), grace=0.5)
    run.delivery.put(item(0))
    started = time.monotonic()
    run.end()
    assert time.monotonic() - started < 5
    assert run.statistics["retries"] > 2
    assert "1 files were not uploaded" in run.messages[-1]


@pytest.mark.parametrize("latest", [True, False])
def test_at_the_limit_new_masks_are_lost_or_the_stream_waits(client: Any, tmp_path: Path, latest: bool) -> None:
    failing = Failing(client, "SlowDown", 503)
    context = replace(CONTEXT, spill=tmp_path / "spool", spill_bytes=20_000)
    run = DeliveryRun(S3Sink("s3://car/run 1/masks/", context, FRAMES, failing), 0.1 if latest else None)
    if latest:
        for index in range(200):
            run.delivery.put(item(index))
        lost = run.statistics["lost"]
        assert 50 < lost < 190
    else:
        feeder = threading.Thread(target=lambda: [run.delivery.put(item(index)) for index in range(200)], daemon=True)
        feeder.start()
        wait_until(lambda: any("(--spill_bytes) is reached" in text for text in run.messages))
        assert feeder.is_alive()
        lost = 0
    assert 10_000 < sum(path.stat().st_size for path in (tmp_path / "spool").rglob("*.pspm*")) < 25_000
    failing.code = ""
    run.sink.uploader.retry()
    if not latest:
        feeder.join(60)
    run.end()
    assert stored(client) == list(range(200 - lost))


def test_files_are_never_uploaded_to_another_destination(client: Any, tmp_path: Path) -> None:
    client.create_bucket(Bucket="car-1", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    context = replace(CONTEXT, spill=tmp_path / "spool")
    sink = S3Sink("s3://car/1/x/", context, FRAMES, client)
    sink.write(item(0))
    with pytest.raises(SinkError, match="1 files were not uploaded; they are in"):
        sink.close()
    for uri in ("s3://car/1-x", "s3://car-1/x"):
        finish(S3Sink(uri, context, FRAMES, client))
    assert keys(client) == []
    assert "Contents" not in client.list_objects_v2(Bucket="car-1")
    finish(S3Sink("s3://car/1/x", context, FRAMES, client))
    assert len(keys(client)) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from pspnet.stream.delivery import Delivery, DeliveryLimits
from pspnet.stream.sinks.base import SinkContext
from pspnet.stream.sinks.s3 import S3Sink
from pspnet.stream.statistics import SinkStatistics
from pspnet.masks.writer import SegmentSettings
import numpy as np
from pspnet.masks.frames import Frame, MaskedFrame

endpoint, first, last, kill = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "kill"
context = SinkContext(spill=Path("spill"), aws_endpoint=endpoint, report=print)
sink = S3Sink("s3://car/masks", context, SegmentSettings(frames=100))
statistics = SinkStatistics(sink.name)
delivery = Delivery(sink, None, statistics, print, DeliveryLimits(patience=None), sink.uploader)
delivery.start()
for index in range(first, last):
    mask = np.random.default_rng(index).integers(0, 3, (20, 30)).astype(np.uint8)
    delivery.put(MaskedFrame(Frame(index, mask, 1e9 + index / 100, 0.0, index / 100), mask, 0.0))
while statistics["delivered"] < last - first:
    pass
if kill:
    os.kill(os.getpid(), signal.SIGKILL)
delivery.finish()
delivery.join()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("_credentials")
def test_an_outage_of_1000_masks_and_kill_9(tmp_path: Path) -> None:
    """S3 is unreachable for 1,000 masks, the process is killed twice, and every mask arrives once and in order."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    def run(endpoint: str, first: int, last: int, how: str) -> int:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", KILLED, endpoint, str(first), str(last), how]
        return subprocess.run(command, cwd=tmp_path, env=environment, timeout=120).returncode

    assert run("http://127.0.0.1:9", 0, 1000, "kill") == -signal.SIGKILL
    used = sum(path.stat().st_size for path in (tmp_path / "spill").rglob("*") if path.is_file())
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        remote = boto3.client("s3", endpoint_url=endpoint)
        remote.create_bucket(Bucket="car", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        assert run(endpoint, 1000, 1250, "kill") == -signal.SIGKILL
        assert run(endpoint, 1250, 1300, "end") == 0
        records = list(read_masks("s3://car/masks", client=remote))
        sizes = [one["Size"] for one in remote.list_objects_v2(Bucket="car")["Contents"]]
    finally:
        server.stop()
    assert [record.frame for record in records] == list(range(1300))
    for record in records:
        expected = np.random.default_rng(record.frame).integers(0, 3, (20, 30))
        assert np.array_equal(record.mask, expected)
    assert used < 1.1 * sum(sizes) * 1000 / 1300
    assert not (tmp_path / "spill").exists()


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
    sink = s3_sink(Failing(client, code, status), tmp_path, SegmentSettings("files"))
    sink.write(item(0))
    with pytest.raises(SinkError, match=r"s3://car/run 1/masks/.*\.png: was not stored") as caught:
        sink.uploader.upload()
    assert caught.value.temporary is temporary


def test_s3_stores_png_files(client: Any, tmp_path: Path) -> None:
    sink = s3_sink(client, tmp_path, SegmentSettings("files"))
    sink.write(item(0))
    finish(sink)
    (key,) = keys(client)
    assert key == "run 1/masks/20231114T221320250000Z-000000000.png"
    stored = client.get_object(Bucket="car", Key=key)
    assert stored["ContentType"] == "image/png"
    assert np.array_equal(np.array(Image.open(io.BytesIO(stored["Body"].read()))), scene(0))


def test_s3_uris_and_spool_folder(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    context = SinkContext(spill=tmp_path / "here", settings=SinkSettings(segment_frames=1), region="eu-west-1")
    sink = open_sink("s3://car", context)
    sink.write(item(0))
    sink.write(item(1))
    assert isinstance(sink, S3Sink)
    finish(sink)
    assert len(keys(client)) == 2
    assert "/" not in keys(client)[0]
    assert [record.frame for record in read_masks("s3://car")] == [0, 1]
    with pytest.raises(PspnetError, match="has no bucket"):
        open_sink("s3:///x", context)
    with pytest.raises(ConfigError, match="profile"):
        S3Sink("s3://car/x", SinkContext(profile="nobody"))
    with pytest.raises(MaskFileError, match="cannot be listed"):
        read_masks("s3://no-such-bucket/x", client=client)
