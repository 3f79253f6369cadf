"""What only SageMaker's inference toolkit under TorchServe does to a request."""

from __future__ import annotations

import re

from benchmarks.support.hosts import Host
from sagemaker_entry.hosting.hosting_requests import REALTIME_BYTES
from tests.hosts.exchange import assert_refused, encoded, picture, post

FRAME_PNG = encoded(picture(96, 128))


def test_it_listens_on_loopback_alone(toolkit: Host) -> None:
    addresses = re.findall(r"^(\w+ address): (\S+)", toolkit.log.read_text(), re.MULTILINE)
    assert [name for name, _ in addresses] == ["Inference address", "Management address", "Metrics address"]
    assert all(address.startswith("http://127.0.0.1:") for _, address in addresses)


def test_it_installs_what_the_model_names(toolkit: Host) -> None:
    assert "Requirement already satisfied: safetensors" in toolkit.log.read_text()


def test_the_largest_request(toolkit: Host) -> None:
    padded = FRAME_PNG + bytes(REALTIME_BYTES - len(FRAME_PNG))  # Pillow reads no further than the image's end
    assert post(toolkit, padded).status == 200
    assert_refused(post(toolkit, padded + b"\0"), 413, "6,291,457", "6,291,456")


def test_a_request_that_no_server_takes(toolkit: Host) -> None:
    reply = post(toolkit, bytes(REALTIME_BYTES + 2_000_000))
    assert (reply.status, reply.body) == (413, b"")  # TorchServe's own: it does not read it


def test_an_answer_above_the_servers_limit_is_refused_in_words(toolkit: Host) -> None:
    reply = post(toolkit, encoded(picture(480, 720), "JPEG"), "image/jpeg", "application/x-protobuf")
    assert_refused(reply, 413, "720x480")
