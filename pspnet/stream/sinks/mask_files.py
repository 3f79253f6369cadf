"""Sink that stores masks in a folder, as segments with an index or as one PNG file per mask.

write() returns after the item was passed to the operating system, so a killed process loses nothing; a power failure
may lose items that were not yet synced to disk.
"""

from __future__ import annotations

from pathlib import Path

from pspnet.masks.frames import MaskedFrame
from pspnet.masks.segment import PNG_SUFFIX, SegmentHeader, mask_name
from pspnet.masks.writer import SegmentFolder, SegmentSettings, head_of, png_file
from pspnet.stream.sinks.base import SinkContext, SinkError
from pspnet.system.atomic_files import atomic_write

MAX_NAMES = 1000


class FolderSink:
    """Sink that stores masks in a folder. No file is overwritten; segments of a killed process are finished."""

    durable, spills = True, False

    def __init__(self, folder: Path, context: SinkContext, settings: SegmentSettings | None = None) -> None:
        """settings: default: those of the context. Raises SinkError if the folder cannot be written."""
        self.name = str(folder)
        self._folder, self._context = folder, context
        self._settings = context.settings.segments() if settings is None else settings
        template = SegmentHeader(0, 0, context.class_names, context.palette, source=context.source)
        try:
            self._segments = SegmentFolder(folder, self._settings, template)
        except OSError as error:
            raise SinkError(f"{folder}: cannot store masks here ({error.strerror or error}).", False) from error

    def write(self, item: MaskedFrame) -> None:
        """Append the mask to the open segment, or write its PNG file."""
        try:
            if self._settings.encoding == "files":
                self._write_file(item)
            else:
                if self._segments.full(item):
                    self.flush()
                self._segments.append(item)
        except OSError as error:
            raise self._error(error) from error

    def _write_file(self, item: MaskedFrame) -> None:
        content, head = png_file(item, self._context.palette), head_of(item)
        for again in range(MAX_NAMES):
            path = self._folder / mask_name(head, None, PNG_SUFFIX, again)
            if path.exists():
                if path.read_bytes() == content:
                    return
                continue
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            self.finished(path)
            return

    def flush(self) -> None:
        """Finish the open segment."""
        try:
            path = self._segments.finish()
        except OSError as error:
            raise self._error(error) from error
        if path is not None:
            self.finished(path)

    def finished(self, path: Path) -> None:
        """Called with every finished file."""

    def close(self) -> None:
        """Finish the open segment."""
        self.flush()

    def _error(self, error: OSError) -> SinkError:
        # A full disk or a lost network share may recover, so the write is retried.
        return SinkError(f"{self._folder}: cannot be written ({error.strerror or error}).", temporary=True)
