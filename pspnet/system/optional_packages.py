"""Check for optional packages, with the extra to install."""

from __future__ import annotations

from importlib.util import find_spec

from pspnet.errors import ConfigError, PspnetError


def require_packages(*modules: str, purpose: str, extra: str, error: type[PspnetError] = ConfigError) -> None:
    """Raise `error` with the extra of pspnet to install if a module cannot be imported.

    purpose: subject of the message, such as "reading video".
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise error(
            f"{purpose} needs {' and '.join(missing)}, which is not installed: "
            f'pip install "pspnet[{extra}]" (from a checkout: pip install -e ".[{extra}]").'
        )
