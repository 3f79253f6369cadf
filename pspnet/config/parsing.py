"""Config from flags, a YAML file and SageMaker's environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pspnet.config.command_line import FlagReader, RawSettings, build_settings, is_requested, plain_key
from pspnet.config.folders import CHANNELS
from pspnet.config.problems import InvalidConfigError
from pspnet.config.schema import Config
from pspnet.config.settings import Settings, settings_of, unknown_key
from pspnet.config.values import is_unset

SAGEMAKER_BASE = "/opt/ml"
"""Base folder of a SageMaker job, unless SAGEMAKER_BASE_DIR is set. SageMaker restores checkpoints to its subfolder
`checkpoints` at the start of a job and uploads them from there while it runs."""

_OPTIONS = {"config": True, "help": False, "print_config": False}
_FOREIGN = ("_tuning_objective_metric", "sagemaker_")
"""Prefixes of hyperparameters that SageMaker's tuning jobs and toolkits add themselves."""


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: the settings, the source of each (flag, file, environment), and the requested output.

    `more` are the settings of the additional classes.
    """

    checked: Config | None
    sources: Mapping[str, str]
    print_config: bool = False
    help_requested: bool = False
    config_file: Path | None = None
    more: Sequence[Any] = ()

    @property
    def config(self) -> Config:
        """The checked settings; not available when help was requested."""
        assert self.checked is not None, "help was requested: print help_text() instead"
        return self.checked


def parse_arguments(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    default_file: str | os.PathLike[str] | None = None,
    more: Sequence[type[Settings]] = (),
) -> Arguments:
    """Settings from `--key value` flags over a `--config` file over the environment over defaults.

    `argv` excludes the program name. `env` defaults to os.environ. `default_file` is read if the command line gives
    neither a setting nor a file and the environment has no channel. `more` are classes whose settings are flags too,
    but no keys of a config file. Raises ConfigError that lists every problem.
    """
    env = os.environ if env is None else env
    flags, commands = FlagReader([Config, *more], _OPTIONS, _FOREIGN).read(argv)
    if is_requested(commands, "help", flags.problems):
        return Arguments(None, {}, help_requested=True)
    print_config = is_requested(commands, "print_config", flags.problems)
    file = commands.get("config")
    if file is None and default_file is not None and not flags.values and not flags.problems:
        file = (
            None if any(f"SM_CHANNEL_{key.upper()}" in env for key in ("data", *CHANNELS)) else os.fspath(default_file)
        )
    (config, *others), sources = _combine(file, flags, env, more)
    return Arguments(config, sources, print_config, config_file=None if file is None else Path(file), more=others)


def load_config(
    file: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Config:
    """Settings from a YAML file, replaced by `overrides`; the environment is read only if given. Raises ConfigError."""
    flags = RawSettings()
    for key, value in (overrides or {}).items():
        flags.set(plain_key(key), value, "override")
    (config,), _ = _combine(None if file is None else os.fspath(file), flags, {} if env is None else env)
    checked: Config = config
    return checked


def _combine(
    file: str | None, flags: RawSettings, env: Mapping[str, str], more: Sequence[type[Settings]] = ()
) -> tuple[list[Any], dict[str, str]]:
    settings = RawSettings(problems=list(flags.problems))
    if file is not None:
        # Imported here: only a config file needs the YAML library.
        from pspnet.config.yaml_file import read_config_file

        try:
            read = read_config_file(file)
        except InvalidConfigError as error:  # without the file, most other problems would be misleading
            raise InvalidConfigError([*settings.problems, *error.problems]) from None
        flags_only = {key for kind in more for key in settings_of(kind)}
        settings.problems += [*read.problems, *(unknown_key(key, [Config]) for key in read.values if key in flags_only)]
        settings.values.update(read.values)
        settings.sources.update(read.sources)
        settings.set_default("name", _name_of(file), file)
    for key, value in flags.values.items():
        settings.set(key, value, flags.sources[key])
    _add_environment(settings, env)
    built = build_settings([Config, *more], settings)
    return built, {key: source for key, source in settings.sources.items() if not is_unset(settings.values[key])}


def _name_of(file: str) -> str:
    """The run name of a config file; characters that a folder name cannot contain become hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).stem).lstrip("._-") or "run"


def _add_environment(settings: RawSettings, env: Mapping[str, str]) -> None:
    for key in ("data", *CHANNELS):
        variable = f"SM_CHANNEL_{key.upper()}"
        settings.set_default(key, env.get(variable), f"environment {variable}")
    settings.set_default("model_dir", env.get("SM_MODEL_DIR"), "environment SM_MODEL_DIR")
    settings.set_default("output_dir", env.get("SM_OUTPUT_DATA_DIR"), "environment SM_OUTPUT_DATA_DIR")
    if env.get("SM_MODEL_DIR"):
        base = env.get("SAGEMAKER_BASE_DIR") or SAGEMAKER_BASE
        settings.set_default("checkpoint_dir", f"{base}/checkpoints", "environment SM_MODEL_DIR")
