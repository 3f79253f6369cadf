"""Reference of the settings: help text, Markdown tables and the YAML dump of a Config."""

from __future__ import annotations

import yaml

from pspnet.config.command_help import default_text, groups, settings_help
from pspnet.config.folders import CHANNELS
from pspnet.config.schema import Config
from pspnet.config.settings import settings_of
from pspnet.config.values import show


def dump_yaml(config: Config) -> str:
    """The settings as YAML that loads to an equal Config; derived folders are written as comments."""
    lines: list[str] = []
    derived = config.derived()
    for heading, keys in groups(Config):
        lines += ["", f"# {heading}"] if lines else [f"# {heading}"]
        for key in keys:
            value = getattr(config, key)
            if key in derived:
                lines.append(f"# {key}: {show(value, 200)}  (derived from {'data' if key in CHANNELS else 'name'})")
            elif isinstance(value, tuple):
                lines.append(f"{key}: {_yaml(list(value), flow=True)}")
            else:
                lines.append(_yaml({key: value}, flow=False))
    return "\n".join(lines) + "\n"


def _yaml(value: object, flow: bool) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, width=10**6)
    return text.strip()


_TRAIN_HELP = """\
usage: train.py [--config FILE] [--key value ...] [--print_config] [--help]

Precedence: defaults < config file < flags. A key in the file is also a flag and a
SageMaker hyperparameter; hyphens and underscores both work. A boolean flag without a
value means True.

  --config FILE    read settings from a YAML file
  --print_config   print the resulting settings as YAML and exit
  --help           print this text and exit
"""


def help_text() -> str:
    """The help of training: every setting with its default, allowed values and description, by group."""
    return _TRAIN_HELP + settings_help(Config)


def markdown_table() -> str:
    """The content of help_text as Markdown tables for docs/configuration.md."""
    lines: list[str] = []
    for heading, keys in groups(Config):
        lines += ["", f"### {heading}", "", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for key in keys:
            item = settings_of(Config)[key]
            cells = (f"`{key}`", default_text(item), item.allowed, item.description)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"
