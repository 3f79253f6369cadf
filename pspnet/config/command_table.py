"""Tables of commands, each imported when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pspnet.errors import ConfigError


class Command(NamedTuple):
    """A command: the module and function that run it, (argv) -> exit code, and its line in the help."""

    module: str
    function: str
    summary: str


def run_command(program: str, description: str, commands: Mapping[str, Command], argv: Sequence[str]) -> int:
    """Run the command that `argv` names with the rest of `argv`; return its exit code.

    --help prints the table without importing any command. Raises ConfigError for a missing or unknown command.
    """
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        width = max(len(key) for key in commands)
        lines = [f"  {key:{width}}  {command.summary}" for key, command in commands.items()]
        usage = f"usage: {program} COMMAND ..."
        print("\n".join([usage, "", description, "", *lines, "", f"Options: {program} COMMAND --help"]))
        return 0
    if name not in commands:
        # Imported here: --help does not need it.
        from pspnet.config.values import nearest

        like = nearest(name, commands)
        found = f"unknown command {name!r}" if name else "no command"
        raise ConfigError(f"{program}: {found}; {f'did you mean {like}?' if like else f'{program} --help lists them.'}")
    command = commands[name]
    run = getattr(importlib.import_module(command.module), command.function)
    code: int = run(argv[1:])
    return code
