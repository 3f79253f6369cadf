"""The cases of the inference benchmarks by name: the plain network, our runtimes, other networks, another engine.

    plain                   PSPNet as published, eager, float32
    plain-compile           the same through torch.compile
    eager, compile, onnxruntime, openvino, openvino:int8 ...
                            the runtimes of pspnet.inference.runtimes; exported ones need the model's exports
    torchvision-deeplabv3   torchvision's deeplabv3_resnet50, eager
    smp-pspnet, smp-deeplabv3
                            segmentation-models-pytorch's with its defaults, eager; its PSPNet is a much smaller one
    gluoncv                 GluonCV's PSPNet on MXNet, the built-in algorithm's engine, in its own Python 3.8

All take the same (N, H, W, 3) uint8 images and give (N, H, W) class ids, in the memory of the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.support.gluoncv_process import GluonProcess
from benchmarks.support.library_networks import build_smp
from pspnet.artifact.model_directory import load_artifact
from pspnet.benchmarking.baselines import NetworkRuntime, network_flops, plain_network
from pspnet.benchmarking.timed_frames import Size
from pspnet.errors import ConfigError
from pspnet.inference.runtimes.base import AUTO, NAMES
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.models.build import build_algorithm, build_model

PLAIN = "plain"
RUNTIMES = tuple(name for name in NAMES if name != AUTO)
_LIBRARIES: dict[str, Callable[[int], nn.Module]] = {
    "torchvision-deeplabv3": lambda classes: build_algorithm("deeplab", num_classes=classes),
    "smp-pspnet": lambda classes: build_smp("PSPNet", classes),
    "smp-deeplabv3": lambda classes: build_smp("DeepLabV3", classes),
}
GLUONCV = "gluoncv"
CASES = (PLAIN, "plain-compile", *RUNTIMES, *_LIBRARIES, GLUONCV)


@dataclass(frozen=True)
class Subject:
    """What the cases are opened for.

    model_dir: a model directory; the runtimes of exports take its exports.
    gluon_python: an interpreter that has gluoncv; None where there is none.
    """

    model_dir: Path
    device: torch.device
    num_classes: int
    gluon_python: Path | None = None

    def network(self) -> nn.Module:
        """The model's network, read anew."""
        return load_artifact(self.model_dir).model


def open_case(name: str, subject: Subject) -> Any:
    """The case, ready to be prepared for a size. PspnetError says why one cannot run here.

    It has the runtimes' interface, but for gluoncv, which is a GluonProcess.
    """
    if name in (PLAIN, "plain-compile"):
        network = plain_network(subject.network())
        return NetworkRuntime(name, network, subject.device, compiled=name != PLAIN)
    if name in RUNTIMES:
        return open_runtime(name, Source(subject.network, subject.device, model_dir=subject.model_dir))
    if name in _LIBRARIES:
        torch.manual_seed(0)
        return NetworkRuntime(name, _LIBRARIES[name](subject.num_classes), subject.device)
    if name != GLUONCV:
        raise ConfigError(f"{name!r} is no case; use {', '.join(CASES)}.")
    if subject.device.type != "cpu":
        raise ConfigError("MXNet is measured on CPUs only.")
    if subject.gluon_python is None:
        raise ConfigError("no Python with mxnet and gluoncv was given (--gluon_python).")
    return GluonProcess(subject.gluon_python, subject.num_classes, torch.get_num_threads())


def is_ours(name: str) -> bool:
    """Whether a case computes the function of the subject's own network."""
    return name in (PLAIN, "plain-compile", *RUNTIMES)


def case_flops(name: str, subject: Subject, case: Any, size: Size, batch: int = 1) -> int:
    """Operations of a case's network in its plain form."""
    if is_ours(name):
        network = subject.network()
    elif name == GLUONCV:
        network = build_model(subject.num_classes, stem="deep", align_corners=True, contract_dilation=True)
    else:
        network = case.network
    return network_flops(network, *size, batch)
