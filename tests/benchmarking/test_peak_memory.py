"""Memory of this process, and results of child processes."""

from __future__ import annotations

import sys

import pytest

from pspnet.benchmarking.peak_memory import ChildError, ask_child, current_mib, peak_mib


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_child_reports_its_own_peak() -> None:
    code = (
        "import json\nfrom pspnet.benchmarking.peak_memory import current_mib, peak_mib\n"
        "before = peak_mib(); data = b'x' * (64 * 2**20); held = current_mib(); del data\n"
        "print('loading'); print(json.dumps({'before': before, 'held': held, 'peak': peak_mib()}))"
    )
    found = ask_child(child(code))
    assert found["peak"] - found["before"] > 50
    assert found["held"] is None or found["peak"] >= found["held"] - 1
    here = peak_mib()
    assert here is None or here > 10
    assert current_mib() is None or current_mib() > 10


def test_a_failed_child_reports_its_last_line() -> None:
    with pytest.raises(ChildError, match="ended with 3: no room"):
        ask_child(child("import sys; print('no room', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(ChildError, match="ended with 0: hello"):
        ask_child(child("print('hello')"))
    with pytest.raises(ChildError, match="ended with 0: no output"):
        ask_child(child(""))
    with pytest.raises(ChildError, match=r"took longer than 0 s"):
        ask_child(child("import time; time.sleep(30)"), seconds=0.2)
