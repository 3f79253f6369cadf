"""Problems of settings, and the error that lists them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pspnet.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One reason why settings cannot be used: the key, what was found, and what is allowed or how to mend it.

    `others` are keys that the problem rests on as well; where one of them is wrong itself, the problem is not reported.
    """

    key: str
    found: str
    fix: str
    others: tuple[str, ...] = ()

    def line(self, source: str | None = None) -> str:
        """The problem as one line, with where the value came from if that is known."""
        key = " ".join(self.key.split())
        return f"{key}: {self.found}{f' ({source})' if source else ''}; {self.fix}"


class InvalidConfigError(ConfigError):
    """A ConfigError that still knows its single problems, so that sources can be added to them."""

    def __init__(self, problems: Iterable[Problem], sources: Mapping[str, str] | None = None) -> None:
        self.problems, self.sources = tuple(problems), dict(sources or {})
        super().__init__(self.problems, self.sources)

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"The configuration has {count} problem{'s' if count != 1 else ''}:"
        return "\n".join([head, *(f"  {problem.line(self.sources.get(problem.key))}" for problem in self.problems)])
