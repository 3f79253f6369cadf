"""The console command `pspnet`: one module per command, which parses options, calls a library function and prints.

May import every other part of the package. Start with `dispatch.py`.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the console command."""
    # Imported here, because train.py imports this package and needs no other command.
    from pspnet.cli.dispatch import main as run

    run()
