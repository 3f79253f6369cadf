"""OpenVINO's packages report nothing from here."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from pspnet.inference.runtimes.openvino_telemetry import silence_openvino


def test_the_reporting_package_looks_as_if_it_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    silence_openvino()
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")


def test_who_has_imported_it_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", module)
    silence_openvino()
    assert importlib.import_module("openvino_telemetry") is module
