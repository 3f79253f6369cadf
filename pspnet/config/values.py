"""Text -> typed value for every setting: the one path for config files, flags and SageMaker's hyperparameters."""

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
"""Texts that mean "not given": SageMaker sends an empty string for none, YAML has null and ~, lists arrive as repr."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def is_unset(value: object) -> bool:
    """True for None and for the texts that stand for it; such a setting keeps its default."""
    if isinstance(value, (list, tuple)):
        return not value
    return value is None or (isinstance(value, str) and unquote(value) in UNSET_TEXTS)


def unquote(text: str) -> str:
    """Text without outer blanks and matching outer quotes (drivers JSON-encode strings: "\\"sgd\\"" is sgd)."""
    text = text.strip()
    while len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].strip()
    return text


def parse_value(value: object, annotation: Any) -> Any:
    """The value as the type of the annotation; ValueError where it cannot be read as one.

    Knows bool, int, float, str, Literal of texts, tuple[X, ...] and unions of them, which is all that Config uses.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _parse_literal(value, arguments)
    if origin is tuple:
        return tuple(parse_value(item, arguments[0]) for item in split_list(value))
    if arguments:  # a union: the first member that can read the value
        return _parse_union(value, arguments)
    parsers = {bool: parse_bool, int: parse_int, float: parse_float, str: parse_str, Path: parse_path}
    return parsers[annotation](value)


def parse_bool(value: object) -> bool:
    """True, true, yes, on, 1 and their opposites."""
    if isinstance(value, bool):
        return value
    text = str(value) if isinstance(value, int) else unquote(value).lower() if isinstance(value, str) else ""
    if text not in _TRUE + _FALSE:
        raise ValueError("not a truth value")
    return text in _TRUE


def parse_int(value: object) -> int:
    """A whole number of at most 64 bits; 16, "16", 16.0, "16.0" and "1e3" are ones, True is none."""
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
    """A finite number."""
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
    """Text without outer quotes; paths and numbers become text."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("not a text")
    return unquote(str(value))


def parse_path(value: object) -> Path:
    """A path, with `~` replaced by the home folder."""
    return Path(os.path.expanduser(parse_str(value)))


def split_list(value: object) -> list[object]:
    """Items of a list, of the repr or JSON of one, or of a text with commas: "10, 20", "[10, 20]", "['a', 'b']"."""
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
    """The allowed value whose text is the value's, so that "8" is 8 where 8 is allowed."""
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
    raise ValueError("none of the allowed kinds")


def within(value: Any, bounds: Mapping[str, float]) -> bool:
    """Whether a number, or every number of a tuple, keeps the bounds; anything else has none to keep."""
    if isinstance(value, tuple):
        return all(within(item, bounds) for item in value)
    if not isinstance(value, (int, float)):
        return True
    return all(getattr(operator, name)(value, limit) for name, limit in bounds.items())


def choices(annotation: Any) -> tuple[str, ...]:
    """The texts that a Literal (alone or in a union) allows; empty for anything else."""
    if get_origin(annotation) is Literal:
        return tuple(str(choice) for choice in get_args(annotation))
    return tuple(text for member in get_args(annotation) for text in choices(member))


def accepts_bool(annotation: Any) -> bool:
    """Whether True and False are values of the type."""
    return bool in (annotation, *get_args(annotation))


def describe_allowed(annotation: Any, bounds: Mapping[str, float]) -> str:
    """What a setting allows, in words: "a whole number from 2 to 254", "sgd, adam or nag"."""
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
    words = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}
    texts = [f"{words[name]} {bounds[name]:.12g}" for name in words if name in bounds]
    return f", {' and '.join(texts)}" if texts else ""


def nearest(text: str, known: Iterable[str]) -> str | None:
    """The known text that is most like this one, or None where nothing is."""
    found = difflib.get_close_matches(text.strip().lower().replace("-", "_"), [_plain(name) for name in known], 1, 0.6)
    return next((name for name in known if found and _plain(name) == found[0]), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def show(value: object, longest: int = 60) -> str:
    """A value as an error message shows it: quoted if it is text, cut where it is long."""
    text = repr(os.fspath(value) if isinstance(value, os.PathLike) else value)
    return text if len(text) <= longest else text[: longest - 3] + "..."
