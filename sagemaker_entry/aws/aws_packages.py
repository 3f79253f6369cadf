"""Packages that only the commands for AWS need."""

from __future__ import annotations

from importlib.util import find_spec

from pspnet.errors import PspnetError


def require_packages(*modules: str) -> None:
    """Raise PspnetError that names the extra to install where a package of AWS is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise PspnetError(
            f"this command talks to AWS through {' and '.join(missing)}, which this Python does not have: "
            'pip install "pspnet[sagemaker]" (from a checkout: pip install -e ".[sagemaker]").'
        )
