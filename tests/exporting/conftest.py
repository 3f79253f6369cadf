"""A tiny network, its model directory and its exports, shared by all tests since conversion takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from torch import nn

from pspnet.artifact.export_record import Export
from pspnet.artifact.model_directory import save_artifact
from pspnet.classes import palette_for
from pspnet.config.schema import Config
from pspnet.data.channels import load_pairs
from pspnet.data.io.images import read_image, write_palette_png
from pspnet.data.shapes import write_shapes
from pspnet.exporting import int8
from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.exporter import export_model
from pspnet.models.build import build_model
from pspnet.models.pspnet import PSPNet


def tiny_network(align_corners: bool = False, **options: Any) -> PSPNet:
    """A PSPNet of width 4 with random batch norm statistics, so that its logits are not constant."""
    torch.manual_seed(0)
    model = build_model(7, **{"width": 4, "align_corners": align_corners, **options})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    nn.init.normal_(model.head.classifier.weight, std=0.5)
    return model.eval()


def save_network(folder: Path, model: PSPNet, **settings: Any) -> Path:
    config = Config(
        **{
            "num_classes": 7, "class_names": "shapes", "data": "shapes", "width": 4,
            "align_corners": model.align_corners, "use_pretrained_model": False, **settings,
        }
    )  # fmt: skip
    save_artifact(folder, model, config, {}, {"epoch": 1})
    return folder


@pytest.fixture(scope="session")
def network() -> PSPNet:
    return tiny_network()


@pytest.fixture(scope="session")
def model_dir(network: PSPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("export") / "model", network)


@pytest.fixture(scope="session")
def data(network: PSPNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set annotated with the network's own masks, so that its mIoU is 1."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=4, validation=4, size=(64, 48))
    for channel in ("train", "validation"):
        for pair in load_pairs(folder / channel, folder / f"{channel}_annotation"):
            image = torch.from_numpy(np.array(read_image(pair.image))).permute(2, 0, 1)[None]
            with torch.no_grad():
                mask = network(image).argmax(dim=1)[0].to(torch.uint8).numpy()
            write_palette_png(pair.annotation, mask, palette_for(("class",) * 7))
    return folder


@pytest.fixture(scope="session")
def exported(model_dir: Path, data: Path) -> Callable[[str, str], Export]:
    """An export by format and precision; 8 bits with any loss."""
    made: dict[tuple[str, str], Export] = {}

    def find(format: str, precision: str = "float32") -> Export:
        if (format, precision) not in made:
            calibration = data if precision == "int8" else None
            request = ExportRequest(
                model_dir=model_dir, format=format, int8=calibration is not None, calibration=calibration,
                allow_loss=calibration is not None,
            )  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                # A single attempt: NNCF is slow, and other tests cover the search.
                patch.setattr(int8, "ATTEMPTS", int8.ATTEMPTS[:1])
                made[format, precision] = export_model(request, lambda line: None)
        return made[format, precision]

    return find
