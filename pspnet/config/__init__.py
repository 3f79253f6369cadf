"""Settings of a training run: one flat, typed, frozen `Config` for flags, YAML files and SageMaker hyperparameters.

It imports only `pspnet.classes` and `pspnet.errors`, and never torch. Start with `fields.py` (the settings), then
`rules.py` (invalid combinations) and `parsing.py` (flags, file and environment to Config).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pspnet.config.schema import Config

__all__ = ["Config"]


def __getattr__(name: str) -> Any:
    if name == "Config":
        from pspnet.config.schema import Config

        return Config
    raise AttributeError(f"module 'pspnet.config' has no attribute {name!r}")
