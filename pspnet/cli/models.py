"""`pspnet models`: the published models that can be used by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pspnet.artifact.published import is_cached
from pspnet.config.command_line import parse_settings
from pspnet.config.settings import Settings, setting
from pspnet.errors import ConfigError
from pspnet.models.zoo import ALIASES, MODELS, PublishedModel

_DESCRIPTION = """\
List the published models. Their names and short names are accepted wherever a model directory is:
`pspnet predict voc-r50 frame.jpg --output masks`. A model is downloaded and cached on first use (docs/models.md)."""

_COLUMNS = (
    "name", "short name", "data set", "classes", "network", "mIoU", "multi-scale", "tested on", "parameters", "licence",
    "cached",
)  # fmt: skip
NETWORKS = {"psp": "PSPNet", "fcn": "FCN", "deeplab": "DeepLabV3"}


@dataclass(frozen=True, init=False)
class ModelsSettings(Settings):
    """Choice and format of the list."""

    words: tuple[str, ...] = setting(
        (), "Only models whose names or data set contain all of these.", positional=True, repeated=True, metavar="WORD"
    )
    format: Literal["text", "markdown"] = setting("text", "Format of the list; markdown omits the column `cached`.")


def models_command(argv: Sequence[str]) -> int:
    """Print the list."""
    settings = parse_settings(ModelsSettings, argv, "pspnet models", _DESCRIPTION)
    short = {key: alias for alias, key in ALIASES.items()}
    rows = [_row(model, short.get(key, "")) for key, model in MODELS.items()]
    rows = [row for row in rows if all(word.lower() in " ".join(row[:3]).lower() for word in settings.words)]
    if not rows:
        raise ConfigError(f"no published model matches {' '.join(settings.words)}; `pspnet models` lists all.")
    if settings.format == "markdown":
        body = [[f"`{row[0]}`", row[1] and f"`{row[1]}`", *row[2:]] for row in rows]
        table = [_COLUMNS, ["---"] * len(_COLUMNS), *body]
        print("\n".join(f"| {' | '.join(row[:-1])} |" for row in table))
    else:
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows)]
        for row in (_COLUMNS, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def _row(model: PublishedModel, alias: str) -> list[str]:
    stem = " conv7" if model.stem == "conv7" and model.algorithm == "psp" else ""
    stride = "" if model.output_stride == 8 else f" d{model.output_stride}"
    return [
        model.key, alias, model.dataset, str(model.num_classes),
        f"{NETWORKS[model.algorithm]} {model.backbone}{stem}{stride}", f"{model.miou:.2f}",
        "" if model.miou_multi_scale is None else f"{model.miou_multi_scale:.2f}", model.protocol,
        f"{model.parameters / 1e6:.1f} M", model.licence, "yes" if is_cached(model) else "",
    ]  # fmt: skip
