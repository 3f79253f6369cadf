"""Going on with a stopped evaluation: what was scored before, and whether it still holds."""

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
    """The records of an output folder's per_image.npz, those that this evaluation can use.

    Images that were scored with another model or setting are dropped; `notes` says so in sentences for the user.
    Records of protocols that are not asked for stay in the file as long as they are of the same model and data.

    Args:
        folder: the output folder.
        common: JSON, what all protocols are run with: model, label map, number format and so on.
        resume: False to start anew whatever the folder holds.
        save_seconds: `save_if_due` writes no more often than this.
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
            self.notes.append(f"{error} Starting anew.")
            return
        for name, record in records.items():
            changed = _difference(record.about.get("common", {}), self.common)
            if changed is None:
                self.records[name] = record
            else:
                self.notes.append(f"{self.path}: {name} was scored with {changed}; starting anew.")

    def record(
        self,
        protocol: str,
        num_classes: int,
        settings: Mapping[str, Any],
        signatures: Mapping[str, str],
        masks: Path | None = None,
    ) -> Record:
        """The record of a protocol, with the images that need not be scored again.

        Args:
            settings: JSON, what the protocol is run with.
            signatures: of all images to be scored, by name.
            masks: folder that every image's mask must be in, None where no masks are asked for.
        """
        settings = json.loads(json.dumps(settings))
        about = {"common": self.common, "settings": settings, "masks": str(masks.resolve()) if masks else None}
        record = self.records.get(protocol)
        if record is not None:
            changed = _difference(record.about.get("settings", {}), settings)
            if masks and record.about.get("masks") != about["masks"]:
                changed = changed or "no masks written to this folder"
            if changed is not None:
                self.notes.append(f"{self.path}: {protocol} was scored with {changed}; starting anew.")
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
                f"{protocol}: {before - len(record)} of the {before} images scored before were changed or are gone, or "
                "their masks are; the rest holds."
            )
        if len(record):
            self.notes.append(
                f"{protocol}: {len(record)} of {len(signatures)} images were scored before and are not run again "
                f"({self.path}; --resume never starts over)."
            )

    def save_if_due(self) -> None:
        """Write the file if it was not written for a while."""
        if time.monotonic() - self._saved >= self.save_seconds:
            self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_records(self.path, self.records)
        self._saved = time.monotonic()


def pair_signature(pair: Pair) -> str:
    """Size and time of change of both files: another text once one of them was replaced. OSError for a missing file."""
    return ":".join(
        str(number)
        for status in (pair.image.stat(), pair.annotation.stat())
        for number in (status.st_size, status.st_mtime_ns)
    )


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            block = file.read(2**20)
            if not block:
                return digest.hexdigest()
            digest.update(block)


_HASHED = {"model": "another model", "label_map": "another label map"}


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What was different before, in words; None where nothing was."""
    for key in now:
        if before.get(key) != now[key]:
            return _HASHED.get(key, f"{key} {before.get(key)} and not {now[key]}")
    return None
