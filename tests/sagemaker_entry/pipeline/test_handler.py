"""Lambda function with AWS's events, against moto's S3, SQS and SNS."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")

from pspnet.classes import CAMVID_CLASSES
from pspnet.errors import ConfigError
from pspnet.masks.png import encode_mask
from pspnet.masks.segment import RecordHead, SegmentHeader
from pspnet.masks.writer import SegmentWriter
from sagemaker_entry.pipeline import handler as lambda_handler
from tests.sagemaker_entry.conftest import ACCOUNT, REGION, Aws
from tests.sagemaker_entry.pipeline.lambda_events import TEST_EVENT, s3_event, s3_record, sqs_event

BUCKET = "masks-bucket"
ROAD, CAR, SKY = 3, 8, 0


def mask() -> np.ndarray:
    """Return a mask of sky, a narrowing road and a car on it."""
    picture = np.full((6, 8), SKY, dtype=np.uint8)
    picture[5], picture[4, 1:7], picture[3, 2:6] = ROAD, ROAD, ROAD
    picture[3, 3:5] = CAR
    return picture


@pytest.fixture
def bucket(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The mask bucket, and the function in its initial state."""
    s3 = aws.session.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    for name in ("CLASSES", "DRIVABLE", "VEHICLE_WIDTH", "FORWARD_TO", "LARGEST_BYTES", "OUTPUT_PREFIX"):
        monkeypatch.delenv(f"PSPNET_{name}", raising=False)
    reset_function()
    aws.requests.clear()
    yield s3
    reset_function()


def reset_function() -> None:
    lambda_handler._settings.cache_clear()
    lambda_handler._client.cache_clear()


def put(s3: Any, key: str, content: bytes) -> None:
    s3.put_object(Bucket=BUCKET, Key=key, Body=content)


def lines(s3: Any, key: str) -> list[dict[str, Any]]:
    body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()
    return [json.loads(line) for line in body.splitlines()]


def keys(s3: Any) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


@pytest.mark.slow
def test_a_mask_becomes_a_line_of_class_counts(bucket: Any) -> None:
    put(bucket, "masks/frame_7.png", encode_mask(mask()))
    assert lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/frame_7.png"))) == {"batchItemFailures": []}
    assert lines(bucket, "summaries/masks/frame_7.png.jsonl") == [
        {
            "key": "masks/frame_7.png",
            "frame": 0,
            "height": 6,
            "width": 8,
            "classes": [
                {"id": 0, "name": "class_0", "pixels": 30, "fraction": 0.625},
                {"id": 3, "name": "class_3", "pixels": 16, "fraction": 0.333333},
                {"id": 8, "name": "class_8", "pixels": 2, "fraction": 0.041667},
            ],
        }
    ]


def test_a_segment_gives_a_line_per_frame(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_DRIVABLE", "road")  # the segment includes its class names
    monkeypatch.setenv("PSPNET_CLASSES", "voc")
    second = mask()
    second[3, 3:5] = ROAD
    file = io.BytesIO()
    writer = SegmentWriter(file, SegmentHeader(6, 8, CAMVID_CLASSES))
    for index, picture in ((4, mask()), (5, second)):
        writer.append(RecordHead(index, 1.7e9 + index / 10, index / 10, 0.25, {"fragment": "913"}), picture)
    writer.finish()
    put(bucket, "masks/a.pspm", file.getvalue())
    lambda_handler.handler(sqs_event(s3_event(s3_record(BUCKET, "masks/a.pspm"))))
    first, last = lines(bucket, "summaries/masks/a.pspm.jsonl")
    assert (first["frame"], first["captured"], first["timestamp"]) == (4, 1700000000.4, 0.4)
    assert (first["latency"], first["labels"]) == (0.25, {"fragment": "913"})
    found = [(entry["name"], entry["pixels"]) for entry in first["classes"]]
    assert found == [("sky", 30), ("road", 16), ("car", 2)]
    assert first["corridor"]["rows"][-1]["right"] == 3
    assert (last["frame"], last["corridor"]["rows"][-1]["right"]) == (5, 6)


@pytest.mark.slow
def test_a_damaged_segment_writes_nothing(bucket: Any) -> None:
    file = io.BytesIO()
    writer = SegmentWriter(file, SegmentHeader(6, 8))
    writer.append(RecordHead(0, 1.0, 0.0), mask())
    writer.finish()
    content = bytearray(file.getvalue())
    content[content.index(b"MASK") + 50] ^= 0xFF
    put(bucket, "masks/a.pspm", bytes(content))
    with pytest.raises(RuntimeError, match=r"a\.pspm: .*record 0 at byte \d+ is damaged"):
        lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.pspm")))
    assert keys(bucket) == ["masks/a.pspm"]


def test_drivable_classes_add_corridor_and_obstacle(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_CLASSES", "camvid")
    monkeypatch.setenv("PSPNET_DRIVABLE", "road, pavement")
    monkeypatch.setenv("PSPNET_VEHICLE_WIDTH", "0.25")
    palette = np.zeros((256, 3), dtype=np.uint8)
    put(bucket, "masks/a.png", encode_mask(mask(), palette))
    lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.png")))
    (line,) = lines(bucket, "summaries/masks/a.png.jsonl")
    assert line["classes"][1] == {"id": 3, "name": "road", "pixels": 16, "fraction": 0.333333}
    assert line["corridor"] == {
        "bottom": 5,
        "top": 3,
        "height": 0.5,
        "rows": [
            {"row": 5, "left": 0, "right": 8, "width": 1.0, "offset": 0.0},
            {"row": 4, "left": 1, "right": 7, "width": 0.75, "offset": 0.0},
            {"row": 3, "left": 2, "right": 3, "width": 0.125, "offset": -0.1875},
        ],
    }
    assert line["obstacle"] == {"row": 3, "height": 0.5, "class": "car"}


def test_the_same_event_twice_gives_the_same_bytes_under_the_same_key(bucket: Any) -> None:
    put(bucket, "masks/a.png", encode_mask(mask()))
    event = s3_event(s3_record(BUCKET, "masks/a.png"))
    lambda_handler.handler(event)
    first = bucket.get_object(Bucket=BUCKET, Key="summaries/masks/a.png.jsonl")["Body"].read()
    lambda_handler.handler(event)
    assert bucket.get_object(Bucket=BUCKET, Key="summaries/masks/a.png.jsonl")["Body"].read() == first
    assert keys(bucket) == ["masks/a.png", "summaries/masks/a.png.jsonl"]


def test_keys_are_decoded(bucket: Any) -> None:
    key = "masks/2026-01-02 03:04/Straße + 100%.png"
    put(bucket, key, encode_mask(mask()))
    lambda_handler.handler(s3_event(s3_record(BUCKET, key)))
    assert keys(bucket) == [key, f"summaries/{key}.jsonl"]


def test_other_files_are_skipped(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        s3_record(BUCKET, "summaries/masks/a.png.jsonl"),
        s3_record(BUCKET, "summaries/masks/a.png"),  # the output never triggers the function, whoever wrote it
        s3_record(BUCKET, "masks/notes.txt"),
        s3_record(BUCKET, "masks/a.pspm.open"),
        s3_record(BUCKET, "masks/a.png", name="ObjectRemoved:Delete"),
        {"eventSource": "aws:other"},
    ]
    assert lambda_handler.handler(s3_event(*records)) == {"batchItemFailures": []}
    assert keys(bucket) == []
    assert capsys.readouterr().out.count("not a mask file; skipped.") == 4


@pytest.mark.slow
def test_the_test_event_of_a_new_notification_is_ignored(bucket: Any) -> None:
    assert lambda_handler.handler(TEST_EVENT) == {"batchItemFailures": []}
    assert lambda_handler.handler(sqs_event(TEST_EVENT)) == {"batchItemFailures": []}


def test_a_deleted_file_is_not_a_failure(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert lambda_handler.handler(sqs_event(s3_event(s3_record(BUCKET, "masks/a.png")))) == {"batchItemFailures": []}
    assert "masks/a.png: no longer exists" in capsys.readouterr().out


def test_only_failed_messages_are_retried(bucket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    put(bucket, "masks/good.png", encode_mask(mask()))
    put(bucket, "masks/cut.png", encode_mask(mask())[:40])
    event = sqs_event(
        s3_event(s3_record(BUCKET, "masks/cut.png")),
        s3_event(s3_record(BUCKET, "masks/good.png")),
        "no JSON",
        "[]",
    )
    assert lambda_handler.handler(event) == {
        "batchItemFailures": [
            {"itemIdentifier": "message-0"},
            {"itemIdentifier": "message-2"},
            {"itemIdentifier": "message-3"},
        ]
    }
    assert "summaries/masks/good.png.jsonl" in keys(bucket)
    printed = capsys.readouterr().out
    assert f"s3://{BUCKET}/masks/cut.png: " in printed
    assert "not a readable PNG file of a mask" in printed
    assert "message message-2: not an S3 event" in printed


def test_a_plain_event_processes_every_file_before_raising(bucket: Any) -> None:
    put(bucket, "masks/cut.png", b"no picture")
    put(bucket, "masks/good.png", encode_mask(mask()))
    event = s3_event(s3_record(BUCKET, "masks/cut.png"), s3_record(BUCKET, "masks/good.png"))
    with pytest.raises(RuntimeError, match=rf"^s3://{BUCKET}/masks/cut.png: .*not a mask segment"):
        lambda_handler.handler(event)
    assert "summaries/masks/good.png.jsonl" in keys(bucket)


def test_aws_errors_are_retried(bucket: Any, aws: Aws, capsys: pytest.CaptureFixture[str]) -> None:
    put(bucket, "masks/a.png", encode_mask(mask()))
    aws.refuse("PutObject", "SlowDown", "please")
    assert lambda_handler.handler(sqs_event(s3_event(s3_record(BUCKET, "masks/a.png")))) == {
        "batchItemFailures": [{"itemIdentifier": "message-0"}]
    }
    assert "SlowDown" in capsys.readouterr().out


def test_rgb_images_are_not_masks(bucket: Any) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    put(bucket, "masks/overlay.png", content.getvalue())
    with pytest.raises(RuntimeError, match="RGB"):
        lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/overlay.png")))


@pytest.mark.slow
@pytest.mark.parametrize("size_in_event", [True, False])
def test_a_file_that_is_too_large_is_not_read(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, size_in_event: bool
) -> None:
    monkeypatch.setenv("PSPNET_LARGEST_BYTES", "50")
    put(bucket, "masks/a.png", encode_mask(mask()) * 2)
    with pytest.raises(
        RuntimeError, match="has 120 bytes, more than 50" if size_in_event else "has more than 50 bytes now"
    ):
        lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.png", size=120 if size_in_event else 0)))


def test_the_current_version_of_a_file_is_read(bucket: Any) -> None:
    put(bucket, "masks/a.png", encode_mask(mask()))
    put(bucket, "masks/a.png", encode_mask(np.full((2, 2), CAR, dtype=np.uint8)))
    lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.png")))
    assert lines(bucket, "summaries/masks/a.png.jsonl")[0]["classes"][0]["fraction"] == 1.0


@pytest.mark.parametrize("name", ["results", "results.fifo"])
def test_results_are_forwarded_to_a_queue(bucket: Any, aws: Aws, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    sqs = aws.session.client("sqs")
    attributes = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
    url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    monkeypatch.setenv("PSPNET_FORWARD_TO", f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}")
    put(bucket, "masks/a.png", encode_mask(mask()))
    lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.png")))
    (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
    body = json.loads(message["Body"])
    assert {key: body[key] for key in ("bucket", "key", "summary", "frames")} == {
        "bucket": BUCKET,
        "key": "masks/a.png",
        "summary": "summaries/masks/a.png.jsonl",
        "frames": 1,
    }
    assert body["last"] == lines(bucket, "summaries/masks/a.png.jsonl")[0]
    assert len(body["id"]) == 64


@pytest.mark.slow
def test_results_are_forwarded_to_a_topic(bucket: Any, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    arn = aws.session.client("sns").create_topic(Name="results")["TopicArn"]
    monkeypatch.setenv("PSPNET_FORWARD_TO", arn)
    put(bucket, "masks/a.png", encode_mask(mask()))
    event = s3_event(s3_record(BUCKET, "masks/a.png"))
    lambda_handler.handler(event)
    lambda_handler.handler(event)
    first, second = (json.loads(sent["Message"]) for sent in aws.sent("Publish"))
    assert first["id"] == second["id"]
    assert first["frames"] == 1


@pytest.mark.parametrize("service", ["sqs", "sns"])
def test_results_are_forwarded_to_another_region(
    bucket: Any, aws: Aws, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    away = aws.session.client(service, region_name="eu-west-1")
    if service == "sqs":
        away.create_queue(QueueName="results")
    else:
        away.create_topic(Name="results")
    monkeypatch.setenv("PSPNET_FORWARD_TO", f"arn:aws:{service}:eu-west-1:{ACCOUNT}:results")
    put(bucket, "masks/a.png", encode_mask(mask()))
    lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.png")))
    assert lambda_handler._client(service, "eu-west-1").meta.region_name == "eu-west-1"
    if service == "sqs":
        (message,) = away.receive_message(QueueUrl=away.get_queue_url(QueueName="results")["QueueUrl"])["Messages"]
        assert json.loads(message["Body"])["key"] == "masks/a.png"
    else:
        assert len(aws.sent("Publish")) == 1


class Clock:
    """Lambda's context: the remaining seconds decrease with each call."""

    def __init__(self, *left: float) -> None:
        self.left = list(left)

    def get_remaining_time_in_millis(self) -> int:
        return int(1000 * self.left.pop(0))


def test_messages_without_time_left_are_retried(
    bucket: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "masks/a.png", encode_mask(mask()))
    event = sqs_event(*[s3_event(s3_record(BUCKET, "masks/a.png"))] * 4)
    left = {"batchItemFailures": [{"itemIdentifier": "message-2"}, {"itemIdentifier": "message-3"}]}
    assert lambda_handler.handler(event, Clock(40, 4)) == left
    assert "2 of 4 messages left for a retry: not enough time." in capsys.readouterr().out
    assert lambda_handler.handler(event, Clock(40, 30, 20)) == {"batchItemFailures": []}
    # The next message may take 1.5 times as long as the longest one.
    moments = iter([0.0, 10.0, 10.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(lambda_handler, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    assert lambda_handler.handler(event, Clock(16, 14)) == left


@pytest.mark.slow
@pytest.mark.parametrize(
    "broken",
    [
        {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put"},
        {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"object": {"key": 7}, "bucket": None}},
        "text",
    ],
)
def test_a_malformed_record_does_not_block_the_others(
    bucket: Any, capsys: pytest.CaptureFixture[str], broken: Any
) -> None:
    put(bucket, "masks/a.png", encode_mask(mask()))
    good = s3_record(BUCKET, "masks/a.png")
    event = sqs_event(s3_event(broken, good), s3_event(good), {"Records": None})
    assert lambda_handler.handler(event) == {
        "batchItemFailures": [{"itemIdentifier": "message-0"}, {"itemIdentifier": "message-2"}]
    }
    printed = capsys.readouterr().out
    assert "record 0 of the event: not an S3 record (" in printed
    assert printed.count("masks/a.png.jsonl: 1 frames") == 2


def test_wrong_settings_fail_every_event(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_DRIVABLE", "street")
    monkeypatch.setenv("PSPNET_CLASSES", "camvid")
    put(bucket, "masks/a.png", encode_mask(mask()))
    with pytest.raises(RuntimeError, match="PSPNET_DRIVABLE: found street; the masks' classes are sky, building"):
        lambda_handler.handler(s3_event(s3_record(BUCKET, "masks/a.png")))
    monkeypatch.setenv("PSPNET_COLUMN", "half")
    reset_function()
    with pytest.raises(ConfigError, match=r"column: found 'half' .environment PSPNET_COLUMN.; allowed: a number"):
        lambda_handler.handler(s3_event())
