"""Opt-out of the telemetry that OpenVINO's packages send when they are imported."""

from __future__ import annotations

import sys
from typing import Any


def silence_openvino() -> None:
    """Disable the telemetry of openvino and nncf; call it before the first import of either.

    Both use the package openvino_telemetry if it is installed. This marks it as not installed, unless the program has
    imported it already.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
