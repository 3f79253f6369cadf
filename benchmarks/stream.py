"""A live stream on this machine: frame rate, drops, latency from capture to delivery, bytes of masks and frames.

    python benchmarks/stream.py --model MODEL_DIR --images CAMVID/validation --output stream.json

A video of the images, 480x360 in Matroska, is played at 10 frames/s like a camera: `pspnet stream FILE --rate 10
--policy latest` in a separate process for each runtime, with the masks written to a folder and, as PNG files, to a
pipe. All figures but the bytes come from the command's own --summary. The first frames count: the runtime is prepared
before the first mask, and frames that arrive meanwhile are dropped.

Bytes of a mask: all files in the folder (masks and index), and the PNG files, divided by the number of masks. Bytes of
a frame: the same images as JPEG of quality 90, and the video file divided by its frames.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.benchmarking.record import run_record, write_record
from pspnet.benchmarking.timed_frames import jpeg
from pspnet.data.inputs import find_images
from pspnet.errors import PspnetError
from pspnet.system.exit_codes import run_guarded

_ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="MODEL_DIR")
    add("--images", type=Path, required=True, metavar="DIR", help="frames, repeated as needed")
    add("--runtimes", default="default", help="comma-separated, as --runtime takes them, or default")
    add("--rate", type=float, default=10.0, help="frames per second of the source (default: 10)")
    add("--seconds", type=float, default=120.0, help="length of the video (default: 120)")
    add("--size", default="480x360", help="default: 480x360")
    add("--overlay", type=Path, metavar="DIR", help="also write overlay videos there, RUNTIME.mkv")
    add("--output", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    width, height = (int(part) for part in arguments.size.split("x"))
    count = round(arguments.seconds * arguments.rate)
    record = run_record()
    with tempfile.TemporaryDirectory(prefix="pspnet-stream-") as text:
        video = Path(text) / "film.mkv"
        jpeg_bytes = _write_video(video, arguments.images, count, arguments.rate, height, width)
        frames = {"jpeg": round(jpeg_bytes), "video": round(video.stat().st_size / count)}
        found = {
            name: _run(arguments, name, video, Path(text) / f"run-{name}") for name in arguments.runtimes.split(",")
        }
    for name, result in found.items():
        _print(name, result, frames)
    if arguments.output:
        write_record(arguments.output, {**record, "frames": count, "bytes": frames, "runtimes": found})
    return 0


def _write_video(path: Path, images: Path, count: int, rate: float, height: int, width: int) -> float:
    """Encode the video; returns the mean bytes of its frames as JPEG."""
    total = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for file in islice(cycle(find_images([str(images)])), count):
            with Image.open(file) as picture:
                image = picture.convert("RGB").resize((width, height))
            total += len(jpeg(np.asarray(image)))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return total / count


def _run(arguments: argparse.Namespace, runtime: str, video: Path, folder: Path) -> dict[str, Any]:
    """Run one stream; returns its summary and the bytes of its masks."""
    folder.mkdir()
    masks, pipe, summary = folder / "masks", folder / "pipe.png", folder / "summary.json"
    command = [sys.executable, "-m", "pspnet.cli", "stream", str(video), "--model", str(arguments.model.resolve())]
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
    delivery = "/".join(f"{latency[key]:.0f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
    inference = "/".join(f"{found['inference'][key]:.0f}" for key in ("p50_ms", "p95_ms"))
    stored = found["bytes_per_mask"]
    print(f"{name}: {found['masks_per_second']:.2f} masks/s; {found['late']} of {found['read']} frames dropped")
    print(f"  capture to delivery p50/p95/p99 {delivery} ms; the model p50/p95 {inference} ms")
    print(f"  bytes of a mask: folder {stored['folder']:,}, PNG {stored['png']:,}")
    print(f"  bytes of a frame: JPEG {frames['jpeg']:,}, video {frames['video']:,}")


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
