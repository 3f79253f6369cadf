"""Weights of other programs, read without running any code of theirs and loaded strictly under their names.

Imports only the other modules of `models`, `classes` and `errors`. Start with `programs.py`, which picks the module of
the program; each maps its names over `layout.py`.
"""

from pspnet.models.imports.programs import read_backbone, read_weights

__all__ = ["read_backbone", "read_weights"]
