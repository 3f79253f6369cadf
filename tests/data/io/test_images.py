from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet.classes import voc_palette
from pspnet.data.io.images import encode_palette_png, read_annotation, read_image, write_image, write_palette_png
from pspnet.errors import DataError

MASK = np.array([[0, 1, 2, 255], [20, 20, 0, 1], [5, 6, 7, 8]], dtype=np.uint8)


def colours(height: int = 3, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png_bytes(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG written by hand: Pillow cannot write 2- and 4-bit greyscale."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert (image == colours()).all()


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    grey = colours()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png") == grey[..., None]).all()

    encode_palette_png(MASK, voc_palette()).save(tmp_path / "palette.png")
    assert (read_image(tmp_path / "palette.png") == voc_palette()[MASK]).all()

    rgba = np.dstack([colours(), np.zeros((3, 4), dtype=np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert (read_image(tmp_path / "rgba.png") == colours()).all()

    cmyk = Image.fromarray(colours(32, 32)).convert("CMYK")
    cmyk.save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").shape == (32, 32, 3)


def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    image = Image.fromarray(colours(40, 64))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 64, 3)


def test_a_truncated_image_is_rejected(tmp_path: Path) -> None:
    Image.fromarray(colours(64, 64)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image \(.*truncated.*Replace or remove"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("cut", [0, 4, 20, 40, 60, 100])
def test_every_truncation_of_a_png_is_rejected(tmp_path: Path, cut: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(colours(16, 16)[..., 0]).save(stream, format="PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue()[:cut])
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: not a readable annotation"):
        read_annotation(tmp_path / "a.png")


def test_missing_and_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: not a readable image \(no such file\)"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"text\.jpg: not a readable image \(unknown image format\)"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match=r"folder\.jpg: not a readable image"):
        read_image(tmp_path / "folder.jpg")


def test_palette_and_grey_annotations_are_read_as_stored(tmp_path: Path) -> None:
    write_palette_png(tmp_path / "palette.png", MASK, voc_palette())
    Image.fromarray(MASK).save(tmp_path / "grey.png")
    for name in ("palette.png", "grey.png"):
        mask = read_annotation(tmp_path / name)
        assert mask.dtype == np.uint8
        assert (mask == MASK).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_narrow_palettes_keep_their_indices(tmp_path: Path, bits: int) -> None:
    mask = np.array([[0, 1, 1, 0]], dtype=np.uint8)
    encode_palette_png(mask, voc_palette()).save(tmp_path / "a.png", bits=bits)
    assert (read_annotation(tmp_path / "a.png") == mask).all()


def test_palette_transparency_does_not_change_indices(tmp_path: Path) -> None:
    encode_palette_png(MASK, voc_palette()).save(tmp_path / "a.png", transparency=0)
    assert (read_annotation(tmp_path / "a.png") == MASK).all()


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (Image.fromarray(colours()), "an RGB PNG"),
        (Image.fromarray(colours()).convert("RGBA"), "an RGBA PNG"),
        (Image.fromarray(MASK).convert("LA"), "a grey-and-alpha PNG"),
        (Image.fromarray(MASK.astype(np.uint16)), "a 16-bit PNG"),
        (Image.fromarray(MASK).convert("1"), "a 1-bit PNG"),
    ],
)
def test_wrong_annotation_modes_are_rejected(tmp_path: Path, image: Image.Image, found: str) -> None:
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png: found {found}; an annotation is an 8-bit .* class ids first"):
        read_annotation(tmp_path / "a.png")


@pytest.mark.parametrize(("depth", "row"), [(2, b"\x00\x1b"), (4, b"\x00\x01\x23")])
def test_narrow_greyscale_is_rejected_because_pillow_scales_it(tmp_path: Path, depth: int, row: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png_bytes(4, 1, depth, 0, row))
    with pytest.raises(DataError, match=r"a\.png: found a .* PNG; an annotation is an 8-bit"):
        read_annotation(tmp_path / "a.png")


def test_a_jpeg_annotation_is_rejected_with_any_name(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(DataError, match=r"annotations must be PNG files; this one is JPEG"):
        read_annotation(tmp_path / "a.png")


def test_written_masks_have_palette_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mask.png"
    write_palette_png(path, MASK, voc_palette())
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette() == voc_palette().ravel().tolist()
        assert (np.asarray(image) == MASK).all()
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.png"
    write_palette_png(path, MASK, voc_palette())
    before = path.read_bytes()

    def full_disk(self: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_image(path, Image.fromarray(MASK))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["mask.png"]
