"""Config: every setting of a training run, checked. Imports no torch."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from pspnet.config.fields import Fields, allowed
from pspnet.config.folders import derived_folders
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.rules import cross_problems
from pspnet.config.values import choices, is_unset, nearest, show

FAMILIAR_NAMES = {"lr": "learning_rate", "batch_size": "mini_batch_size", "amp": "precision", "gpu": "device"}
"""Common names of other code bases that the nearest-key suggestion would miss."""


class Config(Fields):
    """All settings of a run, checked together. Flat and frozen; values may be strings, as from flags and SageMaker.

    None and the empty string mean "not given". Folders that are derived from `data` and `name` are filled in. Raises
    ConfigError that lists every problem.
    """

    def __init__(self, **values: Any) -> None:
        given = {key: value for key, value in values.items() if not is_unset(value)}
        problems = [unknown_key(key) for key in given if key not in Config.model_fields]
        given = {key: given[key] for key in given if key in Config.model_fields}
        given = {**derived_folders(given), **given}
        try:
            super().__init__(**given)
        except ValidationError as error:
            invalid = list(dict.fromkeys(str(details["loc"][0]) for details in error.errors()))
            problems += [_wrong_value(key, given.get(key)) for key in invalid]
            # The other settings are still checked against each other, with defaults for the invalid ones.
            super().__init__(**{"num_classes": 2, **{key: given[key] for key in given if key not in invalid}})
        broken = {problem.key for problem in problems}
        problems += [problem for problem in cross_problems(self) if broken.isdisjoint((problem.key, *problem.others))]
        if problems:
            raise InvalidConfigError(problems)

    def replace(self, **changes: Any) -> Config:
        """A checked copy with some settings changed; derived folders are derived again."""
        kept = {key: value for key, value in self.model_dump().items() if key not in self.derived()}
        return Config(**{**kept, **changes})


def unknown_key(key: str) -> Problem:
    """The problem of an unknown key, with the nearest known one."""
    like = FAMILIAR_NAMES.get(key.lower()) or nearest(key, Config.model_fields)
    return Problem(key, "unknown key", f"did you mean {like}?" if like else "--help lists all keys")


def _wrong_value(key: str, value: object) -> Problem:
    if value is None:
        return Problem(key, "missing", f"it is required: {allowed(key)}")
    text = str(value)
    like = nearest(text, choices(Config.model_fields[key].annotation))
    return Problem(key, f"found {show(value)}", f"allowed: {allowed(key)}{f'. Did you mean {like}?' if like else ''}")
