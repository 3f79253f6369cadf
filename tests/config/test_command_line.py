"""One command line reader for every command: positional values, switches, repeated settings, all problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from pspnet.config.command_line import FlagReader, build_settings, parse_settings
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.settings import Settings, setting
from pspnet.errors import ConfigError


@dataclass(frozen=True, init=False)
class Paint(Settings):
    ENVIRONMENT: ClassVar[str] = "PAINT_"

    model: Path = setting(..., "model directory", positional=True, metavar="MODEL")
    images: tuple[Path, ...] = setting((), "images", positional=True, repeated=True, metavar="IMAGE")
    opacity: float = setting(0.5, "opacity of the colours", ge=0, le=1)
    overlay: bool = setting(False, "write overlays")
    to: tuple[str, ...] = setting((), "sinks", repeated=True)
    runtime: Literal["auto", "eager"] = setting("auto", "runtime")
    max_frames: int | None = setting(None, "frames", ge=1)

    def conflicts(self) -> Iterator[Problem]:
        if self.overlay and self.opacity == 0:
            yield Problem("opacity", "found 0 with overlay", "give more than 0", ("overlay",))


def paint(*argv: str, **env: str) -> Paint:
    return parse_settings(Paint, argv, "paint", "Colour images by their masks.", env=env)


def test_positional_values_fill_the_settings_in_order() -> None:
    settings = paint("runs/model", "a.jpg", "b.jpg", "--opacity", "0.25")
    assert settings.model == Path("runs/model")
    assert settings.images == (Path("a.jpg"), Path("b.jpg"))
    assert settings.opacity == 0.25


def test_a_switch_leaves_a_positional_value_alone_and_takes_true_and_false() -> None:
    assert paint("m", "--overlay", "a.jpg").images == (Path("a.jpg"),)
    assert paint("m", "--overlay", "a.jpg").overlay
    assert not paint("m", "--overlay", "False", "a.jpg").overlay
    assert paint("m", "--overlay=true").overlay


def test_repeated_settings_collect_values() -> None:
    assert paint("m", "--to", "a", "b", "--overlay", "--to", "-").to == ("a", "b", "-")


def test_hyphens_and_underscores_are_equal() -> None:
    assert paint("m", "--max-frames", "3").max_frames == paint("m", "--max_frames=3").max_frames == 3


def test_flags_win_over_environment_variables() -> None:
    assert paint("m", PAINT_OPACITY="0.75").opacity == 0.75
    assert paint("m", "--opacity", "1", PAINT_OPACITY="0.75").opacity == 1


def test_every_problem_is_listed_with_its_source() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        paint("--opacty", "3", "--max-frames", "0", "--runtime", "eagr", "--overlay", "perhaps", PAINT_OPACITY="two")
    assert str(caught.value).splitlines() == [
        "The configuration has 4 problems:",
        "  opacty: unknown key (flag --opacty); did you mean opacity?",
        "  opacity: found 'two' (environment PAINT_OPACITY); allowed: a number from 0 to 1",
        "  runtime: found 'eagr' (flag --runtime); allowed: auto or eager. Did you mean eager?",
        "  max_frames: found '0' (flag --max-frames); allowed: a whole number, at least 1",
    ]
    with pytest.raises(ConfigError, match="model: missing; it is required: a path"):
        paint()


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"opacity: found 0 with overlay .*; give more than 0"):
        paint("m", "--overlay", "--opacity", "0")


def test_help_lists_positional_values_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        paint("--help")
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: paint MODEL [IMAGE...] [--key value ...] [--help]"
    assert lines[2] == "Colour images by their masks."
    assert "  MODEL  model directory" in lines
    assert "  --opacity: default 0.5; a number from 0 to 1" in lines


def test_from_environment_names_the_variable() -> None:
    assert Paint.from_environment({"PAINT_MODEL": "m", "PAINT_OVERLAY": "1"}).overlay
    with pytest.raises(ConfigError, match=r"max_frames: found 'x' .environment PAINT_MAX_FRAMES.; allowed"):
        Paint.from_environment({"PAINT_MODEL": "m", "PAINT_MAX_FRAMES": "x"})


def test_a_switch_has_an_opposite() -> None:
    assert not paint("m", "--no-overlay", "a.jpg").overlay
    assert paint("m", "--no_overlay", "False", "a.jpg").overlay
    with pytest.raises(ConfigError, match=r"overlay: found 'x' .flag --no_overlay.; allowed: True or False"):
        paint("m", "--no_overlay=x")


@dataclass(frozen=True, init=False)
class Frame(Settings):
    border: int = setting(1, "width", ge=0)


def test_several_classes_share_one_command_line() -> None:
    raw, _ = FlagReader([Paint, Frame], {}).read(["m", "--border", "2", "--opacity", "1"])
    painted, frame = build_settings([Paint, Frame], raw)
    assert (painted.opacity, frame.border) == (1, 2)
    raw, _ = FlagReader([Paint, Frame], {}).read(["m", "--border", "-1", "--opacity", "2", "--bordr", "3", "--overlai"])
    with pytest.raises(InvalidConfigError) as caught:
        build_settings([Paint, Frame], raw)
    assert str(caught.value).splitlines()[1:] == [
        "  bordr: unknown key (flag --bordr); did you mean border?",
        "  overlai: unknown key (flag --overlai); did you mean overlay?",
        "  opacity: found '2' (flag --opacity); allowed: a number from 0 to 1",
        "  border: found '-1' (flag --border); allowed: a whole number, at least 0",
    ]
