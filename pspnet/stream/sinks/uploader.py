"""Upload of finished local files in a thread, with exponential backoff and jitter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from pspnet.stream.sinks.base import SinkError
from pspnet.system.backoff import Backoff


class Uploader:
    """Durable queue of files, uploaded in order by one thread. A file is deleted after its upload.

    error: the exception that ended the thread; None while it runs. Thread-safe.
    """

    def __init__(self, name: str, put: Callable[[str, bytes], None], report: Callable[[str], None]) -> None:
        """name: name of the sink, the prefix of every message. put: stores a file's name and content, or raises."""
        self._name, self._put, self._report = name, put, report
        self._count: Callable[[str], None] = lambda _: None
        self._files: dict[Path, int] = {}  # sizes
        self._backoff = Backoff(0.5, 30.0)
        self._lock = threading.Lock()
        self._added, self._retry = threading.Event(), threading.Event()
        self._closed = False
        self.error: Exception | None = None

    def __len__(self) -> int:
        return len(self._files)

    @property
    def size(self) -> int:
        """Total bytes of the queued files."""
        with self._lock:
            return sum(self._files.values())

    def start(self, count: Callable[[str], None]) -> None:
        """Start the thread. count: called with "retries" for each."""
        self._count = count
        threading.Thread(target=self._run, name=f"upload {self._name}", daemon=True).start()

    def add(self, path: Path) -> None:
        """Queue a file that does not change any more."""
        with self._lock:
            self._files[path] = path.stat().st_size
        self._added.set()

    def retry(self) -> None:
        """End the current pause after a failed upload."""
        self._retry.set()

    def close(self) -> None:
        """End the thread after the current upload."""
        self._closed = True
        self._added.set()
        self._retry.set()

    def upload(self) -> None:
        """Upload all queued files. Raises SinkError and OSError; files before the failing one are uploaded."""
        while not self._closed:
            with self._lock:
                path = next(iter(self._files), None)
            if path is None:
                return
            try:
                self._put(path.name, path.read_bytes())
                path.unlink()
            except FileNotFoundError:
                pass  # another stream to the same destination uploaded it
            with self._lock:
                del self._files[path]

    def _run(self) -> None:
        failing = False
        while not self._closed:
            try:
                self.upload()
                if failing and not self._closed:
                    self._report(f"{self._name}: recovered; all queued files were uploaded.")
                failing = False
                self._backoff.reset()
                self._added.wait()
                self._added.clear()
            except Exception as error:
                reason = " ".join(str(error).removeprefix(f"{self._name}: ").split())
                if isinstance(error, OSError) or (isinstance(error, SinkError) and error.temporary):
                    if not failing:
                        self._report(f"{self._name}: {reason} Retrying with exponential backoff; masks stay on disk.")
                    failing = True
                    self._count("retries")
                    self._retry.wait(self._backoff.next())
                    self._retry.clear()
                    continue
                self.error = error
                self._report(f"{self._name}: gave up uploading: {reason}")
                return
