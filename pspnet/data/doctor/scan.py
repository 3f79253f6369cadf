"""Read every pair of a data set once, in several processes, and keep what can be said about each file.

Runs in worker processes that start from nothing ("spawn"), so everything here is importable and picklable.
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

# Starting processes takes longer than reading so few pairs.
_SMALLEST_POOL_JOB = 32
_CHUNK = 8
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class PairFacts:
    """What one image and its annotation hold; sizes are (width, height) and None where the file cannot be read."""

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
    """The facts of every pair, in the order given: the result does not depend on `workers`."""
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
        # On Ctrl-C the pairs still waiting are dropped instead of being read to the end.
        _shut_down(pool)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C: the main process alone answers it, without their tracebacks."""
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
    """Read both files of a pair; whatever is wrong with them becomes part of the answer."""
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
    """A hash of size and decoded pixels: equal for the same picture as JPEG and as a PNG made from it."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _orientation(path: Path) -> int:
    """EXIF orientation, 1 where none is stored or the EXIF block is damaged, which concerns nobody else here."""
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error, Image.DecompressionBombError):
        return 1


def _detail(error: BaseException, path: Path) -> str:
    text = str(error) or type(error).__name__
    prefix = f"{path}: "
    return text[len(prefix) :] if text.startswith(prefix) else text
