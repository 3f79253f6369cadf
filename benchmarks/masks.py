"""Bytes of a mask in every encoding, against the JPEG file of its frame.

    python benchmarks/masks.py --masks MASKS --frames FRAMES --output masks.json
    python benchmarks/masks.py --model MODEL_DIR --frames FRAMES --output masks.json

MASKS holds PNG files of class ids, sorted by time; FRAMES the JPEG files of the same names. With --model the model
predicts the masks of the frames. `--every N` takes every N-th frame only, like a slower camera.

The last rows are complete segments: the bytes of records, header and index divided by the masks. Every mask is decoded
again and compared.

Times are processor time of the thread in milliseconds, meaningful on an idle machine only; --no_times omits them.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.benchmarking.record import run_record, write_record
from pspnet.benchmarking.table import markdown
from pspnet.errors import DataError
from pspnet.masks import codec as encodings
from pspnet.masks.codec import ENCODINGS, Form, decode
from pspnet.masks.reader import MaskSegment
from pspnet.masks.segment import RecordHead, SegmentHeader
from pspnet.masks.writer import SegmentWriter
from pspnet.system.exit_codes import run_guarded

FILTERS = {"none": encodings.NONE, "sub": encodings.SUB, "up": encodings.UP, "average": 3, "paeth": encodings.PAETH}
STRATEGIES = {"": zlib.Z_DEFAULT_STRATEGY, ", run lengths": zlib.Z_RLE}

Encode = Callable[[np.ndarray], "tuple[Form, bytes]"]


@dataclass(frozen=True)
class Row:
    """Result of one form: mean bytes of a mask, and mean milliseconds."""

    name: str
    bytes: float
    encode_ms: float | None = None
    decode_ms: float | None = None


def forms(bits: int) -> dict[str, Encode]:
    """The compared encoders by name; PNG at `bits` and at 8."""
    found: dict[str, Encode] = {}
    for depth in dict.fromkeys((bits, 8)):
        for filter_name, filter_type in FILTERS.items():
            for strategy_name, strategy in STRATEGIES.items():
                name = f"PNG, {depth} bit, {filter_name}{strategy_name}"
                found[name] = partial(_png, bits=depth, filter_type=filter_type, strategy=strategy)
    found["PNG, the smallest of 4"] = lambda mask: (Form.PNG, encodings.encode_png(mask))
    found["PNG, 8 bit, Pillow optimize"] = lambda mask: (Form.PNG, _pillow(mask, "PNG", optimize=True))
    for method, quality in ((0, 0), (2, 75), (4, 75), (6, 75), (6, 100)):
        name = f"WebP lossless, method {method}, quality {quality}"
        found[name] = partial(_webp, method=method, quality=quality)
    found["runs"] = lambda mask: (Form.RUNS, encodings.encode_runs(mask))
    return found


def _png(mask: np.ndarray, **options: int) -> tuple[Form, bytes]:
    return Form.PNG, encodings.encode_png(mask, **options)  # type: ignore[arg-type]


def _webp(mask: np.ndarray, **options: int) -> tuple[Form, bytes]:
    return Form.WEBP, _pillow(mask, "WEBP", lossless=True, **options)


def _pillow(mask: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, kind, **options)
    return buffer.getvalue()


def measure(name: str, encode: Encode, masks: Sequence[np.ndarray], times: bool) -> Row:
    """Measure one form over all masks. Raises AssertionError if a decoded mask differs."""
    sizes, encoding, decoding = [], [], []
    for index, mask in enumerate(masks):
        started = time.thread_time()
        form, data = encode(mask)
        between = time.thread_time()
        back = decode(form, data, mask.shape[0], mask.shape[1])
        ended = time.thread_time()
        assert np.array_equal(back, mask), f"{name}: mask {index} differs after decoding"
        sizes.append(len(data))
        encoding.append(1e3 * (between - started))
        decoding.append(1e3 * (ended - between))
    if not times:
        return Row(name, statistics.mean(sizes))
    return Row(name, statistics.mean(sizes), statistics.mean(encoding), statistics.mean(decoding))


def segment_row(encoding: str, masks: Sequence[np.ndarray]) -> Row:
    """Bytes of a complete segment per mask; read back and compared."""
    height, width = masks[0].shape
    file = io.BytesIO()
    writer = SegmentWriter(file, SegmentHeader(height, width, encoding=encoding))
    for index, mask in enumerate(masks):
        writer.append(RecordHead(index, 1.7e9 + index / 15, index / 15), mask)
    writer.finish()
    for record, mask in zip(MaskSegment(file.getvalue()).records(), masks):
        assert np.array_equal(record.mask, mask), f"{encoding}: a mask differs after reading"
    return Row(f"segment, {encoding}", len(file.getvalue()) / len(masks))


def read_inputs(args: argparse.Namespace) -> tuple[list[np.ndarray], float | None, float]:
    """Masks, the mean bytes of the frames' JPEG files, if any, and the mean fraction of changed pixels."""
    frames = sorted(args.frames.glob("*.jpg")) if args.frames else []
    if args.model is not None:
        from pspnet.inference.predictor import Predictor

        predictor = Predictor.load(args.model)
        frames = frames[:: args.every]
        masks = [predictor(path) for path in frames]
    else:
        files = sorted(args.masks.glob("*.png"))[:: args.every]
        masks = [np.array(Image.open(path)) for path in files]
        stems = {path.stem for path in files}
        frames = [path for path in frames if path.stem in stems]
    if len(masks) < 2 or any(mask.ndim != 2 or mask.dtype != np.uint8 for mask in masks):
        raise DataError("expected at least two masks, each a PNG file with one channel of up to 8 bits.")
    if any(mask.shape != masks[0].shape for mask in masks):
        raise DataError("the masks have several sizes; expected masks of one size, as of a video.")
    jpeg = statistics.mean(path.stat().st_size for path in frames) if frames else None
    changed = statistics.mean(float(np.mean(a != b)) for a, b in zip(masks, masks[1:]))
    return masks, jpeg, changed


def table(rows: Sequence[Row], jpeg: float | None) -> str:
    """The rows in Markdown."""
    cells = []
    for row in rows:
        ratio = "-" if jpeg is None else f"{jpeg / row.bytes:.1f}"
        times = ["not measured" if value is None else f"{value:.2f}" for value in (row.encode_ms, row.decode_ms)]
        cells.append([row.name, f"{row.bytes:,.0f}", ratio, *times])
    return markdown(["form", "bytes", "JPEG / mask", "encode ms", "decode ms"], cells)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--masks", type=Path, metavar="DIR", help="PNG files of class ids, sorted by time")
    source.add_argument("--model", type=Path, metavar="MODEL_DIR", help="predict the masks of --frames with this model")
    parser.add_argument("--frames", type=Path, metavar="DIR", help="the frames' JPEG files")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th frame (default: 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only forms whose name contains this")
    parser.add_argument("--no_times", action="store_true", help="bytes only")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write")
    args = parser.parse_args(argv)
    if args.every < 1 or (args.model is not None and args.frames is None):
        parser.error("--every must be at least 1, and --model needs --frames")
    return args


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the JSON file."""
    args = parse(argv)
    record: dict[str, Any] = run_record()
    masks, jpeg, changed = read_inputs(args)
    height, width = masks[0].shape
    bits = max(encodings.bits_for(mask) for mask in masks)
    wanted = {name: encode for name, encode in forms(bits).items() if args.only in name}
    rows = [measure(name, encode, masks, not args.no_times) for name, encode in wanted.items()]
    rows += [segment_row(encoding, masks) for encoding in ENCODINGS if args.only in f"segment, {encoding}"]
    print(f"{len(masks)} masks of {width}x{height}; {100 * changed:.1f} % of the pixels change from mask to mask")
    if jpeg is not None:
        print(f"JPEG file of a frame: {jpeg:,.0f} bytes")
    print(table(rows, jpeg))
    if args.output is not None:
        about = {"masks": len(masks), "height": height, "width": width, "changed": changed, "jpeg_bytes": jpeg}
        write_record(args.output, {**record, **about, "rows": [vars(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
