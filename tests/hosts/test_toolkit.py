"""Tests specific to SageMaker's inference toolkit under TorchServe."""

from __future__ import annotations

import re

import pytest

from benchmarks.support.hosts import Host
from sagemaker_entry.hosting.hosting_requests import REALTIME_BYTES
from tests.hosts.exchange import assert_rejected, encoded, picture, post

FRAME_PNG = encoded(picture(96, 128))


@pytest.mark.slow
def test_listens_on_loopback_only(toolkit: Host) -> None:
    addresses = re.findall(r"^(\w+ address): (\S+)", toolkit.log.read_text(), re.MULTILINE)
    assert [name for name, _ in addresses] == ["Inference address", "Management address", "Metrics address"]
    assert all(address.startswith("http://127.0.0.1:") for _, address in addresses)


def test_installs_the_requirements_of_the_model(toolkit: Host) -> None:
    assert "Requirement already satisfied: safetensors" in toolkit.log.read_text()


def test_largest_request(toolkit: Host) -> None:
    padded = FRAME_PNG + bytes(REALTIME_BYTES - len(FRAME_PNG))  # Pillow stops at the end of the image
    assert post(toolkit, padded).status == 200
    assert_rejected(post(toolkit, padded + b"\0"), 413, "6,291,457", "6,291,456")


def test_request_above_the_server_limit(toolkit: Host) -> None:
    reply = post(toolkit, bytes(REALTIME_BYTES + 2_000_000))
    assert (reply.status, reply.body) == (413, b"")  # TorchServe's own answer: it does not read the body


def test_answer_above_the_server_limit_is_rejected(toolkit: Host) -> None:
    reply = post(toolkit, encoded(picture(480, 720), "JPEG"), "image/jpeg", "application/x-protobuf")
    assert_rejected(reply, 413, "720x480")
