"""`pspnet serve`: serve a model over HTTP."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from pspnet.config.command_line import parse_settings
from pspnet.errors import ConfigError
from pspnet.serving.serve_settings import ServeSettings

_PACKAGES = ("starlette", "uvicorn")
_DESCRIPTION = """Serve a model: POST /invocations, GET /ping, GET /metrics. Every setting is also an environment
variable: PSPNET_PORT for --port. See docs/serving.md."""


def serve_command(argv: Sequence[str]) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from pspnet.serving.processes.supervisor import supervise

    settings = parse_settings(ServeSettings, argv, "pspnet serve", _DESCRIPTION)
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs the package {' and '.join(missing)}; install it with: pip install 'pspnet[serve]'."
        )
    return supervise(settings)
