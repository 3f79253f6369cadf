"""Masks of image files, written next to each other in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from pspnet.data.io.images import read_image, write_image
from pspnet.errors import ConfigError, PspnetError
from pspnet.inference.predictor import Predictor


def write_predictions(
    predictor: Predictor,
    paths: Iterable[Path],
    output: Path,
    overlay: bool = False,
    on_error: Callable[[str], object] | None = None,
) -> int:
    """Write <name>.png for every image, and <name>_overlay.jpg if requested; return the number of written masks.

    Args:
        output: an existing folder.
        on_error: called with a message for an image that cannot be used, which is skipped; None to raise instead.

    Raises ConfigError for a runtime that cannot run, which may show at the first image only; OSError if a file cannot
    be written; without on_error DataError.
    """
    written = 0
    for path in paths:
        try:
            prediction = predictor.predict(read_image(path))
        except ConfigError:  # the runtime cannot run, so every other image would fail too
            raise
        except PspnetError as error:
            if on_error is None:
                raise
            on_error(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        prediction.save(output / f"{path.stem}.png")
        if overlay:
            write_image(output / f"{path.stem}_overlay.jpg", prediction.overlay(), quality=90)
        written += 1
    return written
