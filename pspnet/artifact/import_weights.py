"""Import of another program's weights as a model directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pspnet.artifact.bundle import write_code
from pspnet.artifact.file_names import CONFIG_NAME
from pspnet.artifact.model_directory import save_imported
from pspnet.classes import default_class_names
from pspnet.errors import DataError
from pspnet.models.imports.layout import ForeignWeights
from pspnet.models.imports.programs import read_weights


def import_weights(
    file: Path, program: str, output: Path, class_names: tuple[str, ...] | None = None
) -> ForeignWeights:
    """Read weights, write a model directory with the endpoint's code, and return the weights under our names.

    Args:
        file: weights or checkpoint; for gluoncv also the built-in algorithm's model.tar.gz.
        program: one of pspnet.models.imports.PROGRAMS.
        output: folder of the new model.
        class_names: in the order of the ids; None for the file's names, or default ones.

    Raises WeightsError for a file that cannot be used, DataError for an output that holds a model or cannot be written.
    """
    if (output / CONFIG_NAME).exists():
        raise DataError(f"--output: {output} holds a model already; give another folder, or delete it.")
    weights = read_weights(file, program)
    architecture = weights.full_architecture(None if class_names is None else len(class_names))
    model = weights.build(architecture["num_classes"])
    palette = None
    if class_names is None:
        class_names = weights.class_names or default_class_names(architecture["num_classes"])
        palette = None if weights.palette is None else np.array(weights.palette, dtype=np.uint8)
    source = {
        "program": program,
        "file": file.name,
        "sha256": _sha256(file),
        "heads": "imported" if weights.complete else "random",
        **weights.details,
    }
    try:
        save_imported(output, model, architecture, class_names, palette, source)
        write_code(output)
    except OSError as error:
        raise DataError(
            f"--output: {output} cannot be written ({error.strerror or error}); give another folder."
        ) from error
    return weights


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
