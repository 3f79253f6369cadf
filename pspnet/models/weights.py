"""Loading of torchvision's ImageNet backbones and strict loading of state dicts."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pspnet.errors import WeightsError
from pspnet.models.inert_pickle import load_inert

# Backbone -> torchvision's enumeration of its weights.
_TORCHVISION_ENUMS = {
    "resnet-18": "ResNet18_Weights",
    "resnet-34": "ResNet34_Weights",
    "resnet-50": "ResNet50_Weights",
    "resnet-101": "ResNet101_Weights",
}

# Most names of each kind in a message.
_LISTED = 5


def load_imagenet_backbone(backbone: nn.Module, name: str, weights: str = "IMAGENET1K_V1") -> None:
    """Load torchvision's ImageNet weights into a backbone, from torch.hub's cache or by download.

    The download is checked against the hash in the file's name. On an error the backbone is unchanged.

    Args:
        backbone: with ResNet's names, stem "conv7", width 64 and any output stride.
        name: "resnet-18", "resnet-34", "resnet-50" or "resnet-101".
        weights: "IMAGENET1K_V1" (the original recipe, used by published PSPNets) or "IMAGENET1K_V2", which exists for
            resnet-50 and resnet-101 only.

    Raises:
        WeightsError: an unknown name, a deep stem, a failed download, a damaged file, or weights that do not match.
    """
    if backbone.stem_name != "conv7":
        raise WeightsError(
            f"stem is {backbone.stem_name!r}, for which torchvision publishes no ImageNet weights: "
            "use stem conv7, or `--use_pretrained_model False` to start from random weights."
        )
    url = _imagenet_url(name, weights)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        _download(url, path)
    state = _map_from_torchvision(_read(url, path))
    load_state_strict(backbone, state, f"{path} ({name}, {weights})")


def load_state_strict(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Load a state dict that must have exactly the module's names and shapes.

    Args:
        module: unchanged on an error.
        state: name -> tensor.
        source: origin of the state for messages, usually a path.

    Raises:
        WeightsError: entries are missing, unexpected or of another shape; the message lists the first few of each.
    """
    expected = module.state_dict()
    problems = describe_mismatch(expected, state)
    if problems:
        found = "\n".join(f"  {line}" for line in problems)
        raise WeightsError(
            f"{source} does not match the model ({len(expected)} entries expected, {len(state)} found):\n{found}\n"
            "It was saved from another architecture: use the backbone, stem, num_classes and heads it was saved with."
        )
    module.load_state_dict(state, strict=True)


def describe_mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Describe missing, unexpected and wrongly shaped entries of `found`, one text per kind; empty if all match."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} is {_shape(found[name])}, expected {_shape(value)}"
        for name, value in expected.items()
        if name in found and _shape(found[name]) != _shape(value)
    ]
    problems = [
        _listing("missing", missing),
        _listing("unexpected", unexpected),
        _listing("of another shape", reshaped),
    ]
    return [problem for problem in problems if problem]


def _imagenet_url(name: str, weights: str) -> str:
    """Return the download URL from torchvision's tables."""
    if name not in _TORCHVISION_ENUMS:
        raise WeightsError(f"backbone is {name!r}: ImageNet weights exist for {', '.join(_TORCHVISION_ENUMS)}.")
    # Imported lazily: models are built, loaded and served without torchvision.
    import torchvision.models

    urls = {member.name: str(member.url) for member in getattr(torchvision.models, _TORCHVISION_ENUMS[name])}
    if weights not in urls:
        raise WeightsError(f"weights is {weights!r}: expected one of {', '.join(urls)} for backbone {name}.")
    return urls[weights]


def _download(url: str, path: Path) -> None:
    """Download a file into torch.hub's cache and check the hash in its name. A failure leaves no file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # torchvision's file names end in the first digits of the SHA-256: resnet50-0676ba61.pth.
        hash_prefix = path.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # OSError: URLError, timeout, full disk, missing permission. RuntimeError: wrong hash.
        raise WeightsError(
            f"ImageNet weights could not be downloaded: {type(error).__name__}: {error}\n{_remedy(url, path)}"
        ) from error


def _read(url: str, path: Path) -> Mapping[str, Tensor]:
    """Read the state dict of a cached file."""
    try:
        state = load_inert(path)
        tensors = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    except Exception as error:  # a damaged pickle can raise any exception
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
        raise WeightsError(_damaged(url, path, reason)) from error
    if not tensors:
        raise WeightsError(_damaged(url, path, "it has no state dict"))
    result: Mapping[str, Tensor] = state
    return result


def _map_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map torchvision's ResNet names to ours: drop the classifier, prefix the stem with `stem.`.

    Unknown names are kept, so that strict loading reports them.
    """
    mapped: dict[str, Tensor] = {}
    for name, value in state.items():
        part = name.split(".", 1)[0]
        if part == "fc":
            continue
        target = f"stem.{name}" if part in ("conv1", "bn1") else name
        mapped[target] = value
        if target.endswith(".running_var"):
            # Files from before PyTorch 0.4.1 lack this counter. Only batch norm without momentum uses it.
            mapped.setdefault(target.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return mapped


def _damaged(url: str, path: Path, reason: str) -> str:
    size = os.path.getsize(path)
    return (
        f"{path} ({size:,} bytes) is damaged or not a weights file: {reason}\n"
        f"Delete it to download it again.\n{_remedy(url, path)}"
    )


def _remedy(url: str, path: Path) -> str:
    return (
        f"Without a connection, download {url}\n"
        f"on another machine and copy it to {path}\n"
        "(TORCH_HOME changes the folder), or train from random weights with `--use_pretrained_model False`."
    )


def _shape(value: object) -> str:
    """Format a shape for a message: "64x3x7x7", "scalar", or the type of a value that is not a tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "x".join(str(side) for side in value.shape) or "scalar"


def _listing(kind: str, entries: list[str]) -> str:
    """Format entries as "3 missing: a, b, c" with the first few names; "" if there are none."""
    if not entries:
        return ""
    rest = len(entries) - _LISTED
    return f"{len(entries)} {kind}: {', '.join(entries[:_LISTED])}" + (f" and {rest} more" if rest > 0 else "")
