"""`pspnet serve`: an endpoint that answers images with masks."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from pspnet.errors import ConfigError
from pspnet.serving.serve_settings import SETTINGS, read_settings

_PACKAGES = ("fastapi", "uvicorn")


def register(subparsers: Any) -> None:
    """Add the command to the parser of `pspnet`."""
    parser = subparsers.add_parser(
        "serve",
        help="answer images with masks over HTTP",
        description="Serve a model: POST /invocations, GET /ping, GET /metrics. Every setting is also a variable: "
        "PSPNET_PORT for --port. docs/serving.md says more, also of the limits (PSPNET_REQUEST_BYTES ...).",
    )
    parser.add_argument(
        "model_dir", metavar="MODEL_DIR", type=Path, nargs="?",
        help="what training wrote to model_dir, or a folder that holds model.tar.gz (default: PSPNET_MODEL_DIR, "
        "SM_MODEL_DIR or /opt/ml/model)",
    )  # fmt: skip
    for setting in SETTINGS:
        names = dict.fromkeys([f"--{setting.name}", f"--{setting.name.replace('_', '-')}"])
        text = f"{setting.help} (default: {setting.default})"
        parser.add_argument(*names, dest=setting.name, metavar=setting.metavar, help=text)
    parser.set_defaults(run=run_serve)


def run_serve(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    from pspnet.inference.limits import Limits
    from pspnet.serving.processes.supervisor import supervise

    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serving needs the package {' and '.join(missing)}; install what it needs: pip install 'pspnet[serve]'."
        )
    settings = read_settings(
        arguments.model_dir, {setting.name: getattr(arguments, setting.name) for setting in SETTINGS}
    )
    Limits.from_environment()  # wrong ones are told here, once, and not by every worker
    return supervise(settings)
