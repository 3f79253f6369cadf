"""What only SageMaker's inference toolkit under TorchServe does to a request."""

from __future__ import annotations

import re

from benchmarks.hosts import Host
from tests.hosts.exchange import assert_refused, encoded, picture, post

FRAME_PNG = encoded(picture(96, 128))
# What TorchServe takes unless TS_MAX_REQUEST_SIZE says otherwise.
LARGEST_REQUEST = 6_553_500


def test_it_listens_on_loopback_alone(toolkit: Host) -> None:
    addresses = re.findall(r"^(\w+ address): (\S+)", toolkit.log.read_text(), re.MULTILINE)
    assert [name for name, _ in addresses] == ["Inference address", "Management address", "Metrics address"]
    assert all(address.startswith("http://127.0.0.1:") for _, address in addresses)


def test_it_installs_what_the_model_names(toolkit: Host) -> None:
    assert "Requirement already satisfied: safetensors" in toolkit.log.read_text()


def test_the_largest_request(toolkit: Host) -> None:
    padded = FRAME_PNG + bytes(LARGEST_REQUEST - len(FRAME_PNG))  # Pillow reads no further than the image's end
    assert post(toolkit, padded).status == 200
    assert post(toolkit, padded + b"\0").status == 413


def test_an_answer_above_the_servers_limit_is_refused_in_words(toolkit: Host) -> None:
    reply = post(toolkit, encoded(picture(480, 720), "JPEG"), "image/jpeg", "application/x-protobuf")
    assert_refused(reply, 413, "720x480")
