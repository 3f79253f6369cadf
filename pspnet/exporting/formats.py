"""Export formats: interface, lookup by name and required packages."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from typing import Any, Callable, Protocol, Tuple

import numpy as np

from pspnet.errors import ConfigError

Run = Callable[[np.ndarray], Tuple[np.ndarray, np.ndarray]]
"""An opened graph: (N, 3, H, W) uint8 RGB -> mask (N, H, W) uint8, logits (N, K, h, w) float32."""


class Format(Protocol):
    """A module that writes and opens graphs of one format."""

    PACKAGES: tuple[str, ...]

    def write(self, network: Any, folder: Path) -> str:
        """Write an ExportNetwork into a folder; returns the name of the file that a runtime opens."""
        ...

    def open_graph(self, path: Path) -> Run:
        """Open a file that `write` wrote, ready to run on the CPU."""
        ...


class QuantisableFormat(Format, Protocol):
    """A format whose in-memory models NNCF can quantise."""

    def convert(self, network: Any) -> Any:
        """Convert an ExportNetwork to an in-memory model."""
        ...

    def save(self, model: Any, folder: Path) -> str:
        """Write a model into a folder; returns the name of the file that a runtime opens."""
        ...

    def run_of(self, model: Any) -> Run:
        """Open an in-memory model, ready to run on the CPU."""
        ...


_MODULES = {"onnx": "onnx", "openvino": "openvino", "torchscript": "torch_script", "torch_export": "torch_program"}
_EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "nncf": "openvino"}


def find_format(name: str) -> Format:
    """The module of a format; ConfigError with the install command if a package is missing."""
    found: Format = _find(name)
    return found


def find_quantisable_format(name: str) -> QuantisableFormat:
    """The module of onnx or openvino; ConfigError for a missing package."""
    found: QuantisableFormat = _find(name)
    require("nncf", f"--format {name} --int8")
    return found


def _find(name: str) -> Any:
    module: Any = importlib.import_module(f"pspnet.exporting.{_MODULES[name]}")
    for package in module.PACKAGES:
        require(package, f"--format {name}")
    return module


def require(package: str, what: str) -> None:
    """Raise ConfigError if an optional package cannot be imported."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the package {package}, which cannot be imported ({error}); install it: "
            f"pip install 'pspnet[{_EXTRAS[package]}]'."
        ) from error


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of this project, of torch and of the given packages."""
    names = ("pspnet", "torch", *packages)
    found = {}
    for name in names:
        module = importlib.import_module(name)
        found[name] = str(getattr(module, "__version__", None) or importlib.metadata.version(name))
    return found
