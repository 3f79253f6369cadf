"""per_image.npz: the confusion matrix of every image, protocol by protocol.

Total scores, intervals over images and the resume of an evaluation are computed from it. A NumPy archive without
pickled objects; P is a protocol's name (whole, slide, multiscale, builtin, or predictions for mask files), n the number
of its images, sorted by name:

| array | type | content |
| --- | --- | --- |
| `format` | text | `pspnet-per-image-1` |
| `P.num_classes` | int64 | C |
| `P.names` | text (n,) | the images' file stems |
| `P.offsets` | int64 (n + 1,) | image i owns the entries offsets[i] to offsets[i + 1] of `codes` and `counts` |
| `P.codes` | int32 | true class x C + predicted class |
| `P.counts` | int64 | pixels of that pair, above 0; absent pairs have no entry |
| `P.signatures` | text (n,) | size and modification time of image and annotation |
| `P.about` | text | JSON: settings of the protocol, and its seconds so far |
| `P.confidence` | int64 (n, 3, 15) | per bin of confidence: pixels, correct pixels, sum of confidences in 1/1500 |
| `P.boundary` | int64 (n, C, 3) | per class's boundary: pixels in ground truth, in prediction, in both |

The last two are details that `--details False` leaves out; see `calibration.py` and `boundary.py`.

`read_records` reads the file; `Record.matrix(name)` is one image's (C, C) matrix, `Record.total()` their sum.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pspnet.errors import DataError
from pspnet.evaluation.image_counts import DETAILS
from pspnet.system.atomic_files import atomic_write

FORMAT = "pspnet-per-image-1"
PER_IMAGE_NAME = "per_image.npz"


@dataclass
class Record:
    """Confusion matrices of images by name, each kept as its codes (true class x C + predicted class) and counts.

    `about` is JSON: the settings of the evaluation. `signatures` detects changed files. `details` holds additional
    counts per image, int64 arrays by name.
    """

    num_classes: int
    about: dict[str, Any] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    entries: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    details: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        """Names of all images, sorted."""
        return sorted(self.entries)

    def add(
        self, name: str, matrix: np.ndarray, signature: str = "", details: dict[str, np.ndarray] | None = None
    ) -> None:
        """Store the (C, C) matrix of one image and its details; replaces an earlier one of that name."""
        flat = matrix.reshape(-1)
        codes = np.flatnonzero(flat)
        self.entries[name] = codes.astype(np.int32), flat[codes].astype(np.int64)
        self.signatures[name] = signature
        self.details[name] = {key: counts.astype(np.int64) for key, counts in (details or {}).items()}

    def remove(self, name: str) -> None:
        """Remove one image."""
        del self.entries[name], self.signatures[name]
        self.details.pop(name, None)

    def matrix(self, name: str) -> np.ndarray:
        """Return the (C, C) int64 confusion matrix of one image."""
        return self._sum([name])

    def total(self) -> np.ndarray:
        """Return the (C, C) int64 sum over all images."""
        return self._sum(self.names)

    def detail(self, key: str) -> np.ndarray | None:
        """Return (n, ...) int64, a detail of all images sorted by name; None if any image lacks it."""
        found = [self.details.get(name, {}).get(key) for name in self.names]
        arrays = [counts for counts in found if counts is not None]
        return np.stack(arrays) if arrays and len(arrays) == len(found) else None

    def _sum(self, names: list[str]) -> np.ndarray:
        flat = np.zeros(self.num_classes**2, dtype=np.int64)
        for name in names:
            codes, counts = self.entries[name]
            flat[codes] += counts  # codes are unique within an image
        return flat.reshape(self.num_classes, self.num_classes)


def write_records(path: Path, records: dict[str, Record]) -> None:
    """Write the records of all protocols atomically; OSError if that fails."""
    arrays: dict[str, np.ndarray] = {"format": np.array(FORMAT)}
    for protocol, record in records.items():
        names = record.names
        lengths = [len(record.entries[name][0]) for name in names]
        no_codes, no_counts = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        parts = {
            "num_classes": np.array(record.num_classes, dtype=np.int64),
            "names": np.array(names, dtype=np.str_),
            "offsets": np.cumsum([0, *lengths], dtype=np.int64),
            "codes": np.concatenate([no_codes, *(record.entries[name][0] for name in names)]),
            "counts": np.concatenate([no_counts, *(record.entries[name][1] for name in names)]),
            "signatures": np.array([record.signatures[name] for name in names], dtype=np.str_),
            "about": np.array(json.dumps(record.about)),
        }
        parts.update({key: counts for key in DETAILS for counts in [record.detail(key)] if counts is not None})
        arrays.update({f"{protocol}.{key}": array for key, array in parts.items()})
    with atomic_write(path) as temporary:
        np.savez(str(temporary), **arrays)  # type: ignore[arg-type]


def read_records(path: Path) -> dict[str, Record]:
    """Read the records of all protocols; DataError if the file is missing, damaged or of another format."""
    try:
        with np.load(str(path), allow_pickle=False) as archive:
            if str(archive["format"]) != FORMAT:
                raise DataError(
                    f"{path}: found the format {str(archive['format'])!r}, expected {FORMAT}; evaluate again."
                )
            protocols = [key[: -len(".names")] for key in archive.files if key.endswith(".names")]
            return {protocol: _read_record(archive, protocol) for protocol in protocols}
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; `pspnet evaluate` writes it.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error}); evaluate again.") from error


def _read_record(archive: Any, protocol: str) -> Record:
    parts = {
        key: archive[f"{protocol}.{key}"]
        for key in ("num_classes", "names", "offsets", "codes", "counts", "signatures", "about")
    }
    record = Record(int(parts["num_classes"]), json.loads(str(parts["about"])))
    for index, name in enumerate(parts["names"]):
        chosen = slice(parts["offsets"][index], parts["offsets"][index + 1])
        record.entries[str(name)] = parts["codes"][chosen], parts["counts"][chosen]
        record.signatures[str(name)] = str(parts["signatures"][index])
    for key in DETAILS:
        if f"{protocol}.{key}" in archive.files:
            for name, counts in zip(parts["names"], archive[f"{protocol}.{key}"]):
                record.details.setdefault(str(name), {})[key] = counts
    return record
