"""Saving and loading of model directories: all that is needed to use a trained model, without pickle.

`model.safetensors` holds the weights; `config.json` the architecture, normalisation, classes, palette, training
settings, scores and package versions.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import pspnet
from pspnet.artifact.file_names import CONFIG_NAME, MODEL_FORMAT, WEIGHTS_NAME
from pspnet.classes import MAX_CLASSES, default_class_names, palette_for
from pspnet.errors import WeightsError
from pspnet.models.build import ALGORITHMS, build_algorithm
from pspnet.models.constants import BASIC_BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.models.weights import load_state_strict
from pspnet.system.atomic_files import atomic_write

if TYPE_CHECKING:  # endpoints lack the packages of the settings
    from pspnet.config.schema import Config


@dataclass(frozen=True)
class Artifact:
    """A loaded model directory. `palette` is (256, 3) uint8; `model` is in evaluation mode, on the CPU.

    `architecture` holds the arguments of `build_algorithm` except `algorithm`; `source` is the origin of imported
    weights.
    """

    model: SegmentationNetwork
    class_names: tuple[str, ...]
    palette: np.ndarray
    architecture: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "psp"
    source: dict[str, Any] = field(default_factory=dict)


def architecture_of(config: Config) -> dict[str, Any]:
    """Return the arguments of build_algorithm for a config, except the algorithm, including normalisation."""
    architecture: dict[str, Any] = {"num_classes": config.num_classes, "backbone": config.backbone}
    if config.algorithm == "psp":
        architecture.update(
            stem=config.stem,
            output_stride=config.output_stride,
            align_corners=config.align_corners,
            contract_dilation=config.contracts_dilation,
            width=config.width,
            dropout=config.dropout,
        )
        # Absent at their defaults, so that older versions read the model directory.
        if config.dilations is not None:
            architecture["dilations"] = list(config.dilations)
        if config.dilate_both is False and config.backbone in BASIC_BACKBONES:
            architecture["dilate_both"] = False
    architecture.update(auxiliary_head=config.aux_weight > 0, mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))
    return architecture


def class_names_of(config: Config) -> tuple[str, ...]:
    """Return the config's class names or the defaults."""
    return tuple(config.class_names) if config.class_names else default_class_names(config.num_classes)


def save_artifact(
    directory: Path, model: nn.Module, config: Config, scores: dict[str, Any], trained: dict[str, Any]
) -> None:
    """Write a model directory atomically. Raises OSError if writing fails.

    Args:
        scores: of the validation channel, as in metrics.json.
        trained: training progress (epoch, steps, seconds).
    """
    class_names = class_names_of(config)
    content = {
        "algorithm": config.algorithm,
        "architecture": architecture_of(config),
        "classes": list(class_names),
        "palette": palette_for(class_names)[: config.num_classes].tolist(),
        "training": {"config": config.to_json(), **trained},
        "scores": scores,
    }
    _write(directory, model, content)


def save_imported(
    directory: Path,
    model: nn.Module,
    architecture: dict[str, Any],
    class_names: tuple[str, ...],
    palette: np.ndarray | None,
    source: dict[str, Any],
    algorithm: str = "psp",
    **extra: Any,
) -> None:
    """Write a model directory for imported weights. Raises OSError as `save_artifact`.

    Args:
        architecture: arguments of build_algorithm of the model, except `algorithm`.
        palette: (classes, 3) uint8 colours; None for the default of the class names.
        source: origin of the weights, JSON-serialisable.
        extra: more entries of config.json.
    """
    colours = palette_for(class_names)[: len(class_names)] if palette is None else palette
    content = {
        "algorithm": algorithm,
        "architecture": architecture,
        "classes": list(class_names),
        "palette": colours.tolist(),
        "training": {},
        "scores": {},
        "source": source,
        **extra,
    }
    _write(directory, model, content)


def _write(directory: Path, model: nn.Module, content: dict[str, Any]) -> None:
    versions = {"pspnet": pspnet.__version__, "torch": torch.__version__, "python": platform.python_version()}
    content = {"format": MODEL_FORMAT, **content, "versions": versions}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_write(directory / WEIGHTS_NAME) as weights_path, atomic_write(directory / CONFIG_NAME) as config_path:
        try:
            save_file(state, str(weights_path), metadata={"format": "pt"})
        except SafetensorError as error:  # a full disk, for example
            raise OSError(f"{directory / WEIGHTS_NAME}: could not be written ({error}).") from error
        config_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_artifact(directory: Path) -> Artifact:
    """Read a model directory. Raises WeightsError if it is missing, damaged or of another format."""
    content = _read_config(directory)
    algorithm, architecture = content.get("algorithm", "psp"), content["architecture"]
    try:
        with _skip_initialisation():
            model = build_algorithm(algorithm, **architecture)
    except (TypeError, ValueError, RuntimeError) as error:  # PspnetError, or PyTorch's error for an invalid value
        raise WeightsError(
            f"{directory / CONFIG_NAME}: describes an architecture that this version cannot build ({error})."
        ) from error
    weights_path = directory / WEIGHTS_NAME
    try:
        state = load_file(str(weights_path))
    except (SafetensorError, OSError, ValueError) as error:
        found = "is missing" if not weights_path.is_file() else f"is damaged or truncated ({error})"
        raise WeightsError(f"{weights_path}: the weights file {found}. Copy the model directory again.") from error
    load_state_strict(model, state, str(weights_path))
    class_names, palette = _labels(content)
    training, scores, source = (content.get(key, {}) for key in ("training", "scores", "source"))
    return Artifact(model.eval(), class_names, palette, architecture, training, scores, algorithm, source)


def read_labels(directory: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return class names and (256, 3) uint8 palette without loading the model. WeightsError as `load_artifact`."""
    return _labels(_read_config(directory))


def _labels(content: dict[str, Any]) -> tuple[tuple[str, ...], np.ndarray]:
    class_names = tuple(content["classes"])
    palette = palette_for(class_names)
    palette[: len(content["palette"])] = np.array(content["palette"], dtype=np.uint8)
    return class_names, palette


def load_trained(directory: Path) -> Artifact:
    """Run `load_artifact` and raise WeightsError also for an imported backbone with random heads."""
    artifact = load_artifact(directory)
    if artifact.source.get("heads") == "random":
        raise WeightsError(
            f"{directory}: holds an imported backbone with random heads, which cannot predict. Train it first: "
            f"train.py --model {directory} with the settings that `pspnet import` printed."
        )
    return artifact


@contextlib.contextmanager
def _skip_initialisation() -> Iterator[None]:
    """Leave the parameters of modules uninitialised and draw no random numbers.

    Strict loading ensures that the weights file sets every parameter.
    """
    try:
        from torch.overrides import TorchFunctionMode
    except ImportError:
        yield
        return
    if hasattr(torch.overrides, "push_torch_function_mode"):  # PyTorch 1.12, where modes are not context managers
        yield
        return

    class Skip(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in _RANDOM_FILLS or getattr(function, "__module__", "") == nn.init.__name__:
                return args[0] if args else (kwargs or {})["tensor"]
            return function(*args, **(kwargs or {}))

    with Skip():
        yield


_RANDOM_FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_)


def read_algorithm(directory: Path) -> str:
    """Return the algorithm of a model directory without loading the model. WeightsError as `load_artifact`."""
    return str(_read_config(directory).get("algorithm", "psp"))


def read_architecture(directory: Path) -> dict[str, Any]:
    """Return the arguments of build_algorithm without loading the model. WeightsError as `load_artifact`."""
    return dict(_read_config(directory)["architecture"])


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise WeightsError(
            f"{directory}: not a model directory, it has no {CONFIG_NAME}. Expected what training writes to model_dir: "
            f"{WEIGHTS_NAME} and {CONFIG_NAME}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}). Copy the model directory again.") from error
    problem = _config_problem(content)
    if problem:
        raise WeightsError(f"{path}: {problem}")
    result: dict[str, Any] = content
    return result


def _config_problem(content: Any) -> str | None:
    if not isinstance(content, dict) or content.get("format") != MODEL_FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        return f"expected the format {MODEL_FORMAT}, found {found!r}: written by another program or a newer version."
    if content.get("algorithm", "psp") not in ALGORITHMS:
        found = f"{content['algorithm']!r}: written by a newer version"
        return f"expected `algorithm` to be one of {', '.join(ALGORITHMS)}, found {found}."
    architecture, classes, palette = (content.get(key) for key in ("architecture", "classes", "palette"))
    if not isinstance(architecture, dict):
        return "`architecture` must be a mapping with the arguments of build_model."
    problem = _architecture_problem(architecture)
    if problem:
        return problem
    count = architecture["num_classes"]
    if not isinstance(classes, list) or len(classes) != count or not all(isinstance(name, str) for name in classes):
        return f"`classes` must be a list of {count} names, one for each class of the architecture."
    if not isinstance(palette, list) or len(palette) != count or not all(_is_colour(entry) for entry in palette):
        return f"`palette` must be a list of {count} colours of three numbers 0..255."
    return None


# Argument of build_algorithm -> validity and description. Bounds keep foreign files from claiming all memory.
_ARCHITECTURE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_classes": (lambda n: type(n) is int and 1 <= n <= MAX_CLASSES, f"a whole number from 1 to {MAX_CLASSES}"),
    "backbone": (lambda value: isinstance(value, str), "a name"),
    "stem": (lambda value: isinstance(value, str), "a name"),
    "output_stride": (lambda value: value in (8, 16, 32), "8, 16 or 32"),
    "align_corners": (lambda value: isinstance(value, bool), "true or false"),
    "auxiliary_head": (lambda value: isinstance(value, bool), "true or false"),
    "width": (lambda value: type(value) is int and 1 <= value <= 1024, "a whole number from 1 to 1024"),
    "dropout": (lambda value: _is_number(value) and 0 <= value < 1, "a number from 0 to 1"),
    "mean": (lambda value: _are_numbers(value), "three numbers"),
    "std": (lambda value: _are_numbers(value), "three numbers"),
    "contract_dilation": (lambda value: isinstance(value, bool), "true or false"),
    "dilations": (
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(type(n) is int and 1 <= n <= 8 for n in value)
        ),
        "two whole numbers from 1 to 8",
    ),
    "dilate_both": (lambda value: isinstance(value, bool), "true or false"),
}


def _architecture_problem(architecture: dict[str, Any]) -> str | None:
    if "num_classes" not in architecture:
        return "`architecture` has no num_classes."
    for key, value in architecture.items():
        if key not in _ARCHITECTURE:
            return f"`architecture` has the unknown key {key[:40]!r}: written by another program or a newer version."
        is_valid, expected = _ARCHITECTURE[key]
        if not is_valid(value):
            return f"`architecture.{key}` is {repr(value)[:60]}: expected {expected}."
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(part) for part in value)


def _is_colour(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in entry)
    )
