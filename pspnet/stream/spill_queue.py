"""What one sink does not take now, on disk, with what is said and counted of it."""

from __future__ import annotations

from collections.abc import Callable

from pspnet.masks.frames import MaskedFrame
from pspnet.stream.spill_folder import DamagedItem, FolderInUse, SpillFolder
from pspnet.stream.statistics import SinkStatistics


class SpillQueue:
    """The spill folder of one delivery. Used under its lock. No method raises for a folder that cannot be used."""

    def __init__(
        self, spill: SpillFolder, name: str, statistics: SinkStatistics, report: Callable[[str], None]
    ) -> None:
        """name: the sink's, with which every sentence begins. Says what an earlier run left."""
        self._spill, self._name, self._statistics, self._report = spill, name, statistics, report
        self._leftovers = len(spill)  # items of other runs, which are first
        self._refusal_told = False
        if self._leftovers:
            statistics.on_disk = self._leftovers
            report(f"{name}: {self._leftovers} items of an earlier run are in {spill.folder}; they go first.")

    def __len__(self) -> int:
        return len(self._spill)

    def append(self, item: MaskedFrame) -> bool:
        """Keep an item behind all others. Whether it was kept; the first refusal of several is said."""
        try:
            self._claim()
            kept, reason = self._spill.append(item), f"its {self._spill.limit:,} bytes (--spill_bytes) are used up"
        except (OSError, FolderInUse) as error:
            kept, reason = False, _refusal(error)
        if kept:
            self._statistics.count("spilled")
            self._statistics.on_disk = len(self._spill)
        elif not self._refusal_told:
            self._report(f"{self._name}: the spill folder {self._spill.folder} takes no more: {reason}.")
        self._refusal_told = not kept
        return kept

    def prepend(self, items: list[MaskedFrame]) -> None:
        """Keep items before all others; those for which there is no room are said and counted as lost."""
        before = len(self._spill)
        try:
            self._claim()
            before = len(self._spill)
            self._spill.prepend(items)
        except (OSError, FolderInUse) as error:
            lost = len(items) - (len(self._spill) - before)
            self._statistics.count("lost", lost)
            self._report(f"{self._spill.folder}: cannot be written ({_refusal(error)}); {lost} items are lost.")
        self._statistics.count("spilled", len(self._spill) - before)
        self._statistics.on_disk = len(self._spill)

    def _claim(self) -> None:
        """Take the folder; what another stream has left there since this one began is delivered too."""
        found = self._spill.claim()
        if found:
            self._leftovers += found
            self._report(
                f"{self._name}: {found} items of another run are in {self._spill.folder}; they are delivered too."
            )

    def first(self) -> MaskedFrame | None:
        """The oldest item; it stays. Damaged ones are said, counted as lost and passed over."""
        while len(self._spill):
            try:
                return self._spill.first()
            except DamagedItem as error:
                self._report(f"{self._name}: an item on disk is damaged; it stays there as {error.path}.")
                self._statistics.count("lost")
                self._leftovers = max(0, self._leftovers - 1)
        return None

    def remove_first(self) -> bool:
        """The oldest item has been delivered. Whether it was one of another run."""
        self._spill.remove_first()
        recovered = self._leftovers > 0
        self._leftovers -= recovered
        self._statistics.on_disk = len(self._spill)
        return recovered

    def close(self) -> None:
        """Give the folder free, and say what stays in it."""
        if len(self._spill):
            self._report(
                f"{self._name}: {len(self._spill)} items were not delivered; they are in {self._spill.folder} and go "
                "first at the next start with the same --spill."
            )
        self._spill.close()


def _refusal(error: OSError | FolderInUse) -> str:
    """Why a folder takes nothing."""
    if isinstance(error, FolderInUse):
        return "another stream uses it, give this one another --spill"
    return error.strerror or str(error)
