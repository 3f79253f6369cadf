"""`pspnet import`: convert another program's weights to a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.errors import DataError

# The same as in pspnet.models.imports, which imports torch.
PROGRAMS = ("torchvision", "semseg", "mmsegmentation", "smp", "gluoncv")


def register(subparsers: Any) -> None:
    """Add the command to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "import",
        help="convert another program's weights to a model directory",
        description="Convert another program's weights to a model directory, which evaluates, predicts and deploys "
        "like a trained one. A backbone alone gets random heads, as a start for training.",
    )
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="weights or checkpoint; for gluoncv also the built-in's model.tar.gz"
    )
    parser.add_argument("--from", dest="program", required=True, choices=PROGRAMS, help="the program that wrote FILE")
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help=f"class names: {', '.join(NAMED_CLASS_SETS)}, or a text file with one name per line (default: those in "
        "FILE, voc for 21 classes, else class_0, class_1, ...)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="MODEL_DIR", help="folder of the new model")
    parser.set_defaults(run=run_import)


def run_import(arguments: argparse.Namespace) -> int:
    """Import the weights and print what was read."""
    names = None if arguments.classes is None else read_class_names(arguments.classes)
    # Imported here, so that --help needs no torch.
    from pspnet.artifact.import_weights import import_weights

    weights = import_weights(arguments.file, arguments.program, arguments.output, names)
    architecture = weights.full_architecture(None if names is None else len(names))
    print(_describe(architecture, len(weights.state), arguments.program))
    if not weights.complete:
        print("A backbone alone: the heads are random, so train it first, with --model and the settings above.")
    print(f"Written: {arguments.output}")
    return 0


def read_class_names(text: str) -> tuple[str, ...]:
    """Return a known set's names, or those of a text file, one per line; DataError for no names and repeated ones."""
    if text in NAMED_CLASS_SETS:
        return NAMED_CLASS_SETS[text]
    path = Path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--classes: found {text!r}, which is neither {', '.join(NAMED_CLASS_SETS)} nor a readable text "
            f"file ({getattr(error, 'strerror', None) or error})."
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not names or doubled:
        found = f"the name {doubled[0]!r} twice" if doubled else "no name"
        raise DataError(f"--classes: {path} has {found}; expected one name per line, all different.")
    return names


def _describe(architecture: dict[str, Any], arrays: int, program: str) -> str:
    """Describe the imported network by the names of the training settings."""
    settings = ", ".join(
        f"{key} {architecture[key]}"
        for key in ("stem", "output_stride", "align_corners", "contract_dilation", "dilations", "dilate_both")
        if key in architecture
    )
    heads = "with" if architecture["auxiliary_head"] else "without"
    return (
        f"{arrays} arrays of {program}: PSPNet {architecture['backbone']}, {architecture['num_classes']} classes, "
        f"{heads} auxiliary head; {settings}."
    )
