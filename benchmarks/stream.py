"""A live stream on this machine: frames a second, drops, latency from capture to delivery, bytes of masks and frames.

    python benchmarks/stream.py --model MODEL_DIR --images CAMVID/validation --output stream.json

A video of the images, 480x360 in Matroska, is played at 10 frames/s as if it came from a camera: `pspnet stream FILE
--rate 10 --policy latest` in a process of its own, once for each runtime, with the masks going to a folder and, as PNG
files, to a pipe. All figures but the bytes are from the command's own --summary. The first frames of a runtime are not
left out: getting it ready happens before the first mask, and the frames that come meanwhile count as dropped.

Bytes of a mask: of all files in the folder (masks and index), and of the PNG files, over the number of masks. Bytes of
a frame: of the same images as JPEG of quality 90, and of the video file itself over its frames.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
from PIL import Image

# The project, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.benchmarking.record import run_record, write_record
from pspnet.data.inputs import find_images
from pspnet.errors import PspnetError
from pspnet.system.exit_codes import run_guarded

_ROOT = Path(__file__).resolve().parents[1]
_QUALITY = 90


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the JSON file."""
    arguments = _parser().parse_args(argv)
    width, height = (int(part) for part in arguments.size.split("x"))
    count = round(arguments.seconds * arguments.rate)
    record = run_record()
    with tempfile.TemporaryDirectory(prefix="pspnet-stream-") as text:
        folder = Path(text)
        video, jpeg = _make_video(folder / "film.mkv", arguments.images, count, arguments.rate, height, width)
        found = {name: _run(arguments, name, video, folder / f"run-{name}") for name in arguments.runtimes.split(",")}
    bytes_of_frames = {"jpeg": round(jpeg), "video": round(video.size / count)}
    for name, result in found.items():
        _print(name, result, bytes_of_frames)
    if arguments.output:
        result = {
            **record,
            "frames": count,
            "bytes": bytes_of_frames,
            "runtimes": found,
        }
        write_record(arguments.output, result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure a live stream on this machine.")
    parser.add_argument("--model", type=Path, required=True, metavar="MODEL_DIR")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="frames, repeated as needed")
    parser.add_argument("--runtimes", default="default", help="comma-separated, as --runtime takes them, or default")
    parser.add_argument("--rate", type=float, default=10.0, help="frames a second of the source (default: 10)")
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the video (default: 120)")
    parser.add_argument("--size", default="480x360", help="default: 480x360")
    parser.add_argument("--overlay", type=Path, metavar="DIR", help="also write RUNTIME.mkv there, for the eye")
    parser.add_argument("--output", type=Path, metavar="FILE")
    return parser


class _Video:
    """A video file and its bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size


def _images(folder: Path, count: int, height: int, width: int) -> Iterator[Image.Image]:
    for path in islice(cycle(find_images([str(folder)])), count):
        with Image.open(path) as picture:
            yield picture.convert("RGB").resize((width, height))


def _make_video(path: Path, images: Path, count: int, rate: float, height: int, width: int) -> tuple[_Video, float]:
    """Encode the video; it, and the mean bytes of its frames as JPEG."""
    total = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in _images(images, count, height, width):
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=_QUALITY)
            total += buffer.tell()
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return _Video(path), total / count


def _run(arguments: argparse.Namespace, runtime: str, video: _Video, folder: Path) -> dict[str, Any]:
    """One stream; its summary and the bytes of its masks."""
    folder.mkdir()
    masks, pipe, summary = folder / "masks", folder / "pipe.png", folder / "summary.json"
    command = [
        sys.executable,
        "-m",
        "pspnet.cli",
        "stream",
        str(video.path),
        "--model",
        str(arguments.model.resolve()),
    ]
    command += ["--rate", f"{arguments.rate:g}", "--policy", "latest", "--summary", str(summary), "--quiet"]
    command += ["--spill", str(folder / "spill"), "--to", f"{masks}/", "png:-"]
    if arguments.overlay is not None:
        arguments.overlay.mkdir(parents=True, exist_ok=True)
        command.append(str(arguments.overlay.resolve() / f"{runtime.replace(':', '-')}.mkv"))
    if runtime != "default":
        command += ["--runtime", runtime]
    with open(pipe, "wb") as output:
        code = subprocess.run(command, stdout=output, env={**os.environ, "PYTHONPATH": str(_ROOT)}).returncode
    if code:
        raise PspnetError(f"{runtime}: the stream ended with code {code}.")
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    stored = sum(path.stat().st_size for path in masks.rglob("*") if path.is_file())
    count = max(found["masks"], 1)
    found["bytes_per_mask"] = {"folder": round(stored / count, 1), "png": round(pipe.stat().st_size / count, 1)}
    return found


def _print(name: str, found: dict[str, Any], frames: dict[str, int]) -> None:
    latency = next(iter(found["sinks"].values()))["latency"]
    shares = "/".join(f"{latency[share]:.0f}" for share in ("p50_ms", "p95_ms", "p99_ms"))
    inference = "/".join(f"{found['inference'][share]:.0f}" for share in ("p50_ms", "p95_ms"))
    stored = found["bytes_per_mask"]
    print(f"{name}: {found['masks_per_second']:.2f} masks/s; {found['late']} of {found['read']} frames dropped")
    print(f"  capture to delivery p50/p95/p99 {shares} ms; the model p50/p95 {inference} ms")
    print(f"  bytes of a mask: folder {stored['folder']:,}, PNG {stored['png']:,}")
    print(f"  bytes of a frame: JPEG {frames['jpeg']:,}, video {frames['video']:,}")


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
