"""Weights of mmsegmentation: PSPNets r18, r50 and r101, d8 and d32, and their ResNet and ResNet-v1c backbones.

Published conventions: a deep stem of 32, 32 and 64 channels (one 7x7 convolution in r18b, r50b and r101b), contracted
dilation, only the first convolution of a basic block dilated, corners not aligned (but in the 769x769 files), images
converted from BGR to RGB and normalised by ImageNet's statistics. The config in a checkpoint overrides them; if it
specifies BGR, the input channels of the first convolution are reversed. Without a config, the file name shows d32 and
769x769.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.constants import BASIC_BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.imports.layout import ForeignWeights, Layout, detect_backbone, detect_heads
from pspnet.models.imports.mmseg_config import parse_config
from pspnet.models.imports.torch_file import TorchFile
from pspnet.models.pyramid import BINS

PROGRAM = "mmsegmentation"

_PYRAMID = tuple(
    (f"head.pyramid.branches.{branch}.", f"decode_head.psp_modules.{branch}.1.") for branch in range(len(BINS))
)
_HEADS = (
    ("head.classifier.", "decode_head.conv_seg."),
    ("head.", "decode_head.bottleneck."),
    ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
    ("auxiliary_head.", "auxiliary_head.convs.0."),
)
_IGNORED = ("fc.", "head.fc.", "data_preprocessor.")

# d32: the strides of an undilated network with the dilations of d8.
_D32 = {"output_stride": 32, "dilations": [2, 4]}
# (strides, dilations) of the four layers -> arguments of build_model.
_OUTPUT_STRIDES: dict[Any, dict[str, Any]] = {
    ((1, 2, 1, 1), (1, 1, 2, 4)): {"output_stride": 8},
    ((1, 2, 2, 1), (1, 1, 1, 2)): {"output_stride": 16},
    ((1, 2, 2, 2), (1, 1, 1, 1)): {"output_stride": 32},
    ((1, 2, 2, 2), (1, 1, 2, 4)): _D32,
}
_OTHER_HEADS = {
    "decode_head.aspp_modules.": "DeepLabV3",
    "decode_head.image_pool.": "DeepLabV3",
    "decode_head.fpn_convs.": "UPerNet",
    "decode_head.convs.": "FCN",
}


def _layouts(prefix: str) -> dict[str, Layout]:
    """Return the layout of each stem; `prefix` is that of the backbone."""
    deep = tuple(
        (f"backbone.stem.{kind}{number}.", f"{prefix}stem.{3 * number - 3 + index}.")
        for number in (1, 2, 3)
        for index, kind in enumerate(("conv", "bn"))
    )
    rest = (("backbone.", prefix), *_PYRAMID, *_HEADS)
    deep_layout = Layout((*deep, *rest), ignored=_IGNORED)
    plain = Layout((("backbone.stem.", prefix), *rest), ignored=_IGNORED)
    return {"deep-narrow": deep_layout, "deep": deep_layout, "conv7": plain}


@dataclass(frozen=True)
class _Settings:
    """Settings of the network in a checkpoint's config."""

    architecture: dict[str, Any]
    bgr: bool = False


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Return whether the names are from a whole network or a backbone with a deep stem."""
    return any(name.startswith(("decode_head.", "stem.0.", "backbone.stem.")) for name in state)


def convert(file: TorchFile) -> ForeignWeights:
    """Detect the architecture of a whole network or backbone from names and config. Raises WeightsError."""
    source, state = file.path, file.state
    for name, network in _OTHER_HEADS.items():
        if any(entry.startswith(name) for entry in state):
            raise WeightsError(f"{source}: mmsegmentation's {network}, not a PSPNet. Only PSPNet can be imported.")
    complete = any(name.startswith("decode_head.") for name in state)
    layouts = _layouts("backbone." if any(name.startswith("backbone.") for name in state) else "")
    architecture = detect_backbone(state, layouts, source, basic=True)
    layout = layouts[architecture["stem"]]
    if complete:
        architecture.update(detect_heads(state, layout, source))
        if architecture["backbone"] in BASIC_BACKBONES:
            architecture["dilate_both"] = False
    settings = _settings(file.meta, source)
    if settings.bgr:
        first = layout.foreign_name("backbone.stem.conv1.weight")
        state = {**state, first: state[first].flip(1)}
    class_names, palette = _classes(file.meta, architecture.get("num_classes"))
    details = {key: file.meta[key] for key in _KEPT_DETAILS if isinstance(file.meta.get(key), (int, float, str))}
    architecture.update(settings.architecture)
    return ForeignWeights(source, PROGRAM, state, layout, architecture, complete, class_names, palette, details)


_KEPT_DETAILS = ("epoch", "iter", "experiment_name", "exp_name", "mmseg_version", "mmengine_version", "time")


def _settings(meta: Mapping[str, Any], source: str) -> _Settings:
    text = meta.get("cfg", meta.get("config"))  # keys of mmengine and of mmsegmentation 0.x
    config = parse_config(text) if isinstance(text, str) else {}
    model = _mapping(config.get("model"))
    if not model:
        return _published_settings(PurePath(source).name)
    backbone, head = _mapping(model.get("backbone")), _mapping(model.get("decode_head"))
    _reject_other_settings(backbone, head, source)
    # Their defaults for missing entries.
    strides = tuple(backbone.get("strides") or (1, 2, 2, 2))
    dilations = tuple(backbone.get("dilations") or (1, 1, 1, 1))
    if (strides, dilations) not in _OUTPUT_STRIDES:
        raise WeightsError(
            f"{source}: its backbone has strides {strides} and dilations {dilations}, which is not supported."
        )
    normalisation = _mapping(model.get("data_preprocessor")) or _mapping(config.get("img_norm_cfg"))
    bgr = not normalisation.get("bgr_to_rgb", normalisation.get("to_rgb", True))
    mean, std = _three(normalisation.get("mean"), IMAGENET_MEAN), _three(normalisation.get("std"), IMAGENET_STD)
    architecture = {
        **_OUTPUT_STRIDES[strides, dilations],
        "align_corners": bool(head.get("align_corners", False)),
        "contract_dilation": bool(backbone.get("contract_dilation", False)),
        "mean": mean[::-1] if bgr else mean,
        "std": std[::-1] if bgr else std,
    }
    return _Settings(architecture, bgr)


def _published_settings(name: str) -> _Settings:
    """Return the settings of a published file, such as pspnet_r50-d32_512x1024_80k_cityscapes_....pth."""
    stride = _D32 if "-d32_" in name else {"output_stride": 8}
    return _Settings({**stride, "align_corners": "_769x769_" in name, "contract_dilation": True})


def _reject_other_settings(backbone: Mapping[str, Any], head: Mapping[str, Any], source: str) -> None:
    """Raise WeightsError for settings that change the function but neither names nor shapes."""
    checks = (
        (backbone.get("style", "pytorch"), "pytorch", "backbone.style"),
        (backbone.get("avg_down", False) or backbone.get("type") == "ResNetV1d", False, "backbone.avg_down"),
        (backbone.get("multi_grid"), None, "backbone.multi_grid"),
        (list(head.get("pool_scales") or BINS), list(BINS), "decode_head.pool_scales"),
        (_mapping(head.get("norm_cfg")).get("eps", 1e-5), 1e-5, "decode_head.norm_cfg.eps"),
        (_mapping(backbone.get("norm_cfg")).get("eps", 1e-5), 1e-5, "backbone.norm_cfg.eps"),
    )
    for found, expected, name in checks:
        if found != expected:
            raise WeightsError(f"{source}: its config has {name} = {found!r}, but only {expected!r} is supported.")


def _classes(
    meta: Mapping[str, Any], count: int | None
) -> tuple[tuple[str, ...] | None, tuple[tuple[int, int, int], ...] | None]:
    """Return the names and colours in the checkpoint if every class has one."""
    dataset = _mapping(meta.get("dataset_meta"))
    names = dataset.get("classes", meta.get("CLASSES"))
    colours = dataset.get("palette", meta.get("PALETTE"))
    if not isinstance(names, (list, tuple)) or len(names) != count or not all(isinstance(n, str) for n in names):
        return None, None
    if not isinstance(colours, (list, tuple)) or len(colours) != count:
        return tuple(names), None
    if not all(isinstance(c, (list, tuple)) and len(c) == 3 and all(_is_byte(part) for part in c) for c in colours):
        return tuple(names), None
    return tuple(names), tuple((colour[0], colour[1], colour[2]) for colour in colours)


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= 255


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _three(value: Any, default: tuple[float, float, float]) -> list[float]:
    """Return three numbers of a config, or the default if they are missing or nearly equal to it."""
    if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(isinstance(v, (int, float)) for v in value):
        return list(default)
    close = all(abs(float(found) - wanted) < 1e-3 for found, wanted in zip(value, default))
    return list(default) if close else [float(part) for part in value]
