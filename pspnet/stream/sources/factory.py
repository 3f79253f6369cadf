"""Source factory."""

from __future__ import annotations

from pathlib import Path

from pspnet.stream.sources.base import Source, SourceError, SourceOptions


def open_source(text: str, options: SourceOptions) -> Source:
    """The source that a text means: kvs://STREAM, a URL, camera:N or /dev/videoN, a folder of frames or a video file.

    Raises SourceError where there is none or a package for it is missing.
    """
    if text.startswith("kvs://"):
        from pspnet.stream.sources.kinesis import KinesisSource

        return KinesisSource(text[len("kvs://") :], options)
    from pspnet.stream.sources.video import CameraSource, FileSource, FolderSource, UrlSource

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
        f"{text}: no such file or folder; a source is a video file, a folder of frames, camera:0, /dev/video0, an "
        "address such as rtsp://HOST/PATH, or kvs://STREAM."
    )
