"""`pspnet stream` end to end: real videos, a tiny model, a local endpoint, signals and invalid input."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.support import hosts
from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.cli import dispatch as cli
from pspnet.config.schema import Config
from pspnet.data.io.images import read_image
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.stream import read_masks
from pspnet.stream.sinks.base import SinkError
from pspnet.stream.sinks.mask_files import FolderSink
from pspnet.stream.spill_queue import SpillQueue, folder_name
from pspnet.stream.statistics import SinkStatistics
from pspnet.system.exit_codes import run_guarded
from tests.stream.fakes import masked, wait_until
from tests.stream.videos import frames, number_of, read_video, write_video

ROOT = Path(__file__).resolve().parents[2]
CAMVID = os.environ.get("PSPNET_CAMVID")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stream") / "model"
    config = Config(num_classes=3, data="x", width=4, use_pretrained_model=False, class_names="a, b, c")
    torch.manual_seed(1)
    save_artifact(directory, build_model(**architecture_of(config)), config, {}, {})
    return directory


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PSPNET_CAMVID", raising=False)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pspnet.cli", "stream", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def stream(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), env=environment(), capture_output=True, timeout=240)


def masks_of(content: bytes) -> list[tuple[dict[str, object], np.ndarray]]:
    file, found = io.BytesIO(content), []
    while line := file.readline():
        about = json.loads(line)
        with Image.open(io.BytesIO(file.read(about["bytes"]))) as picture:
            found.append((about, np.asarray(picture)))
    return found


@pytest.mark.slow
def test_masks_video_and_summary_of_a_file(model_dir: Path, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", 12)
    result = stream(film, "--model", model_dir, "--to", "-", "over.mp4", "--legend", "--summary", "sums/s.json")
    assert result.returncode == 0, result.stderr.decode()
    found = masks_of(result.stdout)
    assert [about["index"] for about, _ in found] == list(range(12))
    predictor = Predictor.load(model_dir, device="cpu")
    decoded = read_video(film)
    for (about, mask), (stamp, image) in zip(found, decoded):
        assert about["timestamp"] == pytest.approx(stamp, abs=0.002)
        np.testing.assert_array_equal(mask, predictor(image))
    video = read_video(tmp_path / "over.mp4")
    assert len(video) == 12
    assert video[0][1].shape[0] > 48
    summary = json.loads((tmp_path / "sums" / "s.json").read_text())
    assert (summary["read"], summary["masks"], summary["late"], summary["failed"]) == (12, 12, 0, 0)
    assert {sink["delivered"] for sink in summary["sinks"].values()} == {12}
    assert "12 frames read, 12 masks, 0 dropped as late" in result.stderr.decode()
    assert not (tmp_path / "pspnet-spill").exists()


@pytest.mark.slow
def test_overlay_video_of_real_frames(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CamVid frames if PSPNET_CAMVID is set to its folder, synthetic frames otherwise."""
    if CAMVID is not None:
        monkeypatch.setenv("PSPNET_CAMVID", CAMVID)
    film = write_video(tmp_path / "film.mkv", 3, height=360, width=480)
    result = stream(film, "--model", model_dir, "--to", "-", "o.mkv", "masks/", "--opacity", "0.4")
    assert result.returncode == 0, result.stderr.decode()
    predictor = Predictor.load(model_dir, device="cpu")
    masks = [mask for _, mask in masks_of(result.stdout)]
    shown = [picture for _, picture in read_video(tmp_path / "o.mkv")]
    for mask, picture, (_, image) in zip(masks, shown, read_video(film)):
        np.testing.assert_array_equal(mask, predictor(image))
        expected = 0.6 * image + 0.4 * predictor.palette[mask]
        assert np.abs(picture - expected).mean() < 8
    stored = [entry.mask for entry in read_masks(tmp_path / "masks")]
    np.testing.assert_array_equal(stored, masks)


@pytest.mark.slow
def test_a_paced_folder_drops_and_counts_late_frames(model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, image in enumerate(frames(40)):
        Image.fromarray(image).save(folder / f"{index}.png")
    result = stream(folder, "--model", model_dir, "--to", "-", "--rate", "500", "--summary", "s.json")
    assert result.returncode == 0, result.stderr.decode()
    summary = json.loads(Path("s.json").read_text())
    assert summary["read"] == 40
    assert summary["late"] > 0
    numbers = [about["index"] for about, _ in masks_of(result.stdout)]
    assert numbers == sorted(numbers)
    assert len(numbers) == 40 - summary["late"]
    assert numbers[-1] == 39


@pytest.mark.slow
def test_an_endpoint_returns_the_masks_of_jpeg_frames(model_dir: Path, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", 6)
    with hosts.serve(model_dir, tmp_path / "serve", arguments=["--warmup_size", "64x48"]) as server:
        # The stream waits until the endpoint has loaded its model.
        result = stream(film, "--endpoint", server.url, "--to", "-", "o.mkv", "--classes", "a,b", "--jpeg_quality", 95)
    assert result.returncode == 0, result.stderr.decode()
    found = masks_of(result.stdout)
    assert len(found) == 6
    predictor = Predictor.load(model_dir, device="cpu")
    for (_, mask), (_, image) in zip(found, read_video(film)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95)
        (tmp_path / "one.jpg").write_bytes(buffer.getvalue())
        np.testing.assert_array_equal(mask, predictor(read_image(tmp_path / "one.jpg")))


@pytest.mark.slow
def test_endpoint_mode_runs_without_torch(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", 2)
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from pspnet.cli.dispatch import dispatch\n"
        f"sys.exit(dispatch(['stream', {str(film)!r}, '--endpoint', 'http://127.0.0.1:9', '--to', 'o.mkv', "
        "'--give_up', '0']))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert "torch" not in result.stderr
    assert "2 failed" in result.stderr
    assert "http://127.0.0.1:9: connection refused" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_delivers_the_accepted_frames(model_dir: Path, tmp_path: Path, number: int, code: int) -> None:
    film = write_video(tmp_path / "film.mkv", 600)
    with open("out", "wb") as output:
        process = subprocess.Popen(
            command(film, "--model", model_dir, "--to", "o.mkv", "-", "--rate", 10, "--policy=all", "--summary", "s"),
            env=environment(), stdout=output, stderr=subprocess.PIPE,
        )  # fmt: skip
    wait_until(lambda: Path("out").stat().st_size > 0, 120)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors.decode()
    summary = json.loads(Path("s").read_text())
    found = masks_of(Path("out").read_bytes())
    assert 0 < summary["read"] < 600
    assert len(found) == summary["masks"] == summary["read"]
    assert [about["index"] for about, _ in found] == list(range(len(found)))
    assert len(read_video(tmp_path / "o.mkv")) == len(found)
    assert b"no more frames; delivering what was taken" in errors


def waiting_bytes(reader: int) -> int:
    """Return the number of unread bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.slow
def test_a_second_signal_exits_immediately(model_dir: Path, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", 100)
    reader, writer = os.pipe()  # without a reader, the pipe fills up and the sink hangs
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen(
        command(film, "--model", model_dir, "--to", "-", "--grace", 600),
        env=environment(), stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: waiting_bytes(reader) > 3600, 120)
    process.send_signal(signal.SIGTERM)
    time.sleep(2.0)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert b"Stopped immediately: masks that were not delivered and are not on disk are lost." in errors
    os.close(reader)
    os.close(writer)


@pytest.mark.slow
def test_a_killed_stream_leaves_a_playable_video_and_spilled_items(model_dir: Path, tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", 300)
    process = subprocess.Popen(
        command(film, "--model", model_dir, "--to", "o.mkv", "http://127.0.0.1:9/hook", "--rate", "10"),
        env=environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    folder = tmp_path / "pspnet-spill"
    wait_until(lambda: len(list(folder.glob("*/item-*.png"))) >= 20 or process.poll() is not None, 120)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    # All but the last fragment of one second.
    assert len(read_video(tmp_path / "o.mkv")) >= 5
    (kept,) = folder.iterdir()
    spill = SpillQueue(kept, 10**9, SinkStatistics("hook"))
    assert len(spill) >= 20
    assert spill.first() is not None


@pytest.mark.slow
def test_leftovers_are_delivered_first(model_dir: Path, tmp_path: Path) -> None:
    spill = SpillQueue(tmp_path / "spill" / folder_name("stdout"), 10**6, SinkStatistics("stdout"))
    for number in (100, 101):
        spill.append(masked(number))
    spill.close()
    film = write_video(tmp_path / "film.mkv", 3)
    result = stream(film, "--model", model_dir, "--to", "-", "--spill", "spill")
    assert result.returncode == 0, result.stderr.decode()
    assert [about["index"] for about, _ in masks_of(result.stdout)] == [100, 101, 0, 1, 2]
    assert b"delivering 2 items of an earlier run from" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["none.mp4", "--to", "o.mkv"], 1, "none.mp4: no such file or folder; expected a"),
        (["film.mkv", "--to", "/proc/none/o.mkv"], 1, "/proc/none/o.mkv: its folder cannot be created"),
    ],
)
def test_invalid_input_gives_a_one_line_error(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, text: str
) -> None:
    write_video(tmp_path / "film.mkv", 1)
    assert run_guarded(cli.dispatch, ["stream", *arguments, "--model", str(model_dir)]) == code
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {text}")
    assert len(errors.splitlines()) == 1


def test_every_wrong_setting_is_listed_before_a_file_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["none.mp4", "--max-frames", "0", "--opacity", "3", "--polcy", "all", "--sink-setting", "x", "--legend"]
    assert run_guarded(cli.dispatch, ["stream", *arguments, "--summary", "s.json"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: The configuration has 6 problems:",
        "  polcy: unknown key (flag --polcy); did you mean policy?",
        "  to: missing; it is required: sinks",
        "  max_frames: found '0' (flag --max-frames); allowed: a whole number, at least 1",
        "  opacity: found '3' (flag --opacity); allowed: a number from 0 to 1",
        "  sink_setting: found 'x' (flag --sink-setting); allowed: NAME=VALUE",
        "  model: missing; give a model directory as --model, or --endpoint",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "m", "--endpoint", "e"], "endpoint: found 'e' with model (flag --endpoint); give one of them"),
        (["--model", "m", "--classes", "voc"], "classes: found 'voc' with model (flag --classes); a model directory"),
        (
            ["--endpoint", "e", "--to", "o.mkv", "./o.mkv"],
            "to: found o.mkv and ./o.mkv, which are one sink (flag --to)",
        ),
        (["--endpoint", "e", "--quiet", "perhaps"], "command line: unexpected 'perhaps'"),
    ],
)
def test_settings_that_conflict(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert run_guarded(cli.dispatch, ["stream", "film.mkv", "--to", "o.mkv", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_an_error_while_opening_follows_that_of_closing_another_sink(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> None:
        raise SinkError("masks: 2 segments wait in spool.", temporary=True)

    film = write_video(tmp_path / "film.mkv", 1)
    monkeypatch.setattr(FolderSink, "close", failing)
    arguments = ["stream", str(film), "--model", str(model_dir), "--to", "masks", "/proc/none/o.mkv"]
    assert run_guarded(cli.dispatch, arguments) == 1
    message, error = capsys.readouterr().err.splitlines()
    assert message == "masks: 2 segments wait in spool."
    assert error.startswith("error: /proc/none/o.mkv: its folder cannot be created")


def test_the_error_of_a_missing_package_names_the_extra(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    film = write_video(tmp_path / "film.mkv", 1)
    monkeypatch.setattr("pspnet.system.optional_packages.find_spec", lambda _: None)
    assert run_guarded(cli.dispatch, ["stream", str(film), "--model", str(model_dir), "--to", "o.mkv"]) == 2
    assert capsys.readouterr().err == (
        "error: reading video needs av, which is not installed: "
        'pip install "pspnet[stream]" (from a checkout: pip install -e ".[stream]").\n'
    )


def test_help_lists_every_sink_and_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.dispatch(["stream", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "s3://BUCKET/PREFIX",
        "web[:PORT]",
        "png:-",
        "--spill_bytes",
        "--max_frames",
        "mask_encoding",
        "kvs://STREAM",
    ):
        assert word in text


@pytest.mark.slow
def test_the_web_page_shows_the_newest_frame(model_dir: Path, tmp_path: Path) -> None:
    """Web page of a running stream, over HTTP."""
    import urllib.request

    film = write_video(tmp_path / "film.mkv", 600)
    process = subprocess.Popen(
        command(film, "--model", model_dir, "--to", "web:0", "--opacity", "0", "--rate", "own"),
        env=environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    url = process.stderr.readline().decode().split()[1]
    with urllib.request.urlopen(f"{url}frame.jpg", timeout=120) as answer, Image.open(answer) as picture:
        shown = number_of(np.asarray(picture))
    status = json.loads(urllib.request.urlopen(f"{url}status.json", timeout=60).read())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert 0 <= shown < 600
    assert status["masks"] >= 1
