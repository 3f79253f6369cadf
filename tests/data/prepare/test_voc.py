from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import VOC_CLASSES, voc_palette
from pspnet.data.channels import load_pairs
from pspnet.data.io.images import encode_palette_png, read_annotation
from pspnet.data.prepare import voc as prepare
from pspnet.data.prepare.voc import prepare_voc
from pspnet.data.prepare.voc_source import VocFolder
from pspnet.errors import DataError

TRAIN, VALIDATION = ("2007_000032", "2007_000039"), ("2007_000033",)
EXTRA = "2008_000008"  # has a photograph in VOC, but a mask in SBD only
REAL_VOC = Path(__file__).resolve().parents[4] / "shared" / "data" / "voc_mini"
CHANNELS = ["train", "train_annotation", "validation", "validation_annotation"]


def mask_of(class_id: int) -> np.ndarray:
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[4:12, 4:12], mask[12] = class_id, 255
    return mask


def make_voc(root: Path) -> Path:
    """A VOCdevkit of three annotated photographs and one more; mask i has class i + 1."""
    voc = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for index, stem in enumerate((*TRAIN, *VALIDATION, EXTRA)):
        pixels = np.random.default_rng(index).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(voc / "JPEGImages" / f"{stem}.jpg")
        if stem != EXTRA:
            encode_palette_png(mask_of(index + 1), voc_palette()).save(voc / "SegmentationClass" / f"{stem}.png")
    (voc / "ImageSets/Segmentation/train.txt").write_text("\n".join(TRAIN) + "\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(VALIDATION) + "\n")
    return root / "VOCdevkit"


def make_tar(voc: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(voc, "VOCdevkit")
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "source")


@pytest.mark.parametrize("inside", ["..", ".", "VOC2012"])
def test_channels_have_the_stored_ids(voc: Path, tmp_path: Path, inside: str) -> None:
    output = tmp_path / "data"
    summary = prepare_voc((voc / inside).resolve(), output, progress=False)
    assert (summary.train, summary.validation, summary.from_sbd) == (2, 1, 0)
    assert names(output) == CHANNELS
    pairs = load_pairs(output / "train", output / "train_annotation")
    assert [pair.stem for pair in pairs] == list(TRAIN)
    for index, pair in enumerate(pairs):
        assert (read_annotation(pair.annotation) == mask_of(index + 1)).all()
        assert pair.image.read_bytes() == (voc / "VOC2012/JPEGImages" / pair.image.name).read_bytes()
    assert (read_annotation(output / "validation_annotation" / "2007_000033.png") == mask_of(3)).all()
    text = str(summary)
    assert "2 training images, 1 validation images, 21 classes." in text
    assert "Train: python train.py --config configs/voc2012.yaml --data " in text
    assert "name 2 training and 1 validation images; the full set has 1,464 and 1,449" in text


def test_files_are_linked_or_copied(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = voc / "VOC2012/JPEGImages/2007_000032.jpg"
    prepare_voc(voc, tmp_path / "linked", progress=False)
    assert (tmp_path / "linked/train/2007_000032.jpg").samefile(original)
    prepare_voc(voc, tmp_path / "copied", link=False, progress=False)
    copy = tmp_path / "copied/train/2007_000032.jpg"
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()

    def no_links(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", no_links)
    prepare_voc(voc, tmp_path / "other_disk", progress=False)
    assert (tmp_path / "other_disk/train/2007_000032.jpg").read_bytes() == original.read_bytes()


def test_symbolic_links_in_the_source_become_files(voc: Path, tmp_path: Path) -> None:
    photo = voc / "VOC2012/JPEGImages/2007_000032.jpg"
    moved = photo.rename(tmp_path / "moved.jpg")
    photo.symlink_to(moved)
    prepare_voc(voc, tmp_path / "data", progress=False)
    written = tmp_path / "data/train/2007_000032.jpg"
    assert not written.is_symlink()
    assert written.read_bytes() == moved.read_bytes()


@pytest.mark.parametrize(("name", "mode"), [("voc.tar", "w"), ("voc.tar.gz", "w:gz")])
def test_the_tar_equals_the_folder(voc: Path, tmp_path: Path, name: str, mode: str) -> None:
    prepare_voc(voc, tmp_path / "a", progress=False)
    summary = prepare_voc(make_tar(voc, tmp_path / name, mode), tmp_path / "b", progress=False)
    assert (summary.train, summary.validation) == (2, 1)
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.*"))]
    assert len(files) == 6
    assert all((tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files)


def test_a_tar_cannot_write_outside(voc: Path, tmp_path: Path) -> None:
    path = make_tar(voc, tmp_path / "voc.tar")
    with tarfile.open(path, "a") as archive:
        for name in ("../evil.txt", "/tmp/evil.txt", "VOCdevkit/VOC2012/JPEGImages/../../../evil.txt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    prepare_voc(path, tmp_path / "out" / "data", progress=False)
    assert names(tmp_path / "out") == ["data"]
    assert sum(1 for entry in (tmp_path / "out").rglob("*.*")) == 6
    assert not (tmp_path / "out/data/train/2007_000032.jpg").is_symlink()


@pytest.mark.parametrize("stem", ["../../evil", "/etc/passwd", "a/b", "..", ".hidden"])
def test_lists_cannot_escape_the_folder(voc: Path, tmp_path: Path, stem: str) -> None:
    (voc / "VOC2012/ImageSets/Segmentation/val.txt").write_text(f"2007_000033\n{stem}\n")
    with pytest.raises(DataError, match=r"val\.txt contains '.*'; expected one file stem per line"):
        prepare_voc(voc, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.6])
def test_a_truncated_tar_is_an_error_without_output(voc: Path, tmp_path: Path, fraction: float) -> None:
    path = make_tar(voc, tmp_path / "voc.tar")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=r"voc\.tar: .*(Download it again|download it again|expected the whole)"):
        prepare_voc(path, tmp_path / "data", progress=False)
    assert names(tmp_path) == ["source", "voc.tar"]


def test_a_damaged_gzip_is_an_error(voc: Path, tmp_path: Path) -> None:
    path = make_tar(voc, tmp_path / "voc.tgz", "w:gz")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"voc\.tgz: not a readable tar file, or truncated \(.+\)\. Download it again"):
        prepare_voc(path, tmp_path / "data", progress=False)


def test_files_missing_from_the_lists_are_counted_and_named(voc: Path, tmp_path: Path) -> None:
    (voc / "VOC2012/JPEGImages/2007_000032.jpg").unlink()
    (voc / "VOC2012/SegmentationClass/2007_000033.png").unlink()
    message = (
        r"VOC2012: 2 files for the 3 listed images are missing: JPEGImages/2007_000032\.jpg, "
        r"SegmentationClass/2007_000033\.png\. Unpack all of"
    )
    with pytest.raises(DataError, match=message):
        prepare_voc(voc, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_a_source_without_voc_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no VOC2012 with ImageSets/Segmentation, JPEGImages and Segmentation"):
        prepare_voc(tmp_path, tmp_path / "data", progress=False)
    with pytest.raises(DataError, match=r"gone: does not exist; expected a VOCdevkit folder or VOCtrainval"):
        prepare_voc(tmp_path / "gone", tmp_path / "data", progress=False)
    with pytest.raises(DataError, match=r"no source\. Give a VOCdevkit folder or the tar with --source, or add --down"):
        prepare_voc(None, tmp_path / "data", progress=False)
    (tmp_path / "text.tar").write_text("hello")
    with pytest.raises(DataError, match=r"text\.tar: not a readable tar file"):
        prepare_voc(tmp_path / "text.tar", tmp_path / "data", progress=False)
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "text.tar", "readme.txt")
    with pytest.raises(DataError, match=r"other\.tar: has no VOC2012/ImageSets/Segmentation/train\.txt"):
        prepare_voc(tmp_path / "other.tar", tmp_path / "data", progress=False)


def test_missing_or_empty_lists_and_overlaps_are_named(voc: Path, tmp_path: Path) -> None:
    lists = voc / "VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text(TRAIN[0])
    with pytest.raises(DataError, match=r"1 stems are in both train\.txt and val\.txt: 2007_000032"):
        prepare_voc(voc, tmp_path / "data", progress=False)
    (lists / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt is empty"):
        prepare_voc(voc, tmp_path / "data", progress=False)
    (lists / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt is missing\. Unpack all of"):
        prepare_voc(voc, tmp_path / "data", progress=False)


def test_an_output_with_content_is_not_changed(voc: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").touch()
    with pytest.raises(DataError, match=r"data: exists and is not empty\. Choose another folder, or remove this one"):
        prepare_voc(voc, tmp_path / "data", progress=False)
    assert names(tmp_path / "data") == ["mine.txt"]


def test_an_interrupt_leaves_nothing(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []

    def interrupt(self: VocFolder, name: str, destination: Path) -> None:
        placed.append(name)
        destination.touch()
        if len(placed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(VocFolder, "copy_to", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_voc(voc, tmp_path / "data", progress=False)
    assert names(tmp_path) == ["source"]


def test_download_requests_the_official_file(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def fake(url: str, destination: Path, md5: str, progress: bool) -> Path:
        asked.append((url, destination, md5))
        return make_tar(voc, destination)

    monkeypatch.setattr(prepare, "download_file", fake)
    prepare_voc(None, tmp_path / "a", download=True, progress=False)
    prepare_voc(tmp_path / "source", tmp_path / "b", download=True, url="http://mirror/x.tar", progress=False)
    name, md5 = "VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"
    assert asked == [
        (f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{name}", tmp_path / name, md5),
        ("http://mirror/x.tar", tmp_path / "source" / name, md5),
    ]
    assert names(tmp_path / "b") == CHANNELS


def make_sbd_pngs(folder: Path) -> Path:
    """Masks like SegmentationClassAug: grey PNG files of VOC's images, including validation images, and more."""
    folder.mkdir()
    for stem in (*TRAIN, *VALIDATION, EXTRA):
        Image.fromarray(mask_of(20)).save(folder / f"{stem}.png")
    return folder


def check_train_aug(output: Path) -> None:
    """Check that SBD adds its own image, and that VOC's masks and validation images are unchanged."""
    pairs = load_pairs(output / "train", output / "train_annotation")
    assert [pair.stem for pair in pairs] == [*TRAIN, EXTRA]
    assert [int(read_annotation(pair.annotation)[5, 5]) for pair in pairs] == [1, 2, 20]
    assert names(output / "validation") == ["2007_000033.jpg"]
    assert read_annotation(output / "validation_annotation/2007_000033.png")[5, 5] == 3


def test_train_aug_from_merged_pngs(voc: Path, tmp_path: Path) -> None:
    summary = prepare_voc(voc, tmp_path / "data", train_aug=make_sbd_pngs(tmp_path / "aug"), progress=False)
    check_train_aug(tmp_path / "data")
    assert (summary.train, summary.from_sbd) == (3, 1)
    assert "--config configs/voc2012_aug.yaml --data " in str(summary)
    assert "3 training images (1 of them with SBD's masks)" in str(summary)
    assert "gives 3 training images; train_aug has 10,582, so scores are not comparable" in str(summary)


def make_sbd_release(folder: Path) -> Path:
    savemat = pytest.importorskip("scipy.io", reason="SBD's .mat files need scipy").savemat
    dataset = folder / "benchmark_RELEASE" / "dataset"
    (dataset / "cls").mkdir(parents=True)
    for stem in (*TRAIN, *VALIDATION, EXTRA):
        truth = {"Boundaries": np.zeros((20, 1)), "Segmentation": mask_of(20), "CategoriesPresent": np.array([20])}
        truth["Segmentation"][truth["Segmentation"] == 255] = 0
        savemat(dataset / "cls" / f"{stem}.mat", {"GTcls": truth}, do_compression=True)
    (dataset / "train.txt").write_text("\n".join((TRAIN[0], EXTRA)))
    (dataset / "val.txt").write_text("\n".join((TRAIN[1], *VALIDATION)))
    return folder


@pytest.mark.parametrize("inside", [".", "benchmark_RELEASE", "benchmark_RELEASE/dataset", "benchmark.tgz"])
@pytest.mark.parametrize("voc_as_tar", [False, True])
def test_train_aug_from_the_release(voc: Path, tmp_path: Path, inside: str, voc_as_tar: bool) -> None:
    sbd = make_sbd_release(tmp_path / "sbd")
    if inside == "benchmark.tgz":
        with tarfile.open(sbd / inside, "w:gz") as archive:
            archive.add(sbd / "benchmark_RELEASE", "benchmark_RELEASE")
    source = make_tar(voc, tmp_path / "voc.tar") if voc_as_tar else voc
    summary = prepare_voc(source, tmp_path / "data", train_aug=sbd / inside, progress=False)
    check_train_aug(tmp_path / "data")
    assert summary.from_sbd == 1
    with Image.open(tmp_path / "data/train_annotation" / f"{EXTRA}.png") as mask:
        assert mask.getpalette() == voc_palette().ravel().tolist()


def test_sbd_without_scipy_is_a_data_error(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbd = make_sbd_release(tmp_path / "sbd")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"2008_000008\.mat: reading SBD's \.mat files needs scipy\. Install it"):
        prepare_voc(voc, tmp_path / "data", train_aug=sbd, progress=False)
    assert not (tmp_path / "data").exists()


def test_wrong_sbd_sources_are_named(voc: Path, tmp_path: Path) -> None:
    sbd = make_sbd_release(tmp_path / "sbd")
    cls = sbd / "benchmark_RELEASE/dataset/cls"
    cases: list[tuple[Path, str]] = [
        (tmp_path / "gone", r"gone: does not exist; expected SegmentationClassAug \(PNG files\), SBD's"),
        (voc, "VOCdevkit: has no masks; expected SegmentationClassAug"),
        (tmp_path / "aug.zip", r"aug\.zip: is a zip file\. Unzip it"),
        (make_tar(voc, tmp_path / "voc.tgz", "w:gz"), r"voc\.tgz: has no cls/\*\.mat files"),
    ]
    (tmp_path / "aug.zip").touch()
    for source, message in cases:
        with pytest.raises(DataError, match=message):
            prepare_voc(voc, tmp_path / "data", train_aug=source, progress=False)
    content = (cls / f"{EXTRA}.mat").read_bytes()
    (cls / f"{EXTRA}.mat").write_bytes(content[:150])
    with pytest.raises(DataError, match=r"2008_000008\.mat: has no readable GTcls\.Segmentation"):
        prepare_voc(voc, tmp_path / "data", train_aug=sbd, progress=False)
    (cls / f"{EXTRA}.mat").unlink()
    with pytest.raises(DataError, match=r"1 of 2 masks named in train\.txt are missing from cls/: 2008_000008"):
        prepare_voc(voc, tmp_path / "data", train_aug=sbd, progress=False)
    assert not (tmp_path / "data").exists()


def test_sbd_masks_of_unknown_photographs_are_named(voc: Path, tmp_path: Path) -> None:
    aug = make_sbd_pngs(tmp_path / "aug")
    (aug / f"{EXTRA}.png").rename(aug / "2011_999999.png")
    with pytest.raises(DataError, match=r"are missing: JPEGImages/2011_999999\.jpg"):
        prepare_voc(voc, tmp_path / "data", train_aug=aug, progress=False)
    assert names(tmp_path) == ["aug", "source"]


@pytest.mark.skipif(not REAL_VOC.is_dir(), reason=f"real VOC photographs are not there ({REAL_VOC})")
def test_real_voc_files_keep_their_ids(tmp_path: Path) -> None:
    summary = prepare_voc(REAL_VOC, tmp_path / "data", link=False, progress=False)
    assert (summary.train, summary.validation) == (2, 1)
    found = {}
    for path in sorted((tmp_path / "data").glob("*_annotation/*.png")):
        mask = read_annotation(path)
        with Image.open(path) as image:
            shown = np.asarray(image.convert("RGB"))
        assert (shown == voc_palette()[mask]).all()  # the file's own colours agree with the ids read
        found[path.stem] = [VOC_CLASSES[value] for value in np.unique(mask) if 0 < value < 255]
    assert found == {
        "2011_000003": ["bottle", "person"],
        "2011_000006": ["chair", "person", "sofa"],
        "2011_000025": ["bus", "car"],
    }
