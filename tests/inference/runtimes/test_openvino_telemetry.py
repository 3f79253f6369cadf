"""OpenVINO's telemetry is disabled."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from pspnet.inference.runtimes.openvino_telemetry import silence_openvino


def test_the_telemetry_package_looks_uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    silence_openvino()
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")


def test_an_imported_telemetry_package_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", module)
    silence_openvino()
    assert importlib.import_module("openvino_telemetry") is module
