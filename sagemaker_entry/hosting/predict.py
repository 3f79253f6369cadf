"""`predict`: write the masks of images from an endpoint, by name or URL, to files."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pspnet.classes import palette_for
from pspnet.client.endpoint_client import decode_mask
from pspnet.client.transport import EndpointError
from pspnet.config.command_line import parse_settings
from pspnet.config.settings import setting
from pspnet.data.inputs import find_images
from pspnet.data.io.images import read_image, write_image, write_palette_png
from pspnet.errors import DataError, PspnetError
from pspnet.masks.blending import overlay
from sagemaker_entry.aws.account_settings import SessionSettings
from sagemaker_entry.aws.aws_errors import AwsError
from sagemaker_entry.hosting.endpoint_predictor import EndpointPredictor

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

# pspnet endpoints return the mask with the model's palette; others ignore the parameter and return greyscale.
_COLOURED = "image/png; palette=true"


@dataclass(frozen=True, init=False)
class PredictSettings(SessionSettings):
    """Settings of `predict`."""

    endpoint: str = setting(..., "name of an endpoint, or http(s)://HOST:PORT", positional=True, metavar="ENDPOINT")
    images: tuple[str, ...] = setting(
        ..., "image files, folders or patterns", positional=True, repeated=True, metavar="IMAGE"
    )
    output: Path = setting(..., "folder for <name>.png of every image")
    overlay: bool = setting(False, "also write <name>_overlay.jpg")
    workers: int = setting(2, "concurrent requests", ge=1)
    retries: int = setting(6, "retries if the endpoint is busy", ge=0)


def predict_command(argv: Sequence[str], command: str) -> int:
    """Write palette PNG masks. A failed image is reported and skipped; the exit code is then 1."""
    settings = parse_settings(PredictSettings, argv, command, "Write the masks of images from an endpoint.")
    paths = find_images(settings.images, SUFFIXES)
    output = settings.output
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output: cannot create {output} ({error.strerror or error}).") from error
    failed = 0
    predictor = EndpointPredictor(
        settings.endpoint,
        region=settings.region,
        profile=settings.profile,
        retries=settings.retries,
        asynchronous=True,
    )
    bar = tqdm(total=len(paths), unit="image", leave=False, disable=len(paths) < 2 or not sys.stderr.isatty())
    with predictor, bar, ThreadPoolExecutor(min(settings.workers, len(paths))) as pool:
        tasks = [pool.submit(_predict_one, predictor, path, output, settings.overlay) for path in paths]
        try:
            for path, task in zip(paths, tasks):
                try:
                    task.result()
                except AwsError:
                    raise  # credentials, permissions and, below, an unreachable endpoint fail every image
                except PspnetError as error:
                    if isinstance(error, EndpointError) and error.status in (0, 404):
                        raise
                    text = str(error) if str(path) in str(error) else f"{path}: {error}"
                    print(f"error: {text}", file=sys.stderr)
                    failed += 1
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(f"{len(paths) - failed} masks in {output}" + (f", {failed} images failed" if failed else ""))
    return 1 if failed else 0


def _predict_one(predictor: EndpointPredictor, path: Path, output: Path, with_overlay: bool) -> None:
    content = predictor.ask(path, _COLOURED).body
    mask, palette = decode_mask(content), palette_of(content)
    write_palette_png(output / f"{path.stem}.png", mask, palette)
    if with_overlay:
        image = read_image(path)
        if image.shape[:2] != mask.shape:
            raise DataError(f"{path}: the endpoint returned a mask of another size, {mask.shape[::-1]}.")
        picture = Image.fromarray(overlay(image, mask, palette))
        write_image(output / f"{path.stem}_overlay.jpg", picture, quality=90)


def palette_of(content: bytes) -> np.ndarray:
    """Return the (256, 3) uint8 colours of a palette PNG; PASCAL VOC's for the built-in algorithm's greyscale."""
    palette = palette_for(())
    with Image.open(io.BytesIO(content)) as picture:
        colours = picture.getpalette() if picture.mode == "P" else None
    if colours:
        own = np.array(colours, dtype=np.uint8).reshape(-1, 3)
        palette[: len(own)] = own
    return palette
