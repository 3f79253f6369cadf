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
            "PSPNET_REQUEST_BYTES": "4000000",
            "PSPNET_PIXELS": " 1000000 ",
            "PSPNET_PASS_PIXELS": "65536",
            "PSPNET_LARGE_IMAGES": "scale",
            "PSPNET_ANSWER_BYTES": "6000000",
        }
    )
    assert found == Limits(
        request_bytes=4_000_000, pixels=1_000_000, pass_pixels=65_536, large_images="scale", answer_bytes=6_000_000
    )


@pytest.mark.parametrize("value", ["many", "-5", "0", "5000.5", "9" * 30, "0x10", "٣٣٣٣٣"])
def test_invalid_numbers(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Limits.from_environment({"PSPNET_PIXELS": value})
    assert str(caught.value).splitlines()[1:] == [
        f"  pixels: found {value!r} (environment PSPNET_PIXELS); allowed: a whole number from 1024 to 1000000000"
    ]


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Limits.from_environment({"PSPNET_ANSWER_BYTES": "x", "PSPNET_PASS_PIXELS": "1", "PSPNET_LARGE_IMAGES": "crop"})
    assert str(caught.value).splitlines() == [
        "The configuration has 3 problems:",
        "  pass_pixels: found '1' (environment PSPNET_PASS_PIXELS); allowed: a whole number from 4096 to 100000000",
        "  large_images: found 'crop' (environment PSPNET_LARGE_IMAGES); allowed: tile, scale or refuse",
        "  answer_bytes: found 'x' (environment PSPNET_ANSWER_BYTES); allowed: a whole number from 1 to 1073741824",
    ]
