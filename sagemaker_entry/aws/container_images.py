"""Instance types and AWS's PyTorch container images, shared by training and hosting."""

from __future__ import annotations

import re

from pspnet.errors import ConfigError


def parse_instance_type(instance_type: str) -> tuple[str, str]:
    """Return ("g4dn", "xlarge") of ml.g4dn.xlarge. Raises ConfigError for an invalid instance type."""
    match = re.fullmatch(r"ml\.([a-z][a-z0-9-]*)\.([a-z0-9]+)", instance_type)
    if match is None:
        raise ConfigError(f"instance_type: found {instance_type!r}; expected ml.FAMILY.SIZE, such as ml.g4dn.xlarge.")
    return match.group(1), match.group(2)


def has_gpu(instance_type: str) -> bool:
    """Return True for the families with NVIDIA GPUs: g and p."""
    return parse_instance_type(instance_type)[0][0] in "gp"


def retrieve_image(scope: str, version: str, instance_type: str, region: str) -> str:
    """Return the URI of AWS's PyTorch image for the scope `training` or `inference` from the SageMaker SDK.

    Raises ConfigError for a region or an instance type without one.
    """
    from sagemaker.core import image_uris

    versions = image_uris.config_for_framework("pytorch")[scope]["versions"]
    try:
        uri: str = image_uris.retrieve(
            "pytorch",
            region,
            version=version,
            py_version=versions[version]["py_versions"][-1],
            instance_type=instance_type,
            image_scope=scope,
        )
    except ValueError as error:
        if "region" in str(error).lower():
            raise ConfigError(f"region: this SageMaker SDK knows no PyTorch {scope} image in {region}.") from error
        raise ConfigError(f"instance_type {instance_type} with PyTorch {version}: {error}") from error
    return uri


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a comparable tuple: 1.12.1 -> (1, 12, 1)."""
    return tuple(int(part) for part in version.split("."))
