"""Conversion of text to typed values, shared by config files, flags and SageMaker's hyperparameters."""

from __future__ import annotations

import ast
import difflib
import json
import math
import operator
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

UNSET_TEXTS = ("", "null", "None", "~", "[]", "()")
"""Strings that mean "not given": SageMaker sends an empty string, YAML has null and ~, lists arrive as repr."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def is_unset(value: object) -> bool:
    """True for None and for strings that mean it; such a setting keeps its default."""
    if isinstance(value, (list, tuple)):
        return not value
    return value is None or (isinstance(value, str) and unquote(value) in UNSET_TEXTS)


def unquote(text: str) -> str:
    """Text without surrounding whitespace and matching quotes (drivers JSON-encode strings: "\\"sgd\\"" is sgd)."""
    text = text.strip()
    while len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    return text


def parse_value(value: object, annotation: Any) -> Any:
    """Parse a value as the type of the annotation; raises ValueError if it does not match.

    Supports bool, int, float, str, Path, Literal, tuple[X, ...], tuple[X, X] ("360x480") and unions of them.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _parse_literal(value, arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        items = value.lower().split("x") if isinstance(value, str) else split_list(value)
        if len(items) != len(arguments):
            raise ValueError("another number of items")
        return tuple(parse_value(item, arguments[0]) for item in items)
    if origin is tuple:
        return tuple(parse_value(item, arguments[0]) for item in split_list(value))
    if arguments:  # a union: the first member that parses the value
        return _parse_union(value, arguments)
    parsers = {bool: parse_bool, int: parse_int, float: parse_float, str: parse_str, Path: parse_path}
    return parsers[annotation](value)


def parse_bool(value: object) -> bool:
    """Parse True, true, yes, on, 1 and their opposites."""
    if isinstance(value, bool):
        return value
    text = str(value) if isinstance(value, int) else unquote(value).lower() if isinstance(value, str) else ""
    if text not in _TRUE + _FALSE:
        raise ValueError("not a boolean")
    return text in _TRUE


def parse_int(value: object) -> int:
    """Parse a signed 64-bit integer; 16, "16", 16.0, "16.0" and "1e3" are valid, True is not."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,20}", unquote(value), re.ASCII):
        value = int(unquote(value))
    if not isinstance(value, int) or isinstance(value, bool):
        number = parse_float(value)
        if not number.is_integer():
            raise ValueError("not a whole number")
        value = int(number)
    if abs(value) >= 2**63:
        raise ValueError("too large")
    return value


def parse_float(value: object) -> float:
    """Parse a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("not a number")
    if isinstance(value, str) and not _NUMBER.fullmatch(unquote(value)):
        raise ValueError("not a number")
    try:
        number = float(unquote(value) if isinstance(value, str) else value)
    except OverflowError as error:
        raise ValueError("too large") from error
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def parse_str(value: object) -> str:
    """Parse text without surrounding quotes; paths and numbers become text."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("not a text")
    return unquote(str(value))


def parse_path(value: object) -> Path:
    """A path, with `~` replaced by the home folder."""
    return Path(os.path.expanduser(parse_str(value)))


def split_list(value: object) -> list[object]:
    """Items of a list, its repr or JSON, or comma-separated text: "10, 20", "[10, 20]", "['a', 'b']"."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = unquote(value)
    if text[:1] + text[-1:] in ("[]", "()"):
        for reader in (json.loads, ast.literal_eval):
            try:
                items = reader(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(items, (list, tuple)):
                return list(items)
        text = text[1:-1]
    return list(text.split(",")) if text.strip() else []


def _parse_literal(value: object, allowed: Iterable[Any]) -> Any:
    """The allowed value with the same text, so that "8" is 8 if 8 is allowed."""
    text = parse_str(value)
    for choice in allowed:
        if text == str(choice) or (isinstance(choice, int) and _is_number(text, choice)):
            return choice
    raise ValueError("not one of the allowed values")


def _is_number(text: str, number: int) -> bool:
    return bool(_NUMBER.fullmatch(text)) and float(text) == number


def _parse_union(value: object, members: Iterable[Any]) -> Any:
    for member in members:
        if member is type(None):
            continue
        try:
            return parse_value(value, member)
        except ValueError:
            continue
    raise ValueError("not one of the allowed types")


def within(value: Any, bounds: Mapping[str, float]) -> bool:
    """True if a number, or every number of a tuple, is within the bounds; also for values without bounds."""
    if isinstance(value, tuple):
        return all(within(item, bounds) for item in value)
    if not isinstance(value, (int, float)):
        return True
    return all(getattr(operator, name)(value, limit) for name, limit in bounds.items())


def choices(annotation: Any) -> tuple[str, ...]:
    """The strings that a Literal (alone or in a union) allows; empty for other types."""
    if get_origin(annotation) is Literal:
        return tuple(str(choice) for choice in get_args(annotation))
    return tuple(text for member in get_args(annotation) for text in choices(member))


def accepts_bool(annotation: Any) -> bool:
    """Return True if the type includes bool."""
    return bool in (annotation, *get_args(annotation))


def describe_allowed(annotation: Any, bounds: Mapping[str, float]) -> str:
    """Description of the allowed values: "a whole number from 2 to 254", "sgd, adam or nag"."""
    if choices(annotation):
        *others, last = choices(annotation)
        return f"{', '.join(others)} or {last}" if others else last
    members = [member for member in get_args(annotation) if member is not type(None)]
    kind = members[0] if members and get_origin(annotation) is not tuple else annotation
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{_describe_bounds(bounds)}"
    return {bool: "True or False", Path: "a path"}.get(kind, "text")


def _describe_bounds(bounds: Mapping[str, float]) -> str:
    if set(bounds) == {"ge", "le"}:
        return f" from {bounds['ge']:.12g} to {bounds['le']:.12g}"
    names = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    texts = [f"{names[name]} {bounds[name]:.12g}" for name in names if name in bounds]
    return f", {' and '.join(texts)}" if texts else ""


def nearest(text: str, known: Iterable[str]) -> str | None:
    """The most similar known name, or None if none is similar."""
    found = difflib.get_close_matches(text.strip().lower().replace("-", "_"), [_plain(name) for name in known], 1, 0.6)
    return next((name for name in known if found and _plain(name) == found[0]), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def show(value: object, longest: int = 60) -> str:
    """A value for an error message: text is quoted, long values are truncated."""
    text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
