"""Processor name; available_cores is tested with the settings that depend on it."""

from __future__ import annotations

import platform
from pathlib import Path

from pspnet.system.cpu import processor_name


def test_processor_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_bytes(b"processor\t: 0\nmodel name\t: A CPU \xff @ 2 GHz\nmodel name\t: another\n")
    assert processor_name(cpuinfo) == "A CPU \ufffd @ 2 GHz"
    cpuinfo.write_text("processor : 0\n")
    for path in (cpuinfo, tmp_path / "none"):
        assert processor_name(path) == (platform.processor() or platform.machine())
