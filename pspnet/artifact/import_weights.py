"""Import of another program's weights as a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pspnet.artifact.bundle import write_code
from pspnet.artifact.file_names import CONFIG_NAME
from pspnet.artifact.model_directory import save_imported
from pspnet.classes import NAMED_CLASS_SETS, default_class_names
from pspnet.errors import DataError, WeightsError
from pspnet.models.imports.layout import ForeignWeights
from pspnet.models.imports.programs import read_weights
from pspnet.models.zoo import PublishedModel
from pspnet.system.download import file_digest


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
    try:
        _save(weights, file, output, class_names, {"program": program})
    except OSError as error:
        raise DataError(
            f"--output: {output} cannot be written ({error.strerror or error}); give another folder."
        ) from error
    return weights


def import_published(file: Path, model: PublishedModel, output: Path, url: str) -> None:
    """Write a model directory for a downloaded file of the table of published models.

    Raises WeightsError for a file that cannot be used or contradicts the table, OSError if writing fails.
    """
    weights = read_weights(file, model.program)
    found = {**weights.architecture, "algorithm": weights.algorithm}
    wrong = [
        f"{key} is {found.get(key)!r} there and {value!r} in the table"
        for key, value in {**model.architecture, "algorithm": model.algorithm}.items()
        if found.get(key) != value
    ]
    if wrong:
        raise WeightsError(
            f"{file}: not the published model {model.key}: {'; '.join(wrong)}. Delete the file to download it again, "
            "or convert it with `pspnet import`."
        )
    published = {
        "name": model.key, "url": url, "license": model.licence, "dataset": model.dataset, "protocol": model.protocol,
        "mIoU": model.miou, "mIoU_multi_scale": model.miou_multi_scale,
    }  # fmt: skip
    origin = {"program": model.program, "published": published}
    test_size = dict(zip(("long_side", "short_side"), model.test_size))
    _save(weights, file, output, NAMED_CLASS_SETS.get(model.class_names or ""), origin, test_size=test_size)


def _save(
    weights: ForeignWeights, file: Path, output: Path, class_names: tuple[str, ...] | None, origin: Any, **extra: Any
) -> None:
    """Write the model directory; `origin` adds to its `source`, `extra` to config.json."""
    architecture = weights.full_architecture(None if class_names is None else len(class_names))
    model = weights.build(architecture["num_classes"])
    palette = None
    if class_names is None:
        class_names = weights.class_names or default_class_names(architecture["num_classes"])
        palette = None if weights.palette is None else np.array(weights.palette, dtype=np.uint8)
    source = {
        "file": file.name,
        "sha256": file_digest(file, "sha256"),
        "heads": "imported" if weights.complete else "random",
        **weights.details,
        **origin,
    }
    save_imported(output, model, architecture, class_names, palette, source, weights.algorithm, **extra)
    write_code(output)
