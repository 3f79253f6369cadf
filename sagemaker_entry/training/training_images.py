"""Container image for training: choose AWS's PyTorch image for an instance type, and check given pairs."""

from __future__ import annotations

import re

from pspnet.config.values import nearest
from pspnet.errors import ConfigError
from sagemaker_entry.aws.container_images import has_gpu, parse_instance_type, retrieve_image, version_numbers

P2_VERSION = "1.12.1"
"""The newest PyTorch image that SageMaker allows on K80 instances; it has Python 3.8."""

OLDEST_VERSION = (1, 12, 1)
"""The oldest supported PyTorch for training."""

P2_NOTE = (
    "AWS has retired the P2 family (K80), so the job may never start; today's equivalents are ml.g4dn.xlarge "
    "(T4, 16 GB) and ml.g5.xlarge (A10G, 24 GB): --instance_type ml.g4dn.xlarge"
)

# AWS's images have CUDA 11.3 (PyTorch 1.12.1), 11.8 (2.0), 12.6 (2.6), 12.8 (2.7, 2.8), 13.0 (2.9, 2.10), and PyTorch's
# own builds for these.
# H100 and H200 (compute capability 9.0) need CUDA 11.8, B200, B300 and RTX PRO (10.0, 10.3, 12.0) need CUDA 12.8.
_OLDEST = {"p5": (2, 0), "p6": (2, 7), "g7": (2, 7)}
# SageMaker offers nothing newer for the K80, and CUDA 13 does not support the V100 (7.0).
_NEWEST = {"p2": ("K80", (1, 12, 1)), "p3": ("V100", (2, 8, 0))}
_IMAGE = re.compile(
    r"(?P<repository>[\w./-]*?pytorch-[\w-]+):(?P<version>\d+(?:\.\d+)+)-(?P<processor>cpu|gpu)-?(?P<python>py\d+)?"
)


def check_known(instance_type: str) -> None:
    """Raise ConfigError for an instance type that the installed boto3 does not list for training."""
    import botocore
    import botocore.session

    parse_instance_type(instance_type)
    service = botocore.session.get_session().get_service_model("sagemaker")
    known = service.shape_for("TrainingInstanceType").enum
    if instance_type not in known:
        like = nearest(instance_type, known)
        raise ConfigError(
            f"instance_type: unknown {instance_type}; botocore {botocore.__version__} does not list it for SageMaker "
            f"training{f'; did you mean {like}?' if like else '.'} For a newer instance type, upgrade boto3."
        )


def choose_image(instance_type: str, region: str, version: str | None = None) -> str:
    """Return the URI of AWS's PyTorch training image: `version`, or the newest in the SDK that the GPU supports.

    Raises ConfigError for an instance type without such an image, an unknown or unsupported version, and an unknown
    region.
    """
    from sagemaker.core import image_uris

    family, _ = parse_instance_type(instance_type)
    versions = image_uris.config_for_framework("pytorch")["training"]["versions"]
    if version is None:
        _, newest = _newest(family)
        version = max(
            (name for name in versions if newest is None or version_numbers(name) <= newest), key=version_numbers
        )
    check_pair(instance_type, version)
    if version not in versions:
        offered = ", ".join(name for name in versions if version_numbers(name) >= OLDEST_VERSION)
        raise ConfigError(f"pytorch_version: found {version}; AWS's training images have {offered}.")
    return retrieve_image("training", version, instance_type, region)


def check_image(instance_type: str, uri: str) -> None:
    """Raise ConfigError if one of AWS's images cannot train on the instance type; other images are not checked."""
    match = _IMAGE.search(uri)
    if match is None:
        if "pytorch-training-neuron" in uri or "pytorch-inference" in uri:
            raise ConfigError(f"image_uri: {uri} cannot train on a GPU or CPU; use a pytorch-training image.")
        check_pair(instance_type, None)
        return
    if not match["repository"].endswith("pytorch-training"):
        raise ConfigError(f"image_uri: {uri} cannot train on a GPU or CPU; use a pytorch-training image.")
    check_pair(instance_type, match["version"])
    if match["processor"] == "gpu" and not has_gpu(instance_type):
        raise ConfigError(
            f"image_uri: {uri} is for GPUs, and {instance_type} has none; use the -cpu- image of that version."
        )


def check_pair(instance_type: str, version: str | None) -> None:
    """Raise ConfigError if PyTorch `version` (None: unknown) cannot train on the instance type."""
    family, _ = parse_instance_type(instance_type)
    if family.startswith(("trn", "inf")):
        raise ConfigError(
            f"instance_type: {instance_type} has AWS's own accelerator, which this project does not support; "
            "use a GPU instance such as ml.g5.xlarge."
        )
    if re.match(r"[a-z]+\d+g|p6e-gb", family):
        raise ConfigError(
            f"instance_type: {instance_type} has an ARM processor, and AWS's PyTorch training images are for x86; "
            "use an instance such as ml.g5.xlarge or ml.m5.xlarge."
        )
    if version is None:
        return
    if not re.fullmatch(r"\d+(\.\d+)+", version):
        raise ConfigError(f"pytorch_version: found {version!r}; expected a version such as {P2_VERSION}.")
    if version_numbers(version) < OLDEST_VERSION:
        raise ConfigError(f"PyTorch {version} is too old for this project; it needs {P2_VERSION} or newer.")
    gpu, newest = _newest(family)
    if newest is not None and version_numbers(version) > newest:
        note = f" {P2_NOTE}" if family == "p2" else ""
        raise ConfigError(
            f"instance_type: {instance_type} ({gpu}) runs PyTorch up to {'.'.join(map(str, newest))}, and the image "
            f"has {version}.{note}"
        )
    for name, least in _OLDEST.items():
        if family.startswith(name) and version_numbers(version) < least:
            raise ConfigError(
                f"instance_type: the GPUs of {instance_type} need PyTorch {'.'.join(map(str, least))} or newer, and "
                f"the image has {version}; leave out pytorch_version and image_uri to get the newest."
            )


def _newest(family: str) -> tuple[str, tuple[int, ...] | None]:
    """Return GPU and newest supported PyTorch of an instance family; ("", None) without a limit."""
    return next((found for name, found in _NEWEST.items() if family.startswith(name)), ("", None))


def image_python38(uri: str) -> bool:
    """Return True for an image with Python 3.8, which needs other requirements."""
    return "-py38" in uri.rpartition(":")[2]
