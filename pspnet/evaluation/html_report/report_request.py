"""Settings of a report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pspnet.config.problems import Problem
from pspnet.config.settings import Settings, setting


@dataclass(frozen=True, init=False)
class ReportRequest(Settings):
    """Evaluations to show on one page, and the page."""

    folders: tuple[Path, ...] = setting(
        ...,
        "Output folders of `pspnet evaluate`, or one training run's folder.",
        allowed="folders",
        positional=True,
        repeated=True,
        metavar="DIR",
    )
    output: Path = setting(..., "The HTML file.")
    protocol: tuple[str, ...] | None = setting(
        None,
        "Evaluated protocols to show; if not given, all of a single folder, or the first of each of several folders.",
        allowed="names separated by commas",
    )
    images: Path | None = setting(None, "Folder of the images, if they were moved.")
    annotations: Path | None = setting(None, "Folder of the annotations, if they were moved.")
    run: Path | None = setting(None, "Folder of the training run, for its curves; the one that contains the model.")
    samples: int = setting(3, "Images of each group (best, median, worst); 0 for none.", ge=0, le=20)

    def conflicts(self) -> Iterator[Problem]:
        folders = [folder.resolve() for folder in self.folders or ()]
        if len(set(folders)) < len(folders):
            yield Problem("folders", "the same folder is given twice", "give each once")
        if self.output is not None and self.output.is_dir():
            yield Problem("output", f"{self.output} is a folder", "give the name of the HTML file")
