"""Quantisation: the search for settings with fakes, then NNCF itself on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from pspnet.artifact.export_record import Export, load_export
from pspnet.evaluation.metrics import Scores
from pspnet.exporting import int8
from pspnet.exporting.calibration_set import Calibration
from pspnet.exporting.export_network import export_network
from pspnet.exporting.export_request import ExportRequest
from pspnet.exporting.exporter import export_model
from pspnet.exporting.formats import find_format
from pspnet.exporting.graph_operations import count_quantised, operations
from pspnet.exporting.int8 import ATTEMPTS, quantise
from pspnet.exporting.verification import ExportError
from tests.exporting.conftest import save_network, tiny_network


class FakeModel:
    """A graph without operations, with a given mIoU."""

    def __init__(self, score: float) -> None:
        self.score = score

    def get_ordered_ops(self) -> list[Any]:
        return []


class FakeCalibration(Calibration):
    def score(self, run: Any, num_classes: int) -> Scores:
        return Scores(run.score, 0.9, 0.9, 0.9, (), 1)

    def batches(self) -> list[np.ndarray]:
        return []


CALIBRATION = FakeCalibration(Path("data"), [Path("a")] * 3, [None] * 5, "validation", True)  # type: ignore[list-item]


def search(monkeypatch: pytest.MonkeyPatch, scores: list[float], allow_loss: bool = False) -> tuple[Any, list[str]]:
    """Quantise a graph of mIoU 0.7 with attempts that have these scores."""
    results, lines = iter(scores), []
    monkeypatch.setattr(int8, "_quantise", lambda *arguments: FakeModel(next(results)))
    found = quantise(FakeModel(0.7), lambda model: model, CALIBRATION, 2, allow_loss, lines.append)
    return found, lines


def test_the_first_settings_are_kept_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found, lines = search(monkeypatch, [0.6951])
    assert found.model.score == 0.6951
    assert found.found["settings"] == ATTEMPTS[0].name
    assert found.found["loss_points"] == pytest.approx(0.49)
    assert found.found["float32_mIOU"] == 0.7
    assert (found.found["calibration_images"], found.found["scored_images"]) == (3, 5)
    assert lines == [
        "float32: mIoU 70.00 on 5 images of validation, disjoint from the calibration images",
        "int8, symmetric: mIoU 69.51, 0.49 points less",
    ]


def test_other_settings_are_tried_while_the_loss_exceeds_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    found, lines = search(monkeypatch, [0.6949, 0.69, 0.71])
    assert found.model.score == 0.71
    assert [entry["mIOU"] for entry in found.found["tried"]] == [0.6949, 0.69, 0.71]
    assert lines[-1].endswith("mIoU 71.00, 1.00 points more")


def test_a_loss_above_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ExportError,
        match=r"^int8 costs 0\.60 points of mIoU on 5 images of validation, .* \(at most 0\.5\), .* --allow_loss",
    ):
        search(monkeypatch, [0.1, 0.694, 0.2, 0.3])


def test_the_best_is_kept_if_the_loss_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = search(monkeypatch, [0.1, 0.694, 0.2, 0.3], allow_loss=True)
    assert found.model.score == 0.694
    assert found.found["settings"] == ATTEMPTS[1].name
    assert found.found["loss_allowed"] is True


@pytest.mark.slow
def test_an_8_bit_graph_of_openvino(model_dir: Path, exported: Callable[[str, str], Export]) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    exported("openvino", "int8")
    export = load_export(model_dir, "openvino", "int8")
    found = json.loads((export.folder / "export.json").read_text())["int8"]
    # All convolutions, but no products that depend on the size.
    nodes = operations(openvino.Core().read_model(str(export.path)))
    assert count_quantised(nodes) == (found["quantised_operations"], found["weighted_operations"])
    convolutions = sum(node.kind == "Convolution" for node in nodes)
    assert convolutions == 59  # 53 of the backbone, 4 branches, head and classifier
    assert found["quantised_operations"] == convolutions
    assert found["float32_mIOU"] == pytest.approx(1.0, abs=1e-3)  # annotated with the network's own masks
    assert found["int8_mIOU"] < 1.0
    assert found["loss_points"] == pytest.approx(100 * (found["float32_mIOU"] - found["int8_mIOU"]))
    assert found["disjoint"] is True
    assert export.record.check["limits"] is None
    # One byte per weight.
    assert export.record.files["model.bin"] < 0.5 * (model_dir / "model.safetensors").stat().st_size


def test_8_bit_graphs_have_dynamic_sizes(model_dir: Path, exported: Callable[[str, str], Export]) -> None:
    pytest.importorskip("nncf")
    export = exported("openvino", "int8")
    run = find_format("openvino").open_graph(export.path)
    for count, height, width in ((1, 33, 47), (3, 61, 40)):
        mask, logits = run(np.zeros((count, 3, height, width), np.uint8))
        assert mask.shape == (count, height, width)
        assert np.isfinite(logits).all()


def test_an_8_bit_graph_of_basic_blocks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    monkeypatch.setattr(int8, "ATTEMPTS", ATTEMPTS[:1])
    network = tiny_network(backbone="resnet-18", width=8)
    folder = save_network(tmp_path / "model", network, backbone="resnet-18", width=8)
    export = export_model(
        ExportRequest(model_dir=folder, format="openvino", int8=True, calibration=data, allow_loss=True), lambda _: None
    )
    nodes = operations(openvino.Core().read_model(str(export.path)))
    convolutions = sum(node.kind == "Convolution" for node in nodes)
    assert convolutions == 26  # 20 of the backbone, 4 branches, head and classifier
    assert count_quantised(nodes)[0] == convolutions
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 61, 40), dtype=np.uint8)
    _, found = find_format("openvino").open_graph(export.path)(images)
    plain = find_format("torchscript")
    run = plain.open_graph(tmp_path / plain.write(export_network(network), tmp_path))
    assert np.corrcoef(found.ravel(), run(images)[1].ravel())[0, 1] > 0.9
