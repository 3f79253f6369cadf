"""Resume of an interrupted evaluation: records of earlier scores, and checks that they are still valid."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pspnet.data.channels import Pair
from pspnet.errors import DataError
from pspnet.evaluation.per_image import PER_IMAGE_NAME, Record, read_records, write_records

SAVE_SECONDS = 20.0


class EvaluationState:
    """Records of an output folder's per_image.npz that this evaluation can reuse.

    Images scored with another model or setting are dropped; `notes` reports this to the user. Records of protocols that
    were not requested stay in the file if they belong to the same model and data.

    Args:
        folder: the output folder.
        common: JSON of the settings of all protocols: model, label map, precision and so on.
        resume: False to ignore existing records.
        save_seconds: minimum time between two writes of `save_if_due`.
    """

    def __init__(
        self, folder: Path, common: Mapping[str, Any], resume: bool = True, save_seconds: float = SAVE_SECONDS
    ) -> None:
        self.path = folder / PER_IMAGE_NAME
        self.common: dict[str, Any] = json.loads(json.dumps(common))
        self.save_seconds = save_seconds
        self.notes: list[str] = []
        self.records: dict[str, Record] = {}
        self._saved = time.monotonic()
        if resume and self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            records = read_records(self.path)
        except DataError as error:
            self.notes.append(f"{error} Starting again.")
            return
        for name, record in records.items():
            changed = _difference(record.about.get("common", {}), self.common)
            if changed is None:
                self.records[name] = record
            else:
                self.notes.append(f"{self.path}: {name} was scored with {changed}; starting again.")

    def record(
        self,
        protocol: str,
        num_classes: int,
        settings: Mapping[str, Any],
        signatures: Mapping[str, str],
        masks: Path | None = None,
    ) -> Record:
        """Return the record of a protocol with the images that need not be scored again.

        Args:
            settings: JSON of the protocol's settings.
            signatures: of all images to be scored, by name.
            masks: folder that must contain every image's mask; None if no masks are requested.
        """
        settings = json.loads(json.dumps(settings))
        about = {"common": self.common, "settings": settings, "masks": str(masks.resolve()) if masks else None}
        record = self.records.get(protocol)
        if record is not None:
            changed = _difference(record.about.get("settings", {}), settings)
            if masks and record.about.get("masks") != about["masks"]:
                changed = changed or "no masks written to this folder"
            if changed is not None:
                self.notes.append(f"{self.path}: {protocol} was scored with {changed}; starting again.")
                record = None
        if record is None:
            record = self.records[protocol] = Record(num_classes, about)
        else:
            self._drop_changed(protocol, record, signatures, masks)
        record.about.setdefault("seconds", 0.0)
        return record

    def _drop_changed(self, protocol: str, record: Record, signatures: Mapping[str, str], masks: Path | None) -> None:
        before = len(record)
        for name in record.names:
            lost = masks is not None and not (masks / f"{name}.png").is_file()
            if lost or record.signatures[name] != signatures.get(name):
                record.remove(name)
        if len(record) < before:
            self.notes.append(
                f"{protocol}: {before - len(record)} of the {before} images scored before were changed or are missing, "
                "or their masks are; the rest is reused."
            )
        if len(record):
            self.notes.append(
                f"{protocol}: {len(record)} of {len(signatures)} images were scored before and are not run again "
                f"({self.path}; --resume never starts over)."
            )

    def save_if_due(self) -> None:
        """Write the file if the last write was at least save_seconds ago."""
        if time.monotonic() - self._saved >= self.save_seconds:
            self.save()

    def save(self) -> None:
        """Write the file atomically."""
        write_records(self.path, self.records)
        self._saved = time.monotonic()


def pair_signature(pair: Pair) -> str:
    """Return sizes and modification times of both files, to detect changes; OSError for a missing file."""
    return ":".join(
        str(number)
        for status in (pair.image.stat(), pair.annotation.stat())
        for number in (status.st_size, status.st_mtime_ns)
    )


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            block = file.read(2**20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


_HASHED = {"model": "another model", "label_map": "another label map"}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Describe the first difference; None if the settings are equal."""
    for key in now:
        if before.get(key) != now[key]:
            return _HASHED.get(key, f"{key} {before.get(key)} and not {now[key]}")
    return None
