"""Help texts of commands, made from their settings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pspnet.config.folders import OUTPUT_FOLDERS
from pspnet.config.settings import Setting, Settings, settings_of


def command_help(kind: type[Settings], command: str, description: str, epilog: str = "") -> str:
    """The help of a command: usage, description, positional values, settings."""
    positional = [item for item in settings_of(kind).values() if item.positional]
    usage = " ".join([f"usage: {command}", *(_usage(item) for item in positional), "[--key value ...] [--help]"])
    lines = [usage, "", *textwrap.wrap(" ".join(description.split()), 100)]
    if positional:
        width = max(len(item.metavar) for item in positional)
        lines.append("")
        lines += [f"  {item.metavar:{width}}  {item.description}" for item in positional]
    lines += ["", "Hyphens and underscores both work. A boolean flag without a value means True, --no_NAME False."]
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


def default_text(item: Setting) -> str:
    """Return the default as text: `required` if the setting has none, `none` if it may be left out."""
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
