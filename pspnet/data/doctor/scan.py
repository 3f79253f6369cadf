"""Scan of a data set: read every pair once, in several processes, and record facts about each file.

The worker processes use the "spawn" start method, so everything here is importable and picklable.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import struct
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pspnet.data.channels import Pair
from pspnet.data.io.images import read_annotation, read_image
from pspnet.errors import AnnotationModeError, DataError

# For fewer pairs, starting processes takes longer than reading.
_SMALLEST_POOL_JOB = 32
_CHUNK = 8
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PairFacts:
    """Facts about one image and its annotation; sizes are (width, height), None for unreadable files."""

    pair: Pair
    image_size: tuple[int, int] | None = None
    image_error: str = ""
    image_digest: bytes = b""
    orientation: int = 1
    annotation_size: tuple[int, int] | None = None
    annotation_error: str = ""
    wrong_mode: bool = False
    pixels: dict[int, int] = field(default_factory=dict)  # stored pixel value -> number of pixels


def scan_pairs(pairs: Sequence[Pair], workers: int, progress: bool, title: str = "doctor") -> list[PairFacts]:
    """The facts of every pair, in the given order, independent of `workers`."""
    bar = tqdm(total=len(pairs), desc=title, unit=" pairs", disable=None if progress else True)
    facts: list[PairFacts] = []
    with bar:
        for fact in _results(pairs, workers):
            facts.append(fact)
            bar.update()
    return facts


def _results(pairs: Sequence[Pair], workers: int) -> Iterator[PairFacts]:
    if workers <= 1 or len(pairs) < _SMALLEST_POOL_JOB:
        yield from map(scan_pair, pairs)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _interrupts_ignored():
            results = pool.map(scan_pair, pairs, chunksize=_CHUNK)
        yield from results
    except BrokenProcessPool as error:
        raise DataError(
            "doctor: a worker process was killed, most often for lack of memory. Use fewer workers: --workers 1."
        ) from error
    finally:
        # On Ctrl-C, queued pairs are cancelled instead of being read.
        _shut_down(pool)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Make processes started in the block ignore Ctrl-C, so that only the main process handles it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _shut_down(pool: ProcessPoolExecutor) -> None:
    try:
        pool.shutdown(wait=True, cancel_futures=True)
    except TypeError:  # Python 3.8 has no cancel_futures
        pool.shutdown(wait=True)


def scan_pair(pair: Pair) -> PairFacts:
    """Read both files of a pair; errors become part of the facts."""
    image_size, image_error, digest = None, "", b""
    try:
        image = read_image(pair.image)
        image_size, digest = (image.shape[1], image.shape[0]), _digest(image)
    except (DataError, MemoryError) as error:
        image_error = _detail(error, pair.image)
    annotation_size, annotation_error, wrong_mode = None, "", False
    pixels: dict[int, int] = {}
    try:
        mask = read_annotation(pair.annotation)
        annotation_size = (mask.shape[1], mask.shape[0])
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    except (DataError, MemoryError) as error:
        annotation_error = _detail(error, pair.annotation)
        wrong_mode = isinstance(error, AnnotationModeError)
    return PairFacts(
        pair, image_size, image_error, digest, _orientation(pair.image),
        annotation_size, annotation_error, wrong_mode, pixels,
    )  # fmt: skip


def _digest(image: np.ndarray) -> bytes:
    """A hash of size and decoded pixels, equal for a JPEG and a PNG made from it."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _orientation(path: Path) -> int:
    """EXIF orientation; 1 if missing or damaged."""
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error, Image.DecompressionBombError):
        return 1


def _detail(error: BaseException, path: Path) -> str:
    text = str(error) or type(error).__name__
    prefix = f"{path}: "
    return text[len(prefix) :] if text.startswith(prefix) else text
