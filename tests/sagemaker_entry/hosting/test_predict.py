"""`predict` of files, folders and patterns through a server writes the same masks as `pspnet predict`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pspnet.cli import dispatch as pspnet_cli
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.commands import dispatch
from tests.sagemaker_entry.hosting.hosting_fixtures import save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("predict") / "model")


@pytest.fixture(scope="module")
def url(model: Path) -> Iterator[str]:
    """The endpoint's handlers behind a minimal server."""
    from pspnet.inference.predictor import Predictor
    from pspnet.serving.protocol.accept import choose_answer
    from pspnet.serving.protocol.answers import encode
    from pspnet.serving.protocol.request_error import RequestError
    from pspnet.serving.protocol.request_image import decode_image

    predictor = Predictor.load(model)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                image = decode_image(body, self.headers["Content-Type"])
                form = choose_answer(self.headers["Accept"])
                status, content = 200, encode(predictor.predict([image], form.needs_probabilities)[0], form)
            except RequestError as error:
                status, content = error.status, str(error).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder, random = tmp_path / "frames", np.random.default_rng(0)
    folder.mkdir()
    for name, size in (("a.jpg", (64, 48)), ("b.png", (50, 40)), ("c.webp", (48, 64)), ("d.jpeg", (40, 40))):
        pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_same_files_as_from_pspnet_predict(
    url: str, model: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    served, here = tmp_path / "served", tmp_path / "here"
    assert dispatch(["predict", url, str(frames), "--output", str(served), "--overlay"]) == 0
    assert capsys.readouterr().out == f"4 masks in {served}\n"
    images = sorted(str(path) for path in frames.iterdir() if path.suffix != ".txt")
    assert pspnet_cli.dispatch(["predict", str(model), *images, "--output", str(here), "--overlay"]) == 0
    names = sorted(path.name for path in served.iterdir())
    assert names == sorted(f"{stem}{end}" for stem in "abcd" for end in (".png", "_overlay.jpg"))
    for name in names:
        assert (served / name).read_bytes() == (here / name).read_bytes(), name
    assert Image.open(served / "a.png").mode == "P"


def test_patterns_and_single_files_keep_their_order(url: str, frames: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert dispatch(["predict", url, str(frames / "d*"), str(frames / "b.png"), "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["b.png", "d.png"]


def test_failed_images_are_reported_and_the_others_written(
    url: str, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (frames / "e.jpg").write_bytes((frames / "a.jpg").read_bytes()[:400])
    (frames / "f.png").write_text("no image")
    assert run_guarded(dispatch, ["predict", url, str(frames), "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().split("\n")
    assert len(lines) == 2
    assert lines[0].startswith(f"error: {frames / 'e.jpg'}: {url} answered 400: The body is not a readable JPEG")
    assert "f.png: begins with b'no image'; expected a JPEG" in lines[1]
    assert captured.out == f"4 masks in {tmp_path / 'out'}, 2 images failed\n"
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_greyscale_masks_get_the_voc_palette(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from pspnet.classes import voc_palette
    from pspnet.client.transport import Reply
    from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

    buffer = io.BytesIO()
    Image.fromarray(np.full((48, 64), 2, np.uint8)).save(buffer, format="PNG")
    monkeypatch.setattr(EndpointPredictor, "ask", lambda *_: Reply(buffer.getvalue(), "image/png"))
    dispatch(["predict", "http://127.0.0.1:9", str(frames / "a.jpg"), "--output", str(tmp_path / "out"), "--overlay"])
    with Image.open(tmp_path / "out" / "a.png") as picture:
        assert picture.getpalette()[6:9] == voc_palette()[2].tolist()
        assert np.unique(np.asarray(picture)).tolist() == [2]


def test_probabilities_summary_and_mask_agree_in_every_format(url: str, frames: Path) -> None:
    from sagemaker_entry import EndpointPredictor

    with EndpointPredictor(url) as predictor:
        mask = predictor(frames / "a.jpg")
        shares = predictor.probabilities(frames / "a.jpg")
        half, byte = (predictor.probabilities(frames / "a.jpg", dtype) for dtype in ("float16", "uint8"))
        summary = predictor.summary(frames / "a.jpg")
    assert shares.shape == (3, 48, 64)
    np.testing.assert_array_equal(shares.argmax(axis=0), mask)
    np.testing.assert_allclose(half, shares, atol=1e-3)
    np.testing.assert_allclose(byte, shares, atol=0.5 / 255 + 1e-6)
    assert {one["id"]: one["pixels"] for one in summary["classes"]} == dict(
        zip(*(values.tolist() for values in np.unique(mask, return_counts=True)))
    )


def test_user_errors_are_one_sentence(url: str, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = ["--output", str(tmp_path / "out")]
    for argv, expected in (
        ([url, str(tmp_path / "none.jpg"), *output], "no such image file"),
        ([url, str(frames / "a.jpg"), "--output", str(frames / "a.jpg")], "--output: "),
        (["http://127.0.0.1:9", str(frames / "a.jpg"), *output], "connection refused"),
        (["http://x:y", str(frames / "a.jpg"), *output], "not the URL of an endpoint"),
    ):
        assert run_guarded(dispatch, ["predict", *argv]) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1
    assert run_guarded(dispatch, ["predict", url, "--workers", "0", "--retries", "-1"]) == 2
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()[1:]] == [
        "  images", "  output", "  workers", "  retries",
    ]  # fmt: skip


def test_an_error_that_affects_every_image_ends_the_command(
    frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-northeast-1")
    assert run_guarded(dispatch, ["predict", "cars", str(frames), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: endpoint cars: found no AWS credentials")
    assert error.count("\n") == 1
