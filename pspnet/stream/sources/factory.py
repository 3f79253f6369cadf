"""Source factory."""

from __future__ import annotations

from pathlib import Path

from pspnet.stream.sources.base import Source, SourceError, SourceOptions
from pspnet.stream.sources.kinesis import KinesisSource
from pspnet.stream.sources.video import CameraSource, FileSource, FolderSource, UrlSource


def open_source(text: str, options: SourceOptions) -> Source:
    """Open kvs://STREAM, a URL, camera:N or /dev/videoN, a folder of images or a video file.

    Raises SourceError if it cannot be opened, ConfigError if a package is missing.
    """
    if text.startswith("kvs://"):
        return KinesisSource(text[len("kvs://") :], options)
    if "://" in text:
        return UrlSource(text, options)
    if text.startswith(("camera:", "/dev/video")):
        return CameraSource(text, options)
    path = Path(text)
    if path.is_dir():
        return FolderSource(path, options)
    if path.is_file():
        return FileSource(path, options)
    raise SourceError(
        f"{text}: no such file or folder; expected a video file, a folder of images, camera:0, /dev/video0, a URL such "
        "as rtsp://HOST/PATH, or kvs://STREAM."
    )
