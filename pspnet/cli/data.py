"""`pspnet doctor` and `pspnet prepare`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pspnet.classes import IGNORE_INDEX, MAX_CLASSES, NAMED_CLASS_SETS
from pspnet.config.command_line import parse_settings
from pspnet.config.command_table import Command, run_command
from pspnet.config.fields import known_class_names
from pspnet.config.problems import Problem
from pspnet.config.settings import Settings, setting
from pspnet.errors import DataError
from pspnet.models.constants import MIN_SIZE
from pspnet.system.cpu import available_cores

_CHANNELS = ("train", "validation")


def _class_names(value: tuple[str, ...]) -> tuple[str, ...]:
    names = known_class_names(value)
    if not 2 <= len(names) <= MAX_CLASSES:
        raise ValueError("too few or too many")
    return names


@dataclass(frozen=True, init=False)
class DoctorSettings(Settings):
    """The channels to examine, and the classes of their masks."""

    data: Path | None = setting(None, "Folder that holds the channels.", positional=True, metavar="DATA_DIR")
    train: Path | None = setting(None, "Folder of the training images.")
    train_annotation: Path | None = setting(None, "Folder of their annotations.")
    validation: Path | None = setting(None, "Folder of the validation images.")
    validation_annotation: Path | None = setting(None, "Folder of their annotations.")
    label_map: Path | None = setting(None, "Folder of label maps; DATA_DIR/label_map, if it exists.")
    num_classes: int | None = setting(
        None, "Classes of the model; those in the masks if not given.", ge=2, le=MAX_CLASSES
    )
    class_names: tuple[str, ...] | None = setting(
        None,
        "Class names in the order of their ids.",
        allowed=f"2 to {MAX_CLASSES} unique names separated by commas, or a known set: {', '.join(NAMED_CLASS_SETS)}",
        check=_class_names,
    )
    ignore_index: int = setting(IGNORE_INDEX, "Class id to ignore besides 255.", ge=0, le=255)
    workers: int | None = setting(None, "Processes that read files; one per CPU core if not given.", ge=0)
    json: Path | None = setting(None, "JSON file for the report.")

    def conflicts(self) -> Iterator[Problem]:
        given, names = self.to_dict(), self.class_names
        if self.data is None:
            pairs = [(name, f"{name}_annotation") for name in _CHANNELS]
            for key, other in [*pairs, *((annotation, images) for images, annotation in pairs)]:
                if given[key] is None and given[other] is not None:
                    yield Problem(key, "missing", f"a channel has images and annotations, and {other} is given")
            if all(given[key] is None for pair in pairs for key in pair):
                yield Problem("data", "missing", "give DATA_DIR, or --train and --train_annotation")
        if names is not None and self.num_classes not in (None, len(names)):
            fix = f"class_names has {len(names)} names: give as many names as classes"
            yield Problem("num_classes", f"found {self.num_classes}", fix, ("class_names",))


def doctor_command(argv: Sequence[str]) -> int:
    """Print the report; return 1 if training would be wrong, else 0."""
    description = "Read every file of a data set and report every problem; exit code 1 if training would be wrong."
    settings = parse_settings(DoctorSettings, argv, "pspnet doctor", description)
    # Imported here, so that --help and wrong settings respond immediately.
    from pspnet.data.channels import Channel, find_label_map
    from pspnet.data.doctor.examine import examine
    from pspnet.data.doctor.findings import format_report

    data, label_map = settings.data, settings.label_map
    folders = {key: getattr(settings, key) for name in _CHANNELS for key in (name, f"{name}_annotation")}
    if data is not None:
        if not data.is_dir():
            raise DataError(f"{data}: is not a folder; expected one that contains train, train_annotation, ...")
        if label_map is None and (data / "label_map").is_dir():
            label_map = data / "label_map"
        folders = {key: data / key if folder is None else folder for key, folder in folders.items()}
    report = examine(
        [
            Channel(name, folders[name], folders[f"{name}_annotation"], find_label_map(label_map, name))
            for name in _CHANNELS
            if folders[name] is not None
        ],
        num_classes=settings.num_classes,
        class_names=settings.class_names,
        workers=available_cores() if settings.workers is None else settings.workers,
        ignore_index=settings.ignore_index,
    )
    print(format_report(report))
    if settings.json is not None:
        try:
            settings.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{settings.json}: the report cannot be written ({error.strerror or error}).") from error
    return 0 if report.ok else 1


@dataclass(frozen=True, init=False)
class PrepareSettings(Settings):
    """A data set in its published layout and the folder of its channels."""

    output: Path = setting(..., "Folder to write, new or empty.", positional=True)
    source: Path | None = setting(
        None, "Folder or archive of the data set; with --download, path of the archive (next to OUTPUT)."
    )
    download: bool = setting(False, "Download the archive, or print where to get it; resumes.")
    copy: bool = setting(False, "Copy files instead of making hard links.")


@dataclass(frozen=True, init=False)
class ArchiveSettings(PrepareSettings):
    """A data set that can be downloaded."""

    url: str | None = setting(None, "Address of the archive, if not the published one.")


@dataclass(frozen=True, init=False)
class VocSettings(ArchiveSettings):
    """PASCAL VOC 2012, optionally with SBD's masks."""

    train_aug: Path | None = setting(
        None,
        "SBD's masks for the 10,582-image training set: SegmentationClassAug, benchmark_RELEASE/dataset or "
        "benchmark.tgz.",
    )


@dataclass(frozen=True, init=False)
class ShapesSettings(Settings):
    """The synthetic set."""

    output: Path = setting(..., "Folder to write, new or empty.", positional=True)
    train: int = setting(200, "Training pictures.", ge=1)
    validation: int = setting(40, "Validation pictures.", ge=1)
    width: int = setting(128, "Width in pixels.", ge=MIN_SIZE)
    height: int = setting(96, "Height in pixels.", ge=MIN_SIZE)
    seed: int = setting(0, "Seed of the pictures.", ge=0)


DATA_SETS = {
    "voc": Command(__name__, "voc_command", "PASCAL VOC 2012, optionally with SBD's masks (train_aug)"),
    "ade20k": Command(__name__, "ade20k_command", "the 150 classes of the scene parsing challenge; label 0 is ignored"),
    "cityscapes": Command(__name__, "cityscapes_command", "19 of its 34 ids; its site gives the files after a login"),
    "camvid": Command(__name__, "camvid_command", "11 classes, the SegNet tutorial's images; label 11 is ignored"),
    "shapes": Command(__name__, "shapes_command", "the built-in synthetic set: six shapes on textured backgrounds"),
}


def prepare_command(argv: Sequence[str]) -> int:
    """Write a data set as channels and print a summary."""
    return run_command("pspnet prepare", "Write a data set as channels.", DATA_SETS, argv)


def voc_command(argv: Sequence[str]) -> int:
    """Prepare VOC 2012."""
    from pspnet.data.prepare.voc import VOC_URL, prepare_voc

    description = "PASCAL VOC 2012. The source is a VOCdevkit folder or VOCtrainval_11-May-2012.tar (2 GB)."
    settings = parse_settings(VocSettings, argv, "pspnet prepare voc", description)
    url = settings.url or VOC_URL
    print(prepare_voc(settings.source, settings.output, settings.download, settings.train_aug, not settings.copy, url))
    return 0


def _prepare_layout(name: str, kind: type[PrepareSettings], argv: Sequence[str]) -> int:
    from pspnet.data.prepare.layouts import LAYOUTS, URLS, fetch, prepare_layout

    layout = LAYOUTS[name]
    description = f"{layout.name}: {DATA_SETS[name].summary}. The source is {layout.expected}."
    settings = parse_settings(kind, argv, f"pspnet prepare {name}", description)
    source, output = settings.source, settings.output
    if settings.download:
        source = fetch(layout, getattr(settings, "url", None) or URLS.get(name, ""), source, output)
    print(prepare_layout(layout, source, output, not settings.copy))
    return 0


ade20k_command = partial(_prepare_layout, "ade20k", ArchiveSettings)
cityscapes_command = partial(_prepare_layout, "cityscapes", PrepareSettings)
camvid_command = partial(_prepare_layout, "camvid", ArchiveSettings)


def shapes_command(argv: Sequence[str]) -> int:
    """Write the synthetic set."""
    settings = parse_settings(ShapesSettings, argv, "pspnet prepare shapes", "Write the built-in synthetic set.")
    from pspnet.data.shapes import write_shapes

    size = (settings.width, settings.height)
    write_shapes(settings.output, settings.train, settings.validation, size, settings.seed)
    print(
        f"{settings.output}: {settings.train:,} training images, {settings.validation:,} validation images, 7 classes."
    )
    return 0
