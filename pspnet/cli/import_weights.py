"""`pspnet import`: make a model directory of another program's weights."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from pspnet.classes import NAMED_CLASS_SETS, default_class_names
from pspnet.errors import DataError
from pspnet.models.constants import PROGRAMS


def register(subparsers: Any) -> None:
    """Add the command to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "import",
        help="make a model directory of another program's weights",
        description="Make a model directory of another program's weights: it evaluates, predicts and deploys as if "
        "trained here. A backbone alone gets random heads, as a start for training.",
    )
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="weights or checkpoint; for gluoncv also the built-in's model.tar.gz"
    )
    parser.add_argument("--from", dest="program", required=True, choices=PROGRAMS, help="the program that wrote FILE")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help=f"class names: {', '.join(NAMED_CLASS_SETS)}, or a text file with one name a line (default: those that "
        "FILE holds, voc for 21 classes, else class_0, class_1, ...)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="MODEL_DIR", help="folder of the new model")
    parser.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> int:
    """Read, map by name, save with the endpoint's code, and say what was found."""
    names = None if arguments.classes is None else read_class_names(arguments.classes)

    import numpy as np

    from pspnet.artifact.bundle import write_code
    from pspnet.artifact.file_names import CONFIG_NAME
    from pspnet.artifact.model_directory import save_imported
    from pspnet.models.imports.programs import read_weights

    if (arguments.output / CONFIG_NAME).exists():
        raise DataError(f"--output: {arguments.output} holds a model already; give another folder, or delete it.")
    weights = read_weights(arguments.file, arguments.program)
    architecture = weights.full_architecture(None if names is None else len(names))
    model = weights.build(architecture["num_classes"])
    palette = None
    if names is None:
        names = weights.class_names or default_class_names(architecture["num_classes"])
        palette = None if weights.palette is None else np.array(weights.palette, dtype=np.uint8)
    source = {
        "program": arguments.program,
        "file": arguments.file.name,
        "sha256": _sha256(arguments.file),
        "heads": "imported" if weights.complete else "random",
        **weights.details,
    }
    try:
        save_imported(arguments.output, model, architecture, names, palette, source)
        write_code(arguments.output)
    except OSError as error:
        raise DataError(
            f"--output: {arguments.output} cannot be written ({error.strerror or error}); give another folder."
        ) from error
    print(_found(architecture, len(weights.state), arguments.program))
    if not weights.complete:
        print("A backbone alone: the heads are random, so train it first, with --model and the settings above.")
    print(f"Written: {arguments.output}")
    return 0


def read_class_names(text: str) -> tuple[str, ...]:
    """A known set's names, or those in a text file, one a line; DataError for neither, none and repeated ones."""
    if text in NAMED_CLASS_SETS:
        return NAMED_CLASS_SETS[text]
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--classes: found {text!r}, which is neither {', '.join(NAMED_CLASS_SETS)} nor a text file that can be "
            f"read ({getattr(error, 'strerror', None) or error})."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not names or doubled:
        found = f"the name {doubled[0]!r} twice" if doubled else "no name"
        raise DataError(f"--classes: {path} has {found}; expected one name a line, all different.")
    return names


def _found(architecture: dict[str, Any], arrays: int, program: str) -> str:
    """What was read, with the settings in the words that training takes."""
    settings = ", ".join(
        f"{key} {architecture[key]}" for key in ("stem", "output_stride", "align_corners", "contract_dilation")
    )
    heads = "with" if architecture["auxiliary_head"] else "without"
    return (
        f"{arrays} arrays of {program}: PSPNet {architecture['backbone']}, {architecture['num_classes']} classes, "
        f"{heads} auxiliary head; {settings}."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
