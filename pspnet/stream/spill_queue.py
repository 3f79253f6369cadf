"""Spill queue of one sink, with messages and statistics."""

from __future__ import annotations

from collections.abc import Callable

from pspnet.masks.frames import MaskedFrame
from pspnet.stream.spill_folder import DamagedItem, FolderInUse, SpillFolder
from pspnet.stream.statistics import SinkStatistics


class SpillQueue:
    """Queue of items in a spill folder, used under the delivery lock. Reports an unusable folder, never raises."""

    def __init__(
        self, folder: SpillFolder, name: str, statistics: SinkStatistics, report: Callable[[str], None]
    ) -> None:
        """name: name of the sink, the prefix of every message. Reports items that an earlier run left."""
        self._folder, self._name, self._statistics, self._report = folder, name, statistics, report
        self._recovered = len(folder)  # items of other runs, which come first
        self._failure_reported = False
        if self._recovered:
            statistics.on_disk = self._recovered
            report(f"{name}: delivering {self._recovered} items of an earlier run from {folder.folder} first.")

    def __len__(self) -> int:
        return len(self._folder)

    def append(self, item: MaskedFrame) -> bool:
        """Append an item; return whether it was stored. The first of consecutive failures is reported."""
        folder = self._folder
        try:
            self._claim()
            stored, reason = folder.append(item), f"its limit of {folder.limit:,} bytes (--spill_bytes) is reached"
        except (OSError, FolderInUse) as error:
            stored, reason = False, _reason(error)
        if stored:
            self._statistics.count("spilled")
            self._statistics.on_disk = len(folder)
        elif not self._failure_reported:
            self._report(f"{self._name}: cannot spill to {folder.folder}: {reason}.")
        self._failure_reported = not stored
        return stored

    def prepend(self, items: list[MaskedFrame]) -> None:
        """Insert items before all others; those that cannot be stored are reported and counted as lost."""
        folder = self._folder
        before = len(folder)
        try:
            self._claim()
            before = len(folder)
            folder.prepend(items)
        except (OSError, FolderInUse) as error:
            lost = len(items) - (len(folder) - before)
            self._statistics.count("lost", lost)
            self._report(f"{folder.folder}: cannot be written ({_reason(error)}); {lost} items are lost.")
        self._statistics.count("spilled", len(folder) - before)
        self._statistics.on_disk = len(folder)

    def _claim(self) -> None:
        """Lock the folder; items that another stream left there since this one started are delivered too."""
        found = self._folder.claim()
        if found:
            self._recovered += found
            self._report(f"{self._name}: also delivering {found} items of another run from {self._folder.folder}.")

    def first(self) -> MaskedFrame | None:
        """Return the oldest item without removing it. Damaged items are reported, counted as lost and skipped."""
        while len(self._folder):
            try:
                return self._folder.first()
            except DamagedItem as error:
                self._report(f"{self._name}: skipped a damaged item, kept as {error.path}.")
                self._statistics.count("lost")
                self._recovered = max(0, self._recovered - 1)
        return None

    def remove_first(self) -> bool:
        """Remove the oldest item after its delivery; return whether another run spilled it."""
        self._folder.remove_first()
        recovered = self._recovered > 0
        self._recovered -= recovered
        self._statistics.on_disk = len(self._folder)
        return recovered

    def close(self) -> None:
        """Unlock the folder and report the items left in it."""
        if len(self._folder):
            self._report(
                f"{self._name}: {len(self._folder)} items were not delivered; they are in {self._folder.folder}, and "
                "the next run with the same --spill delivers them first."
            )
        self._folder.close()


def _reason(error: OSError | FolderInUse) -> str:
    if isinstance(error, FolderInUse):
        return "another stream uses it; pass another --spill"
    return error.strerror or str(error)
