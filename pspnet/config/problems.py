"""Problems of settings, and the error that lists them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pspnet.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One invalid setting: the key, the value found, and the fix.

    `others` are keys that the problem also depends on; if one of them is invalid itself, the problem is not reported.
    """

    key: str
    found: str
    fix: str
    others: tuple[str, ...] = ()

    def line(self, source: str | None = None) -> str:
        """The problem as one line, with the source of the value if known."""
        key = " ".join(self.key.split())
        return f"{key}: {self.found}{f' ({source})' if source else ''}; {self.fix}"


class InvalidConfigError(ConfigError):
    """A ConfigError that keeps its individual problems, so that sources can be added to them."""

    def __init__(self, problems: Iterable[Problem], sources: Mapping[str, str] | None = None) -> None:
        self.problems, self.sources = tuple(problems), dict(sources or {})
        super().__init__(self.problems, self.sources)

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"The configuration has {count} problem{'s' if count != 1 else ''}:"
        return "\n".join([head, *(f"  {problem.line(self.sources.get(problem.key))}" for problem in self.problems)])
