"""kvs:// against a server on the loopback address that speaks GetMedia, with all that goes wrong on a connection."""

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
from tests.stream.sources.kinesis_stand_in import (
    CLUSTER,
    FIRST_NUMBER,
    PRODUCER_TIME,
    Cut,
    Refusal,
    Stall,
    StandIn,
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
class Heard:
    """What a source told its user."""

    reports: list[str] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)


def read(
    stand_in: StandIn, frames: int, heard: Heard | None = None, stall: float = 30.0, **options: Any
) -> list[Frame]:
    """The first frames of the stand-in's stream."""
    heard = heard or Heard()
    settings = SourceOptions(
        aws_endpoint=stand_in.url, report=heard.reports.append, count=heard.counts.append, **options
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
    """A place in the middle of a fragment's n-th block."""
    from pspnet.stream.sources.matroska import Block, MatroskaReader

    blocks = [event for event in MatroskaReader().feed(data) if isinstance(event, Block)]
    return data.index(blocks[block].data) + len(blocks[block].data) // 2


def test_frames_come_with_fragment_numbers_and_the_producers_times() -> None:
    with serving(StandIn([[fragment(0), fragment(1)]])) as stand_in:
        frames = read(stand_in, 8)
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
    assert stand_in.asked("/getDataEndpoint") == [{"APIName": "GET_MEDIA", "StreamName": "car-1"}]
    assert stand_in.asked("/getMedia") == [{"StreamName": "car-1", "StartSelector": {"StartSelectorType": "NOW"}}]


def test_a_frame_comes_before_its_fragment_has_ended() -> None:
    data = fragment(0)
    steps = [data[: within_block(data, 1)], Stall(60)]
    with serving(StandIn([steps])) as stand_in:
        assert pictures(read(stand_in, 1)) == [0]


def test_frames_out_of_order_in_the_stream_come_in_order_of_time() -> None:
    with serving(StandIn([[fragment(0, b_frames=2), fragment(1, b_frames=2)]])) as stand_in:
        frames = read(stand_in, 8)
    assert pictures(frames) == list(range(8))
    assert [frame.timestamp for frame in frames] == pytest.approx([index / 10 for index in range(8)], abs=1e-6)


def test_several_clusters_in_a_fragment_are_one_clock() -> None:
    data = fragment(1, cluster=50)
    assert data.count(CLUSTER) == 4
    with serving(StandIn([[data]])) as stand_in:
        frames = read(stand_in, 4)
    assert [frame.captured for frame in frames] == pytest.approx([PRODUCER_TIME + index / 10 for index in range(4, 8)])


@pytest.mark.parametrize("codec", ["libx264", "mjpeg", "libvpx"])
def test_codecs(codec: str) -> None:
    try:
        data = fragment(0, codec=codec)
    except Exception as error:
        pytest.skip(f"this PyAV cannot encode {codec}: {error}")
    with serving(StandIn([[data]])) as stand_in:
        assert pictures(read(stand_in, 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("block", [0, 1, 3])
def test_a_lost_connection_costs_no_frame_and_gives_none_twice(block: int) -> None:
    second = fragment(1)
    connections = [[fragment(0), second[: within_block(second, block)], Cut()], [second, fragment(2)]]
    heard = Heard()
    with serving(StandIn(connections)) as stand_in:
        frames = read(stand_in, 12, heard)
    assert pictures(frames) == list(range(12))
    assert [frame.index for frame in frames] == list(range(12))
    assert stand_in.selectors()[1] == {
        "StartSelectorType": "CONTINUATION_TOKEN",
        "ContinuationToken": str(FIRST_NUMBER),
    }
    assert heard.counts == ["reconnected"]
    assert heard.reports[0].startswith("kvs://car-1: the connection was lost")
    assert heard.reports[0].endswith("connecting again in 0.01 s.")


def test_a_fragment_that_comes_again_is_passed_over() -> None:
    with serving(StandIn([[fragment(0), Cut()], [fragment(0), fragment(1)]])) as stand_in:
        assert pictures(read(stand_in, 8)) == list(range(8))


def test_a_connection_lost_in_the_first_fragment_goes_on_by_its_time() -> None:
    first = fragment(0)
    with serving(StandIn([[first[: within_block(first, 2)], Cut()], [first, fragment(1)]])) as stand_in:
        assert pictures(read(stand_in, 8)) == list(range(8))
    assert stand_in.selectors()[1] == {"StartSelectorType": "PRODUCER_TIMESTAMP", "StartTimestamp": PRODUCER_TIME}


def test_a_stall_is_a_lost_connection() -> None:
    second = fragment(1)
    connections = [[fragment(0), second[: within_block(second, 2)], Stall(60)], [second]]
    heard = Heard()
    with serving(StandIn(connections)) as stand_in:
        assert pictures(read(stand_in, 8, heard, stall=1.0)) == list(range(8))
    assert heard.reports == [
        "kvs://car-1: the connection was lost: nothing came for too long; connecting again in 0.01 s."
    ]


def test_the_end_of_a_body_is_no_end_of_the_stream() -> None:
    heard = Heard()
    with serving(StandIn([[fragment(0)], [fragment(1)]])) as stand_in:
        assert pictures(read(stand_in, 8, heard)) == list(range(8))
    assert heard.reports == ["kvs://car-1: AWS ended the connection; connecting again in 0.01 s."]


def test_corrupt_bytes_cost_the_rest_of_their_fragment() -> None:
    second = bytearray(fragment(1))
    at = second.index(CLUSTER) + 12
    second[at : at + 60] = b"\x00" * 60
    heard = Heard()
    with serving(StandIn([[fragment(0), bytes(second), fragment(2)]])) as stand_in:
        frames = read(stand_in, 8, heard)
    assert pictures(frames) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8]  # what is broken counts
    assert heard.counts == ["broken"]
    assert f"the rest of fragment {FIRST_NUMBER + 1} is left out" in heard.reports[0]


def test_a_frame_that_does_not_decode_costs_the_rest_of_its_fragment() -> None:
    second = bytearray(fragment(1))
    from pspnet.stream.sources.matroska import Block, MatroskaReader

    block = [event for event in MatroskaReader().feed(bytes(second)) if isinstance(event, Block)][1]
    at = second.index(block.data)
    second[at : at + len(block.data)] = b"\xff" * len(block.data)
    heard = Heard()
    with serving(StandIn([[fragment(0), bytes(second), fragment(2)]])) as stand_in:
        assert pictures(read(stand_in, 9, heard)) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert heard.counts == ["broken"]


def test_a_stream_without_any_tags_of_aws_is_read_too() -> None:
    with serving(StandIn([[matroska(0), matroska(4), matroska(8)]])) as stand_in:
        before = time.time()
        frames = read(stand_in, 12)
    assert pictures(frames) == list(range(12))
    assert frames[0].captured >= before
    assert frames[0].labels == {}


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
def test_where_to_begin(start: str, selector: dict[str, Any]) -> None:
    with serving(StandIn([[fragment(0)]])) as stand_in:
        read(stand_in, 1, start=start)
    assert stand_in.selectors() == [selector]


def test_a_time_is_sent_in_utc() -> None:
    assert start_selector("0")["StartTimestamp"] == datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("start", ["", "later", "fragment:x", "fragment:", "token:a b", "nan", "inf", "1e30"])
def test_a_wrong_start_is_a_sentence(start: str) -> None:
    with pytest.raises(SourceError, match="expected now, earliest, seconds since the epoch"):
        KinesisSource("car", SourceOptions(start=start))


@pytest.mark.parametrize("name", ["", "a b", "a/b", "arn:aws:kinesisvideo:x", "a" * 257])
def test_a_wrong_name_is_a_sentence(name: str) -> None:
    with pytest.raises(SourceError, match="is no Kinesis video stream; expected kvs://NAME"):
        KinesisSource(name, SourceOptions())


def test_an_arn_names_a_stream_too() -> None:
    arn = "arn:aws:kinesisvideo:eu-west-1:123456789012:stream/car/1700000000000"
    with serving(StandIn([[fragment(0)]])) as stand_in:
        source = KinesisSource(arn, SourceOptions(aws_endpoint=stand_in.url))
        next(source.frames())
        source.close()
    assert stand_in.asked("/getMedia")[0]["StreamARN"] == arn


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (Refusal(404, "ResourceNotFoundException"), "there is no such Kinesis video stream in this account and region"),
        (Refusal(401, "NotAuthorizedException", "no."), r"AWS refused it \(NotAuthorizedException: no\); .*:GetMedia"),
        (Refusal(403, "ExpiredTokenException"), "the AWS sign-in has expired; run `aws sso login`"),
        (Refusal(403, "UnrecognizedClientException"), "AWS does not know these credentials"),
        (Refusal(400, "InvalidArgumentException", "Bad"), r"AWS refused the request \(InvalidArgumentException: Bad\)"),
    ],
)
def test_refusals_are_sentences(refusal: Refusal, sentence: str) -> None:
    with serving(StandIn([[refusal]])) as stand_in, pytest.raises(SourceError, match=sentence):
        read(stand_in, 1)
    with serving(StandIn([], endpoint=lambda _: refusal)) as stand_in, pytest.raises(SourceError, match=sentence):
        read(stand_in, 1)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("ConnectionLimitExceededException", "the stream has as many readers as AWS allows"),
        ("ClientLimitExceededException", "the stream was asked more often than AWS allows"),
        ("InternalFailure", "AWS answered InternalFailure"),
        ("InvalidEndpointException", "AWS answered InvalidEndpointException"),
    ],
)
def test_what_may_pass_is_tried_again_at_a_new_endpoint(code: str, sentence: str) -> None:
    heard = Heard()
    with serving(StandIn([[Refusal(400, code)], [fragment(0)]])) as stand_in:
        assert pictures(read(stand_in, 4, heard)) == [0, 1, 2, 3]
    assert heard.reports == [f"kvs://car-1: {sentence}; connecting again in 0.02 s."]
    assert len(stand_in.asked("/getDataEndpoint")) == 2


def test_error_tags_that_may_pass_go_on_with_the_token() -> None:
    heard = Heard()
    with serving(StandIn([[fragment(0), error_tags("5000", "InternalError")], [fragment(1)]])) as stand_in:
        assert pictures(read(stand_in, 8, heard)) == list(range(8))
    assert heard.reports[0].startswith("kvs://car-1: Kinesis Video Streams had an internal error (5000 InternalError)")


def test_a_key_that_may_not_be_used_ends_the_source() -> None:
    sentence = r"may not use the stream's KMS key \(4500 KmsAccessDenied\); check the key"
    connections = [[fragment(0), error_tags("4500", "KmsAccessDenied")]]
    with serving(StandIn(connections)) as stand_in, pytest.raises(SourceError, match=sentence):
        read(stand_in, 5)


def test_where_the_token_has_expired_the_source_goes_on_by_time_and_then_with_now() -> None:
    gone = error_tags("4000", "FragmentNotFound")
    refused = Refusal(400, "InvalidArgumentException", "no such time")
    with serving(StandIn([[fragment(0), Cut()], [gone], [refused], [fragment(5)]])) as stand_in:
        frames = read(stand_in, 8)
    assert pictures(frames) == [0, 1, 2, 3, 20, 21, 22, 23]
    kinds = [selector["StartSelectorType"] for selector in stand_in.selectors()]
    assert kinds == ["NOW", "CONTINUATION_TOKEN", "PRODUCER_TIMESTAMP", "NOW"]


def test_unknown_error_tags_are_told_as_they_are() -> None:
    assert str(stream_error("kvs://car", "9", "Odd  text")) == "the stream ended with an error (9 Odd text)"
    assert str(stream_error("kvs://car", "", "Odd")) == "the stream ended with an error (Odd)"


def test_a_silent_stream_ends_after_a_while() -> None:
    with serving(StandIn([[]] * 1000)) as stand_in, pytest.raises(SourceError, match=r"nothing came for .* AWS ended"):
        read(stand_in, 1, give_up=0.5)


def test_nobody_there_is_a_sentence() -> None:
    with pytest.raises(SourceError, match=r"last reason: AWS cannot be reached \(Could not connect"):
        read(StandIn([], url="http://127.0.0.1:9"), 1, give_up=0.3)


def test_no_credentials_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with serving(StandIn([])) as stand_in, pytest.raises(SourceError, match="found no AWS credentials"):
        read(stand_in, 1)


def test_no_region_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(SourceError, match="found no AWS region; give --region"):
        KinesisSource("car", SourceOptions())


@pytest.mark.parametrize("steps", [[Stall(60)], [fragment(0), Stall(60)]])
def test_close_ends_a_source_that_waits(steps: list[Any]) -> None:
    with serving(StandIn([steps])) as stand_in:
        source = KinesisSource("car", SourceOptions(aws_endpoint=stand_in.url), stall=60.0)
        thread = threading.Thread(target=lambda: list(source.frames()))
        thread.start()
        time.sleep(0.3)
        source.close()
        thread.join(20)
        assert not thread.is_alive()


def test_a_damaged_fragment_number_shuts_out_nothing_that_follows() -> None:
    number = str(FIRST_NUMBER + 1).encode()
    damaged = fragment(1).replace(number, b"99" + number[2:])
    with serving(StandIn([[fragment(0), damaged, fragment(2)]])) as stand_in:
        assert pictures(read(stand_in, 12)) == list(range(12))


def test_a_damaged_codec_costs_its_fragment_alone() -> None:
    damaged = fragment(1).replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/AXC")
    heard = Heard()
    with serving(StandIn([[fragment(0), damaged, fragment(2)]])) as stand_in:
        assert pictures(read(stand_in, 8, heard)) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert heard.counts == ["broken"]


def test_a_time_that_no_packet_holds_costs_its_fragment_alone() -> None:
    damaged = fragment(1)
    at = damaged.index(b"\xe7", damaged.index(CLUSTER) + 4)
    size = damaged[at + 1] & 0x7F
    huge = damaged[:at] + b"\xe7\x88" + b"\xff" * 8 + damaged[at + 2 + size :]
    with serving(StandIn([[fragment(0), huge, fragment(2)]])) as stand_in:
        assert pictures(read(stand_in, 8)) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_a_codec_that_nobody_decodes_ends_the_source() -> None:
    data = fragment(0).replace(b"V_MPEG4/ISO/AVC", b"V_ODD/CODEC/NNN")
    with serving(StandIn([[data]])) as stand_in, pytest.raises(
        SourceError, match=r"the codec V_ODD/CODEC/NNN; expected"
    ):
        read(stand_in, 1)


class Redirected:
    """A boto3 session whose GetMedia goes to the stand-in; everything else goes to moto."""

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


def test_the_endpoint_is_the_one_that_the_control_plane_names(moto_url: str) -> None:
    control = boto3.client("kinesisvideo", endpoint_url=moto_url)
    control.create_stream(StreamName="car-1")
    expected = control.get_data_endpoint(StreamName="car-1", APIName="GET_MEDIA")["DataEndpoint"]
    with serving(StandIn([[fragment(0)]])) as stand_in:
        session = Redirected(stand_in.url)
        source = KinesisSource("car-1", SourceOptions(aws_endpoint=moto_url), session=session)
        assert number_of(next(source.frames()).image) == 0
        source.close()
    assert session.endpoints[1:] == [expected]
    missing = KinesisSource("car-2", SourceOptions(aws_endpoint=moto_url), session=session)
    with pytest.raises(SourceError, match="kvs://car-2: there is no such Kinesis video stream"):
        next(missing.frames())
