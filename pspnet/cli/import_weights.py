"""`pspnet import`: convert another program's weights to a model directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.cli.models import NETWORKS
from pspnet.config.command_line import parse_settings
from pspnet.config.settings import Settings, setting
from pspnet.errors import DataError
from pspnet.models.constants import Program

_DESCRIPTION = """\
Convert another program's weights to a model directory, which evaluates, predicts and deploys like a trained one. A
backbone alone gets random heads, as a start for training."""


@dataclass(frozen=True, init=False)
class ImportSettings(Settings):
    """Weights of another program and the folder of the new model."""

    file: Path = setting(..., "Weights or checkpoint; for gluoncv also the built-in's model.tar.gz.", positional=True)
    from_: Program = setting(..., "The program that wrote FILE.")
    output: Path = setting(..., "Folder of the new model.")
    classes: str | None = setting(
        None,
        "Class names; if not given those in FILE, voc for 21 classes, else class_0, class_1, ...",
        allowed=f"{', '.join(NAMED_CLASS_SETS)}, or a text file with one name per line",
    )


def import_command(argv: Sequence[str]) -> int:
    """Import the weights and print what was read."""
    settings = parse_settings(ImportSettings, argv, "pspnet import", _DESCRIPTION)
    names = None if settings.classes is None else read_class_names(settings.classes)
    # Imported here, so that --help and wrong settings respond without importing torch.
    from pspnet.artifact.import_weights import import_weights

    weights = import_weights(settings.file, settings.from_, settings.output, names)
    architecture = weights.full_architecture(None if names is None else len(names))
    print(_describe(architecture, len(weights.state), settings.from_, NETWORKS[weights.algorithm]))
    if not weights.complete:
        print("A backbone alone: the heads are random, so train it first, with --model and the settings above.")
    print(f"Written: {settings.output}")
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


def _describe(architecture: dict[str, Any], arrays: int, program: str, network: str) -> str:
    """Describe the imported network by the names of the training settings."""
    settings = ", ".join(
        f"{key} {architecture[key]}"
        for key in ("stem", "output_stride", "align_corners", "contract_dilation", "dilations", "dilate_both")
        if key in architecture
    )
    heads = "with" if architecture["auxiliary_head"] else "without"
    return (
        f"{arrays} arrays of {program}: {network} {architecture['backbone']}, {architecture['num_classes']} classes, "
        f"{heads} auxiliary head{'; ' if settings else ''}{settings}."
    )
