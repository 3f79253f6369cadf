"""Reference of the settings: help text, Markdown tables and the YAML dump of a Config."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml

from pspnet.config.folders import CHANNELS, OUTPUT_FOLDERS
from pspnet.config.schema import Config
from pspnet.config.settings import Setting, Settings, settings_of
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


def command_help(kind: type[Settings], command: str, description: str, epilog: str = "") -> str:
    """The help of a command: usage, description, positional values, settings."""
    positional = [item for item in settings_of(kind).values() if item.positional]
    usage = " ".join([f"usage: {command}", *(_usage(item) for item in positional), "[--key value ...] [--help]"])
    lines = [usage, "", *textwrap.wrap(" ".join(description.split()), 100)]
    if positional:
        width = max(len(item.metavar) for item in positional)
        lines.append("")
        lines += [f"  {item.metavar:{width}}  {item.description}" for item in positional]
    lines += ["", "Hyphens and underscores both work. A true-or-false flag without a value means True."]
    return "\n".join(lines) + "\n" + settings_help(kind) + (f"\n{epilog.strip()}\n" if epilog else "")


def _usage(item: Setting) -> str:
    name = f"{item.metavar}..." if item.repeated else item.metavar
    return name if item.is_required else f"[{name}]"


def settings_help(kind: type[Settings]) -> str:
    """Every setting that is given by name, with its default, what it allows and one line; at most 100 columns."""
    lines = []
    for heading, keys in groups(kind):
        named = [settings_of(kind)[key] for key in keys if not settings_of(kind)[key].positional]
        lines += ["", f"{heading}:"] if named else []
        for item in named:
            default = default_text(item)
            head = f"--{item.name}: {default if default == 'required' else f'default {default}'}; {item.allowed}"
            lines += textwrap.wrap(head, 100, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
            lines += textwrap.wrap(item.description, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


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


def default_text(item: Setting) -> str:
    """The default as it would be written: `required` where there is none, `none` where it is not given."""
    if item.is_required:
        return "required"
    if item.default == "" and item.name in OUTPUT_FOLDERS:
        return "/".join(part for part in ("runs/<name>", OUTPUT_FOLDERS[item.name]) if part)
    if isinstance(item.default, tuple):
        return ", ".join(map(str, item.default)) or "none"
    return "none" if item.default is None else str(item.default)


def groups(kind: type[Settings]) -> Iterator[tuple[str, list[str]]]:
    """Headings and the keys below each."""
    known = settings_of(kind)
    for heading in dict.fromkeys(item.group for item in known.values()):
        yield heading, [key for key, item in known.items() if item.group == heading]
