from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import load_label_map
from pspnet.data.channels import Channel
from pspnet.data.doctor.examine import examine
from pspnet.data.doctor.findings import Problem, Report, format_report, median_frequency_weights
from pspnet.errors import DataError

REAL_CAMVID = Path(__file__).resolve().parents[4] / "shared" / "data" / "camvid"


def add(root: Path, split: str, stem: str, mask: list[list[int]] | np.ndarray, seed: int | None = None) -> None:
    """A pair: the mask, enlarged to 40 x 40, and a random picture."""
    for folder in (split, f"{split}_annotation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    small = np.asarray(mask, dtype=np.uint8)
    large = np.kron(small, np.ones((40 // small.shape[0], 40 // small.shape[1]), dtype=np.uint8))
    Image.fromarray(large).save(root / f"{split}_annotation" / f"{stem}.png")
    picture(seed if seed is not None else zlib.crc32(f"{split}/{stem}".encode())).save(root / split / f"{stem}.png")


def picture(seed: int, width: int = 40, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A valid set of two classes: three training pairs and one validation pair."""
    for stem, mask in (("a", [[0, 1]]), ("b", [[0], [1]]), ("c", [[0, 0, 0, 1]])):
        add(tmp_path, "train", stem, mask)
    add(tmp_path, "validation", "v", [[1, 0]])
    return tmp_path


def channels(root: Path, label_map: str | None = None) -> list[Channel]:
    loaded = None
    if label_map is not None:
        (root / "map.json").write_text(label_map)
        loaded = load_label_map(root / "map.json")
    return [Channel(name, root / name, root / f"{name}_annotation", loaded) for name in ("train", "validation")]


def check(root: Path, num_classes: int | None = 2, label_map: str | None = None, **options: int) -> Report:
    return examine(channels(root, label_map), num_classes, progress=False, **options)


def only(report: Report) -> Problem:
    assert len(report.problems) == 1, [problem.message for problem in report.problems]
    return report.problems[0]


def kinds(report: Report) -> list[tuple[str, str, str]]:
    return [(problem.severity, problem.channel, problem.kind) for problem in report.problems]


def test_a_valid_set_is_ready(data: Path) -> None:
    report = check(data)
    assert report.ok
    assert report.problems == []
    train, validation = report.channels
    assert (train.images, validation.images) == (3, 1)
    assert train.class_pixels == [800 + 800 + 1200, 800 + 800 + 400]
    assert train.class_images == [3, 3]
    assert (train.smallest, train.largest, train.ignored_pixels) == ((40, 40), (40, 40), 0)
    text = format_report(report)
    assert "num_classes: 2 (as given)" in text
    assert "class_0        58.33%             3             50.00%                  1" in text
    assert text.endswith("0 errors, 0 warnings: ready to train.")


def test_unpaired_and_ambiguous_files(data: Path) -> None:
    (data / "train/a.png").rename(data / "train/x.png")
    picture(1).save(data / "train/b.jpg")
    report = check(data)
    assert not report.ok
    assert [(problem.kind, problem.count, problem.examples) for problem in report.problems] == [
        ("image_without_annotation", 1, ["x.png"]),
        ("annotation_without_image", 1, ["a.png"]),
        ("ambiguous_stem", 2, ["b.jpg", "b.png"]),
    ]
    assert report.channels[0].images == 1
    text = format_report(report)
    assert f"ERROR train: images in {data / 'train'} without an annotation of the same stem in" in text
    assert text.endswith("3 errors, 0 warnings: training would fail or use wrong data until this is fixed.")


def test_a_missing_folder_and_an_empty_channel(tmp_path: Path) -> None:
    add(tmp_path, "train", "a", [[0, 1]])
    missing = only(check(tmp_path))
    assert (missing.kind, missing.channel, missing.severity) == ("missing_folder", "validation", "error")
    assert "validation does not exist; expected a folder" in missing.message
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation_annotation").mkdir()
    empty = only(check(tmp_path))
    assert (empty.kind, empty.message) == ("empty_channel", f"{tmp_path / 'validation'} has no images")


def test_unreadable_files(data: Path) -> None:
    for name in ("train/a.png", "train_annotation/b.png"):
        (data / name).write_bytes((data / name).read_bytes()[:60])
    report = check(data)
    assert kinds(report) == [("error", "train", "unreadable_image"), ("error", "train", "unreadable_annotation")]
    image, annotation = report.problems
    assert image.examples[0].startswith("a.png: not a readable image (")
    assert annotation.examples[0].startswith("b.png: not a readable annotation (")
    assert "images that cannot be read: 1" in image.message


def test_rgb_and_16_bit_masks(data: Path) -> None:
    Image.open(data / "train_annotation/a.png").convert("RGB").save(data / "train_annotation/a.png")
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(data / "validation_annotation/v.png")
    report = check(data)
    assert kinds(report) == [("error", "train", "annotation_mode"), ("error", "validation", "annotation_mode")]
    assert report.problems[0].examples[0].startswith("a.png: found an RGB PNG; an annotation is an 8-bit")
    assert report.problems[1].examples[0].startswith("v.png: found a 16-bit PNG")


def test_different_sizes(data: Path) -> None:
    picture(1, 48, 40).save(data / "train/a.png")
    problem = only(check(data))
    assert (problem.kind, problem.severity, problem.count) == ("size_mismatch", "error", 1)
    assert problem.examples == ["a.png is 40x40, a.png is 48x40"]


def test_exif_rotation_is_a_warning_and_explains_a_rotated_mask(data: Path) -> None:
    image = picture(1, 64, 40)
    exif = image.getexif()
    exif[0x0112] = 6
    (data / "train/a.png").unlink()
    image.save(data / "train/a.jpg", exif=exif)
    Image.fromarray(np.zeros((64, 40), dtype=np.uint8)).save(data / "train_annotation/a.png")
    report = check(data)
    assert kinds(report) == [("error", "train", "size_mismatch"), ("warning", "train", "exif_orientation")]
    assert report.problems[0].examples == [
        "a.png is 40x64, a.jpg is 64x40 (the mask was drawn on the picture as EXIF rotates it)"
    ]
    assert report.problems[1].examples == ["a.jpg: orientation 6"]


@pytest.mark.parametrize(("split", "stem", "severity"), [("train", "a", "warning"), ("validation", "v", "error")])
def test_small_images(data: Path, split: str, stem: str, severity: str) -> None:
    picture(1, 31, 40).save(data / split / f"{stem}.png")
    mask = np.zeros((40, 31), dtype=np.uint8)
    mask[:9] = 1
    Image.fromarray(mask).save(data / f"{split}_annotation" / f"{stem}.png")
    problem = only(check(data))
    assert (problem.kind, problem.severity, problem.examples) == ("small_image", severity, [f"{stem}.png: 31x40"])


def test_labels_outside_num_classes_are_listed_with_files(data: Path) -> None:
    add(data, "train", "a", [[0, 1, 7, 255]])
    add(data, "train", "b", [[0, 1, 7, 9]])
    problem = only(check(data))
    assert (problem.kind, problem.severity, problem.count) == ("label_outside", "error", 2)
    assert problem.values == {7: 2, 9: 1}
    assert problem.message == (
        "annotations with class ids outside 0..1 that are not 255 (ignored): 2 (7 in 2 files, 9 in 1 file)"
    )
    assert problem.examples == ["a.png: 7 (400 pixels)", "b.png: 7 (400 pixels), 9 (400 pixels)"]
    assert "raise --num_classes" in problem.fix
    assert 'label_map/train_label_map.json: {"map": {"<class id>": <pixel value>}}' in problem.fix


def test_254_is_outside_and_255_is_not(data: Path) -> None:
    add(data, "train", "a", [[0, 1, 254, 255]])
    assert only(check(data)).values == {254: 1}


def test_a_label_map_is_applied_before_labels_are_checked(data: Path) -> None:
    for split, stem in (("train", "a"), ("train", "b"), ("train", "c"), ("validation", "v")):
        add(data, split, stem, [[0, 128]])
    label_map = '{"map": {"0": 0, "1": 128}}'
    assert check(data, label_map=label_map).problems == []
    add(data, "train", "a", [[0, 128, 64, 64]])
    problem = only(check(data, label_map=label_map))
    assert (problem.kind, problem.severity, problem.values) == ("unnamed_pixel_value", "warning", {64: 1})
    assert problem.examples == ["a.png: 64"]


def test_a_label_map_with_invalid_ids(data: Path) -> None:
    report = check(data, label_map='{"map": {"0": 0, "1": 1, "8": 5}}')
    assert kinds(report) == [("warning", split, "label_map_outside") for split in ("train", "validation")]
    assert report.problems[0].examples == ["class id 8, from pixel values [5]"]
    add(data, "train", "a", [[0, 5]])
    report = check(data, label_map='{"map": {"0": 0, "1": 1, "8": 5}}')
    outside = report.problems[0]
    assert (outside.kind, outside.severity, outside.values) == ("label_outside", "error", {8: 1})
    assert "They come from pixel values [5] through the label map" in outside.fix


def test_a_scale_causes_no_warning(data: Path) -> None:
    assert check(data, label_map='{"scale": 1}').problems == []


def test_ignore_index_is_ignored(data: Path) -> None:
    add(data, "train", "a", [[0, 1, 9, 255]])
    report = check(data, ignore_index=9)
    assert report.ok
    assert report.channels[0].ignored_pixels == 800


def test_pictures_in_train_and_validation_are_found_by_content(data: Path) -> None:
    content = Image.open(data / "train/b.png")
    (data / "validation/v.png").unlink()
    content.save(data / "validation/v.png", compress_level=0)  # other bytes, same pixels
    problem = only(check(data))
    assert (problem.kind, problem.severity, problem.channel) == ("shared_image", "error", "validation")
    assert problem.examples == ["validation/v.png = train/b.png"]


def test_a_png_made_from_a_jpeg_is_the_same_picture(data: Path) -> None:
    (data / "train/a.png").unlink()
    picture(5).save(data / "train/a.jpg")
    Image.open(data / "train/a.jpg").save(data / "validation/v.png")
    assert only(check(data)).examples == ["validation/v.png = train/a.jpg"]


def test_repeated_pictures_are_a_warning(data: Path) -> None:
    add(data, "train", "c2", [[0, 1]], seed=3)
    add(data, "train", "c3", [[0, 1]], seed=3)
    problem = only(check(data))
    assert (problem.kind, problem.severity, problem.examples) == ("repeated_image", "warning", ["c2.png = c3.png"])


def test_completely_ignored_annotations(data: Path) -> None:
    add(data, "train", "a", [[255]])
    problem = only(check(data))
    assert (problem.kind, problem.severity, problem.examples) == ("all_ignored", "warning", ["a.png"])


def test_a_channel_without_any_label(data: Path) -> None:
    add(data, "validation", "v", [[255, 9]])
    report = check(data)
    assert kinds(report) == [("error", "validation", "label_outside"), ("error", "validation", "no_labels")]
    assert "pixel values are 9, 255" in report.problems[1].fix


def test_classes_that_never_occur(data: Path) -> None:
    report = examine(channels(data), class_names=("road", "car", "sky"), progress=False)
    assert kinds(report) == [("warning", "train", "absent_class"), ("warning", "validation", "absent_class")]
    assert report.ok
    assert report.problems[0].message == "classes that never occur: 1 (2 sky)"
    assert report.class_weights[2] == 1.0


def test_a_mask_of_0_and_255_only_is_an_error(data: Path) -> None:
    for stem in ("a", "b", "c"):
        add(data, "train", stem, [[0, 255]])
    report = check(data)
    assert kinds(report) == [("error", "train", "single_class"), ("warning", "train", "absent_class")]
    assert '{"map": {"0": 0, "1": 255}}' in report.problems[0].fix


def test_num_classes_is_suggested_from_the_ids(data: Path) -> None:
    add(data, "train", "a", [[0, 1, 5, 255]])
    report = check(data, num_classes=None)
    assert (report.num_classes, report.suggested) == (6, True)
    assert report.class_names == [f"class_{index}" for index in range(6)]
    assert "num_classes: 6 (found in the masks)" in format_report(report)
    train = report.problems[0]
    assert train.kind == "absent_class"
    assert "raise" not in train.fix


def test_grey_levels_suggest_a_label_map(data: Path) -> None:
    for split, stem in (("train", "a"), ("train", "b"), ("train", "c"), ("validation", "v")):
        add(data, split, stem, [[0, 200]])
    report = check(data, num_classes=None)
    assert report.num_classes == 201
    assert (
        "Pixel values found: 0, 200; if these are grey levels and not ids, add a label map." in report.problems[0].fix
    )
    assert len(format_report(report).split("Suggested")[0].splitlines()) < 30


def test_names_and_num_classes_must_agree(data: Path) -> None:
    with pytest.raises(DataError, match="3 class names for num_classes 2; expected as many names as classes"):
        examine(channels(data), 2, ("a", "b", "c"), progress=False)


def test_median_frequency_balancing_by_hand() -> None:
    """Class 0 has 90 of 200 pixels, class 1 110 of 200, class 2 50 of 100; class 3 is absent."""
    pixels = np.array([[80, 20, 0, 0], [10, 90, 0, 0], [0, 50, 50, 0]])
    frequency = [90 / 200, 160 / 300, 50 / 100]
    expected = [round(0.5 / value, 3) for value in frequency]
    assert median_frequency_weights(pixels) == [*expected, 1.0]
    assert median_frequency_weights(np.zeros((0, 3), dtype=np.int64)) == [1.0, 1.0, 1.0]


def test_many_examples_are_abbreviated_but_counted(tmp_path: Path) -> None:
    for index in range(14):
        add(tmp_path, "train", f"{index:02d}", [[0, 1, 9, 9]])
    add(tmp_path, "validation", "v", [[0, 1]])
    problem = only(check(tmp_path))
    assert problem.count == 14
    assert len(problem.examples) == 11
    assert problem.examples[-1] == "... and 4 more"


@pytest.mark.slow
def test_the_report_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    for index in range(40):
        add(tmp_path, "train", f"{index:02d}", [[0, index % 5]], seed=index % 37)
    add(tmp_path, "validation", "v", [[0, 1]], seed=36)
    (tmp_path / "train/07.png").write_bytes(b"no image")
    alone, pool = check(tmp_path, 3, workers=1), check(tmp_path, 3, workers=2)
    assert pool.to_json() == alone.to_json()
    assert {problem.kind for problem in pool.problems} >= {"unreadable_image", "label_outside", "shared_image"}
    json.dumps(pool.to_json())


@pytest.mark.skipif(not REAL_CAMVID.is_dir(), reason=f"the real CamVid pictures are not there ({REAL_CAMVID})")
def test_real_validation_pictures_are_valid() -> None:
    folders = REAL_CAMVID / "validation", REAL_CAMVID / "validation_annotation"
    report = examine([Channel("validation", *folders)], 11, progress=False)
    assert report.problems == []
    assert report.channels[0].images == 101
    assert report.channels[0].largest == (480, 360)
