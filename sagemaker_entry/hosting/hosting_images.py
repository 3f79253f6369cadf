"""Container image for hosting: choose AWS's PyTorch inference image, or check a given one."""

from __future__ import annotations

import re

from pspnet.config.values import nearest
from pspnet.errors import ConfigError
from sagemaker_entry.aws.aws_packages import require_packages
from sagemaker_entry.aws.container_images import has_gpu, parse_instance_type, retrieve_image, version_numbers

NEWEST_TOOLKIT = (2, 6, 0)
"""AWS's last PyTorch image with the inference toolkit and TorchServe."""
OLDEST_PYTORCH = (2, 1, 0)
"""The oldest supported PyTorch for serving."""

_SERVERLESS_STAND_IN = "ml.m5.xlarge"  # image_uris requires an instance type; serverless endpoints have x86 CPUs
_IMAGE = re.compile(r"/(?P<repository>[\w./-]*pytorch-[\w-]+):(?P<version>\d+(?:\.\d+)+)-(?P<processor>cpu|gpu)")


def check_host(instance_type: str, shape: str = "ProductionVariantInstanceType") -> None:
    """Raise ConfigError for an instance type that the installed boto3 does not list for hosting (batch transform)."""
    import botocore
    import botocore.session

    family, _ = parse_instance_type(instance_type)
    known = botocore.session.get_session().get_service_model("sagemaker").shape_for(shape).enum
    if instance_type not in known:
        like = nearest(instance_type, known)
        use = "hosting" if shape.startswith("Production") else "batch transform"
        raise ConfigError(
            f"instance_type: unknown {instance_type}; botocore {botocore.__version__} does not list it for SageMaker "
            f"{use}{f'; did you mean {like}?' if like else '.'} For a newer instance type, upgrade boto3."
        )
    if family.startswith(("inf", "trn")):
        raise ConfigError(
            f"instance_type: {instance_type} has AWS's own accelerators, for which this model is not compiled; use a "
            "CPU instance such as ml.c5.xlarge or a GPU instance such as ml.g4dn.xlarge."
        )
    if family == "p2":
        raise ConfigError(
            f"instance_type: {instance_type} (K80) is retired and no image for it serves this model; use "
            "ml.g4dn.xlarge, or a CPU instance such as ml.t2.xlarge."
        )


def choose_host_image(instance_type: str | None, region: str) -> str:
    """Return the URI of AWS's newest PyTorch inference image with the toolkit; None is a serverless endpoint.

    Raises ConfigError for a region or an instance type without one.
    """
    require_packages("sagemaker")
    from sagemaker.core import image_uris

    versions = image_uris.config_for_framework("pytorch")["inference"]["versions"]
    version = max((name for name in versions if version_numbers(name) <= NEWEST_TOOLKIT), key=version_numbers)
    return retrieve_image("inference", version, instance_type or _SERVERLESS_STAND_IN, region)


def check_host_image(instance_type: str | None, uri: str) -> None:
    """Raise ConfigError if one of AWS's images cannot serve the model there; other images are not checked."""
    match = _IMAGE.search(uri)
    if match is None:
        return
    name = match["repository"].rpartition("/")[2]
    if not name.startswith("pytorch-inference") or "neuron" in name:
        raise ConfigError(f"image_uri: {uri} cannot serve this model; use a pytorch-inference image.")
    if not OLDEST_PYTORCH <= version_numbers(match["version"]) <= NEWEST_TOOLKIT:
        low, high = (".".join(map(str, version)) for version in (OLDEST_PYTORCH, NEWEST_TOOLKIT))
        raise ConfigError(
            f"image_uri: {uri} has PyTorch {match['version']}; supported are AWS's images from {low} to {high} (the "
            "last with the inference toolkit), or a custom image."
        )
    if match["processor"] == "gpu" and (instance_type is None or not has_gpu(instance_type)):
        machine = "a serverless endpoint" if instance_type is None else instance_type
        raise ConfigError(f"image_uri: {uri} is for GPUs, and {machine} has none; use the -cpu- image of that version.")
    arm = instance_type is not None and _has_arm(instance_type)
    if (name != "pytorch-inference") != arm:
        needed = "pytorch-inference-arm64" if arm else "pytorch-inference"
        raise ConfigError(f"image_uri: {uri} is for another CPU architecture; use a {needed} image.")


def _has_arm(instance_type: str) -> bool:
    return re.match(r"[a-z]+\d+g", parse_instance_type(instance_type)[0]) is not None
