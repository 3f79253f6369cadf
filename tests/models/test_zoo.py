"""The table of published models: consistent rows, names, and figures that other packages also publish."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.models.build import build_algorithm
from pspnet.models.constants import BACKBONES
from pspnet.models.zoo import ALIASES, MODELS, PublishedModel, find_published, name_hint

PSPNETS = [model for model in MODELS.values() if model.algorithm == "psp"]


def test_every_row_is_consistent() -> None:
    assert (len(MODELS), len(PSPNETS)) == (55, 51)
    assert len({model.file for model in MODELS.values()}) == 55
    for key, model in MODELS.items():
        assert model.key == key
        assert re.fullmatch(r"[0-9a-f]{8}", model.sha256_prefix)
        assert f"-{model.sha256_prefix}.pth" in model.file
        assert 20 < model.miou < 100
        assert model.protocol.startswith(("whole, ", "slide "))
        if model.class_names is not None:
            assert len(NAMED_CLASS_SETS[model.class_names]) == model.num_classes
    assert {model.key for model in PSPNETS if model.align_corners} == {key for key in MODELS if key.endswith("-769")}
    assert {model.output_stride for model in PSPNETS if "-d32-" in model.key} == {32}


def test_a_row() -> None:
    assert find_published("voc-r50") == PublishedModel(
        key="voc-r50-40k", algorithm="psp", dataset="Pascal VOC 2012 + Aug", class_names="voc", num_classes=21,
        backbone="resnet-50", stem="deep-narrow", output_stride=8, align_corners=False, crop="512x512",
        protocol="whole, short side 512", test_size=(2048, 512), miou=77.29, miou_multi_scale=78.48,
        parameters=48977034, program="mmsegmentation",
        base_url="https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/",
        file="pspnet_r50-d8_512x512_40k_voc12aug/"
        "pspnet_r50-d8_512x512_40k_voc12aug_20200613_161222-ae9c1b8c.pth",
        licence="Apache-2.0",
    )  # fmt: skip


def test_an_alias_is_the_best_model_tested_on_whole_images() -> None:
    assert ALIASES["cityscapes-r18"] == "cityscapes-r18-80k"
    assert ALIASES["cityscapes-r101"] == "cityscapes-r101-80k"
    assert ALIASES["ade20k-r101"] == "ade20k-r101-160k"
    assert ALIASES["pascal-context-r101"] == "pascal-context-r101-40k"  # tested with sliding windows only
    for key in ALIASES.values():
        assert (MODELS[key].stem, MODELS[key].output_stride) == ("deep-narrow", 8)
    assert {key.rsplit("-", 1)[0] for key in MODELS if re.fullmatch(r".+-r\d+-\d+k", key)} == set(ALIASES)
    assert not set(ALIASES) & set(MODELS)


def test_hints() -> None:
    assert find_published("voc-r34") is None
    assert name_hint("cityscape-r50") == "did you mean cityscapes-r50 or cityscapes-r101 or cityscapes-r50-80k?"
    assert name_hint("fcn-resnet50").startswith("did you mean fcn_resnet50")
    assert name_hint("x") == "`pspnet models` lists the names."


@pytest.mark.parametrize(
    "key", ["voc-r50-40k", "cityscapes-r101-40k", "cityscapes-r50b-80k", "fcn_resnet50", "deeplabv3_resnet101"]
)
def test_parameters(key: str) -> None:
    model = MODELS[key]
    assert model.backbone in BACKBONES
    with torch.device("meta"):
        network = build_algorithm(model.algorithm, **model.architecture)
    assert sum(parameter.numel() for parameter in network.parameters()) == model.parameters


@pytest.mark.parametrize("key", ["fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"])
def test_torchvisions_own_table(key: str) -> None:
    name = {"fcn": "FCN_ResNet", "deeplabv3": "DeepLabV3_ResNet"}[key.split("_")[0]] + key.split("resnet")[1]
    weights = getattr(torchvision.models.segmentation, f"{name}_Weights").COCO_WITH_VOC_LABELS_V1
    model = MODELS[key]
    assert model.base_url + model.file == weights.url
    assert model.miou == weights.meta["_metrics"]["COCO-val2017-VOC-labels"]["miou"]
    assert model.parameters == weights.meta["num_params"]
    assert weights.meta["categories"][1:] == list(NAMED_CLASS_SETS["voc"][1:])
    assert weights.transforms.keywords == {"resize_size": model.test_size[1]}
