"""Cold start of the Lambda function in new interpreters on this machine.

    python benchmarks/support/lambda_start.py --masks MASKS --drivable 3 --output lambda_start.json

Each interpreter has the files of `lambda_package --code_only` and this environment's NumPy, Pillow, boto3. It imports
the function and handles the event of one segment of masks twice; the first event also imports boto3 and opens the
connection. S3 is moto's server on the loopback address. Lambda adds its sandbox and the loading of the package, and
assigns a slower processor to a function with little memory: see `Init Duration` in its log.

MASKS holds PNG files of class ids; synthetic scenes by default. Needs moto: pip install 'moto[server]'.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pspnet.benchmarking.peak_memory import ask_child
from pspnet.benchmarking.record import machine_text, run_record, write_record
from pspnet.benchmarking.table import markdown
from pspnet.data.shapes import draw_scene
from pspnet.errors import DataError, PspnetError
from pspnet.masks.segment import RecordHead, SegmentHeader
from pspnet.masks.writer import SegmentWriter
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry.pipeline.lambda_package import write_package

BUCKET, KEY = "masks-bucket", "masks/segment.pspm"

CHILD = """
import json, os, sys, time
sys.path[0] = sys.argv[2]  # replaces the folder in which the benchmark was started
started = time.perf_counter()
from sagemaker_entry.pipeline import handler as lambda_handler
seconds = {"import": time.perf_counter() - started}
for name in ("first event", "same event"):
    started = time.perf_counter()
    lambda_handler.handler(json.loads(sys.argv[1]))
    seconds[name] = time.perf_counter() - started
status = "/proc/self/status"  # Linux; getrusage would include the memory of the parent process
lines = open(status).readlines() if os.path.exists(status) else []
peaks = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
print(json.dumps({"seconds": seconds, "peak_mib": peaks[0] if peaks else None}))
"""


def write_segment(folder: Path | None, count: int) -> tuple[bytes, str]:
    """A segment of the first `count` masks of a folder, or of synthetic ones, at 10 frames/s, and its description.

    Raises DataError for too few masks or several sizes.
    """
    if folder is None:
        masks = [draw_scene(np.random.default_rng([7, index]), (480, 360))[1] for index in range(count)]
    else:
        masks = [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))[:count]]
    if len(masks) < count:
        raise DataError(f"{folder}: found {len(masks)} PNG files, expected {count}; use fewer --frames.")
    if any(mask.ndim != 2 or mask.dtype != np.uint8 or mask.shape != masks[0].shape for mask in masks):
        raise DataError(f"{folder}: expected masks of one size, each with one channel of 8 bits.")
    file, (height, width) = io.BytesIO(), masks[0].shape
    writer = SegmentWriter(file, SegmentHeader(height, width))
    for index, mask in enumerate(masks):
        writer.append(RecordHead(index, 1.7e9 + index / 10, index / 10), mask)
    writer.finish()
    return file.getvalue(), f"{count} masks of {width}x{height}, {len(file.getvalue()):,} bytes"


@contextlib.contextmanager
def bucket_with(segment: bytes) -> Iterator[dict[str, str]]:
    """Environment variables of a local bucket that holds the segment; PspnetError if moto is missing."""
    try:
        import boto3
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise PspnetError(f"{error.name} is not installed: run `pip install 'moto[server]' boto3`.") from error

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # its default prints every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        environment.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="none")
        access = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **access)
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key=KEY, Body=segment)
        yield environment
    finally:
        server.stop()


def measure(starts: int, segment: bytes, drivable: str) -> list[dict[str, Any]]:
    """The measurements of each new interpreter. A first one only fills the system's file cache."""
    record = {
        "eventSource": "aws:s3",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": BUCKET}, "object": {"key": KEY, "size": len(segment)}},
    }
    with tempfile.TemporaryDirectory() as folder, bucket_with(segment) as environment:
        package = Path(folder) / "lambda.zip"
        (Path(folder) / "packages").mkdir()
        write_package(package, Path(folder) / "packages")
        with zipfile.ZipFile(package) as archive:
            archive.extractall(Path(folder) / "code")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PSPNET_"))}
        environment = {**inherited, **environment, "PSPNET_DRIVABLE": drivable}
        command = [sys.executable, "-c", CHILD, json.dumps({"Records": [record]}), str(Path(folder) / "code")]
        return [ask_child(command, environment=environment) for _ in range(starts + 1)][1:]


def main(argv: Sequence[str]) -> int:
    """Measure, print the table and write the record."""
    parser = argparse.ArgumentParser(
        prog="lambda_start.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--masks", type=Path, metavar="DIR", help="PNG files of class ids (default: synthetic scenes)")
    add("--frames", type=int, default=12, metavar="N", help="masks of the segment (%(default)s)")
    add("--drivable", default="0", metavar="ID,ID", help="class ids of the drivable area (%(default)s)")
    add("--starts", type=int, default=7, metavar="N", help="new interpreters (%(default)s)")
    add("--output", type=Path, metavar="FILE", help="write figures, command, machine and versions")
    args = parser.parse_args(argv)
    if args.frames < 1 or args.starts < 1:
        parser.error("--frames and --starts must be at least 1")
    record = run_record()
    segment, description = write_segment(args.masks, args.frames)
    found = measure(args.starts, segment, args.drivable)
    print(f"{machine_text(record['machine'])}\n{description}\n")
    rows = []
    for name in found[0]["seconds"]:
        values = [start["seconds"][name] for start in found]
        rows.append([name, f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"])
    print(markdown([f"median of {args.starts} starts", "s (min to max)"], rows))
    peaks = [start["peak_mib"] for start in found if start["peak_mib"] is not None]
    print(f"\nlargest resident memory: {f'{max(peaks):.0f} MiB' if peaks else 'not measured'}")
    if args.output is not None:
        write_record(args.output, {**record, "segment": description, "starts": found})
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
