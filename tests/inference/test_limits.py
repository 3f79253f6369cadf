"""Limits from environment variables."""

from __future__ import annotations

import pytest

from pspnet.errors import ConfigError
from pspnet.inference.limits import DEFAULT_LIMITS, Limits


def test_defaults_without_variables() -> None:
    assert Limits.from_environment({}) == DEFAULT_LIMITS
    assert Limits.from_environment({"PSPNET_PIXELS": " ", "PSPNET_LARGE_IMAGES": "", "PIXELS": "5"}) == DEFAULT_LIMITS


def test_every_limit_can_be_set() -> None:
    found = Limits.from_environment(
        {
            "PSPNET_REQUEST_BYTES": "4_000_000",
            "PSPNET_PIXELS": " 1000000 ",
            "PSPNET_PASS_PIXELS": "65536",
            "PSPNET_LARGE_IMAGES": "Scale",
            "PSPNET_ANSWER_BYTES": "6000000",
        }
    )
    assert found == Limits(4_000_000, 1_000_000, 65_536, "scale", 6_000_000)


def test_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_PIXELS", "2048")
    assert Limits.from_environment() == Limits(pixels=2048)


@pytest.mark.parametrize("value", ["many", "-5", "1e6", "0", "5.5", "9" * 30, "0x10", "٣٣٣٣٣"])
def test_invalid_numbers(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits.from_environment({"PSPNET_PIXELS": value})
    assert str(caught.value) == f"PSPNET_PIXELS = {value!r}: expected a whole number from 1,024 to 1,000,000,000."


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Limits.from_environment({"PSPNET_ANSWER_BYTES": "x", "PSPNET_PASS_PIXELS": "1", "PSPNET_LARGE_IMAGES": "crop"})
    assert str(caught.value).splitlines() == [
        "PSPNET_PASS_PIXELS = '1': expected a whole number from 4,096 to 100,000,000.",
        "PSPNET_ANSWER_BYTES = 'x': expected a whole number from 1,000 to 1,073,741,824.",
        "PSPNET_LARGE_IMAGES = 'crop': expected one of tile, scale, refuse.",
    ]
