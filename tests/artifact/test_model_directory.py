"""The model directory: round trips, rejected contents and atomic writes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import pspnet
from pspnet.artifact import model_directory as artifacts
from pspnet.artifact.model_directory import architecture_of, class_names_of, load_artifact, save_artifact
from pspnet.classes import CAMVID_CLASSES, VOC_CLASSES, palette_for, voc_palette
from pspnet.config.schema import Config
from pspnet.errors import WeightsError
from pspnet.models.build import build_model
from pspnet.models.pspnet import PSPNet

SCORES = {"mIOU": 0.5, "per_class_iou": {"a": 0.5, "b": None}, "pixels": 12}
TRAINED = {"epoch": 3, "steps": 30, "seconds": 1.5}


def make_config(**changes: Any) -> Config:
    return Config(**{"num_classes": 3, "data": "x", "width": 4, "use_pretrained_model": False, **changes})


def make_model(config: Config, seed: int = 0) -> PSPNet:
    torch.manual_seed(seed)
    model = build_model(**architecture_of(config))
    with torch.no_grad():  # statistics unlike those of a new model
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.copy_(torch.randn_like(value))
    return model


def save(directory: Path, seed: int = 0, **changes: Any) -> PSPNet:
    config = make_config(**changes)
    model = make_model(config, seed)
    save_artifact(directory, model, config, SCORES, TRAINED)
    return model


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_equal_states(left: PSPNet, right: PSPNet) -> None:
    one, other = left.state_dict(), right.state_dict()
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert torch.equal(value, other[name]), name


# --- round trip -------------------------------------------------------------------------------------------------------


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    model = save(tmp_path, algorithm="psp")
    before = torch.get_rng_state()
    loaded = load_artifact(tmp_path)
    assert torch.equal(torch.get_rng_state(), before) or not hasattr(torch.overrides, "TorchFunctionMode")
    assert_equal_states(loaded.model, model)
    torch.testing.assert_close(loaded.model.mean, model.mean)


def test_round_trip_is_bit_identical(tmp_path: Path) -> None:
    model = save(tmp_path / "deep" / "model")
    loaded = load_artifact(tmp_path / "deep" / "model")
    assert_equal_states(loaded.model, model)
    assert not loaded.model.training
    images = torch.randint(0, 256, (1, 3, 37, 53), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"stem": "deep", "output_stride": 16, "align_corners": True},
        {"backbone": "resnet-101", "aux_weight": 0.0, "dropout": 0.3},
        {"num_classes": 21, "width": 8},
    ],
)
def test_architecture_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = save(tmp_path, **changes)
    loaded = load_artifact(tmp_path)
    assert loaded.architecture == architecture_of(make_config(**changes))
    assert_equal_states(loaded.model, model)
    assert loaded.model.align_corners is model.align_corners
    assert (loaded.model.auxiliary_head is None) == (model.auxiliary_head is None)


def test_normalisation_round_trip(tmp_path: Path) -> None:
    save(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    change_config(tmp_path, architecture={**content["architecture"], "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]})
    model = load_artifact(tmp_path).model
    assert model.mean.flatten().tolist() == [1, 2, 3]
    assert model.std.flatten().tolist() == [4, 5, 6]


def test_class_names_and_palette_round_trip(tmp_path: Path) -> None:
    save(tmp_path / "own", class_names="sky, road, car")
    own = load_artifact(tmp_path / "own")
    assert own.class_names == ("sky", "road", "car")
    np.testing.assert_array_equal(own.palette, voc_palette())
    save(tmp_path / "camvid", num_classes=11, class_names="camvid")
    camvid = load_artifact(tmp_path / "camvid")
    assert camvid.class_names == CAMVID_CLASSES
    assert camvid.palette.dtype == np.uint8
    np.testing.assert_array_equal(camvid.palette, palette_for(CAMVID_CLASSES))
    assert camvid.palette[:3].tolist() == [[128, 128, 128], [128, 0, 0], [192, 192, 128]]


def test_class_names_of_a_config() -> None:
    assert class_names_of(make_config()) == ("class_0", "class_1", "class_2")
    assert class_names_of(make_config(num_classes=21)) == VOC_CLASSES
    assert class_names_of(make_config(class_names="a, b, c")) == ("a", "b", "c")


def test_stored_palette_is_used(tmp_path: Path) -> None:
    save(tmp_path)
    change_config(tmp_path, palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    palette = load_artifact(tmp_path).palette
    assert palette[:3].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    np.testing.assert_array_equal(palette[3:], voc_palette()[3:])


def test_training_and_scores_round_trip(tmp_path: Path) -> None:
    save(tmp_path, learning_rate=0.05)
    loaded = load_artifact(tmp_path)
    assert loaded.scores == SCORES
    assert {key: loaded.training[key] for key in TRAINED} == TRAINED
    assert loaded.training["config"]["learning_rate"] == 0.05
    assert Config(**loaded.training["config"]) == make_config(learning_rate=0.05)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["algorithm"] == "psp"
    assert content["versions"]["pspnet"] == pspnet.__version__
    assert content["versions"]["torch"] == torch.__version__


def test_only_two_world_readable_files_are_written(tmp_path: Path) -> None:
    save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o644"}


def test_saving_leaves_the_model_unchanged(tmp_path: Path) -> None:
    config = make_config()
    model = make_model(config).to(memory_format=torch.channels_last).train()
    save_artifact(tmp_path, model, config, {}, {})
    assert model.training
    assert model.backbone.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert_equal_states(load_artifact(tmp_path).model, model)


# --- rejected contents ------------------------------------------------------------------------------------------------


def test_missing_or_unrelated_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(WeightsError, match=r"not a model directory, it has no config\.json\. Expected") as caught:
            load_artifact(folder)
        assert str(folder) in str(caught.value)


def test_missing_weights(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: the weights file is missing\. Copy the model directory"
    ):
        load_artifact(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_truncated_weights(tmp_path: Path, kept: float) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(
        WeightsError, match=r"model\.safetensors: the weights file is damaged or truncated \(.+\)\. Copy"
    ):
        load_artifact(tmp_path)


def test_pickled_weights_are_not_executed(tmp_path: Path) -> None:
    model = save(tmp_path)
    torch.save(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="the weights file is damaged or truncated"):
        load_artifact(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"format": ', b"\xff\xfe\x00nonsense"])
def test_broken_json(tmp_path: Path, content: bytes) -> None:
    save(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"config\.json: not readable as JSON \(.+\)\. Copy the model directory again"
    ):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"), [({"model_type": "segformer"}, "None"), ({"format": "pspnet-model-9"}, "'pspnet-model-9'"),
                           ([1, 2], "'list'"), (None, "'NoneType'")],
)  # fmt: skip
def test_unknown_format(tmp_path: Path, content: Any, found: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(
        WeightsError, match=rf"config\.json: expected the format pspnet-model-1, found {found}: written by"
    ):
        load_artifact(tmp_path)


def test_algorithm_round_trip_and_unknown_algorithm(tmp_path: Path) -> None:
    save(tmp_path)
    assert load_artifact(tmp_path).algorithm == "psp"
    change_config(tmp_path, algorithm=None)  # written by hand, or by a version with one algorithm
    assert load_artifact(tmp_path).algorithm == "psp"
    change_config(tmp_path, algorithm="unet")
    with pytest.raises(
        WeightsError,
        match=r"expected `algorithm` to be one of psp, fcn, deeplab, found 'unet': written by",
    ):
        load_artifact(tmp_path)
    change_config(tmp_path, algorithm="fcn")
    with pytest.raises(WeightsError, match=r"describes an architecture .* cannot build \(.*stem"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architecture": ["resnet-50"]}, "`architecture` must be a mapping with the arguments of build_model"),
        (
            {"architecture": {"num_classes": "3"}},
            "`architecture.num_classes` is '3': expected a whole number from 1 to 254",
        ),
        ({"architecture": {}}, "`architecture` has no num_classes"),
        ({"architecture": {"num_classes": True}}, "`architecture.num_classes` is True"),
        ({"classes": ["a", "b"]}, "`classes` must be a list of 3 names, one for each class"),
        ({"classes": [1, 2, 3]}, "`classes` must be a list of 3 names"),
        ({"classes": None}, "`classes` must be a list of 3 names"),
        ({"palette": [[0, 0, 0]]}, r"`palette` must be a list of 3 colours of three numbers 0\.\.255"),
        ({"palette": [[0, 0, 0], [0, 0, 256], [0, 0, 0]]}, "`palette` must be"),
        ({"palette": [[0, 0, 0], [0, 0], [0, 0, 0]]}, "`palette` must be"),
    ],
)
def test_invalid_config_entries(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    save(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(WeightsError, match=rf"config\.json: {text}"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"backbone": "vgg-16"}, r"describes an architecture .* cannot build \(.*expected one of resnet-18"),
        ({"dilations": [2]}, r"`architecture.dilations` is \[2\]: expected two whole numbers from 1 to 8"),
        ({"dilations": [2, 10**9]}, r"`architecture.dilations` is \[2, 1000000000\]: expected two whole numbers"),
        ({"dilate_both": 1}, "`architecture.dilate_both` is 1: expected true or false"),
        ({"attention": True}, "`architecture` has the unknown key 'attention': written by another program"),
        ({"width": 0}, "`architecture.width` is 0: expected a whole number from 1 to 1024"),
        ({"width": 10**9}, "`architecture.width` is 1000000000"),
        ({"width": "wide"}, "`architecture.width` is 'wide'"),
        ({"output_stride": 4}, "`architecture.output_stride` is 4: expected 8, 16 or 32"),
        ({"align_corners": "no"}, "`architecture.align_corners` is 'no': expected true or false"),
        ({"mean": ["a", "b", "c"]}, r"`architecture.mean` is \['a', 'b', 'c'\]: expected three numbers"),
        ({"dropout": None}, "`architecture.dropout` is None: expected a number from 0 to 1"),
    ],
)
def test_invalid_architecture(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    save(tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    change_config(tmp_path, architecture={**architecture, **change})
    with pytest.raises(WeightsError, match=rf"config\.json: {text}"):
        load_artifact(tmp_path)


def test_deeply_nested_config(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(WeightsError, match="not readable as JSON"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"width": 8}, "of another shape"),
        ({"backbone": "resnet-101"}, "missing"),
        ({"auxiliary_head": False}, "unexpected"),
    ],
)
def test_weights_of_another_architecture(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    save(tmp_path)
    architecture = json.loads((tmp_path / "config.json").read_text())["architecture"]
    change_config(tmp_path, architecture={**architecture, **change})
    with pytest.raises(WeightsError, match=r"model\.safetensors does not match the model") as caught:
        load_artifact(tmp_path)
    assert text in str(caught.value)
    assert "It was saved from another architecture" in str(caught.value)


def test_weights_of_another_program(tmp_path: Path) -> None:
    save(tmp_path)
    save_file({"decoder.weight": torch.zeros(3)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(WeightsError, match=r"does not match the model .*1 found") as caught:
        load_artifact(tmp_path)
    assert "1 unexpected: decoder.weight" in str(caught.value)


# --- failing writes ---------------------------------------------------------------------------------------------------


def full_disk_after(written: bytes) -> Any:
    """Return a save_file that writes some bytes and then raises safetensors' error for a full disk."""

    def fail(state: dict[str, torch.Tensor], path: str, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(written)
        raise SafetensorError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })")

    return fail


def test_full_disk_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "save_file", full_disk_after(b"half"))
    with pytest.raises(OSError, match=r"model\.safetensors: could not be written .*StorageFull"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_older_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, seed=0)
    monkeypatch.setattr(artifacts, "save_file", full_disk_after(b"half"))
    with pytest.raises(OSError, match="could not be written"):
        save(tmp_path, seed=1)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert_equal_states(load_artifact(tmp_path).model, older)


@pytest.mark.slow
def test_weights_are_kept_if_the_config_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, num_classes=3)
    before = load_file(str(tmp_path / "model.safetensors"))

    def fail(self: Path, text: str, encoding: str) -> int:
        with open(self, "w", encoding=encoding) as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="No space left on device"):
            save(tmp_path, num_classes=5)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    after = load_file(str(tmp_path / "model.safetensors"))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert_equal_states(load_artifact(tmp_path).model, older)


def test_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(state: dict[str, torch.Tensor], path: str, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_file_at_the_path_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("in the way")
    with pytest.raises(OSError, match="model"):
        save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "in the way"
