"""Reference of the settings: help text, Markdown tables and the YAML dump of a Config."""

from __future__ import annotations

import yaml

from pspnet.config.command_help import default_text, groups, settings_help
from pspnet.config.folders import CHANNELS
from pspnet.config.schema import Config
from pspnet.config.settings import settings_of
from pspnet.config.values import show


def dump_yaml(config: Config) -> str:
    """The settings as YAML that loads to an equal Config; folders that follow from others stand in comments."""
    lines: list[str] = []
    derived = config.derived()
    for heading, keys in groups(Config):
        lines += ["", f"# {heading}"] if lines else [f"# {heading}"]
        for key in keys:
            value = getattr(config, key)
            if key in derived:
                lines.append(f"# {key}: {show(value, 200)}  (follows from {'data' if key in CHANNELS else 'name'})")
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

Defaults < config file < flags, whatever their order. A key in the file is a flag here and a
hyperparameter on SageMaker; hyphens and underscores both work. A true-or-false flag without a
value means True.

  --config FILE    read settings from a YAML file
  --print_config   print the settings that would be used, as YAML, and stop
  --help           print this text and stop
"""


def help_text() -> str:
    """The help of training: every setting with its default, what it allows and one line, by group."""
    return _TRAIN_HELP + settings_help(Config)


def markdown_table() -> str:
    """The same as help_text, as Markdown tables for docs/configuration.md."""
    lines: list[str] = []
    for heading, keys in groups(Config):
        lines += ["", f"### {heading}", "", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for key in keys:
            item = settings_of(Config)[key]
            cells = (f"`{key}`", default_text(item), item.allowed, item.description)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"
