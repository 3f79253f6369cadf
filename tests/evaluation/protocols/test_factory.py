"""Protocols by name: requested settings, defaults of the model, errors with the allowed values."""

from __future__ import annotations

import pytest

from pspnet.errors import ConfigError
from pspnet.evaluation.protocols.factory import PROTOCOLS, choose_protocols
from pspnet.evaluation.protocols.windows import SCALES, WindowSettings


def test_all_protocols_with_their_settings() -> None:
    whole, slide, multiscale, builtin = choose_protocols(PROTOCOLS, 240, 480)
    assert (whole.settings, whole.windows, whole.view) == ({}, None, None)
    assert slide.settings == {"crop_size": 240, "base_size": 480, "stride": 160, "scales": [1.0], "flip": False}
    assert multiscale.settings == {**slide.settings, "scales": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "flip": True}
    assert multiscale.windows == WindowSettings(240, 480, SCALES, flip=True)
    assert builtin.settings == {"crop_size": 240}
    assert builtin.view is not None
    assert builtin.view.crop_size == 240
    assert [protocol.passes(360, 480) for protocol in (whole, slide, builtin)] == [1, 6, 1]
    # Long sides 240, 360, ..., 840; each times two for mirror images.
    assert multiscale.passes(360, 480) == 2 * (1 * 1 + 2 * 2 + 2 * 3 + 3 * 4 + 3 * 4 + 4 * 5)


def test_options_override_the_defaults() -> None:
    slide, multiscale = choose_protocols(["multiscale", "slide"], 64, 0, [1.0, 2.0], flip=False)
    assert (slide.name, multiscale.name) == ("slide", "multiscale")
    assert slide.windows == WindowSettings(64, 0, (1.0,), flip=False)
    assert multiscale.windows == WindowSettings(64, 0, (1.0, 2.0), flip=False)
    assert choose_protocols(["slide"], 64, 0, flip=True)[0].windows == WindowSettings(64, 0, (1.0,), flip=True)


def test_builtin_adds_whole() -> None:
    assert [protocol.name for protocol in choose_protocols(["builtin"], 240, None)] == ["whole", "builtin"]
    assert [protocol.name for protocol in choose_protocols(["builtin", "whole"], 240, None)] == ["whole", "builtin"]


def test_whole_needs_no_sizes() -> None:
    assert [protocol.name for protocol in choose_protocols(["whole"], None, None)] == ["whole"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            (["slide"], None, 480),
            "slide: the model directory does not record the crop_size .*give --crop_size",
        ),
        ((["builtin"], None, 480), "protocol builtin: the model directory does not record the crop_size"),
        ((["multiscale"], 240, None), "does not record the base_size .*give --base_size"),
        ((["slide"], 16, 480), "--crop_size: found 16; the network needs at least 32 px"),
    ],
)
def test_invalid_settings_are_reported(arguments: tuple, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        choose_protocols(*arguments)
