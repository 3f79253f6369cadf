"""The model directory that a benchmark uses: a trained one as it is, or one with random weights, exports included."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.benchmarking.baselines import settle_statistics
from pspnet.benchmarking.timed_frames import make_images
from pspnet.config.schema import Config
from pspnet.errors import PspnetError
from pspnet.exporting.exporter import Request, export_model
from pspnet.models.build import build_model


@contextlib.contextmanager
def random_model(num_classes: int = 21, width: int = 64, formats: Sequence[str] = ()) -> Iterator[Path]:
    """A temporary model directory: PSPNet-R50 with random weights, and those exports of `formats` that work here."""
    config = Config(num_classes=num_classes, data="none", width=width, use_pretrained_model=False)
    torch.manual_seed(0)
    network = build_model(**architecture_of(config)).eval()
    settle_statistics(network, make_images((240, 240), batch=2))
    with tempfile.TemporaryDirectory(prefix="pspnet-benchmark-") as folder:
        save_artifact(Path(folder), network, config, {}, {})
        for format in formats:
            # A format whose packages are missing is told where its runtime is opened.
            with contextlib.suppress(PspnetError):
                export_model(Request(Path(folder), format), say=lambda _: None)
        yield Path(folder)
