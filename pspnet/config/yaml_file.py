"""Config files: flat YAML, read as texts with the line of each key."""

from __future__ import annotations

from pathlib import Path

import yaml

from pspnet.config.command_line import RawSettings, plain_key
from pspnet.config.problems import InvalidConfigError, Problem


def read_config_file(file: str) -> RawSettings:
    """The raw texts of a YAML file by key, each with its line. Raises ConfigError where there is nothing to read.

    Scalars stay text, as flags are: YAML's own ideas of types (010 is 8, 1e-4 is text, no is False) play no part.
    """
    if not file.strip():
        raise InvalidConfigError([Problem("--config", "has no value", "give the name of a YAML file")])
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except OSError as error:
        found = f"cannot read {file}: {error.strerror or error}"
        raise InvalidConfigError([Problem("--config", found, "give the name of a YAML file that exists")]) from None
    except (ValueError, OverflowError, yaml.YAMLError, RecursionError) as error:
        raise InvalidConfigError([Problem("--config", f"{file} is not valid YAML{_place(error)}", _YAML_FIX)]) from None
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else f"holds a {'list' if isinstance(root, yaml.SequenceNode) else 'text'}"
        raise InvalidConfigError([Problem("--config", f"{file} {what}", _YAML_FIX)])
    return _read_mapping(file, root)


_YAML_FIX = 'write one "key: value" a line'


def _place(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return ": it is not UTF-8 text"
    if isinstance(error, RecursionError):
        return ": it is nested too deeply"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable characters"
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f": {problem}"


def _read_mapping(file: str, root: yaml.MappingNode) -> RawSettings:
    settings = RawSettings()
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        key, source = plain_key(str(_value_of(key_node))), f"{file}, line {line}"
        if key in settings.values:
            first = settings.sources[key].rsplit(" ", 1)[-1]
            found = f"given twice in {file}, on lines {first} and {line}"
            settings.problems.append(Problem(key, found, "keep one of them"))
        settings.set(key, _value_of(value_node), source)
    return settings


def _value_of(node: yaml.Node) -> object:
    """A scalar's text, a list of them, or an empty dict for a mapping, which no setting accepts."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [str(item.value) if isinstance(item, yaml.ScalarNode) else {} for item in node.value]
    return {}
