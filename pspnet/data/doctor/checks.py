"""Checks of scanned files: pure functions from facts to problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pspnet.classes import IGNORE_INDEX
from pspnet.data.channels import Channel, label_fix
from pspnet.data.doctor.findings import ERROR, WARNING, Problem, keep_examples
from pspnet.data.doctor.scan import PairFacts
from pspnet.models.constants import MIN_SIZE

_LISTED = 12


@dataclass(frozen=True)
class ScannedChannel:
    """A channel, the facts of its pairs, and the class id that is ignored in addition to 255."""

    channel: Channel
    facts: list[PairFacts]
    ignore_index: int = IGNORE_INDEX

    @cached_property
    def class_pixels(self) -> list[dict[int, int]]:
        """Per pair: class id -> pixels, after the label map; ignored pixels under 255; empty if unreadable."""
        return [self._classes(fact.pixels) for fact in self.facts]

    def _classes(self, pixels: dict[int, int]) -> dict[int, int]:
        classes: Counter[int] = Counter()
        for value, count in pixels.items():
            label_map = self.channel.label_map
            class_id = value if label_map is None else int(label_map.table[value])
            classes[IGNORE_INDEX if class_id == self.ignore_index else class_id] += count
        return dict(classes)


def check_files(scanned: ScannedChannel) -> list[Problem]:
    """Unreadable files, wrong modes, different sizes, EXIF rotation, small images and duplicates."""
    checks: list[tuple[str, str, Callable[[PairFacts], str], str, str]] = [
        (
            "unreadable_image", ERROR,
            lambda f: f.image_error and f"{f.pair.image.name}: {f.image_error}",
            "images that cannot be read", "Copy them again from their source, or remove them with their annotations.",
        ),
        (
            "unreadable_annotation", ERROR,
            lambda f: "" if f.wrong_mode else f.annotation_error and f"{f.pair.annotation.name}: {f.annotation_error}",
            "annotations that cannot be read", "Copy them again from their source, or remove them with their images.",
        ),
        (
            "annotation_mode", ERROR,
            lambda f: f"{f.pair.annotation.name}: {f.annotation_error}" if f.wrong_mode else "",
            "annotations that are not 8-bit single-channel or palette PNG files, so their pixels are not class ids",
            "Write them again with pixel value = class id.",
        ),
        (
            "size_mismatch", ERROR, _size_mismatch,
            "annotations whose size differs from their image's",
            "Write each mask on its image's stored pixel grid (EXIF rotation is not applied).",
        ),
        (
            "small_image", WARNING if scanned.channel.name == "train" else ERROR, _too_small,
            f"images smaller than {MIN_SIZE} pixels on a side, which the model does not accept whole",
            "Remove them, or enlarge them and their masks.",
        ),
        (
            "exif_orientation", WARNING,
            lambda f: f"{f.pair.image.name}: orientation {f.orientation}" if f.orientation != 1 else "",
            "images whose EXIF tag asks viewers to rotate them; training and prediction keep the stored grid",
            "Check that each mask matches the stored grid; if it was drawn on the rotated picture, rotate the pixels "
            "and remove the EXIF tag.",
        ),
    ]  # fmt: skip
    problems = []
    for kind, severity, describe, what, fix in checks:
        examples = [text for text in map(describe, scanned.facts) if text]
        if examples:
            problems.append(_problem(kind, severity, scanned, examples, what, fix))
    return problems + _repeated(scanned)


def _problem(
    kind: str, severity: str, scanned: ScannedChannel, examples: list[str], what: str, fix: str,
    files: Mapping[int, int] | None = None,
) -> Problem:  # fmt: skip
    """`files` counts the files with each wrong value."""
    values = dict(sorted((files or {}).items()))
    message = f"{what}: {len(examples):,}"
    if values:
        message += f" ({_listed([f'{value} in {_files(count)}' for value, count in values.items()])})"
    return Problem(kind, severity, scanned.channel.name, len(examples), message, fix, keep_examples(examples), values)


def _size_mismatch(fact: PairFacts) -> str:
    image, mask = fact.image_size, fact.annotation_size
    if image is None or mask is None or image == mask:
        return ""
    text = f"{fact.pair.annotation.name} is {mask[0]}x{mask[1]}, {fact.pair.image.name} is {image[0]}x{image[1]}"
    rotated = fact.orientation >= 5 and image == mask[::-1]
    return text + (" (the mask was drawn on the picture as EXIF rotates it)" if rotated else "")


def _too_small(fact: PairFacts) -> str:
    size = fact.image_size
    return "" if size is None or min(size) >= MIN_SIZE else f"{fact.pair.image.name}: {size[0]}x{size[1]}"


def _repeated(scanned: ScannedChannel) -> list[Problem]:
    groups: dict[bytes, list[str]] = {}
    for fact in scanned.facts:
        if fact.image_digest:
            groups.setdefault(fact.image_digest, []).append(fact.pair.image.name)
    repeated = [" = ".join(names) for names in groups.values() if len(names) > 1]
    if not repeated:
        return []
    what = "pictures that occur more than once in this channel, pixel for pixel"
    fix = "Keep one of each, unless the higher weight is intended."
    return [_problem("repeated_image", WARNING, scanned, repeated, what, fix)]


def check_shared_images(scanned: Sequence[ScannedChannel]) -> list[Problem]:
    """Pictures of a channel that also occur in an earlier one: scores on them do not measure generalisation."""
    problems = []
    seen: dict[bytes, str] = {}
    for channel in scanned:
        name = channel.channel.name
        images = [(fact.image_digest, f"{name}/{fact.pair.image.name}") for fact in channel.facts if fact.image_digest]
        shared = [f"{path} = {seen[digest]}" for digest, path in images if digest in seen]
        if shared:
            what = "pictures that also occur in another channel, pixel for pixel"
            fix = "Remove them from one of the two: scores on training pictures do not measure generalisation."
            problems.append(_problem("shared_image", ERROR, channel, shared, what, fix))
        for digest, path in images:
            seen.setdefault(digest, path)
    return problems


def check_labels(scanned: ScannedChannel, num_classes: int, class_names: Sequence[str]) -> list[Problem]:
    """Class ids that the model lacks, pixel values missing from the label map, and classes that never occur."""
    problems = [*_outside(scanned, num_classes), *_unnamed(scanned), *_map_outside(scanned, num_classes)]
    readable = [classes for classes in scanned.class_pixels if classes]
    used = {class_id for classes in readable for class_id in classes if class_id < num_classes}
    if readable:
        problems += _all_ignored(scanned) if used else [_no_labels(scanned)]
        problems += _too_few_classes(scanned, used, num_classes, class_names)
    return problems


def _outside(scanned: ScannedChannel, num_classes: int) -> Iterator[Problem]:
    examples: list[str] = []
    files: Counter[int] = Counter()
    for fact, classes in zip(scanned.facts, scanned.class_pixels):
        wrong = {value: classes[value] for value in sorted(classes) if num_classes <= value != IGNORE_INDEX}
        files.update(wrong.keys())
        if wrong:
            found = ", ".join(f"{value} ({count:,} pixels)" for value, count in wrong.items())
            examples.append(f"{fact.pair.annotation.name}: {found}")
    if not examples:
        return
    fix = label_fix(files, scanned.channel.label_map, scanned.channel.name)
    what = f"annotations with class ids outside 0..{num_classes - 1} that are not {IGNORE_INDEX} (ignored)"
    yield _problem("label_outside", ERROR, scanned, examples, what, fix, files)


def _unnamed(scanned: ScannedChannel) -> Iterator[Problem]:
    label_map = scanned.channel.label_map
    if label_map is None:
        return
    examples: list[str] = []
    files: Counter[int] = Counter()
    for fact in scanned.facts:
        unnamed = [value for value in sorted(fact.pixels) if not label_map.named[value]]
        files.update(unnamed)
        if unnamed:
            examples.append(f"{fact.pair.annotation.name}: {', '.join(map(str, unnamed))}")
    if examples:
        what = "annotations with pixel values that are missing from the label map and therefore ignored"
        fix = "Add them to the label map, if they mean classes."
        yield _problem("unnamed_pixel_value", WARNING, scanned, examples, what, fix, files)


def _map_outside(scanned: ScannedChannel, num_classes: int) -> Iterator[Problem]:
    label_map = scanned.channel.label_map
    # A scale maps every pixel value, also those that never occur. Those that do are errors of `_outside`.
    if label_map is None or label_map.named.all():
        return
    ids = sorted({int(value) for value in label_map.table[label_map.named]} - {IGNORE_INDEX, scanned.ignore_index})
    outside = [
        f"class id {value}, from pixel values {label_map.pixel_values(value)}" for value in ids if value >= num_classes
    ]
    if outside:
        what = f"class ids of the label map outside 0..{num_classes - 1}"
        fix = "Fix the label map (key = class id, value = pixel value), or raise --num_classes."
        yield _problem("label_map_outside", WARNING, scanned, outside, what, fix)


def _no_labels(scanned: ScannedChannel) -> Problem:
    values = sorted({value for fact in scanned.facts for value in fact.pixels})
    what = "annotations without a pixel of any class, in the whole channel: nothing can be learned or scored"
    fix = f"Their pixel values are {_listed(values)}: fix the masks, num_classes or the label map."
    names = [fact.pair.annotation.name for fact in scanned.facts if fact.pixels]
    return _problem("no_labels", ERROR, scanned, names, what, fix)


def _all_ignored(scanned: ScannedChannel) -> list[Problem]:
    names = [
        fact.pair.annotation.name
        for fact, classes in zip(scanned.facts, scanned.class_pixels)
        if classes and set(classes) == {IGNORE_INDEX}
    ]
    what = "completely ignored annotations, whose images are neither trained nor scored"
    fix = "Remove them with their images, or fix the masks."
    return [_problem("all_ignored", WARNING, scanned, names, what, fix)] if names else []


def _too_few_classes(
    scanned: ScannedChannel, used: set[int], num_classes: int, class_names: Sequence[str]
) -> Iterator[Problem]:
    name = scanned.channel.name
    if len(used) == 1 and name == "train":
        binary = any(IGNORE_INDEX in classes for classes in scanned.class_pixels)
        yield Problem(
            "single_class", ERROR, name, 1,
            f"class {min(used)} is the only one in all annotations: a model would predict it everywhere.",
            f"{IGNORE_INDEX} is ignored. If it means a class, add a label map "
            f'(label_map/{name}_label_map.json: {{"map": {{"0": 0, "1": {IGNORE_INDEX}}}}}).'
            if binary
            else "Fix the masks or the label map.",
        )  # fmt: skip
    absent = [f"{class_id} {class_names[class_id]}" for class_id in range(num_classes) if class_id not in used]
    if absent and used:
        fix = (
            "They cannot be learned: check num_classes and the label map, or add pictures."
            if name == "train"
            else "mIoU excludes them: add pictures of these classes if they matter."
        )
        if len(absent) > len(used) and scanned.channel.label_map is None:
            values = sorted({value for fact in scanned.facts for value in fact.pixels})
            fix += f" Pixel values found: {_listed(values)}; if these are grey levels and not ids, add a label map."
        message = f"classes that never occur: {len(absent)} ({_listed(absent)})"
        yield Problem("absent_class", WARNING, name, len(absent), message, fix)


def _files(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def _listed(items: Sequence[object]) -> str:
    """The first items, and the number of the others."""
    shown = ", ".join(str(item) for item in items[:_LISTED])
    return shown if len(items) <= _LISTED else f"{shown} and {len(items) - _LISTED} more"
