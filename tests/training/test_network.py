"""Initial weights of a run: another program's backbone file, and imported models as model channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pspnet.artifact.model_directory import architecture_of, save_imported
from pspnet.config.schema import Config
from pspnet.errors import WeightsError
from pspnet.models.build import build_model
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.imports.programs import read_weights
from pspnet.models.resnet import ResNet
from pspnet.training.network import build_network, resolve_dilation
from pspnet.training.state.checkpoint import save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _skip_initialisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """These networks have the published size, and random initialisation takes seconds."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def semseg_file(path: Path, layers: tuple[int, ...] = (3, 4, 6, 3)) -> Path:
    """Write an ImageNet backbone with semseg's names, every entry filled with a distinct number."""
    names = {name.replace("stem.", ""): value for name, value in ResNet(layers, stem="deep").state_dict().items()}
    state = {name: torch.tensor(float(i)).expand(value.shape) for i, (name, value) in enumerate(names.items())}
    torch.save({**state, "fc.weight": torch.zeros(1)}, path)
    return path


def make_config(**changes: Any) -> Config:
    return Config(**{"num_classes": 3, "data": "x", "stem": "deep", **changes})


def test_the_backbone_starts_from_a_file(tmp_path: Path) -> None:
    path = semseg_file(tmp_path / "resnet50_v2.pth")
    network = build_network(make_config(pretrained_weights=str(path)), CPU)
    for index, (name, value) in enumerate(network.backbone.state_dict().items()):
        assert (value == index).all(), name


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stem": "conv7"}, r"stem is deep there and conv7 here\. Change these settings"),
        ({"backbone": "resnet-101"}, "backbone is resnet-50 there and resnet-101 here"),
    ],
)
def test_a_file_of_another_backbone(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = semseg_file(tmp_path / "resnet50_v2.pth")
    with pytest.raises(WeightsError, match=text):
        build_network(make_config(pretrained_weights=str(path), **changes), CPU)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pth: cannot be read \(No such file"):
        build_network(make_config(pretrained_weights=str(tmp_path / "none.pth")), CPU)


@pytest.mark.slow
def test_an_imported_model_is_fine_tuned(tmp_path: Path) -> None:
    weights = read_weights(semseg_file(tmp_path / "resnet50_v2.pth"), "semseg")
    architecture = weights.full_architecture(3)
    source = weights.build(3)
    for value in source.state_dict().values():  # the heads are uninitialised memory
        value.nan_to_num_()
    save_imported(tmp_path / "model", source, architecture, ("a", "b", "c"), np.zeros((3, 3), np.uint8), {})
    same = {"model": str(tmp_path / "model"), "use_pretrained_model": False, "align_corners": True}
    network = build_network(make_config(**same), CPU)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in source.state_dict().items())
    with pytest.raises(WeightsError, match="align_corners is True there and False here; contract_dilation is False"):
        build_network(make_config(**{**same, "align_corners": False, "contract_dilation": True}), CPU)


def test_a_model_with_another_normalisation_is_rejected(tmp_path: Path) -> None:
    architecture = {"num_classes": 3, "stem": "deep", "width": 4, "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]}
    model = build_model(**architecture)
    defaults = {"backbone": "resnet-50", "output_stride": 8, "align_corners": False, "auxiliary_head": True}
    save_imported(tmp_path / "model", model, {**defaults, **architecture}, ("a", "b", "c"), None, {})
    config = make_config(model=str(tmp_path / "model"), use_pretrained_model=False, width=4)
    with pytest.raises(WeightsError, match=r"mean is \[1\.0, 2\.0, 3\.0\] there and \[123\.675"):
        build_network(config, CPU)


def dilation_of(config: Config) -> tuple[object, object, object]:
    resolved = resolve_dilation(config)
    assert resolve_dilation(resolved) == resolved
    return resolved.contract_dilation, resolved.dilations, resolved.dilate_both


def test_dilation_of_imagenet_and_random_starts(tmp_path: Path) -> None:
    folder = {"stem": "conv7", "checkpoint_dir": str(tmp_path)}
    assert dilation_of(make_config(**folder)) == (True, None, True)
    assert dilation_of(make_config(**folder, use_pretrained_model=False)) == (False, None, True)
    assert dilation_of(make_config(**folder, contract_dilation=False, dilations="2, 4")) == (False, (2, 4), True)
    assert dilation_of(make_config(**folder, algorithm="fcn")) == (False, None, True)


def test_dilation_of_a_file_of_weights(tmp_path: Path) -> None:
    config = {"pretrained_weights": str(semseg_file(tmp_path / "a.pth")), "checkpoint_dir": str(tmp_path)}
    assert dilation_of(make_config(**config)) == (False, None, True)
    assert dilation_of(make_config(**config, contract_dilation=True)) == (True, None, True)


def test_dilation_of_a_model(tmp_path: Path) -> None:
    """A model of mmsegmentation's form is fine-tuned without repeating its dilation settings."""
    architecture: dict[str, Any] = {
        "num_classes": 3, "stem": "deep", "width": 4, "backbone": "resnet-18", "output_stride": 32,
        "contract_dilation": True, "dilations": [2, 4], "dilate_both": False, "align_corners": False,
        "auxiliary_head": True, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
    }  # fmt: skip
    model = build_model(**architecture)
    for value in model.state_dict().values():
        value.nan_to_num_()
    save_imported(tmp_path / "model", model, architecture, ("a", "b", "c"), None, {})
    config = make_config(
        model=str(tmp_path / "model"), use_pretrained_model=False, width=4, backbone="resnet-18", output_stride=32,
        checkpoint_dir=str(tmp_path),
    )  # fmt: skip
    assert dilation_of(config) == (True, (2, 4), False)
    network = build_network(resolve_dilation(config), CPU)
    assert network.backbone.layer4[1].conv1.dilation == (4, 4)
    assert network.backbone.layer4[1].conv2.dilation == (1, 1)
    assert {**architecture_of(resolve_dilation(config)), "dropout": 0.1} == {**architecture, "dropout": 0.1}
    with pytest.raises(WeightsError, match="contract_dilation is True there and False here; dilate_both is False"):
        build_network(config.replace(contract_dilation=False, dilations="2, 4", dilate_both=True), CPU)


@pytest.mark.parametrize("stored", [{}, {"contract_dilation": False}, {"contract_dilation": True, "dilations": [2, 4]}])
def test_dilation_of_a_checkpoint(stored: dict[str, Any], tmp_path: Path) -> None:
    """Checkpoints of 0.1.0 have contract_dilation False; older ones lack it."""
    save_checkpoint(tmp_path / "last.safetensors", {"config": stored, "model": {"a": torch.zeros(1)}})
    config = make_config(stem="conv7", checkpoint_dir=str(tmp_path))
    expected = (stored.get("contract_dilation", False), (2, 4) if "dilations" in stored else None, True)
    assert dilation_of(config) == expected
    assert dilation_of(config.replace(resume="never")) == (True, None, True)
