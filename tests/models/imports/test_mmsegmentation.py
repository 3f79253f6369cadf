"""Import of mmsegmentation's checkpoints and configs, checked against mmsegmentation if it is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.build import build_model
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.imports import mmsegmentation
from pspnet.models.imports.mmseg_config import parse_config
from pspnet.models.imports.programs import read_weights
from pspnet.models.pspnet import PSPNet
from tests.models.original_runs import assert_same_logits, difference, run_original

SIZES = ("96x96", "65x113", "120x71")


# Published file -> what its network differs in from r50-d8.
PUBLISHED: dict[str, dict[str, Any]] = {
    "r50-d8 512x1024 rgb": {},
    "r101-d8 512x1024 bgr": {"backbone": "resnet-101", "mean": [124.0, 117.0, 104.0], "std": list(IMAGENET_STD)[::-1]},
    "r18-d8 512x1024 rgb": {"backbone": "resnet-18", "dilate_both": False},
    "r18b-d8 512x1024 rgb": {"backbone": "resnet-18", "dilate_both": False, "stem": "conv7"},
    "r18-d8 769x769 rgb": {"backbone": "resnet-18", "dilate_both": False, "align_corners": True},
    "r50b-d8 512x1024 rgb": {"stem": "conv7"},
    "r50-d32 512x1024 rgb": {"output_stride": 32, "dilations": [2, 4]},
}


@pytest.fixture(scope="module", params=PUBLISHED)
def original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, Any], Path]]:
    network, crop, order = request.param.split()
    name = f"pspnet_{network}_4xb2-80k_cityscapes-{crop}"
    folder = tmp_path_factory.mktemp("mmseg") / name
    for path in run_original("PSPNET_MMSEG_PYTHON", "run_mmseg.py", folder, name, "5", order, *SIZES):
        yield PUBLISHED[request.param], path


@pytest.mark.usefixtures("skip_initialisation")
def test_logits_of_mmsegmentation(original: tuple[dict[str, Any], Path]) -> None:
    differing, folder = original
    weights = read_weights(folder / "iter_2.pth", "mmsegmentation")
    assert weights.architecture == {
        "backbone": "resnet-50", "stem": "deep-narrow", "width": 64, "num_classes": 5, "auxiliary_head": True,
        "output_stride": 8, "align_corners": False, "contract_dilation": True, "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD), **differing,
    }  # fmt: skip
    assert weights.class_names == tuple(f"thing {index}" for index in range(5))
    assert weights.palette is not None
    assert weights.palette[3] == (3, 6, 252)
    assert weights.details == {"epoch": 0, "iter": 2}
    assert_same_logits(weights.build(), folder, SIZES)
    wrong_values: list[dict[str, Any]] = [
        {"align_corners": not weights.architecture["align_corners"]}, {"contract_dilation": False},
    ]  # fmt: skip
    wrong_values += [{"dilate_both": True}] * ("dilate_both" in differing)
    wrong_values += [{"dilations": [1, 1]}] * ("dilations" in differing)
    for wrong in wrong_values:
        other = dataclasses.replace(weights, architecture={**weights.architecture, **wrong}).build()
        assert difference(other, folder, SIZES[1]) > 1e-3  # the comparison above is sensitive


CONFIG_1 = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(
        type='ResNetV1c', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), norm_cfg=norm_cfg,
        style='pytorch', contract_dilation=True),
    decode_head=dict(type='PSPHead', pool_scales=(1, 2, 3, 6), align_corners=False, norm_cfg=norm_cfg))
"""
# mmsegmentation 0.x: the normalisation is outside of the model.
CONFIG_0 = (
    CONFIG_1.replace(
        """    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
""",
        "",
    )
    + "img_norm_cfg = dict(mean=[1.5, 2.5, 3.5], std=[4, 5, 6], to_rgb=False)\n"
)


def as_mmseg(model: PSPNet, prefix: str = "backbone.") -> dict[str, Tensor]:
    """Our network's entries under mmsegmentation's names (verified by the test above)."""
    layout = mmsegmentation._layouts(prefix)[model.backbone.stem_name]
    return {layout.foreign_name(name): value for name, value in model.state_dict().items()}


@pytest.fixture
def model(randomise: Callable[..., None]) -> PSPNet:
    model = build_model(3, stem="deep-narrow", width=8, contract_dilation=True).eval()
    randomise(model)
    return model


def saved(path: Path, state: dict[str, Tensor], meta: dict[str, Any]) -> Path:
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


def test_published_file_without_config(model: PSPNet, tmp_path: Path, random_image: Callable[..., Tensor]) -> None:
    weights = read_weights(saved(tmp_path / "a.pth", as_mmseg(model), {}), "mmsegmentation")
    assert weights.full_architecture() == {
        "num_classes": 3, "backbone": "resnet-50", "stem": "deep-narrow", "output_stride": 8, "align_corners": False,
        "contract_dilation": True, "auxiliary_head": True, "width": 8, "dropout": 0.1, "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }  # fmt: skip
    assert (weights.class_names, weights.palette) == (None, None)
    image = random_image(45, 61)
    with torch.no_grad():
        assert torch.equal(weights.build().eval()(image), model(image))


def test_config_overrides_the_published_values(model: PSPNet, tmp_path: Path) -> None:
    text = CONFIG_1.replace("align_corners=False", "align_corners=True").replace("(1, 1, 2, 4)", "(1, 1, 1, 2)")
    text = text.replace("(1, 2, 1, 1)", "(1, 2, 2, 1)").replace(", contract_dilation=True", "")
    meta = {"config": text, "CLASSES": ["a", "b", "c"], "PALETTE": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    weights = read_weights(saved(tmp_path / "a.pth", as_mmseg(model), meta), "mmsegmentation")
    found = weights.architecture
    assert (found["output_stride"], found["align_corners"], found["contract_dilation"]) == (16, True, False)
    assert weights.class_names == ("a", "b", "c")
    assert weights.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_bgr_is_folded_into_the_first_convolution(
    model: PSPNet, tmp_path: Path, random_image: Callable[..., Tensor]
) -> None:
    weights = read_weights(saved(tmp_path / "a.pth", as_mmseg(model), {"cfg": CONFIG_0}), "mmsegmentation")
    assert (weights.architecture["mean"], weights.architecture["std"]) == ([3.5, 2.5, 1.5], [6.0, 5.0, 4.0])
    built = weights.build().eval()
    image = random_image(40, 51)
    model.mean.copy_(torch.tensor([1.5, 2.5, 3.5]).view(1, 3, 1, 1))
    model.std.copy_(torch.tensor([4.0, 5.0, 6.0]).view(1, 3, 1, 1))
    with torch.no_grad():
        torch.testing.assert_close(built(image), model(image.flip(1)), rtol=0, atol=1e-5)
        assert (built(image) - model(image)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("pspnet_r50-d32_512x1024_80k_cityscapes_20220316_224840-9092b254", {"output_stride": 32, "dilations": [2, 4]}),
        ("pspnet_r50-d8_769x769_80k_cityscapes_20200606_210121-5ccf03dd", {"align_corners": True}),
        ("pspnet_r50-d8_512x1024_80k_cityscapes_20200606_112131-2376f12b", {}),
    ],
)
def test_the_name_of_a_file_without_config_is_read(
    name: str, changes: dict[str, Any], model: PSPNet, tmp_path: Path
) -> None:
    found = read_weights(saved(tmp_path / f"{name}.pth", as_mmseg(model), {}), "mmsegmentation").architecture
    expected = {"output_stride": 8, "align_corners": False, "contract_dilation": True, **changes}
    assert {key: found.get(key) for key in expected} == expected
    assert ("dilations" in found) == ("dilations" in changes)


@pytest.mark.parametrize("complete", [True, False])
def test_basic_blocks(
    complete: bool, randomise: Callable[..., None], tmp_path: Path, random_image: Callable[..., Tensor]
) -> None:
    """A complete network dilates the first convolution of a block only; an ImageNet backbone is undilated."""
    model = build_model(
        3, "resnet-18", "deep-narrow", width=8, contract_dilation=True, dilate_both=not complete
    ).eval()  # fmt: skip
    randomise(model)
    state = {name: value for name, value in as_mmseg(model).items() if complete or "head" not in name}
    weights = read_weights(saved(tmp_path / "a.pth", state, {}), "mmsegmentation")
    assert weights.architecture["backbone"] == "resnet-18"
    assert weights.architecture.get("dilate_both", True) is not complete
    built = weights.build(3).eval()
    x = random_image(45, 61).float()
    with torch.no_grad():
        assert torch.equal(built.backbone(x)[1], model.backbone(x)[1])


@pytest.mark.parametrize("meta", [{"CLASSES": ["a"]}, {"CLASSES": 5}, {"dataset_meta": {"classes": ("a", "b", 3)}}])
def test_invalid_class_names_are_ignored(meta: dict[str, Any], model: PSPNet, tmp_path: Path) -> None:
    weights = read_weights(saved(tmp_path / "a.pth", as_mmseg(model), meta), "mmsegmentation")
    assert weights.class_names is None


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("style='pytorch'", "style='caffe'", "backbone.style = 'caffe', but only 'pytorch' is supported"),
        ("type='ResNetV1c'", "type='ResNetV1d'", "backbone.avg_down = True"),
        ("pool_scales=(1, 2, 3, 6)", "pool_scales=(1, 2, 4, 8)", r"decode_head.pool_scales = \[1, 2, 4, 8\]"),
        ("requires_grad=True)", "eps=0.001)", r"norm_cfg.eps = 0\.001"),
        ("dilations=(1, 1, 2, 4)", "dilations=(1, 1, 4, 8)", r"dilations \(1, 1, 4, 8\), which is not supported"),
        ("depth=50", "depth=50, multi_grid=(1, 2, 4)", "backbone.multi_grid"),
    ],
)
def test_unsupported_settings(old: str, new: str, text: str, model: PSPNet, tmp_path: Path) -> None:
    assert CONFIG_1.count(old) == 1
    path = saved(tmp_path / "a.pth", as_mmseg(model), {"cfg": CONFIG_1.replace(old, new)})
    with pytest.raises(WeightsError, match=text):
        read_weights(path, "mmsegmentation")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("decode_head.aspp_modules.0.conv.weight", "mmsegmentation's DeepLabV3, not a PSPNet"),
        ("decode_head.convs.0.conv.weight", "mmsegmentation's FCN"),
        ("decode_head.fpn_convs.0.conv.weight", "mmsegmentation's UPerNet"),
    ],
)
def test_other_networks_are_rejected(name: str, text: str, model: PSPNet, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", {**as_mmseg(model), name: torch.zeros(1)}, {})
    with pytest.raises(WeightsError, match=text):
        read_weights(path, "mmsegmentation")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbone_only(prefix: str, model: PSPNet, tmp_path: Path) -> None:
    state = {name: value for name, value in as_mmseg(model, prefix).items() if "head" not in name}
    path = saved(tmp_path / "resnet50_v1c.pth", {**state, "fc.bias": torch.zeros(3)}, {})
    weights = read_weights(path, "mmsegmentation")
    assert not weights.complete
    built = weights.build(7).backbone.state_dict()
    assert all(torch.equal(value, built[name]) for name, value in model.backbone.state_dict().items())


def test_plain_config_values() -> None:
    text = "a = 1\nb = dict(c=a, d=[a, (2.5, 'x')], **a)\nf = open('x')\ng = {'h': -1, a: 2}\nimport os\nj, k = 1, 2"
    assert parse_config(text) == {"a": 1, "b": {"c": 1, "d": [1, [2.5, "x"]]}, "f": None, "g": {"h": None}}
    assert parse_config("no python at all (") == {}
    assert parse_config("a = " + "(" * 5000) == {}
