"""Loading of weights: torchvision's ImageNet backbones by name, and strict state dicts with readable mismatches."""

from __future__ import annotations

import http.client
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pspnet.errors import WeightsError

# Our backbone -> torchvision's enumeration of its weights.
_TORCHVISION_ENUMS = {"resnet-50": "ResNet50_Weights", "resnet-101": "ResNet101_Weights"}

# Names that a message lists of each kind before it only counts them.
_LISTED = 5


def load_imagenet_backbone(backbone: nn.Module, name: str, weights: str = "IMAGENET1K_V1") -> None:
    """Load torchvision's ImageNet weights into a backbone, from torch.hub's cache or by download.

    The download is checked against the hash in the file's name. Every parameter and statistic of the backbone is
    set, or none.

    Args:
        backbone: a published one: stem "conv7", width 64, any output stride, and the names of ResNet.
        name: "resnet-50" or "resnet-101".
        weights: "IMAGENET1K_V1" (He et al.'s recipe, what published PSPNets start from) or "IMAGENET1K_V2".

    Raises:
        WeightsError: an unknown name, a deep stem, a download that fails, a damaged file, or weights that do not fit.
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
    """Load a state dict that must hold exactly the module's names and shapes.

    Args:
        module: is left as it was when the state does not fit.
        state: name -> tensor.
        source: where the state came from, for the message: a path, usually.

    Raises:
        WeightsError: names the missing, the unexpected and the wrongly shaped entries, the first few of each.
    """
    own = module.state_dict()
    problems = describe_mismatch(own, state)
    if problems:
        found = "\n".join(f"  {line}" for line in problems)
        raise WeightsError(
            f"{source} does not fit the model ({len(own)} entries expected, {len(state)} found):\n{found}\n"
            "It was saved from another architecture: use the backbone, stem, num_classes and heads it was made with."
        )
    module.load_state_dict(state, strict=True)


def describe_mismatch(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What is missing, unexpected or of another shape in `found`, one text for each kind; empty where all fits."""
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
    """Address of the weights, from torchvision's own tables."""
    if name not in _TORCHVISION_ENUMS:
        raise WeightsError(f"backbone is {name!r}: ImageNet weights exist for {', '.join(_TORCHVISION_ENUMS)}.")
    # Imported here so that a model can be built, loaded and served without torchvision.
    import torchvision.models

    urls = {member.name: str(member.url) for member in getattr(torchvision.models, _TORCHVISION_ENUMS[name])}
    if weights not in urls:
        raise WeightsError(f"weights is {weights!r}: expected one of {', '.join(urls)}.")
    return urls[weights]


def _download(url: str, path: Path) -> None:
    """Fetch a file into torch.hub's cache, checked against the hash in its name; nothing stays behind on failure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Like torchvision's file names: resnet50-0676ba61.pth begins its SHA-256 with 0676ba61.
        hash_prefix = path.stem.rsplit("-", 1)[1]
        torch.hub.download_url_to_file(url, str(path), hash_prefix, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # OSError covers URLError, timeouts, a full disk and a folder without permission; RuntimeError is a wrong hash.
        raise WeightsError(
            f"ImageNet weights could not be downloaded: {type(error).__name__}: {error}\n{_remedy(url, path)}"
        ) from error


def _read(url: str, path: Path) -> Mapping[str, Tensor]:
    """State dict of a cached file."""
    # weights_only came with torch 1.13; without it a file could run code while it is read.
    options = {"weights_only": True} if "weights_only" in inspect.signature(torch.load).parameters else {}
    try:
        state = torch.load(str(path), map_location="cpu", **options)
        tensors = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    except Exception as error:  # a damaged pickle can raise anything; torch documents no type
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
        raise WeightsError(_damaged(url, path, reason)) from error
    if not tensors:
        raise WeightsError(_damaged(url, path, "it holds no state dict"))
    result: Mapping[str, Tensor] = state
    return result


def _map_from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ResNet names -> ours: the classifier is dropped, the stem moves under `stem.`, layers keep theirs.

    Any other name passes through, to be reported by the strict load.
    """
    mapped: dict[str, Tensor] = {}
    for name, value in state.items():
        part = name.split(".", 1)[0]
        if part == "fc":
            continue
        target = f"stem.{name}" if part in ("conv1", "bn1") else name
        mapped[target] = value
        if target.endswith(".running_var"):
            # Files from before PyTorch 0.4.1 lack this counter, which only a batch norm without momentum reads.
            mapped.setdefault(target.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.long))
    return mapped


def _damaged(url: str, path: Path, reason: str) -> str:
    size = os.path.getsize(path)
    return (
        f"{path} ({size:,} bytes) is damaged or no weights file: {reason}\n"
        f"Delete it to download it again.\n{_remedy(url, path)}"
    )


def _remedy(url: str, path: Path) -> str:
    return (
        f"Without a connection, fetch {url}\n"
        f"elsewhere and place it at {path}\n"
        "(the folder moves with TORCH_HOME), or train from random weights with `--use_pretrained_model False`."
    )


def _shape(value: object) -> str:
    """Shape for a message: "64x3x7x7", "scalar", or what stands there instead of a tensor."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "x".join(str(side) for side in value.shape) or "scalar"


def _listing(kind: str, entries: list[str]) -> str:
    """ "3 missing: a, b, c", or "" for none; the first few by name."""
    if not entries:
        return ""
    rest = len(entries) - _LISTED
    return f"{len(entries)} {kind}: {', '.join(entries[:_LISTED])}" + (f" and {rest} more" if rest > 0 else "")
