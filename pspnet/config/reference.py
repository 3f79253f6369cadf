"""Reference of the settings: help text, Markdown tables and the YAML dump of a Config."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml

from pspnet.config.fields import allowed, group
from pspnet.config.folders import CHANNELS, OUTPUT_FOLDERS
from pspnet.config.schema import Config
from pspnet.config.values import show


def dump_yaml(config: Config) -> str:
    """The settings as YAML that loads to an equal Config; derived folders are written as comments."""
    lines: list[str] = []
    derived = config.derived()
    for heading, keys in _groups():
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


def help_text() -> str:
    """Every setting with its default, allowed values and description, by group; at most 100 columns."""
    lines = [
        "usage: train.py [--config FILE] [--key value ...] [--print_config] [--help]",
        "",
        "Precedence: defaults < config file < flags. A key in the file is also a flag and a",
        "SageMaker hyperparameter; hyphens and underscores both work. A boolean flag without a",
        "value means True.",
        "",
        "  --config FILE    read settings from a YAML file",
        "  --print_config   print the resulting settings as YAML and exit",
        "  --help           print this text and exit",
    ]
    for heading, keys in _groups():
        lines += ["", f"{heading}:"]
        for key in keys:
            default = default_text(key)
            head = f"--{key}: {default if default == 'required' else f'default {default}'}; {allowed(key)}"
            lines += textwrap.wrap(head, 100, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)
            lines += textwrap.wrap(str(Config.model_fields[key].description), 100, initial_indent=" " * 6)
    return "\n".join(lines) + "\n"


def markdown_table() -> str:
    """The content of help_text as Markdown tables for docs/configuration.md."""
    lines: list[str] = []
    for heading, keys in _groups():
        lines += ["", f"### {heading}", "", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for key in keys:
            cells = (f"`{key}`", default_text(key), allowed(key), str(Config.model_fields[key].description))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


def default_text(key: str) -> str:
    """The default as text: `required` if the setting has none, `none` if it may be left out."""
    known = Config.model_fields[key]
    if known.is_required():
        return "required"
    if key in OUTPUT_FOLDERS:
        return "/".join(part for part in ("runs/<name>", OUTPUT_FOLDERS[key]) if part)
    return "none" if known.default is None else str(known.default)


def _groups() -> Iterator[tuple[str, list[str]]]:
    headings = dict.fromkeys(group(key) for key in Config.model_fields)
    for heading in headings:
        yield heading, [key for key in Config.model_fields if group(key) == heading]
