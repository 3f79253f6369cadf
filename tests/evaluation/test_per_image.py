"""per_image.npz: exact round trip, and the documented layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pspnet.errors import DataError
from pspnet.evaluation.per_image import Record, read_records, write_records


def random_record(classes: int = 4, images: int = 5, seed: int = 0) -> tuple[Record, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    record, matrices = Record(classes, {"settings": {"crop_size": 32}, "seconds": 1.5}), {}
    for index in reversed(range(images)):
        matrix = rng.integers(0, 2**40, (classes, classes)) * (rng.random((classes, classes)) < 0.4)
        matrices[f"image_{index}"] = matrix
        record.add(f"image_{index}", matrix, f"signature {index}")
    return record, matrices


def test_records_round_trip(tmp_path: Path) -> None:
    record, matrices = random_record()
    other, _ = random_record(images=0)
    write_records(tmp_path / "per_image.npz", {"whole": record, "slide": other})
    found = read_records(tmp_path / "per_image.npz")
    assert list(found) == ["whole", "slide"]
    assert len(found["slide"]) == 0
    assert found["slide"].total().tolist() == [[0] * 4] * 4
    whole = found["whole"]
    assert (whole.num_classes, whole.about, whole.signatures) == (4, record.about, record.signatures)
    assert whole.names == sorted(matrices)
    for name, matrix in matrices.items():
        np.testing.assert_array_equal(whole.matrix(name), matrix)
    assert whole.total().dtype == np.int64
    np.testing.assert_array_equal(whole.total(), sum(matrices.values()))


def test_the_layout_by_hand(tmp_path: Path) -> None:
    record = Record(3)
    record.add("b", np.array([[5, 0, 0], [0, 0, 2], [0, 0, 0]]), "old")
    record.add("a", np.array([[0, 0, 0], [0, 0, 0], [0, 7, 0]]), "new")
    write_records(tmp_path / "per_image.npz", {"whole": record})
    with np.load(tmp_path / "per_image.npz", allow_pickle=False) as archive:
        assert str(archive["format"]) == "pspnet-per-image-1"
        assert archive["whole.names"].tolist() == ["a", "b"]
        assert archive["whole.offsets"].tolist() == [0, 1, 3]
        assert archive["whole.codes"].tolist() == [2 * 3 + 1, 0, 1 * 3 + 2]
        assert archive["whole.counts"].tolist() == [7, 5, 2]
        assert archive["whole.signatures"].tolist() == ["new", "old"]
        assert int(archive["whole.num_classes"]) == 3
        assert (archive["whole.codes"].dtype, archive["whole.counts"].dtype) == (np.int32, np.int64)


def test_the_file_does_not_depend_on_the_order_of_scoring(tmp_path: Path) -> None:
    record, matrices = random_record()
    turned = Record(4, record.about)
    for name in sorted(matrices):
        turned.add(name, matrices[name], record.signatures[name])
    write_records(tmp_path / "one.npz", {"whole": record})
    write_records(tmp_path / "two.npz", {"whole": turned})
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert one.files == two.files
        assert all(np.array_equal(one[key], two[key]) for key in one.files)


def test_an_image_scored_again_replaces_its_counts() -> None:
    record = Record(2)
    record.add("a", np.array([[1, 2], [3, 4]]))
    record.add("a", np.array([[5, 0], [0, 0]]))
    assert record.total().tolist() == [[5, 0], [0, 0]]
    record.remove("a")
    assert len(record) == 0


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "per_image.npz"
    with pytest.raises(DataError, match=r"per_image\.npz: does not exist; `pspnet evaluate` writes it"):
        read_records(path)
    write_records(path, {"whole": random_record()[0]})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"per_image\.npz: damaged"):
        read_records(path)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"per_image\.npz: damaged"):
        read_records(path)
    np.savez(path, format=np.array("other"))
    with pytest.raises(DataError, match="found the format 'other', expected pspnet-per-image-1"):
        read_records(path)
    np.savez(path, format=np.array({"a": 1}, dtype=object))
    with pytest.raises(DataError, match=r"per_image\.npz: damaged"):
        read_records(path)
