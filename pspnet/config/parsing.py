"""Config from flags, a YAML file and SageMaker's environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import yaml

from pspnet.config.fields import allowed
from pspnet.config.folders import CHANNELS
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.schema import Config
from pspnet.config.values import is_unset, parse_bool, show

SAGEMAKER_BASE = "/opt/ml"
"""Base folder of a SageMaker job, unless SAGEMAKER_BASE_DIR is set. SageMaker restores checkpoints to its subfolder
`checkpoints` at the start of a job and uploads them from there while it runs."""

_COMMANDS = ("config", "help", "print_config")
_FOREIGN = ("_tuning_objective_metric", "sagemaker_")
"""Prefixes of hyperparameters that SageMaker's tuning jobs and toolkits add themselves."""


@dataclass
class Settings:
    """Raw values and their sources by key; later values replace earlier ones."""

    values: dict[str, object] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def set(self, key: str, value: object, source: str) -> None:
        self.values[key], self.sources[key] = value, source

    def set_default(self, key: str, value: object, source: str) -> None:
        """Set a value unless one is already set."""
        if is_unset(self.values.get(key)) and not is_unset(value):
            self.set(key, value, source)


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: the settings, the source of each (flag, file, environment), and the requested output."""

    checked: Config | None
    sources: Mapping[str, str]
    print_config: bool = False
    help_requested: bool = False
    config_file: Path | None = None

    @property
    def config(self) -> Config:
        """The checked settings; not available when help was requested."""
        assert self.checked is not None, "help was requested: print help_text() instead"
        return self.checked


def parse_arguments(
    argv: Sequence[str], env: Mapping[str, str] | None = None, default_file: str | os.PathLike[str] | None = None
) -> Arguments:
    """Settings from `--key value` flags over a `--config` file over the environment over defaults.

    `argv` excludes the program name. `env` defaults to os.environ. `default_file` is read if the command line gives
    neither a setting nor a file and the environment has no channel. Raises ConfigError that lists every problem.
    """
    env = os.environ if env is None else env
    flags, commands = _read_flags(argv)
    if _is_true(commands, "help", flags):
        return Arguments(None, {}, help_requested=True)
    print_config = _is_true(commands, "print_config", flags)
    file = commands.get("config")
    if file is None and default_file is not None and not flags.values and not flags.problems:
        file = (
            None if any(f"SM_CHANNEL_{key.upper()}" in env for key in ("data", *CHANNELS)) else os.fspath(default_file)
        )
    config, sources = _combine(file, flags, env)
    return Arguments(config, sources, print_config, config_file=None if file is None else Path(file))


def load_config(
    file: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Config:
    """Settings from a YAML file, replaced by `overrides`; the environment is read only if given. Raises ConfigError."""
    flags = Settings()
    for key, value in (overrides or {}).items():
        flags.set(_plain(key), value, "override")
    return _combine(None if file is None else os.fspath(file), flags, {} if env is None else env)[0]


def _combine(file: str | None, flags: Settings, env: Mapping[str, str]) -> tuple[Config, dict[str, str]]:
    settings = Settings(problems=list(flags.problems))
    if file is not None:
        try:
            read = read_config_file(file)
        except InvalidConfigError as error:  # without the file, most other problems would be misleading
            raise InvalidConfigError([*settings.problems, *error.problems]) from None
        settings.problems += read.problems
        settings.values.update(read.values)
        settings.sources.update(read.sources)
        settings.set_default("name", _name_of(file), file)
    for key, value in flags.values.items():
        settings.set(key, value, flags.sources[key])
    _add_environment(settings, env)
    try:
        config = Config(**settings.values)
    except InvalidConfigError as error:
        # A flag without a value was already reported, so its missing key is not.
        reported = {problem.key for problem in settings.problems if problem.key not in settings.values}
        rest = [problem for problem in error.problems if reported.isdisjoint((problem.key, *problem.others))]
        raise InvalidConfigError([*settings.problems, *rest], settings.sources) from None
    if settings.problems:
        raise InvalidConfigError(settings.problems, settings.sources)
    return config, {key: source for key, source in settings.sources.items() if not is_unset(settings.values[key])}


def _name_of(file: str) -> str:
    """The run name of a config file; characters that a folder name cannot contain become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).stem).lstrip("._-") or "run"


def _add_environment(settings: Settings, env: Mapping[str, str]) -> None:
    for key in ("data", *CHANNELS):
        variable = f"SM_CHANNEL_{key.upper()}"
        settings.set_default(key, env.get(variable), f"environment {variable}")
    settings.set_default("model_dir", env.get("SM_MODEL_DIR"), "environment SM_MODEL_DIR")
    settings.set_default("output_dir", env.get("SM_OUTPUT_DATA_DIR"), "environment SM_OUTPUT_DATA_DIR")
    if env.get("SM_MODEL_DIR"):
        base = env.get("SAGEMAKER_BASE_DIR") or SAGEMAKER_BASE
        settings.set_default("checkpoint_dir", f"{base}/checkpoints", "environment SM_MODEL_DIR")


def _plain(key: str) -> str:
    return key.strip().replace("-", "_")


def _read_flags(argv: Sequence[str]) -> tuple[Settings, dict[str, str]]:
    """Settings from flags, and separately the flags that are not settings: --config, --help and --print_config."""
    settings, commands, position = Settings(), {}, 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if token == "-h":
            token = "--help"
        if not token.startswith("--") or token == "--":
            fix = "settings are given as --key value, a config file as --config FILE"
            settings.problems.append(Problem("command line", f"unexpected {show(token)}", fix))
            continue
        name, equals, value = token[2:].partition("=")
        if not equals and position < len(argv) and not argv[position].startswith("--"):
            value, equals = argv[position], "="
            position += 1
        key = _plain(name)
        if key in _COMMANDS:
            commands[key] = value if equals else "" if key == "config" else "True"
        elif not key.startswith(_FOREIGN):
            _add_flag(settings, key, value if equals else None, f"flag --{name}")
    return settings, commands


def _add_flag(settings: Settings, key: str, value: str | None, source: str) -> None:
    known = Config.model_fields.get(key)
    if value is not None or (known is not None and bool in (known.annotation, *get_args(known.annotation))):
        settings.set(key, "True" if value is None else value, source)
    elif known is None:
        settings.set(key, "True", source)  # reported as an unknown key with the others
    else:
        settings.problems.append(Problem(key, f"{source} has no value", f"allowed: {allowed(key)}"))


def _is_true(commands: Mapping[str, str], key: str, flags: Settings) -> bool:
    if key not in commands:
        return False
    try:
        return parse_bool(commands[key])
    except ValueError:
        flags.problems.append(Problem(f"--{key}", f"found {show(commands[key])}", "it takes no value"))
        return False


def read_config_file(file: str) -> Settings:
    """The raw strings of a YAML file by key, each with its line. Raises ConfigError for an unreadable file.

    Scalars stay strings, like flags: YAML's own types (010 is 8, 1e-4 is a string, no is False) are not used.
    """
    if not file.strip():
        raise InvalidConfigError([Problem("--config", "has no value", "give the name of a YAML file")])
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except OSError as error:
        found = f"cannot read {file}: {error.strerror or error}"
        raise InvalidConfigError([Problem("--config", found, "give the name of an existing YAML file")]) from None
    except (ValueError, OverflowError, yaml.YAMLError, RecursionError) as error:
        raise InvalidConfigError(
            [Problem("--config", f"{file} is not valid YAML{_error_position(error)}", _YAML_FIX)]
        ) from None
    if not isinstance(root, yaml.MappingNode):
        what = "is empty" if root is None else f"contains a {'list' if isinstance(root, yaml.SequenceNode) else 'text'}"
        raise InvalidConfigError([Problem("--config", f"{file} {what}", _YAML_FIX)])
    return _read_mapping(file, root)


_YAML_FIX = 'write one "key: value" per line'


def _error_position(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return ": it is not UTF-8 text"
    if isinstance(error, RecursionError):
        return ": it is nested too deeply"
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable characters"
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f": {problem}"


def _read_mapping(file: str, root: yaml.MappingNode) -> Settings:
    settings = Settings()
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        key, source = _plain(str(_value_of(key_node))), f"{file}, line {line}"
        if key in settings.values:
            first = settings.sources[key].rsplit(" ", 1)[-1]
            found = f"given twice in {file}, on lines {first} and {line}"
            settings.problems.append(Problem(key, found, "keep one of them"))
        settings.set(key, _value_of(value_node), source)
    return settings


def _value_of(node: yaml.Node) -> object:
    """A scalar's string, a list of strings, or an empty dict for a mapping, which no setting accepts."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [str(item.value) if isinstance(item, yaml.ScalarNode) else {} for item in node.value]
    return {}
