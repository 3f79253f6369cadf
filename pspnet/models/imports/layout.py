"""Mapping of another program's parameter names: architecture detection and strict loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from pspnet.classes import MAX_CLASSES
from pspnet.errors import WeightsError
from pspnet.models.build import build_algorithm, build_model
from pspnet.models.constants import BACKBONES, BASIC_BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.models.resnet import STEMS
from pspnet.models.torchvision_networks import build_torchvision
from pspnet.models.weights import describe_mismatch

_PUBLISHED_WIDTH = 64
NEW_ARGUMENTS = ("dilations", "dilate_both")
"""Arguments of build_model that version 0.1.0 lacks."""


@dataclass(frozen=True)
class Layout:
    """Mapping from our parameter names to those of another program.

    Args:
        prefixes: (our prefix, foreign prefix); the first match counts, and every name of ours has one.
        batch_norm: our suffix -> foreign suffix, for entries of batch norms with another name.
        ignored: foreign prefixes that are not part of our network, such as an image classifier.
    """

    prefixes: Sequence[tuple[str, str]]
    batch_norm: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def foreign_name(self, ours: str) -> str:
        """Return the foreign name of an entry of our network, such as `backbone.layer1.0.bn1.weight`."""
        ours_prefix, prefix = next(pair for pair in self.prefixes if ours.startswith(pair[0]))
        name = prefix + ours[len(ours_prefix) :]
        stem, ending = name.rsplit(".", 1)
        if ending in self.batch_norm and _is_batch_norm(ours):
            return f"{stem}.{self.batch_norm[ending]}"
        return name


@dataclass(frozen=True)
class ForeignWeights:
    """Weights of another program and the detected architecture.

    `state` has the foreign names. `architecture` holds the arguments of build_model that were detected; num_classes is
    one of them if `complete`, but not for a backbone. `details` is further metadata of the file, JSON-serialisable.
    """

    path: str
    program: str
    state: Mapping[str, Tensor]
    layout: Layout
    architecture: Mapping[str, Any]
    complete: bool
    class_names: tuple[str, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    algorithm: str = "psp"

    def full_architecture(self, num_classes: int | None = None) -> dict[str, Any]:
        """Return all arguments of the algorithm's builder, JSON-serialisable; a backbone needs `num_classes`.

        Raises:
            WeightsError: num_classes is missing or differs from the file.
        """
        found = self.architecture.get("num_classes")
        if found is None and num_classes is None:
            raise WeightsError(f"{self.path}: a backbone without heads. Give their classes with --classes.")
        if found is not None and num_classes not in (None, found):
            raise WeightsError(f"{self.path}: has {found} classes, but --classes {num_classes}. Give {found} names.")
        builder: Callable[..., SegmentationNetwork] = build_model if self.algorithm == "psp" else build_torchvision
        published = {name: parameter.default for name, parameter in signature(builder).parameters.items()}
        # NEW_ARGUMENTS are absent at their defaults, so that older versions read the model directory.
        for name in ("algorithm", *NEW_ARGUMENTS):
            published.pop(name, None)
        published.update(num_classes=num_classes, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
        return {**published, **self.architecture}

    def build(self, num_classes: int | None = None) -> SegmentationNetwork:
        """Build our network with these weights. A backbone gets random heads for `num_classes` classes.

        Raises:
            WeightsError: entries are missing, unexpected or of another shape; or as full_architecture.
        """
        model = build_algorithm(self.algorithm, **self.full_architecture(num_classes))
        if self.complete:
            self._load(model, "", ())
        else:
            self.load_backbone(model.backbone)
        return model

    def load_backbone(self, backbone: nn.Module) -> None:
        """Load a backbone (ResNet or with its names). WeightsError lists the mismatches and leaves it unchanged."""
        heads = tuple(foreign for ours, foreign in self.layout.prefixes if not ours.startswith("backbone."))
        self._load(backbone, "backbone.", heads)

    def _load(self, module: nn.Module, prefix: str, others: tuple[str, ...]) -> None:
        """Load strictly: set all entries of the module, use all foreign ones that are not ignored or in `others`."""
        own = module.state_dict()
        names = {name: self.layout.foreign_name(prefix + name) for name in own}
        ignored = (*self.layout.ignored, *others)
        used = set(names.values())
        unknown = [name for name in self.state if name not in used and not name.startswith(ignored)]
        # Not every program counts batches. Only batch norm without momentum uses the counter.
        counters = {
            name: torch.zeros((), dtype=torch.long)
            for name in names
            if name.endswith(".num_batches_tracked") and names[name] not in self.state
        }
        found = {name: self.state[name] for name in used if name in self.state}
        expected = {names[name]: value for name, value in own.items() if name not in counters}
        problems = describe_mismatch(expected, {**found, **{name: self.state[name] for name in unknown}})
        if problems:
            raise WeightsError(
                f"{self.path}: does not match the published network of {self.program}: {'; '.join(problems)}. "
                "The file is damaged or holds another network. Only the published form can be imported."
            )
        module.load_state_dict({name: counters.get(name, found.get(names[name])) for name in own}, strict=True)


def detect_backbone(
    state: Mapping[str, Tensor], layouts: Mapping[str, Layout], path: str, basic: bool = False
) -> dict[str, Any]:
    """Detect depth, stem and width of a ResNet.

    Args:
        state: foreign names -> tensors.
        layouts: stem, one of STEMS -> layout of the names with that stem.
        path: for messages.
        basic: accept ResNet-18 and -34, too.

    Returns:
        `backbone`, `stem` and `width`, arguments of build_model.

    Raises:
        WeightsError: not a ResNet of a supported depth, or another stem.
    """
    any_layout = next(iter(layouts.values()))
    start = any_layout.foreign_name("backbone.layer1.0.conv1.weight")[: -len("layer1.0.conv1.weight")]
    pattern = re.compile(re.escape(start) + r"layer([1-4])\.(\d+)\.")
    blocks = [0, 0, 0, 0]
    for match in filter(None, map(pattern.match, state)):
        layer, block = int(match[1]) - 1, int(match[2])
        blocks[layer] = max(blocks[layer], block + 1)
    first, last = (state.get(f"{start}layer1.0.conv{number}.weight") for number in (1, 3))
    expected = f"Expected ResNet-{'18, -34, -' if basic else ''}50 or -101"
    if first is None or not any(blocks):
        raise WeightsError(f"{path}: not a ResNet, it has no {start}layer1.0.conv1.weight. {expected}.")
    found = ("bottleneck" if last is not None else "basic", tuple(blocks))
    known: dict[tuple[str, tuple[int, ...]], str] = {
        ("basic" if name in BASIC_BACKBONES else "bottleneck", layers): name for name, layers in BACKBONES.items()
    }
    depth = known.get(found)
    if depth is None or (depth in BASIC_BACKBONES and not basic):
        raise WeightsError(
            f"{path}: a ResNet of {', '.join(map(str, blocks))} {found[0]} blocks. {expected}, whose bottleneck blocks "
            "are (3, 4, 6, 3) and (3, 4, 23, 3)."
        )
    width = _channels(first)
    if not 0 < width <= _PUBLISHED_WIDTH or (last is not None and _channels(last) != 4 * width):
        raise WeightsError(f"{path}: a Wide ResNet or ResNeXt ({depth} blocks of {width} channels). Expected ResNet.")
    return {"backbone": depth, "stem": _detect_stem(state, layouts, width, path), "width": width}


def _detect_stem(state: Mapping[str, Tensor], layouts: Mapping[str, Layout], width: int, path: str) -> str:
    channels = {"conv7": (width, 7), "deep": (width, 3), "deep-narrow": (width // 2, 3)}
    found = "missing"
    for stem, layout in layouts.items():
        convolution = state.get(layout.foreign_name("backbone.stem.conv1.weight"))
        if convolution is None or convolution.dim() != 4:
            continue
        found = f"{convolution.shape[-1]}x{convolution.shape[-1]} with {convolution.shape[0]} channels"
        if (convolution.shape[0], convolution.shape[-1]) == channels[stem]:
            return stem
    raise WeightsError(f"{path}: the first convolution is {found}. Expected that of a stem {', '.join(STEMS)}.")


def detect_heads(state: Mapping[str, Tensor], layout: Layout, path: str) -> dict[str, Any]:
    """Detect `num_classes` and `auxiliary_head`, arguments of build_model. WeightsError without a classifier."""
    name = layout.foreign_name("head.classifier.weight")
    if name not in state:
        raise WeightsError(f"{path}: has no classifier ({name}), so it is incomplete. Copy or download it again.")
    num_classes = _channels(state[name])
    if not 0 < num_classes <= MAX_CLASSES:
        raise WeightsError(f"{path}: has {num_classes} classes ({name}). Expected 1 to {MAX_CLASSES}.")
    auxiliary = layout.foreign_name("auxiliary_head.classifier.weight")
    return {"num_classes": num_classes, "auxiliary_head": auxiliary in state}


def _channels(convolution: Tensor) -> int:
    """Return the output channels of convolution weights, 0 for another tensor."""
    return convolution.shape[0] if convolution.dim() == 4 else 0


def _is_batch_norm(ours: str) -> bool:
    module = ours.rsplit(".", 2)[-2] if ours.count(".") > 1 else ""
    return module.startswith("bn") or ".downsample.1." in ours
