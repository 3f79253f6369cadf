"""EndpointClient over a fake transport: retries, request size limit, NPZ probabilities."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pspnet.client import endpoint_client
from pspnet.client.endpoint_client import EndpointClient
from pspnet.client.transport import EndpointError, Reply
from pspnet.errors import DataError
from pspnet.masks.png import encode_mask

IMAGE = np.zeros((4, 6, 3), np.uint8)
MASK = np.arange(24, dtype=np.uint8).reshape(4, 6)


class FakeTransport:
    """Raises the given errors, then answers with `body`."""

    largest: int | None = None

    def __init__(self, body: bytes, *errors: EndpointError) -> None:
        self.body, self.errors = body, list(errors)
        self.accepted: list[str] = []
        self.closed = False

    def send(self, body: bytes, content_type: str, accept: str) -> Reply:
        self.accepted.append(accept)
        if self.errors:
            raise self.errors.pop(0)
        return Reply(self.body, accept)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(endpoint_client.time, "sleep", found.append)
    return found


def test_busy_endpoints_are_retried_with_exponential_backoff(delays: list[float]) -> None:
    busy = [EndpointError("busy", 503), EndpointError("slow down", 429, retry_after=5.0)]
    transport = FakeTransport(encode_mask(MASK), *busy)
    with EndpointClient(transport, "cars", retries=2) as client:
        np.testing.assert_array_equal(client(IMAGE), MASK)
    assert transport.closed
    assert 0.1 <= delays[0] <= 0.2
    assert delays[1] == 5.0


@pytest.mark.parametrize(("status", "retries", "sent"), [(400, 4, 1), (503, 0, 1), (503, 1, 2)])
def test_other_errors_and_the_last_retry_raise(status: int, retries: int, sent: int, delays: list[float]) -> None:
    transport = FakeTransport(b"", *[EndpointError("no", status)] * 5)
    with pytest.raises(EndpointError, match="no"):
        EndpointClient(transport, "cars", retries)(IMAGE)
    assert len(transport.accepted) == sent


def test_images_above_the_request_limit_are_not_sent() -> None:
    transport = FakeTransport(b"")
    transport.largest = 10
    with pytest.raises(DataError, match=r"above the request limit of 10; send it as JPEG or smaller"):
        EndpointClient(transport, "cars")(IMAGE)
    assert transport.accepted == []


def test_compressed_probabilities() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, probabilities=np.full((2, 4, 6), 51, np.uint8))
    transport = FakeTransport(buffer.getvalue())
    values = EndpointClient(transport, "cars").probabilities(IMAGE, "uint8")
    assert (values.dtype, values.shape) == (np.float32, (2, 4, 6))
    np.testing.assert_allclose(values, 0.2)
    assert transport.accepted == ["application/x-npz; probabilities=uint8"]
    transport.body = b"hello"
    with pytest.raises(DataError, match="cars: the answer is not the requested NPZ file"):
        EndpointClient(transport, "cars").probabilities(IMAGE, "float16")
