"""OpenVINO's packages, without the reports that they send to their maker when they are imported."""

from __future__ import annotations

import sys
from typing import Any


def silence_openvino() -> None:
    """Keep openvino and nncf from reporting their use over the network; call it before the first import of either.

    Both report through the package openvino_telemetry and go without where it is not installed. This makes it look so
    to them. Whoever has imported it already has decided for themselves.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
