"""`pspnet serve`: serve a model over HTTP."""

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
        help="serve a model over HTTP",
        description="Serve a model: POST /invocations, GET /ping, GET /metrics. Every setting is also a variable: "
        "PSPNET_PORT for --port. See docs/serving.md, also for the limits (PSPNET_REQUEST_BYTES ...).",
    )
    parser.add_argument(
        "model_dir", metavar="MODEL_DIR", type=Path, nargs="?",
        help="model_dir of a training run, or a folder with model.tar.gz (default: PSPNET_MODEL_DIR, "
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
            f"serving needs the package {' and '.join(missing)}; install it with: pip install 'pspnet[serve]'."
        )
    settings = read_settings(
        arguments.model_dir, {setting.name: getattr(arguments, setting.name) for setting in SETTINGS}
    )
    Limits.from_environment()  # report invalid ones here, once, instead of in every worker
    return supervise(settings)
