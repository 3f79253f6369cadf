"""EndpointPredictor over HTTP and over InvokeEndpoint, against a small configurable server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.client import endpoint_client
from pspnet.client.transport import EndpointError
from pspnet.errors import DataError, PspnetError
from sagemaker_entry import EndpointPredictor
from tests.client.test_probability_record import record

ROOT = Path(__file__).resolve().parents[3]
MASK = np.arange(48 * 32, dtype=np.uint8).reshape(32, 48) % 3


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Server:
    """State of the fake endpoint: its answer function and the received requests."""

    answer: Callable[[bytes, dict[str, str]], Reply] = lambda body, headers: (
        200, {"Content-Type": "image/png"}, png(MASK),
    )  # fmt: skip
    url: str = ""
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    hang_up: bool = False


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.connections.add(self.client_address)
            state.requests.append((self.path, headers, body))
            status, fields, content = state.answer(body, headers)
            self.send_response(status)
            for name, value in {**fields, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            if state.hang_up:
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # a client that disconnected
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    Image.new("RGB", (48, 32), (200, 10, 10)).save(tmp_path / "frame.jpg")
    return tmp_path / "frame.jpg"


def test_every_image_type_is_sent_with_its_content_type(server: Server, jpeg: Path, tmp_path: Path) -> None:
    Image.new("RGB", (48, 32)).save(tmp_path / "frame.webp")
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    with EndpointPredictor(server.url) as predictor:
        for image in (str(jpeg), jpeg, jpeg.read_bytes(), pixels, Image.fromarray(pixels), tmp_path / "frame.webp"):
            mask = predictor(image)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, MASK)
    types = [headers["content-type"] for _, headers, _ in server.requests]
    assert types == ["image/jpeg"] * 3 + ["image/png"] * 2 + ["image/webp"]
    assert {path for path, _, _ in server.requests} == {"/invocations"}
    assert {headers["accept"] for _, headers, _ in server.requests} == {"image/png"}
    assert server.requests[0][2] == jpeg.read_bytes()
    for _, _, body in server.requests[3:5]:
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), pixels)


def test_the_connection_is_reused_and_reopened_after_the_server_closed_it(server: Server, jpeg: Path) -> None:
    predictor = EndpointPredictor(server.url)
    for _ in range(3):
        predictor(jpeg)
    assert len(server.connections) == 1
    server.hang_up = True  # without a Connection header
    predictor(jpeg)
    predictor(jpeg)
    assert len(server.requests) == 5
    assert len(server.connections) == 2
    predictor.close()


def test_several_threads_share_a_predictor(server: Server, jpeg: Path) -> None:
    with EndpointPredictor(server.url) as predictor, ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(predictor, [jpeg] * 40))
    assert all(np.array_equal(mask, MASK) for mask in masks)
    assert len(server.connections) <= 8


def test_a_busy_endpoint_is_retried_after_its_retry_after(
    server: Server, jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(endpoint_client.time, "sleep", pauses.append)
    replies = iter([(503, {"Retry-After": "3"}, b"busy"), (429, {}, b"slow down"), (503, {}, b"busy")])
    server.answer = lambda body, headers: next(replies, (200, {}, png(MASK)))
    np.testing.assert_array_equal(EndpointPredictor(server.url)(jpeg), MASK)
    assert pauses[0] == 3.0
    assert 0.2 <= pauses[1] <= 0.4
    assert 0.4 <= pauses[2] <= 0.8
    server.answer = lambda body, headers: (503, {}, b"The line is full.")
    with pytest.raises(EndpointError, match=r"answered 503: The line is full\.") as caught:
        EndpointPredictor(server.url, retries=1)(jpeg)
    assert caught.value.status == 503
    assert len(pauses) == 4


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b"The body is no readable image.\n", "answered 400: The body is no readable image."),
        (413, b"<html>\n <b>Too large</b>", "answered 413: <html> <b>Too large</b>"),
        (507, b'{"code": 507, "type": "X", "message": "Worker died."}', "answered 507: Worker died."),
        (500, b"", "answered 500: Internal Server Error"),
        (404, b'{"detail": "Not Found"}', "answered 404: Not Found"),
    ],
)
def test_the_error_includes_the_endpoints_message(
    status: int, body: bytes, expected: str, server: Server, jpeg: Path
) -> None:
    server.answer = lambda *_: (status, {}, body)
    with pytest.raises(EndpointError) as caught:
        EndpointPredictor(server.url)(jpeg)
    assert str(caught.value) == f"{server.url} {expected}"
    assert len(server.requests) == 1


def test_invalid_answers(server: Server, jpeg: Path) -> None:
    predictor = EndpointPredictor(server.url)
    server.answer = lambda *_: (200, {}, b"hello")
    with pytest.raises(DataError, match=r"the endpoint's answer is not an image .* expected an 8-bit PNG"):
        predictor(jpeg)
    server.answer = lambda *_: (200, {}, png(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(DataError, match="a PNG image of mode RGB"):
        predictor(jpeg)
    server.answer = lambda *_: (200, {}, b"hello")
    with pytest.raises(DataError, match="not the requested JSON summary"):
        predictor.summary(jpeg)
    with pytest.raises(DataError, match=r"expected probabilities of the shape \(1, C, H, W\)"):
        predictor.probabilities(jpeg)


def test_invalid_images_are_not_sent(server: Server, tmp_path: Path) -> None:
    predictor = EndpointPredictor(server.url)
    (tmp_path / "text.jpg").write_text("hello")
    for image, expected in (
        (tmp_path / "text.jpg", r"text\.jpg: begins with b'hello'; expected a JPEG"),
        (tmp_path / "none.jpg", r"none\.jpg: cannot be read"),
        (b"", "the image: is empty"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\) and type uint8"),
        (np.zeros((4, 4, 3), np.float32), "type float32"),
    ):
        with pytest.raises(DataError, match=expected):
            predictor(image)
    assert server.requests == []


@pytest.mark.parametrize("url", ["http://", "http://host:port", "http://user:pass@host", "http://host/?x=1"])
def test_invalid_urls(url: str) -> None:
    with pytest.raises(PspnetError, match=r"not the URL of an endpoint; expected http://HOST:PORT"):
        EndpointPredictor(url)


def test_connection_refused_and_timeout(server: Server, jpeg: Path) -> None:
    with pytest.raises(EndpointError, match=r"connection refused; start the server with `pspnet serve MODEL_DIR`"):
        EndpointPredictor("http://127.0.0.1:9")(jpeg)
    released = threading.Event()

    def never(*_: Any) -> Reply:
        released.wait(60)
        return 200, {}, b""

    server.answer = never
    try:
        with pytest.raises(EndpointError, match=r"did not answer within 0\.3 seconds"):
            EndpointPredictor(server.url, timeout=0.3)(jpeg)
    finally:
        released.set()


def test_probabilities_and_summary(server: Server, jpeg: Path) -> None:
    values = np.random.default_rng(0).random((3, 32, 48), dtype=np.float32)
    predictor = EndpointPredictor(server.url)
    server.answer = lambda *_: (200, {}, record((1, 3, 32, 48), values.ravel()))
    np.testing.assert_array_equal(predictor.probabilities(jpeg), values)
    server.answer = lambda *_: (200, {}, json.dumps({"height": 32, "classes": []}).encode())
    assert predictor.summary(jpeg) == {"height": 32, "classes": []}
    accepted = [headers["accept"] for _, headers, _ in server.requests]
    assert accepted == ["application/x-recordio-protobuf", "application/json"]


# By name, through boto3: a loopback server replaces SageMaker's runtime.


@pytest.fixture
def runtime(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-northeast-1")
    return server


def refused(status: int, code: str, **content: Any) -> Callable[..., Reply]:
    fields = {"x-amzn-ErrorType": code, "Content-Type": "application/json"}
    return lambda *_: (status, fields, json.dumps(content).encode())


def test_an_endpoint_by_name(runtime: Server, jpeg: Path) -> None:
    with EndpointPredictor("cars") as predictor, ThreadPoolExecutor(4) as pool:
        masks = list(pool.map(predictor, [jpeg] * 8))
    assert all(np.array_equal(mask, MASK) for mask in masks)
    path, headers, body = runtime.requests[0]
    assert path == "/endpoints/cars/invocations"
    assert (headers["content-type"], headers["accept"]) == ("image/jpeg", "image/png")
    assert body == jpeg.read_bytes()


def test_the_containers_status_and_message(runtime: Server, jpeg: Path) -> None:
    message = 'Received client error (400) from primary with message "The body is damaged."'
    runtime.answer = refused(
        424, "ModelError", Message=message, OriginalStatusCode=400, OriginalMessage="The body is damaged."
    )
    with pytest.raises(EndpointError) as caught:
        EndpointPredictor("cars")(jpeg)
    assert str(caught.value) == "endpoint cars answered 400: The body is damaged."
    assert caught.value.status == 400
    assert len(runtime.requests) == 1


def test_throttling_and_a_busy_container_are_retried(
    runtime: Server, jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_client.time, "sleep", lambda seconds: None)
    replies = [
        refused(400, "ThrottlingException", message="Rate exceeded"),
        refused(424, "ModelError", Message="m", OriginalStatusCode=503, OriginalMessage="busy"),
        refused(429, "ModelNotReadyException", Message="starting"),
        refused(503, "ServiceUnavailable", Message="later"),
    ]
    runtime.answer = lambda *_: replies.pop(0)() if replies else (200, {}, png(MASK))
    np.testing.assert_array_equal(EndpointPredictor("cars")(jpeg), MASK)
    assert len(runtime.requests) == 5


@pytest.mark.slow
def test_aws_errors_are_one_sentence(runtime: Server, jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = EndpointPredictor("cars")
    for reply, expected in (
        (
            refused(400, "ValidationError", Message="Endpoint cars of account 1 not found."),
            "not found in this account and region",
        ),
        (refused(403, "AccessDeniedException", Message="not authorized to perform: x"), "access denied"),
        (refused(400, "ExpiredTokenException", message="expired"), "the AWS sign-in has expired"),
        (refused(413, "413", message="HTTP content length exceeded"), "the request exceeds SageMaker's size limit"),
    ):
        runtime.answer = reply
        with pytest.raises(PspnetError, match=r"^endpoint cars") as caught:
            predictor(jpeg)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    large = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"bytes as image/png, above the request limit of 6,291,456; send it as JPEG"):
        predictor(large)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PspnetError, match="found no AWS credentials"):
        EndpointPredictor("cars")(jpeg)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(PspnetError, match="found no AWS region"):
        EndpointPredictor("cars")


def test_without_boto3_a_url_works_and_a_name_reports_the_extra(
    server: Server, jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pspnet.system.optional_packages.find_spec", lambda name: None)
    EndpointPredictor(server.url)(jpeg)
    with pytest.raises(PspnetError, match=r"boto3, which is not installed: pip install"):
        EndpointPredictor("cars")


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, sagemaker_entry\n"
        "assert not {'numpy', 'PIL'} & set(sys.modules)\n"
        "from sagemaker_entry import EndpointPredictor\n"
        "EndpointPredictor('http://127.0.0.1:8080')\n"
        "loaded = {'torch', 'cv2', 'sagemaker', 'boto3', 'botocore'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
