"""Record of an exported graph: its weights, settings and verification.

MODEL_DIR/exports/<format>-<precision>/ holds the files of a graph and its record, `export.json`. All graphs have the
same interface: input `images` (N, 3, H, W) uint8 RGB of any N, H and W; outputs `mask` (N, H, W) uint8 and `logits`
(N, K, h, w) float32 at the head's size, before up-sampling. Reading a record needs neither torch nor a runtime.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pspnet.artifact.file_names import EXPORTS_NAME, WEIGHTS_NAME
from pspnet.classes import MAX_CLASSES
from pspnet.errors import WeightsError
from pspnet.system.atomic_files import atomic_write

FORMAT = "pspnet-export-1"
RECORD_NAME = "export.json"

Format = Literal["onnx", "openvino", "torchscript", "torch_export"]
FORMATS: tuple[str, ...] = get_args(Format)
PRECISIONS = ("float32", "int8")

INPUT_NAME = "images"
OUTPUT_NAMES = ("mask", "logits")


@dataclass(frozen=True)
class ExportRecord:
    """Content of export.json.

    Attributes:
        format: one of FORMATS.
        precision: one of PRECISIONS.
        file: file that a runtime opens, in the record's folder.
        weights_sha256: hexadecimal SHA-256 of the exported model.safetensors.
        align_corners: convention of the up-sampling of the logits, needed for probabilities.
        num_classes: classes K.
        versions: of the packages that exported it.
        check: comparison with the network in PyTorch; `passed` is true in every stored record.
        int8: accuracy cost of quantisation, empty for float32.
        files: name -> size in bytes, of all files of the graph.
    """

    format: str
    precision: str
    file: str
    weights_sha256: str
    align_corners: bool
    num_classes: int
    versions: dict[str, str] = field(default_factory=dict)
    check: dict[str, Any] = field(default_factory=dict)
    int8: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write export.json into the export's folder atomically. Raises OSError if writing fails."""
        content = {"format_version": FORMAT, **asdict(self)}
        with atomic_write(folder / RECORD_NAME) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> ExportRecord:
        """Read the record in an export's folder. Raises WeightsError if it is missing, damaged or foreign."""
        path = folder / RECORD_NAME
        if not path.is_file():
            raise WeightsError(f"{folder}: not an export, it has no {RECORD_NAME}. {_FIX}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise WeightsError(f"{path}: not readable as JSON ({error}). {_FIX}") from error
        problem = _problem(content)
        if problem:
            raise WeightsError(f"{path}: {problem} {_FIX}")
        return cls(**{name: content[name] for name in _FIELDS if name in content})


@dataclass(frozen=True)
class Export:
    """An export of a model directory: its folder and its record."""

    folder: Path
    record: ExportRecord

    @property
    def path(self) -> Path:
        """The file that a runtime opens."""
        return self.folder / self.record.file

    def check_files(self) -> None:
        """Raise WeightsError if a file of the graph is missing or has another size than recorded."""
        for name, size in self.record.files.items():
            path = self.folder / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                problem = "is missing" if found is None else f"has {found:,} of {size:,} bytes"
                raise WeightsError(f"{path}: {problem}, so this export is incomplete. {_FIX}")

    def check_current(self, weights_sha256: str) -> None:
        """Raise WeightsError if the exported weights have another checksum."""
        if self.record.weights_sha256 != weights_sha256:
            raise WeightsError(
                f"{self.folder}: was exported from other weights than the present {WEIGHTS_NAME}. {_FIX}"
            )


_FIX = "Export again: `pspnet export MODEL_DIR --format FORMAT`."


def folder_name(format: str, precision: str) -> str:
    """Return the name of an export's folder, such as "onnx-float32"."""
    return f"{format}-{precision}"


def load_export(model_dir: Path, format: str, precision: str = "float32") -> Export:
    """Return a complete export of the present weights of a model directory.

    Hashes the weights: about 0.2 s for ResNet-50. Raises WeightsError if the export is missing, damaged, foreign or of
    other weights.
    """
    folder = model_dir / EXPORTS_NAME / folder_name(format, precision)
    if not (folder / RECORD_NAME).is_file():
        int8 = " --int8 --calibration DATA" if precision == "int8" else ""
        raise WeightsError(
            f"{model_dir}: has no {format} export in {precision}. Create it with "
            f"`pspnet export {model_dir} --format {format}{int8}`."
        )
    export = Export(folder, ExportRecord.read(folder))
    found = folder_name(export.record.format, export.record.precision)
    if found != folder.name:
        raise WeightsError(f"{folder}: its {RECORD_NAME} describes {found}. {_FIX}")
    export.check_files()
    export.check_current(hash_weights(model_dir))
    return export


def hash_weights(model_dir: Path) -> str:
    """Return the hexadecimal SHA-256 of a model directory's weights. Raises WeightsError if they cannot be read."""
    path = model_dir / WEIGHTS_NAME
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror or error}). Give the model directory that training wrote."
        ) from error
    return digest.hexdigest()


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (lambda value: value in FORMATS, f"one of {', '.join(FORMATS)}"),
    "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    "file": (lambda value: _is_plain_name(value), "the name of a file in its folder"),
    "weights_sha256": (lambda value: isinstance(value, str) and len(value) == 64, "64 hexadecimal digits"),
    "align_corners": (lambda value: isinstance(value, bool), "true or false"),
    "num_classes": (lambda n: type(n) is int and 1 <= n <= MAX_CLASSES, f"a whole number from 1 to {MAX_CLASSES}"),
    "versions": (lambda value: isinstance(value, dict), "a mapping"),
    "check": (lambda value: isinstance(value, dict), "a mapping"),
    "int8": (lambda value: isinstance(value, dict), "a mapping"),
    "files": (lambda value: _are_sizes(value), "a mapping of file names to sizes"),
}


def _problem(content: Any) -> str | None:
    """Describe the first problem of the content of an export.json, or return None."""
    found = content.get("format_version") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        return f"expected the format {FORMAT}, found {found!r}: written by another program or version."
    for name, (is_valid, expected) in _FIELDS.items():
        if name not in content:
            return f"`{name}` is missing."
        if not is_valid(content[name]):
            return f"`{name}` is {repr(content[name])[:60]}: expected {expected}."
    return None


def _is_plain_name(value: Any) -> bool:
    """Return whether a file name stays within its folder."""
    return isinstance(value, str) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_plain_name(name) and type(size) is int for name, size in value.items())
