"""Config: every setting of a training run, checked. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pspnet.config.fields import Fields
from pspnet.config.folders import derived_folders
from pspnet.config.problems import Problem
from pspnet.config.rules import cross_problems


@dataclass(frozen=True, init=False)
class Config(Fields):
    """All settings of a run, checked together. Flat and frozen; values may be texts, as flags and SageMaker send them.

    Raises ConfigError that lists every problem. None and the empty text mean "not given". Folders that follow from
    others (`data`, `name`) are filled in, so every reader finds the folder that is meant.
    """

    FAMILIAR: ClassVar[Mapping[str, str]] = {
        "lr": "learning_rate", "batch_size": "mini_batch_size", "amp": "precision", "gpu": "device",
    }  # fmt: skip

    @classmethod
    def derive(cls, given: Mapping[str, object]) -> dict[str, Any]:
        return dict(derived_folders(given))

    def conflicts(self) -> Iterator[Problem]:
        return cross_problems(self)

    def replace(self, **changes: Any) -> Config:
        """A checked copy with some settings changed; folders that followed from changed ones follow again."""
        kept = {key: value for key, value in self.to_dict().items() if key not in self.derived()}
        return Config(**{**kept, **changes})
