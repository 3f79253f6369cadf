"""Cases of the inference benchmark: the plain network, our runtimes, networks of other libraries, GluonCV.

    plain                   PSPNet as published, eager, float32
    plain-compile           the same through torch.compile
    eager, compile, onnxruntime, openvino, openvino:int8 ...
                            the runtimes of pspnet.inference.runtimes; some need an export of the model
    torchvision-deeplabv3   torchvision's deeplabv3_resnet50, eager
    smp-pspnet, smp-deeplabv3
                            segmentation-models-pytorch's with its defaults, eager; its PSPNet is a much smaller one
    gluoncv                 GluonCV's PSPNet on MXNet, the built-in algorithm's engine, in its own Python 3.8

All map the same (N, H, W, 3) uint8 images to (N, H, W) class ids, both in CPU memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.support.gluoncv_process import GluonProcess
from benchmarks.support.library_networks import build_smp
from pspnet.artifact.model_directory import architecture_of, load_artifact, save_artifact
from pspnet.benchmarking.baselines import NetworkRuntime, network_flops, plain_network, settle_statistics
from pspnet.benchmarking.benchmark import PLAIN
from pspnet.benchmarking.benchmark_request import RUNTIMES, Size
from pspnet.benchmarking.timed_frames import make_images
from pspnet.config.schema import Config
from pspnet.errors import ConfigError, PspnetError
from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.exporter import export_model
from pspnet.inference.runtimes.factory import Source, open_runtime
from pspnet.models.build import build_algorithm, build_model

_LIBRARIES: dict[str, Callable[[int], nn.Module]] = {
    "torchvision-deeplabv3": lambda classes: build_algorithm("deeplab", num_classes=classes),
    "smp-pspnet": lambda classes: build_smp("PSPNet", classes),
    "smp-deeplabv3": lambda classes: build_smp("DeepLabV3", classes),
}
GLUONCV = "gluoncv"
CASES = (PLAIN, "plain-compile", *RUNTIMES, *_LIBRARIES, GLUONCV)


@dataclass(frozen=True)
class Subject:
    """The model of the cases.

    model_dir: a model directory, with the exports that exported runtimes need.
    gluon_python: an interpreter that has gluoncv, if available.
    """

    model_dir: Path
    device: torch.device
    num_classes: int
    gluon_python: Path | None = None

    def network(self) -> nn.Module:
        """A new copy of the model's network."""
        return load_artifact(self.model_dir).model


def open_case(name: str, subject: Subject) -> Any:
    """Open a case: a Runtime, or a GluonProcess for gluoncv. PspnetError if it cannot run here."""
    if name in (PLAIN, "plain-compile"):
        network = plain_network(subject.network())
        return NetworkRuntime(name, network, subject.device, compiled=name != PLAIN)
    if name in RUNTIMES:
        return open_runtime(name, Source(subject.network, subject.device, model_dir=subject.model_dir))
    if name in _LIBRARIES:
        torch.manual_seed(0)
        return NetworkRuntime(name, _LIBRARIES[name](subject.num_classes), subject.device)
    if name != GLUONCV:
        raise ConfigError(f"unknown case {name!r}; use {', '.join(CASES)}.")
    if subject.device.type != "cpu":
        raise ConfigError("MXNet is measured on CPUs only.")
    if subject.gluon_python is None:
        raise ConfigError("no Python with mxnet and gluoncv was given (--gluon_python).")
    return GluonProcess(subject.gluon_python, subject.num_classes, torch.get_num_threads())


def is_ours(name: str) -> bool:
    """True if a case runs the subject's own network."""
    return name in (PLAIN, "plain-compile", *RUNTIMES)


def case_flops(name: str, subject: Subject, case: Any, size: Size, batch: int = 1) -> int:
    """Operations of a forward pass of the case's network in its plain form."""
    if is_ours(name):
        network = subject.network()
    elif name == GLUONCV:
        network = build_model(subject.num_classes, stem="deep", align_corners=True, contract_dilation=True)
    else:
        network = case.network
    return network_flops(network, *size, batch)


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
            # A missing package is reported when the runtime is opened.
            with contextlib.suppress(PspnetError):
                export_model(ExportRequest(model_dir=folder, format=format), report=lambda _: None)
        yield Path(folder)
