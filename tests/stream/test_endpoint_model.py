"""Endpoint as stream model: errors of one frame, and errors that make the model unavailable."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import CAMVID_CLASSES, palette_for
from pspnet.client.endpoint_client import EndpointClient
from pspnet.client.transport import HttpTransport
from pspnet.errors import DataError, PspnetError
from pspnet.masks.png import encode_mask
from pspnet.stream.endpoint_model import EndpointModel
from pspnet.stream.model import ModelUnavailable


class Server(ThreadingHTTPServer):
    """Fake endpoint that answers with `status`; with 200, a mask of ones of the image's size divided by `step`."""

    status = 200
    received: list[tuple[str, bytes]]
    step = 1  # the mask has every `step`-th row and column


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.headers["Content-Type"], body))
        content = b"The reason."
        if self.server.status == 200:
            with Image.open(io.BytesIO(body)) as picture:
                mask = np.ones(picture.size[::-1], dtype=np.uint8)
            content = encode_mask(np.ascontiguousarray(mask[:: self.server.step, :: self.server.step]))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.received = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def model_of(server: Server) -> EndpointModel:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return EndpointModel(EndpointClient(HttpTransport(url), url, retries=0), CAMVID_CLASSES, quality=70)


def test_a_frame_is_sent_as_jpeg_and_answered_with_a_mask(server: Server) -> None:
    model = model_of(server)
    image = np.full((12, 20, 3), (200, 60, 20), dtype=np.uint8)
    np.testing.assert_array_equal(model.mask(image), np.ones((12, 20), dtype=np.uint8))
    ((content_type, body),) = server.received
    assert content_type == "image/jpeg"
    with Image.open(io.BytesIO(body)) as picture:
        np.testing.assert_allclose(np.asarray(picture).astype(int), image.astype(int), atol=8)
    assert model.class_names == CAMVID_CLASSES
    np.testing.assert_array_equal(model.palette, palette_for(CAMVID_CLASSES))
    model.close()


@pytest.mark.parametrize("status", [404, 429, 502, 503, 504])
def test_an_unreachable_endpoint_is_model_unavailable(server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(ModelUnavailable, match=rf"answered {status}: The reason\."):
        model_of(server).mask(np.zeros((4, 4, 3), dtype=np.uint8))
    assert len(server.received) == 1  # the stream itself retries, with a newer frame


@pytest.mark.parametrize("status", [400, 413, 415, 500])
def test_a_refused_frame_is_an_error_of_the_frame(server: Server, status: int) -> None:
    server.status = status
    with pytest.raises(PspnetError, match=rf"answered {status}: The reason\.") as caught:
        model_of(server).mask(np.zeros((4, 4, 3), dtype=np.uint8))
    assert not isinstance(caught.value, ModelUnavailable)


def test_a_mask_of_another_size_is_an_error_of_the_frame(server: Server) -> None:
    server.step = 2
    with pytest.raises(DataError, match=r"a mask of 10x6 for a frame of 20x12; expected the same size\."):
        model_of(server).mask(np.zeros((12, 20, 3), dtype=np.uint8))


def test_a_refused_connection_is_model_unavailable(server: Server) -> None:
    model = model_of(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(ModelUnavailable, match="connection refused"):
        model.mask(np.zeros((4, 4, 3), dtype=np.uint8))
