"""`pspnet doctor` and `pspnet prepare`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pspnet.classes import IGNORE_INDEX, MAX_CLASSES, NAMED_CLASS_SETS
from pspnet.data.channels import Channel, find_label_map
from pspnet.data.doctor.examine import examine
from pspnet.data.doctor.findings import format_report
from pspnet.data.prepare.layouts import (
    ADE20K,
    ADE20K_URL,
    CAMVID,
    CAMVID_URL,
    CITYSCAPES,
    Layout,
    fetch,
    prepare_layout,
)
from pspnet.data.prepare.voc import VOC_URL, prepare_voc
from pspnet.data.shapes import write_shapes
from pspnet.errors import DataError
from pspnet.system.cpu import available_cores

_CHANNELS = ("train", "validation")


def register(subparsers: Any) -> None:
    """Add `doctor` and `prepare` to the parser of `pspnet`."""
    doctor = subparsers.add_parser(
        "doctor",
        help="examine a data set fully before training",
        description="Read every file of a data set and report every problem; exit code 1 if training would be wrong.",
    )
    add_doctor_arguments(doctor)
    doctor.set_defaults(run=run_doctor)
    prepare = subparsers.add_parser("prepare", help="write a data set as channels")
    add_prepare_arguments(prepare)


def _flag(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """Add a flag that is accepted with underscores and with hyphens."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*spellings, **options)


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `pspnet doctor`."""
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA_DIR", help="folder that holds the channels")
    for channel in _CHANNELS:
        _flag(parser, channel, type=Path, metavar="DIR", help=f"folder of the {channel} images")
        _flag(parser, f"{channel}_annotation", type=Path, metavar="DIR", help=f"folder of the {channel} annotations")
    _flag(parser, "label_map", type=Path, metavar="DIR", help="folder of label maps (DATA_DIR/label_map, if it exists)")
    _flag(parser, "num_classes", type=int, metavar="N", help="classes of the model (default: those in the masks)")
    sets = ", ".join(NAMED_CLASS_SETS)
    _flag(parser, "class_names", metavar="NAMES", help=f"names separated by commas, or a known set: {sets}")
    _flag(parser, "ignore_index", type=int, default=IGNORE_INDEX, metavar="ID", help="class id to ignore besides 255")
    cores = available_cores()
    _flag(parser, "workers", type=int, default=cores, metavar="N", help="processes that read files (%(default)s)")
    _flag(parser, "json", type=Path, metavar="FILE", help="also write the report as JSON")


def run_doctor(args: argparse.Namespace) -> int:
    """Print the report; return 1 if training would be wrong, else 0."""
    report = examine(
        _channels(args),
        num_classes=None if args.num_classes is None else _within("num_classes", args.num_classes, 2, MAX_CLASSES),
        class_names=_class_names(args.class_names),
        workers=args.workers,
        ignore_index=_within("ignore_index", args.ignore_index, 0, 255),
    )
    print(format_report(report))
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{args.json}: the report cannot be written ({error.strerror or error}).") from error
    return 0 if report.ok else 1


def _channels(args: argparse.Namespace) -> list[Channel]:
    """Return the channels to examine: both of DATA_DIR, or those whose folders are given, which take precedence."""
    folders: dict[str, Path | None] = {}
    for name in _CHANNELS:
        for kind in (name, f"{name}_annotation"):
            given = getattr(args, kind)
            folders[kind] = args.data / kind if given is None and args.data is not None else given
    label_map = args.label_map
    if args.data is not None:
        if not args.data.is_dir():
            raise DataError(f"{args.data}: is not a folder; expected one that contains train, train_annotation, ...")
        if label_map is None and (args.data / "label_map").is_dir():
            label_map = args.data / "label_map"
    channels = []
    for name in _CHANNELS:
        images, annotations = folders[name], folders[f"{name}_annotation"]
        if images is not None and annotations is not None:
            channels.append(Channel(name, images, annotations, find_label_map(label_map, name)))
        elif images is not None or annotations is not None:
            missing = name if images is None else f"{name}_annotation"
            raise DataError(f"channel {name}: give --{missing} too; a channel is a folder of images and one of masks.")
    if not channels:
        raise DataError("doctor: nothing to examine. Give DATA_DIR, or --train and --train_annotation.")
    return channels


def _within(name: str, value: int, least: int, greatest: int) -> int:
    if not least <= value <= greatest:
        raise DataError(f"{name}: found {value}; expected a whole number from {least} to {greatest}.")
    return value


def _class_names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if text in NAMED_CLASS_SETS:
        return NAMED_CLASS_SETS[text]
    names = [name.strip() for name in text.split(",")]
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise DataError(f"class_names: {twice[0]!r} is repeated; expected different names separated by commas.")
    if not 2 <= len(names) <= MAX_CLASSES:
        sets = ", ".join(NAMED_CLASS_SETS)
        raise DataError(
            f"class_names: found {text!r}; expected 2 to {MAX_CLASSES} names separated by commas, or a known set: "
            f"{sets}."
        )
    return tuple(names)


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands `voc`, `ade20k`, `cityscapes`, `camvid` and `shapes`."""
    kinds = parser.add_subparsers(dest="data_set", required=True, metavar="DATA_SET")
    voc = kinds.add_parser("voc", help="PASCAL VOC 2012, optionally with SBD's masks (train_aug)")
    voc.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write, new or empty")
    _flag(
        voc, "source", type=Path, metavar="PATH",
        help="VOCdevkit folder or VOCtrainval_11-May-2012.tar; with --download, path of the tar (next to OUTPUT)",
    )  # fmt: skip
    _flag(voc, "download", action="store_true", help="download the tar (2 GB; resumes, checks the MD5)")
    _flag(voc, "url", default=VOC_URL, help="address of the tar (%(default)s)")
    _flag(
        voc, "train_aug", type=Path, metavar="SBD",
        help="SBD's masks for the 10,582-image training set: SegmentationClassAug, benchmark_RELEASE/dataset or "
        "benchmark.tgz",
    )  # fmt: skip
    _flag(voc, "copy", action="store_true", help="copy files instead of making hard links")
    voc.set_defaults(run=run_prepare_voc)
    for layout, url, text in (
        (ADE20K, ADE20K_URL, "the 150 classes of the scene parsing challenge; label 0 is ignored"),
        (CITYSCAPES, "", "19 of its 34 ids; needs the files that its site gives after a login"),
        (CAMVID, CAMVID_URL, "11 classes, the SegNet tutorial's images; label 11 is ignored"),
    ):
        _add_layout_arguments(kinds, layout, url, text)
    shapes = kinds.add_parser("shapes", help="the built-in synthetic set: six shapes on textured backgrounds")
    shapes.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write, new or empty")
    for name, default, text in (
        ("train", 200, "training pictures"),
        ("validation", 40, "validation pictures"),
        ("width", 128, "width in pixels"),
        ("height", 96, "height in pixels"),
        ("seed", 0, "seed of the pictures"),
    ):
        _flag(shapes, name, type=int, default=default, metavar="N", help=f"{text} (%(default)s)")
    shapes.set_defaults(run=run_prepare_shapes)


def _add_layout_arguments(kinds: Any, layout: Layout, url: str, text: str) -> None:
    parser = kinds.add_parser(layout.config, help=f"{layout.name}: {text}", description=f"{layout.name}: {text}.")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write, new or empty")
    kept = "; with --download, path of the zip (next to OUTPUT)" if url else ""
    _flag(parser, "source", type=Path, metavar="PATH", help=f"{layout.expected}{kept}")
    _flag(parser, "download", action="store_true", help="download the zip" if url else "print where to get the files")
    if url:
        _flag(parser, "url", default=url, help="address of the zip (%(default)s)")
    _flag(parser, "copy", action="store_true", help="copy files instead of making hard links")
    parser.set_defaults(run=run_prepare_layout, layout=layout, url=url)


def run_prepare_layout(args: argparse.Namespace) -> int:
    """Write ADE20K, Cityscapes or CamVid as channels and print a summary."""
    source = fetch(args.layout, args.url, args.source, args.output) if args.download else args.source
    print(prepare_layout(args.layout, source, args.output, not args.copy))
    return 0


def run_prepare_voc(args: argparse.Namespace) -> int:
    """Write VOC 2012 as channels and print a summary."""
    print(prepare_voc(args.source, args.output, args.download, args.train_aug, not args.copy, args.url))
    return 0


def run_prepare_shapes(args: argparse.Namespace) -> int:
    """Write the synthetic set and print a summary."""
    write_shapes(args.output, args.train, args.validation, (args.width, args.height), args.seed)
    print(f"{args.output}: {args.train:,} training images, {args.validation:,} validation images, 7 classes.")
    return 0
