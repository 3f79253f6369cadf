"""Command lines: flags and positional values to checked settings, with one error format for every command."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.settings import Setting, Settings, settings_of, unknown_key
from pspnet.config.values import is_unset, parse_bool, show

_Settings = TypeVar("_Settings", bound=Settings)


@dataclass
class RawSettings:
    """Values by key before they are parsed, and the source of each; later values replace earlier ones."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def set(self, key: str, value: object, source: str) -> None:
        self.values[key], self.sources[key] = value, source

    def set_default(self, key: str, value: object, source: str) -> None:
        """Set a value unless one is given already."""
        if is_unset(self.values.get(key)) and not is_unset(value):
            self.set(key, value, source)


def plain_key(text: str) -> str:
    """A key with underscores, whatever it was written with."""
    return text.strip().replace("-", "_")


class FlagReader:
    """Tokens of a command line -> raw settings.

    `--key value`, `--key=value`, `--switch` or `--no_switch` alone, and positional values in the order of the
    positional settings. A repeated setting consumes every value up to the next flag. In a command with positional
    values a switch takes the next token only where it is True or False.
    """

    def __init__(
        self, kinds: Sequence[type[Settings]], options: Mapping[str, bool], ignored: tuple[str, ...] = ()
    ) -> None:
        """options: flags that are not settings, such as help, and whether each takes a value."""
        self.kinds = list(kinds)
        self.known = {name: item for kind in kinds for name, item in settings_of(kind).items()}
        self.has_positional = any(item.positional for item in self.known.values())
        self.options = options
        self.ignored = ignored

    def read(self, argv: Sequence[str]) -> tuple[RawSettings, dict[str, str]]:
        """Settings, and the given options with their values."""
        raw, options, loose = RawSettings(), {}, []
        tokens = list(argv)
        while tokens:
            token = "--help" if tokens[0] == "-h" else tokens[0]
            del tokens[0]
            if not token.startswith("--") or token == "--":
                loose.append(token)
                continue
            name, equals, text = token[2:].partition("=")
            key = plain_key(name)
            opposite = self.known.get(key[len("no_") :]) if key.startswith("no_") and key not in self.known else None
            is_negated = opposite is not None and opposite.is_switch
            key = key[len("no_") :] if is_negated else key
            values = [text] if equals else self._following(key, tokens)
            del tokens[: 0 if equals else len(values)]
            if is_negated:
                values = [str(not parse_bool(value)) if _is_bool(value) else value for value in values or ["True"]]
            if key in self.options:
                options[key] = values[0] if values else "" if self.options[key] else "True"
            elif not key.startswith(self.ignored or ("\0",)):
                self._add(raw, key, values, f"flag --{name}")
        self._add_positional(raw, loose)
        return raw, options

    def _following(self, key: str, tokens: list[str]) -> list[str]:
        """The tokens after a flag that are its values."""
        values = []
        for token in tokens:
            if token.startswith("--") and token != "--":
                break
            values.append(token)
        item = self.known.get(key)
        if item is not None and item.repeated:
            return values
        is_switch = self.options.get(key) is False or (item is not None and item.is_switch)
        if is_switch and self.has_positional and values and not _is_bool(values[0]):
            return []
        return values[:1]

    def _add(self, raw: RawSettings, key: str, values: list[str], source: str) -> None:
        item = self.known.get(key)
        if item is not None and item.repeated and values:
            raw.set(key, [*(raw.values.get(key) or []), *values], source)
        elif values or item is None or item.is_switch:
            # The value of an unknown key does not matter: the key is reported.
            raw.set(key, values[0] if values else "True", source)
        else:
            raw.problems.append(Problem(key, f"{source} has no value", f"allowed: {item.allowed}"))

    def _add_positional(self, raw: RawSettings, loose: list[str]) -> None:
        places = [item for item in self.known.values() if item.positional and item.name not in raw.values]
        for item in places:
            if loose and item.repeated:
                raw.set(item.name, loose, "command line")
                return
            if loose:
                raw.set(item.name, loose.pop(0), "command line")
        for token in loose:
            raw.problems.append(Problem("command line", f"unexpected {show(token)}", _expected(places)))


def _expected(places: list[Setting]) -> str:
    if not places:
        return "settings are given as --key value, a config file as --config FILE"
    return f"expected {' '.join(item.metavar for item in places)} and settings as --key value"


def _is_bool(text: str) -> bool:
    try:
        parse_bool(text)
    except ValueError:
        return False
    return True


def is_requested(options: Mapping[str, str], key: str, problems: list[Problem]) -> bool:
    """Return True if a switch such as --help was given."""
    if key not in options:
        return False
    if not _is_bool(options[key]):
        problems.append(Problem(f"--{key}", f"found {show(options[key])}", "it takes no value"))
        return False
    return parse_bool(options[key])


def build_settings(kinds: Sequence[type[Settings]], raw: RawSettings) -> list[Any]:
    """Checked settings of each class from the raw values; ConfigError lists the problems of all with their sources."""
    known = {key for kind in kinds for key in settings_of(kind)}
    given = {key: value for key, value in raw.values.items() if not is_unset(value)}
    problems = [*raw.problems, *(unknown_key(key, kinds) for key in given if key not in known)]
    # A flag without a value was reported already; that its key is missing follows from it.
    reported = {problem.key for problem in raw.problems if problem.key not in raw.values}
    built = []
    for kind in kinds:
        try:
            built.append(kind(**{key: value for key, value in given.items() if key in settings_of(kind)}))
        except InvalidConfigError as error:
            problems += [item for item in error.problems if reported.isdisjoint((item.key, *item.others))]
    if problems:
        raise InvalidConfigError(problems, raw.sources)
    return built


def parse_settings(
    kind: type[_Settings],
    argv: Sequence[str],
    command: str,
    description: str,
    epilog: str = "",
    env: Mapping[str, str] | None = None,
) -> _Settings:
    """The settings of a command: flags and positional values over environment variables over defaults.

    With --help, print the help and end the program with 0. Raises ConfigError that lists every problem.

    Args:
        command, description, epilog: for the help: "pspnet serve", and what stands before and after the settings.
        env: stands for os.environ.
    """
    env = os.environ if env is None else env
    raw, options = FlagReader([kind], {"help": False}).read(argv)
    if is_requested(options, "help", raw.problems):
        # Imported here: only --help needs it.
        from pspnet.config.command_help import command_help

        print(command_help(kind, command, description, epilog), end="")
        raise SystemExit(0)
    for key, item in settings_of(kind).items():
        for variable in item.variables:
            raw.set_default(key, env.get(variable), f"environment {variable}")
    settings: _Settings = build_settings([kind], raw)[0]
    return settings
