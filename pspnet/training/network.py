"""Network of a Config with its initial weights: random, ImageNet, another program's, or a trained model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import torch
from torch import nn

from pspnet.artifact.bundle import unpacked
from pspnet.artifact.model_directory import architecture_of, load_artifact, read_architecture
from pspnet.artifact.published import find_model
from pspnet.config.fields import IMAGENET_WEIGHTS
from pspnet.config.schema import Config
from pspnet.errors import WeightsError
from pspnet.models.build import build_algorithm
from pspnet.models.imports.programs import read_backbone
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.models.weights import load_imagenet_backbone, load_state_strict
from pspnet.training.state.checkpoint import load_checkpoint
from pspnet.training.state.resume import find_checkpoint

# Dilation settings and their values in model directories, checkpoints and files that lack them.
_DILATION = {"contract_dilation": False, "dilations": None, "dilate_both": True}

# Images in, logits or (logits, auxiliary logits) out.
BuildNetwork = Callable[[Config, torch.device], nn.Module]


def resolve_dilation(config: Config) -> Config:
    """Return the config with the dilation settings that are not given, or auto, replaced by their values.

    They are those of the checkpoint that the run resumes from, else of `model` or a file of pretrained weights, else
    they depend on whether the backbone starts from torchvision's weights. WeightsError for a file that cannot be read.
    """
    unset = [key for key in _DILATION if getattr(config, key) in ("auto", None)]
    if not unset:
        return config
    found = {**_DILATION, "contract_dilation": config.contracts_dilation and config.algorithm == "psp"}
    if config.algorithm == "psp":
        found.update(_stored_dilation(config) or {})
    return config.replace(**{key: found[key] for key in unset})


def _stored_dilation(config: Config) -> Mapping[str, Any] | None:
    """Read the dilation settings of the checkpoint or the files that the weights come from; None without any."""
    checkpoint = find_checkpoint(config.resume, Path(config.checkpoint_dir))
    if checkpoint is not None:
        stored: Mapping[str, Any] = load_checkpoint(checkpoint, tensors=False).get("config", {})
    elif config.model is not None:
        with unpacked(find_model(config.model)) as folder:
            stored = read_architecture(folder)
    elif config.use_pretrained_model and not config.from_imagenet:
        stored = read_backbone(Path(config.pretrained_weights)).architecture
        if stored.get("output_stride") != config.output_stride:
            stored = {**stored, "dilations": None}  # they belong to the strides of that file
    else:
        return None
    return {key: stored.get(key, default) for key, default in _DILATION.items()}


def build_network(config: Config, device: torch.device) -> SegmentationNetwork:
    """Build the network with its initial weights: from a model channel, ImageNet (backbone), or random by seed."""
    torch.manual_seed(config.seed)
    architecture = architecture_of(config)
    network = build_algorithm(config.algorithm, **architecture)
    if config.model is not None:
        _load_model_channel(network, config.algorithm, architecture, Path(config.model))
    elif config.use_pretrained_model:
        _load_pretrained(network, architecture, config.pretrained_weights)
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network.to(device)


def _load_pretrained(network: SegmentationNetwork, architecture: dict[str, Any], weights: str) -> None:
    """Load the backbone's weights: by torchvision's name, or from another program's file."""
    if weights in IMAGENET_WEIGHTS:
        load_imagenet_backbone(network.backbone, architecture["backbone"], weights)
        return
    foreign = read_backbone(Path(weights))
    here = {"stem": "conv7", **architecture}
    wrong = [
        f"{key} is {foreign.architecture[key]} there and {here[key]} here"
        for key in ("backbone", "stem", "mean", "std")
        if key in foreign.architecture and foreign.architecture[key] != here[key]
    ]
    if wrong:
        raise WeightsError(
            f"pretrained_weights: {weights} holds another backbone: {'; '.join(wrong)}. Change these settings, or use "
            "other weights."
        )
    foreign.load_backbone(network.backbone)


def _load_model_channel(
    network: SegmentationNetwork, algorithm: str, architecture: dict[str, Any], directory: Path
) -> None:
    with unpacked(find_model(directory)) as folder:
        artifact = load_artifact(folder)
    there, here = {**artifact.architecture, "algorithm": artifact.algorithm}, {**architecture, "algorithm": algorithm}
    there, here = ({**_DILATION, **values} for values in (there, here))
    keys = (
        "backbone", "stem", "num_classes", "width", "auxiliary_head", "align_corners", "output_stride",
        *_DILATION, "mean", "std",
    )  # fmt: skip
    wrong = [
        f"{key} is {there.get(key)} there and {here[key]} here"
        # Another algorithm has other settings, so comparing them adds nothing.
        for key in (("algorithm",) if artifact.algorithm != algorithm else keys)
        if key in here and there.get(key) != here[key]
    ]
    if wrong:
        raise WeightsError(
            f"channel model: {directory} holds another architecture: {'; '.join(wrong)}. Incremental training needs "
            "the same: change these settings, or leave the model channel out."
        )
    load_state_strict(network, artifact.model.state_dict(), str(directory))
