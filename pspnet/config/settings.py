"""Settings: typed fields with bounds and descriptions, parsed and checked together.

Config and the settings of every command derive from `Settings`. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.values import (
    accepts_bool,
    choices,
    describe_allowed,
    is_unset,
    nearest,
    parse_value,
    show,
    split_list,
    within,
)

_Settings = TypeVar("_Settings", bound="Settings")


@dataclass(frozen=True)
class Setting:
    """One field of a settings class.

    Attributes:
        name: key of the setting; the field's name without a trailing underscore (`from_`, as `from` is a keyword).
        annotation: its type; `parse` converts texts to it.
        default: None where it may be left out; dataclasses.MISSING where it is required.
        allowed: accepted values in words, for help and errors.
        bounds: limits of numbers by gt, ge, lt or le.
        check: converts the parsed value further; raises ValueError.
        positional: given without its name on the command line.
        repeated: takes several values: `--to a b`, or `--tag a --tag b`.
        placeholder: stands for a required value that is missing while the other settings are checked.
        variables: environment variables that hold it.
        metavar: placeholder in the usage and help texts.
    """

    name: str
    annotation: Any
    default: Any
    description: str
    group: str
    allowed: str
    bounds: Mapping[str, float]
    check: Callable[[Any], Any] | None
    positional: bool
    repeated: bool
    placeholder: Any
    variables: tuple[str, ...]
    metavar: str

    @property
    def is_required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def is_switch(self) -> bool:
        """True if its flag may be given without a value, which means True."""
        return accepts_bool(self.annotation)

    def parse(self, value: object) -> Any:
        """The value as this setting's type; ValueError where it is not allowed."""
        parsed = parse_value(value, self.annotation)
        if not within(parsed, self.bounds):
            raise ValueError("out of bounds")
        return parsed if self.check is None else self.check(parsed)

    def problem(self, value: object) -> Problem:
        """The problem of a missing (None) or wrong value."""
        if is_unset(value):
            return Problem(self.name, "missing", f"it is required: {self.allowed}")
        known = choices(self.annotation)
        kinds = (self.annotation, *typing.get_args(self.annotation))
        if known and any(typing.get_origin(kind) is tuple for kind in kinds):  # name the wrong one of several
            value = next((item for item in split_list(value) if str(item).strip() not in known), value)
        like = nearest(str(value), known)
        hint = f". Did you mean {like}?" if like else ""
        return Problem(self.name, f"found {show(value)}", f"allowed: {self.allowed}{hint}")


def setting(
    default: Any,
    description: str,
    *,
    group: str = "Settings",
    allowed: str | None = None,
    check: Callable[[Any], Any] | None = None,
    positional: bool = False,
    repeated: bool = False,
    placeholder: Any = None,
    variables: tuple[str, ...] = (),
    metavar: str | None = None,
    **bounds: float,
) -> Any:
    """A field of a settings class; `...` as default makes it required. See `Setting` for the arguments."""
    extra = {
        "description": description, "group": group, "allowed": allowed, "bounds": bounds, "check": check,
        "positional": positional, "repeated": repeated, "placeholder": placeholder, "variables": variables,
        "metavar": metavar,
    }  # fmt: skip
    metadata = {"setting": extra}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def settings_of(kind: Any) -> dict[str, Setting]:
    """The settings of a settings class by name, in their order."""
    found: dict[str, Setting] = _read_settings(kind)
    return found


@lru_cache(maxsize=None)
def _read_settings(kind: Any) -> dict[str, Setting]:
    found = {}
    names = {key: value for base in reversed(kind.__mro__) for key, value in vars(sys.modules[base.__module__]).items()}
    for item in dataclasses.fields(kind):
        annotation = _evaluated(str(item.type), names)
        extra = dict(item.metadata["setting"])
        extra["allowed"] = extra["allowed"] or describe_allowed(annotation, extra["bounds"])
        name = item.name.rstrip("_")
        extra["metavar"] = extra["metavar"] or name.upper()
        if kind.ENVIRONMENT and not extra["variables"]:
            extra["variables"] = (f"{kind.ENVIRONMENT}{name.upper()}",)
        found[name] = Setting(name, annotation, item.default, **extra)
    return found


def _evaluated(text: str, names: dict[str, Any]) -> Any:
    """The type that an annotation's text means. Python 3.8 has neither `X | Y` nor `tuple[X]` at run time."""
    scope = {**vars(typing), **names, "tuple": typing.Tuple}
    members = [eval(member, scope) for member in text.split(" | ")]
    return members[0] if len(members) == 1 else typing.Union[tuple(members)]


@dataclass(frozen=True, init=False)
class Settings:
    """Base of settings classes: flat, typed and frozen. Values may be texts, as flags and environment variables are.

    Subclasses are dataclasses with `frozen=True, init=False` whose fields are made by `setting()`. None and the empty
    text mean "not given". The constructor raises ConfigError that lists every problem.
    """

    ENVIRONMENT: ClassVar[str] = ""
    """Prefix of the environment variables that hold the settings; empty for none."""
    FAMILIAR: ClassVar[Mapping[str, str]] = {}
    """Names from other programs that resemble none of ours, and what they are called here."""

    def __init__(self, /, **values: Any) -> None:
        known = settings_of(type(self))
        given = {key: value for key, value in values.items() if not is_unset(value)}
        problems = [unknown_key(key, [type(self)]) for key in given if key not in known]
        given = {**self.derive(given), **given}
        for attribute, (key, item) in zip(dataclasses.fields(self), known.items()):
            try:
                if key in given:
                    value = item.parse(given[key])
                elif item.is_required:
                    raise ValueError("missing")
                else:
                    value = item.default
            except ValueError:
                problems.append(item.problem(given.get(key)))
                # The other settings are still checked against each other.
                value = item.placeholder if item.is_required else item.default
            object.__setattr__(self, attribute.name, value)
        broken = {problem.key for problem in problems}
        problems += [problem for problem in self.conflicts() if broken.isdisjoint((problem.key, *problem.others))]
        if problems:
            raise InvalidConfigError(problems)

    @classmethod
    def derive(cls, given: Mapping[str, object]) -> dict[str, Any]:  # noqa: ARG003
        """Values that follow from other settings where they are not given themselves."""
        return {}

    def conflicts(self) -> Iterator[Problem]:
        """Settings that cannot be used together."""
        return iter(())

    @classmethod
    def from_environment(cls: type[_Settings], env: Mapping[str, str], **values: Any) -> _Settings:
        """The settings that environment variables hold, with `values` over them. Raises ConfigError."""
        sources = {}
        for key, item in settings_of(cls).items():
            name = next((name for name in item.variables if not is_unset(env.get(name))), None)
            if name is not None and is_unset(values.get(key)):
                values[key], sources[key] = env[name], f"environment {name}"
        try:
            return cls(**values)
        except InvalidConfigError as error:
            raise InvalidConfigError(error.problems, sources) from None

    def to_dict(self) -> dict[str, Any]:
        """The values by name."""
        attributes = [item.name for item in dataclasses.fields(self)]
        return {key: getattr(self, name) for key, name in zip(settings_of(type(self)), attributes)}

    def to_json(self) -> dict[str, Any]:
        """The values by name, fit for JSON: tuples become lists."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.to_dict().items()}

    def replace(self: _Settings, **changes: Any) -> _Settings:
        """A checked copy with some settings changed."""
        return type(self)(**{**self.to_dict(), **changes})


def unknown_key(key: str, kinds: Sequence[type[Settings]]) -> Problem:
    """The problem of a key that is not a setting, with the nearest one that is."""
    names = [name for kind in kinds for name in settings_of(kind)]
    like = next((kind.FAMILIAR[key.lower()] for kind in kinds if key.lower() in kind.FAMILIAR), None)
    like = like or nearest(key, names)
    return Problem(key, "unknown key", f"did you mean {like}?" if like else "--help lists all keys")
