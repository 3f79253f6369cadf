"""Check for the packages that only the AWS commands need."""

from __future__ import annotations

from pspnet.errors import PspnetError
from pspnet.system import optional_packages


def require_packages(*modules: str) -> None:
    """Raise PspnetError with the extra to install if an AWS package is missing."""
    optional_packages.require_packages(*modules, purpose="this command", extra="sagemaker", error=PspnetError)
