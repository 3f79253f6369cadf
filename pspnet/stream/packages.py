"""Packages that only streams need."""

from __future__ import annotations

from importlib.util import find_spec

from pspnet.errors import ConfigError


def require_package(module: str, purpose: str) -> None:
    """Raise ConfigError that names the extra to install where a package is missing."""
    if find_spec(module) is None:
        raise ConfigError(
            f"{purpose} needs the package {module}, which this Python does not have: "
            'pip install "pspnet[stream]" (from a checkout: pip install -e ".[stream]").'
        )
