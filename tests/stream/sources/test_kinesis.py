"""Kinesis source against a fake GetMedia server: positions, reconnection, damage and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pytest

from pspnet.masks.frames import Frame
from pspnet.stream.sources.base import SourceError, SourceOptions
from pspnet.stream.sources.kinesis import KinesisSource
from pspnet.stream.sources.kinesis_client import start_selector, stream_error
from tests.stream.sources.fake_kinesis import (
    CLUSTER,
    FIRST_NUMBER,
    PRODUCER_TIME,
    Cut,
    FakeKinesis,
    Refusal,
    Stall,
    error_tags,
    fragment,
    matroska,
    number_of,
    serving,
)

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install boto3")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")


@dataclass
class Recorded:
    """Recorded messages and counts of a source."""

    reports: list[str] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)


def read(
    fake: FakeKinesis, frames: int, recorded: Recorded | None = None, stall: float = 30.0, **options: Any
) -> list[Frame]:
    """Read the first frames of the fake stream."""
    recorded = recorded or Recorded()
    settings = SourceOptions(
        aws_endpoint=fake.url, report=recorded.reports.append, count=recorded.counts.append, **options
    )
    source = KinesisSource("car-1", settings, stall=stall, first_pause=0.01)
    found: list[Frame] = []
    for frame in source.frames():
        found.append(frame)
        if len(found) == frames:
            source.close()
    return found


def pictures(frames: list[Frame]) -> list[int]:
    return [number_of(frame.image) for frame in frames]


def within_block(data: bytes, block: int) -> int:
    """Return an offset in the middle of a fragment's n-th block."""
    from pspnet.stream.sources.matroska import Block, MatroskaReader

    blocks = [event for event in MatroskaReader().feed(data) if isinstance(event, Block)]
    return data.index(blocks[block].data) + len(blocks[block].data) // 2


def test_frames_have_fragment_numbers_and_producer_times() -> None:
    with serving(FakeKinesis([[fragment(0), fragment(1)]])) as fake:
        frames = read(fake, 8)
    assert pictures(frames) == list(range(8))
    assert [frame.index for frame in frames] == list(range(8))
    assert [frame.captured for frame in frames] == pytest.approx([PRODUCER_TIME + index / 10 for index in range(8)])
    assert [frame.timestamp for frame in frames] == pytest.approx([index / 10 for index in range(8)], abs=1e-6)
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[5].labels == {
        "fragment": str(FIRST_NUMBER + 1),
        "producer_time": "1700000000.400",
        "server_time": "1700000001.400",
    }
    assert fake.bodies("/getDataEndpoint") == [{"APIName": "GET_MEDIA", "StreamName": "car-1"}]
    assert fake.bodies("/getMedia") == [{"StreamName": "car-1", "StartSelector": {"StartSelectorType": "NOW"}}]


def test_a_frame_is_returned_before_its_fragment_ends() -> None:
    data = fragment(0)
    steps = [data[: within_block(data, 1)], Stall(60)]
    with serving(FakeKinesis([steps])) as fake:
        assert pictures(read(fake, 1)) == [0]


@pytest.mark.slow
def test_b_frames_are_returned_in_order_of_time() -> None:
    with serving(FakeKinesis([[fragment(0, b_frames=2), fragment(1, b_frames=2)]])) as fake:
        frames = read(fake, 8)
    assert pictures(frames) == list(range(8))
    assert [frame.timestamp for frame in frames] == pytest.approx([index / 10 for index in range(8)], abs=1e-6)


def test_clusters_of_a_fragment_share_one_clock() -> None:
    data = fragment(1, cluster=50)
    assert data.count(CLUSTER) == 4
    with serving(FakeKinesis([[data]])) as fake:
        frames = read(fake, 4)
    assert [frame.captured for frame in frames] == pytest.approx([PRODUCER_TIME + index / 10 for index in range(4, 8)])


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "mjpeg", "libvpx"])
def test_codecs(codec: str) -> None:
    try:
        data = fragment(0, codec=codec)
    except Exception as error:
        pytest.skip(f"this PyAV cannot encode {codec}: {error}")
    with serving(FakeKinesis([[data]])) as fake:
        assert pictures(read(fake, 4)) == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_lost_connection_loses_and_repeats_no_frame(block: int) -> None:
    second = fragment(1)
    connections = [[fragment(0), second[: within_block(second, block)], Cut()], [second, fragment(2)]]
    recorded = Recorded()
    with serving(FakeKinesis(connections)) as fake:
        frames = read(fake, 12, recorded)
    assert pictures(frames) == list(range(12))
    assert [frame.index for frame in frames] == list(range(12))
    assert fake.selectors()[1] == {
        "StartSelectorType": "CONTINUATION_TOKEN",
        "ContinuationToken": str(FIRST_NUMBER),
    }
    assert recorded.counts == ["reconnected"]
    assert recorded.reports[0].startswith("kvs://car-1: the connection was lost")
    assert recorded.reports[0].endswith("reconnecting in 0.0 s.")


def test_a_repeated_fragment_is_skipped() -> None:
    with serving(FakeKinesis([[fragment(0), Cut()], [fragment(0), fragment(1)]])) as fake:
        assert pictures(read(fake, 8)) == list(range(8))


def test_a_connection_lost_in_the_first_fragment_resumes_at_its_time() -> None:
    first = fragment(0)
    with serving(FakeKinesis([[first[: within_block(first, 2)], Cut()], [first, fragment(1)]])) as fake:
        assert pictures(read(fake, 8)) == list(range(8))
    assert fake.selectors()[1] == {"StartSelectorType": "PRODUCER_TIMESTAMP", "StartTimestamp": PRODUCER_TIME}


@pytest.mark.slow
def test_a_stalled_connection_is_reconnected() -> None:
    second = fragment(1)
    connections = [[fragment(0), second[: within_block(second, 2)], Stall(60)], [second]]
    recorded = Recorded()
    with serving(FakeKinesis(connections)) as fake:
        assert pictures(read(fake, 8, recorded, stall=1.0)) == list(range(8))
    assert recorded.reports == ["kvs://car-1: the connection was lost: the read timed out; reconnecting in 0.0 s."]


def test_the_end_of_a_body_does_not_end_the_stream() -> None:
    recorded = Recorded()
    with serving(FakeKinesis([[fragment(0)], [fragment(1)]])) as fake:
        assert pictures(read(fake, 8, recorded)) == list(range(8))
    assert recorded.reports == ["kvs://car-1: AWS ended the connection; reconnecting in 0.0 s."]


def test_damaged_bytes_skip_the_rest_of_their_fragment() -> None:
    second = bytearray(fragment(1))
    at = second.index(CLUSTER) + 12
    second[at : at + 60] = b"\x00" * 60
    recorded = Recorded()
    with serving(FakeKinesis([[fragment(0), bytes(second), fragment(2)]])) as fake:
        frames = read(fake, 8, recorded)
    assert pictures(frames) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8]  # broken frames count
    assert recorded.counts == ["broken"]
    assert f"skipped the rest of fragment {FIRST_NUMBER + 1}: " in recorded.reports[0]


def test_an_undecodable_frame_skips_the_rest_of_its_fragment() -> None:
    second = bytearray(fragment(1))
    from pspnet.stream.sources.matroska import Block, MatroskaReader

    block = [event for event in MatroskaReader().feed(bytes(second)) if isinstance(event, Block)][1]
    at = second.index(block.data)
    second[at : at + len(block.data)] = b"\xff" * len(block.data)
    recorded = Recorded()
    with serving(FakeKinesis([[fragment(0), bytes(second), fragment(2)]])) as fake:
        assert pictures(read(fake, 9, recorded)) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert recorded.counts == ["broken"]


def test_a_stream_without_aws_tags() -> None:
    with serving(FakeKinesis([[matroska(0), matroska(4), matroska(8)]])) as fake:
        before = time.time()
        frames = read(fake, 12)
    assert pictures(frames) == list(range(12))
    assert frames[0].captured >= before
    assert frames[0].labels == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "selector"),
    [
        ("now", {"StartSelectorType": "NOW"}),
        ("earliest", {"StartSelectorType": "EARLIEST"}),
        (
            f"fragment:{FIRST_NUMBER}",
            {"StartSelectorType": "FRAGMENT_NUMBER", "AfterFragmentNumber": str(FIRST_NUMBER)},
        ),
        ("token:abc_1.2-3", {"StartSelectorType": "CONTINUATION_TOKEN", "ContinuationToken": "abc_1.2-3"}),
        ("1700000000.5", {"StartSelectorType": "PRODUCER_TIMESTAMP", "StartTimestamp": 1700000000.5}),
    ],
)
def test_start_selectors(start: str, selector: dict[str, Any]) -> None:
    with serving(FakeKinesis([[fragment(0)]])) as fake:
        read(fake, 1, start=start)
    assert fake.selectors() == [selector]


def test_a_time_is_sent_in_utc() -> None:
    assert start_selector("0")["StartTimestamp"] == datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("start", ["", "later", "fragment:x", "fragment:", "token:a b", "nan", "inf", "1e30"])
def test_an_invalid_start_raises(start: str) -> None:
    with pytest.raises(SourceError, match="expected now, earliest, seconds since the epoch"):
        KinesisSource("car", SourceOptions(start=start))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "arn:aws:kinesisvideo:x", "a" * 257])
def test_an_invalid_name_raises(name: str) -> None:
    with pytest.raises(SourceError, match="not a Kinesis video stream; expected kvs://NAME"):
        KinesisSource(name, SourceOptions())


def test_a_stream_by_arn() -> None:
    arn = "arn:aws:kinesisvideo:eu-west-1:123456789012:stream/car/1700000000000"
    with serving(FakeKinesis([[fragment(0)]])) as fake:
        source = KinesisSource(arn, SourceOptions(aws_endpoint=fake.url))
        next(source.frames())
        source.close()
    assert fake.bodies("/getMedia")[0]["StreamARN"] == arn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (Refusal(404, "ResourceNotFoundException"), "no such Kinesis video stream in this account and region"),
        (
            Refusal(401, "NotAuthorizedException", "no."),
            r"denied by AWS \(NotAuthorizedException: no\); .*:GetMedia",
        ),
        (Refusal(403, "ExpiredTokenException"), "the AWS sign-in has expired; run `aws sso login`"),
        (Refusal(403, "UnrecognizedClientException"), "AWS rejected the credentials"),
        (
            Refusal(400, "InvalidArgumentException", "Bad"),
            r"rejected the request \(InvalidArgumentException: Bad\)",
        ),
    ],
)
def test_permanent_errors_raise(refusal: Refusal, message: str) -> None:
    with serving(FakeKinesis([[refusal]])) as fake, pytest.raises(SourceError, match=message):
        read(fake, 1)
    with serving(FakeKinesis([], endpoint=lambda _: refusal)) as fake, pytest.raises(SourceError, match=message):
        read(fake, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ConnectionLimitExceededException", "the stream has reached the AWS limit of readers"),
        ("ClientLimitExceededException", "the stream has reached the AWS rate limit"),
        ("InternalFailure", "AWS returned InternalFailure"),
        ("InvalidEndpointException", "AWS returned InvalidEndpointException"),
    ],
)
def test_temporary_errors_are_retried_at_a_new_endpoint(code: str, message: str) -> None:
    recorded = Recorded()
    with serving(FakeKinesis([[Refusal(400, code)], [fragment(0)]])) as fake:
        assert pictures(read(fake, 4, recorded)) == [0, 1, 2, 3]
    assert recorded.reports == [f"kvs://car-1: {message}; reconnecting in 0.0 s."]
    assert len(fake.bodies("/getDataEndpoint")) == 2


@pytest.mark.slow
def test_temporary_error_tags_resume_with_the_token() -> None:
    recorded = Recorded()
    with serving(FakeKinesis([[fragment(0), error_tags("5000", "InternalError")], [fragment(1)]])) as fake:
        assert pictures(read(fake, 8, recorded)) == list(range(8))
    assert recorded.reports[0].startswith(
        "kvs://car-1: Kinesis Video Streams had an internal error (5000 InternalError)"
    )


def test_a_kms_error_ends_the_source() -> None:
    message = r"has no permission for the stream's KMS key \(4500 KmsAccessDenied\); check the key"
    connections = [[fragment(0), error_tags("4500", "KmsAccessDenied")]]
    with serving(FakeKinesis(connections)) as fake, pytest.raises(SourceError, match=message):
        read(fake, 5)


def test_an_expired_token_resumes_by_time_and_then_now() -> None:
    expired = error_tags("4000", "FragmentNotFound")
    refused = Refusal(400, "InvalidArgumentException", "no such time")
    with serving(FakeKinesis([[fragment(0), Cut()], [expired], [refused], [fragment(5)]])) as fake:
        frames = read(fake, 8)
    assert pictures(frames) == [0, 1, 2, 3, 20, 21, 22, 23]
    kinds = [selector["StartSelectorType"] for selector in fake.selectors()]
    assert kinds == ["NOW", "CONTINUATION_TOKEN", "PRODUCER_TIMESTAMP", "NOW"]


def test_unknown_error_tags_are_reported_verbatim() -> None:
    assert str(stream_error("kvs://car", "9", "Odd  text")) == "the stream ended with an error (9 Odd text)"
    assert str(stream_error("kvs://car", "", "Odd")) == "the stream ended with an error (Odd)"


@pytest.mark.slow
def test_a_silent_stream_raises_after_give_up() -> None:
    with serving(FakeKinesis([[]] * 1000)) as fake, pytest.raises(SourceError, match=r"no data for .* AWS ended"):
        read(fake, 1, give_up=0.5)


def test_an_unreachable_endpoint_raises() -> None:
    with pytest.raises(SourceError, match=r"last reason: AWS cannot be reached \(Could not connect"):
        read(FakeKinesis([], url="http://127.0.0.1:9"), 1, give_up=0.3)


def test_missing_credentials_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with serving(FakeKinesis([])) as fake, pytest.raises(SourceError, match="found no AWS credentials"):
        read(fake, 1)


def test_a_missing_region_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(SourceError, match="found no AWS region; pass --region"):
        KinesisSource("car", SourceOptions())


@pytest.mark.slow
@pytest.mark.parametrize("steps", [[Stall(60)], [fragment(0), Stall(60)]])
def test_close_ends_a_blocked_source(steps: list[Any]) -> None:
    with serving(FakeKinesis([steps])) as fake:
        source = KinesisSource("car", SourceOptions(aws_endpoint=fake.url), stall=60.0)
        thread = threading.Thread(target=lambda: list(source.frames()))
        thread.start()
        time.sleep(0.3)
        source.close()
        thread.join(20)
        assert not thread.is_alive()


def test_a_damaged_fragment_number_excludes_no_later_fragment() -> None:
    number = str(FIRST_NUMBER + 1).encode()
    damaged = fragment(1).replace(number, b"99" + number[2:])
    with serving(FakeKinesis([[fragment(0), damaged, fragment(2)]])) as fake:
        assert pictures(read(fake, 12)) == list(range(12))


def test_a_damaged_codec_skips_only_its_fragment() -> None:
    damaged = fragment(1).replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/AXC")
    recorded = Recorded()
    with serving(FakeKinesis([[fragment(0), damaged, fragment(2)]])) as fake:
        assert pictures(read(fake, 8, recorded)) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert recorded.counts == ["broken"]


def test_an_invalid_time_skips_only_its_fragment() -> None:
    damaged = fragment(1)
    at = damaged.index(b"\xe7", damaged.index(CLUSTER) + 4)
    size = damaged[at + 1] & 0x7F
    huge = damaged[:at] + b"\xe7\x88" + b"\xff" * 8 + damaged[at + 2 + size :]
    with serving(FakeKinesis([[fragment(0), huge, fragment(2)]])) as fake:
        assert pictures(read(fake, 8)) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_an_unsupported_codec_raises() -> None:
    data = fragment(0).replace(b"V_MPEG4/ISO/AVC", b"V_ODD/CODEC/NNN")
    with serving(FakeKinesis([[data]])) as fake, pytest.raises(
        SourceError, match=r"the codec V_ODD/CODEC/NNN; expected"
    ):
        read(fake, 1)


class Redirected:
    """boto3 session that sends GetMedia to the fake server and everything else to moto."""

    def __init__(self, url: str) -> None:
        self.session, self.url, self.endpoints = boto3.Session(), url, [""]

    def client(self, name: str, endpoint_url: str | None = None, **options: Any) -> Any:
        if name == "kinesis-video-media":
            self.endpoints.append(endpoint_url or "")
            return self.session.client(name, endpoint_url=self.url, **options)
        return self.session.client(name, endpoint_url=endpoint_url, **options)


@pytest.fixture
def moto_url() -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.mark.slow
def test_the_endpoint_comes_from_the_control_plane(moto_url: str) -> None:
    control = boto3.client("kinesisvideo", endpoint_url=moto_url)
    control.create_stream(StreamName="car-1")
    expected = control.get_data_endpoint(StreamName="car-1", APIName="GET_MEDIA")["DataEndpoint"]
    with serving(FakeKinesis([[fragment(0)]])) as fake:
        session = Redirected(fake.url)
        source = KinesisSource("car-1", SourceOptions(aws_endpoint=moto_url), session=session)
        assert number_of(next(source.frames()).image) == 0
        source.close()
    assert session.endpoints[1:] == [expected]
    missing = KinesisSource("car-2", SourceOptions(aws_endpoint=moto_url), session=session)
    with pytest.raises(SourceError, match="kvs://car-2: no such Kinesis video stream"):
        next(missing.frames())
