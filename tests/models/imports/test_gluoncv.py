"""Import of GluonCV's parameters and the built-in algorithm's artifact, checked against GluonCV if it is installed."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.build import build_model
from pspnet.models.imports import gluoncv
from pspnet.models.imports.programs import read_weights
from pspnet.models.pspnet import PSPNet
from tests.models.mxnet_files import file_of
from tests.models.original_runs import assert_same_logits, difference, run_original

CROP, SIZES = "96", ("96x96", "65x113", "120x71")


@pytest.fixture(scope="module", params=["resnet50", "resnet101"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("gluoncv") / request.param
    sizes = SIZES if request.param == "resnet50" else SIZES[1:2]
    for path in run_original("PSPNET_GLUONCV_PYTHON", "run_gluoncv.py", folder, request.param, "5", CROP, *sizes):
        yield request.param, path


@pytest.mark.usefixtures("skip_initialisation")
def test_logits_of_gluoncv(original: tuple[str, Path]) -> None:
    name, folder = original
    weights = read_weights(folder / "model_algo-1", "gluoncv")
    assert len(weights.state) == {"resnet50": 309, "resnet101": 564}[name]
    assert weights.architecture == {
        "backbone": name.replace("resnet", "resnet-"), "stem": "deep", "width": 64, "num_classes": 5,
        "auxiliary_head": True, "output_stride": 8, "align_corners": True, "contract_dilation": True,
    }  # fmt: skip
    assert_same_logits(weights.build(), folder, SIZES if name == "resnet50" else SIZES[1:2])
    for wrong in ({"align_corners": False}, {"contract_dilation": False}):
        other = dataclasses.replace(weights, architecture={**weights.architecture, **wrong}).build()
        assert difference(other, folder, SIZES[1]) > 1e-3  # the comparison above is sensitive


def as_gluoncv(model: PSPNet) -> dict[str, Tensor]:
    """Our network's entries under GluonCV's names (verified by the test above), without counters."""
    layout = gluoncv._LAYOUTS[model.backbone.stem_name]
    state = model.state_dict().items()
    return {layout.foreign_name(name): value for name, value in state if not name.endswith("num_batches_tracked")}


@pytest.fixture
def model(randomise: Callable[..., None]) -> PSPNet:
    model = build_model(4, stem="deep", width=8, align_corners=True, contract_dilation=True).eval()
    randomise(model)
    return model


def archive(path: Path, contents: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


HYPERPARAMETERS = {"algorithm": "psp", "backbone": "resnet-50", "num_classes": "4"}


@pytest.mark.parametrize(
    "names", [("model_algo-1",), ("./model_best.params", "./model_algo-1"), ("model_best.params",)]
)
def test_artifact_of_the_built_in_algorithm(
    names: tuple[str, ...], model: PSPNet, tmp_path: Path, random_image: Callable[..., Tensor]
) -> None:
    state = as_gluoncv(model)
    stale = {name: value + 1 for name, value in state.items()}
    contents = {"hyperparams.json": json.dumps(HYPERPARAMETERS).encode()}
    contents.update({name: file_of(state if name == names[-1] else stale) for name in names})
    weights = read_weights(archive(tmp_path / "model.tar.gz", contents), "gluoncv")
    assert weights.details == {"hyperparameters": HYPERPARAMETERS}
    assert weights.path == f"{tmp_path / 'model.tar.gz'}/{names[-1].replace('./', '')}"
    image = random_image(50, 41)
    with torch.no_grad():
        assert torch.equal(weights.build(4).eval()(image), model(image))


@pytest.mark.parametrize("stem", ["conv7", "deep-narrow"])
def test_stems_of_other_versions(stem: str, tmp_path: Path) -> None:
    """GluonCV before 0.4 had the 7x7 stem."""
    model = build_model(3, stem=stem, width=8, auxiliary_head=False)
    (tmp_path / "a.params").write_bytes(file_of(as_gluoncv(model)))
    weights = read_weights(tmp_path / "a.params", "gluoncv")
    assert (weights.architecture["stem"], weights.architecture["auxiliary_head"]) == (stem, False)
    built = weights.build().state_dict()
    assert all(torch.equal(value, built[name]) for name, value in model.state_dict().items())


def test_backbone_only(model: PSPNet, tmp_path: Path) -> None:
    state = {name: value for name, value in as_gluoncv(model).items() if not name.startswith(("head.", "auxlayer."))}
    (tmp_path / "resnet50_v1s.params").write_bytes(file_of({**state, "fc.weight": torch.zeros(2, 3)}))
    weights = read_weights(tmp_path / "resnet50_v1s.params", "gluoncv")
    assert not weights.complete
    built = weights.build(9).backbone.state_dict()
    assert all(torch.equal(value, built[name]) for name, value in model.backbone.state_dict().items())


def test_other_networks_are_rejected(model: PSPNet, tmp_path: Path) -> None:
    path = tmp_path / "model_algo-1"
    state = as_gluoncv(model)
    fcn = {name: value for name, value in state.items() if not name.startswith("head.psp.")}
    path.write_bytes(file_of(fcn))
    with pytest.raises(WeightsError, match=r"GluonCV's FCN, not a PSPNet\. Only algorithm psp can be imported"):
        read_weights(path, "gluoncv")
    path.write_bytes(file_of({**fcn, "head.aspp.concurent.0.0.weight": torch.zeros(1)}))
    with pytest.raises(WeightsError, match="GluonCV's DeepLab, not a PSPNet"):
        read_weights(path, "gluoncv")
    path.write_bytes(file_of({name.replace(".", "_"): value for name, value in state.items()}))
    with pytest.raises(WeightsError, match=r"names of MXNet symbols \(conv1_0_weight, \.\.\.\).*save_parameters"):
        read_weights(path, "gluoncv")
    hyperparameters = json.dumps({**HYPERPARAMETERS, "algorithm": "deeplab"}).encode()
    packed = archive(tmp_path / "a.tar.gz", {"hyperparams.json": hyperparameters, "model_algo-1": b""})
    with pytest.raises(WeightsError, match=r"was trained with algorithm deeplab\. Only psp can be imported"):
        read_weights(packed, "gluoncv")


def test_missing_unexpected_and_reshaped_arrays_are_reported(model: PSPNet, tmp_path: Path) -> None:
    state = as_gluoncv(model)
    del state["head.block.1.gamma"]
    state.update({"more": torch.zeros(1), "head.psp.conv4.1.running_var": torch.zeros(3)})
    (tmp_path / "a.params").write_bytes(file_of(state))
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "a.params", "gluoncv").build()
    for text in (
        "1 missing: head.block.1.gamma;", "1 unexpected: more;",
        "1 of another shape: head.psp.conv4.1.running_var is 3, expected 64.",
    ):  # fmt: skip
        assert text in str(caught.value)


def test_damaged_archives_and_other_files(model: PSPNet, tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.tar.gz", {"model_algo-1": file_of(as_gluoncv(model))})
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="damaged or truncated archive"):
        read_weights(whole, "gluoncv")
    with pytest.raises(WeightsError, match=r"the archive has no model_algo-1, but model\.safetensors, config\.json\."):
        read_weights(archive(tmp_path / "b.tar", {"model.safetensors": b"", "config.json": b""}, "w"), "gluoncv")
    with pytest.raises(WeightsError, match=r"its hyperparams\.json is not valid JSON"):
        read_weights(archive(tmp_path / "c.tar", {"model_algo-1": b"", "hyperparams.json": b"{"}, "w"), "gluoncv")
    torch.save({"encoder.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="a PyTorch file, not the MXNet parameters of GluonCV: use --from smp"):
        read_weights(tmp_path / "a.pth", "gluoncv")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(tmp_path / "none", "gluoncv")
