"""The console command `pspnet`: one thin module per command."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console command."""
    # Imported here: train.py imports this package, and needs no other command.
    from pspnet.cli.dispatch import main as run

    run()
