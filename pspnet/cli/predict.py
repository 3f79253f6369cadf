"""`pspnet predict`: masks of images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspnet.config.command_line import parse_settings
from pspnet.config.settings import Settings, setting
from pspnet.inference.runtimes.base import AUTO, RuntimeName


@dataclass(frozen=True, init=False)
class PredictSettings(Settings):
    """A model, images and the folder of their masks."""

    model_dir: Path = setting(..., "Model directory, as training writes it.", positional=True)
    images: tuple[str, ...] = setting(
        ..., "Images.", allowed="files, folders or patterns", positional=True, repeated=True, metavar="IMAGE"
    )
    output: Path = setting(..., "Folder for the masks.")
    overlay: bool = setting(False, "Also write <name>_overlay.jpg.")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Device; auto uses a GPU if available.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "Precision of the network; auto chooses by device."
    )
    runtime: RuntimeName = setting("auto", "Runtime of the network, see docs/runtimes.md.")


def predict_command(argv: Sequence[str]) -> int:
    """Write palette PNG masks. Report and skip an image that cannot be used; the exit code is then 1."""
    settings = parse_settings(PredictSettings, argv, "pspnet predict", "Write the masks of images.")
    # Imported here, so that --help and wrong settings respond without importing torch.
    from tqdm import tqdm

    from pspnet.data.inputs import find_images
    from pspnet.inference.predict import write_predictions
    from pspnet.inference.predictor import Predictor
    from pspnet.system.atomic_folders import make_output_folder
    from pspnet.system.device import choose_device
    from pspnet.system.precision import choose_precision

    paths = find_images(settings.images)
    make_output_folder(settings.output)
    device = choose_device(settings.device)
    dtype = None if settings.precision == AUTO else choose_precision(settings.precision, device).dtype
    predictor = Predictor.load(settings.model_dir, str(device), dtype=dtype, runtime=settings.runtime)

    def print_error(message: str) -> None:
        print(f"error: {message}", file=sys.stderr)

    shown = tqdm(paths, unit="image", disable=len(paths) < 2 or not sys.stderr.isatty())
    written = write_predictions(predictor, shown, settings.output, settings.overlay, print_error)
    failed = len(paths) - written
    print(f"{written} masks in {settings.output}" + (f", {failed} images failed" if failed else ""))
    return 1 if failed else 0
