"""Rules between settings: contradictions, derived folders, warnings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pspnet.config.rules import check_channels, config_warnings
from pspnet.config.schema import Config
from pspnet.errors import ConfigError


def make(**changes: Any) -> Config:
    return Config(**{"num_classes": 3, "data": "x", **changes})


def problems_of(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def problem_of(**changes: Any) -> str:
    (line,) = problems_of(**{"num_classes": 3, "data": "x", **changes})
    return line


def test_step_schedule_without_steps() -> None:
    assert problem_of(lr_scheduler="step") == (
        'lr_scheduler_step: missing; lr_scheduler step needs it, such as "10, 20"'
    )


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"stem": "deep"}, "stem: found 'deep' with use_pretrained_model True; torchvision has no weights for it"),
    ({"stem": "deep-narrow"}, "stem: found 'deep-narrow' with use_pretrained_model True; torchvision has no"),
    ({"pretrained_weights": "V3"}, "pretrained_weights: found 'V3'; allowed: IMAGENET1K_V1, IMAGENET1K_V2 or a file"),
    ({"width": 16}, "width: found 16 with use_pretrained_model True; the published weights have width 64"),
    (
        {"backbone": "resnet-18", "pretrained_weights": "IMAGENET1K_V2"},
        "pretrained_weights: found 'IMAGENET1K_V2'; torchvision has only IMAGENET1K_V1 for resnet-18: use that",
    ),
    ({"backbone": "resnet-34", "algorithm": "fcn"}, "backbone: found resnet-34 with algorithm fcn; torchvision's"),
    ({"dilations": "2"}, "dilations: found '2'; allowed: two whole numbers from 1 to 8"),
    ({"dilate_both": False, "algorithm": "fcn"}, "dilate_both: found False with algorithm fcn"),
    ({"class_names": "a, b"}, "class_names: found 2 names with num_classes 3; give one name per class"),
    ({"class_names": "voc"}, "class_names: found 21 names with num_classes 3"),
    ({"class_weights": "1, 2, 3, 4"}, "class_weights: found 4 weights with num_classes 3; give one weight per class"),
    ({"class_weights": "1, 2, 3", "loss": "dice"}, "class_weights: given with loss dice; only cross_entropy and ohem"),
    ({"scale_min": 2.5}, "scale_min: found 2.5, above scale_max 2"),
    ({"augmentation_window": False}, "augmentation_window: found False without augmentation; give a pipeline that"),
    ({"optimizer": "nag", "momentum": 0}, "momentum: found 0; optimizer nag needs a value above 0"),
    ({"device": "cpu", "precision": "float16"}, "precision: found 'float16' with device cpu; float16 needs a GPU"),
    (
        {"compile": "auto", "gradient_checkpointing": True},
        "gradient_checkpointing: found True with compile auto; torch.compile does not support it: use one of them",
    ),
    (
        {"micro_batch_size": "auto", "syncbn": True},
        "micro_batch_size: found 'auto' with syncbn True; syncbn needs the statistics of the full mini-batch",
    ),
    ({"class_names": "a, b, b"}, "class_names: found 'a, b, b'; allowed: unique names"),
    ({"class_names": "a,,b"}, "class_names: found 'a,,b'; allowed: unique names"),
    ({"class_weights": "1, 0, 2"}, "class_weights: found '1, 0, 2'; allowed: positive numbers"),
    ({"class_weights": "1, nan, 2"}, "class_weights: found '1, nan, 2'; allowed: positive numbers"),
    ({"name": "../up"}, "name: found '../up'; allowed: letters, digits and . _ -"),
    ({"name": ".."}, "name: found '..'; allowed: letters, digits and . _ -"),
    ({"train": ["a"]}, "train: found ['a']; allowed: a folder"),
]


def test_a_weights_file_is_allowed_with_every_stem() -> None:
    for stem in ("conv7", "deep", "deep-narrow"):
        config = Config(num_classes=3, data="x", stem=stem, pretrained_weights="~/weights/resnet50_v2.pth")
        assert config.pretrained_weights == os.path.expanduser("~/weights/resnet50_v2.pth")


@pytest.mark.parametrize(("changes", "text"), CONTRADICTIONS, ids=[row[1].split(";")[0] for row in CONTRADICTIONS])
def test_contradictions(changes: dict[str, Any], text: str) -> None:
    assert problem_of(**changes).startswith(text)


def test_data_folder_provides_the_channels(tmp_path: Path) -> None:
    (tmp_path / "label_map").mkdir()
    config = make(data=tmp_path, validation="other")
    assert config.train == str(tmp_path / "train")
    assert config.train_annotation == str(tmp_path / "train_annotation")
    assert config.validation == "other"
    assert config.label_map == str(tmp_path / "label_map")
    assert config.model is None
    assert not config.synthetic


def test_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = make(data="~/data", model_dir="~/model")
    assert (config.data, config.train, config.model_dir) == (
        "/home/someone/data", "/home/someone/data/train", "/home/someone/model",
    )  # fmt: skip


def test_synthetic_set_needs_no_channels() -> None:
    config = make(data="shapes")
    assert config.synthetic
    assert config.train is None
    assert not make(data="./shapes").synthetic


def test_missing_channels() -> None:
    assert problems_of(num_classes=3) == [
        "data: missing; give --data FOLDER with train, train_annotation, validation, validation_annotation, a "
        "flag for each of these, SM_CHANNEL_* in the environment, or --data shapes for the built-in synthetic set"
    ]
    assert problems_of(num_classes=3, train="a", validation="b", validation_annotation="c") == [
        "train_annotation: missing; give --train_annotation FOLDER or SM_CHANNEL_TRAIN_ANNOTATION"
    ]
    lines = problems_of(num_classes=3, data="shapes", train="a")
    assert len(lines) == 3
    assert lines[0].endswith("SM_CHANNEL_TRAIN_ANNOTATION (data shapes is not used when other channels are given)")


def test_check_channels(tmp_path: Path) -> None:
    for name in ("train", "train_annotation", "validation", "validation_annotation"):
        (tmp_path / name).mkdir()
    check_channels(make(data=tmp_path))
    check_channels(make(data="shapes"))
    (tmp_path / "validation").rmdir()
    (tmp_path / "train").rmdir()
    (tmp_path / "train").touch()
    config = make(data=tmp_path, model=tmp_path / "none")
    with pytest.raises(ConfigError) as caught:
        check_channels(config, {"data": "flag --data", "model": "job.yaml, line 2"})
    assert str(caught.value).splitlines()[1:] == [
        f"  train: '{tmp_path}/train' is a file (from data, flag --data); give the folder that holds the images",
        f"  validation: no such folder: '{tmp_path}/validation' (from data, flag --data); give an existing folder",
        f"  model: no such folder: '{tmp_path}/none' (job.yaml, line 2); give an existing folder",
    ]


def test_check_channels_names_a_missing_data_folder_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_channels(make(data="nowhere", model="none"))
    assert str(caught.value).splitlines()[1:] == [
        "  data: no such folder: 'nowhere'; give an existing folder",
        "  model: no such folder: 'none'; give an existing folder or the name of a published model; "
        "`pspnet models` lists the names.",
    ]
    with pytest.raises(ConfigError, match=r"a published model; did you mean voc-r50 or"):
        check_channels(make(data="shapes", model="voc-r5"))
    check_channels(make(data="shapes", model="voc-r50"))


UNUSED: list[tuple[dict[str, Any], str]] = [
    ({"lr_scheduler_factor": 0.5}, "lr_scheduler_factor is not used with lr_scheduler poly; it is read with step."),
    ({"lr_scheduler_step": "3"}, "lr_scheduler_step is not used with lr_scheduler poly; it is read with step."),
    (
        {"lr_scheduler": "cosine", "poly_power": 1},
        "poly_power is not used with lr_scheduler cosine; it is read with poly.",
    ),
    ({"optimizer": "adam", "momentum": 0.5}, "momentum is not used with optimizer adam; it is read with sgd and nag."),
    (
        {"optimizer": "rmsprop", "weight_decay": 0},
        "weight_decay is not used with optimizer rmsprop; it is read with sgd and nag.",
    ),
    ({"gamma1": 0.5}, "gamma1 is not used with optimizer sgd; it is read with rmsprop."),
    ({"gamma2": 0.5}, "gamma2 is not used with optimizer sgd; it is read with rmsprop."),
    ({"ohem_threshold": 0.5}, "ohem_threshold is not used with loss cross_entropy; it is read with ohem."),
    (
        {"early_stopping_patience": 2},
        "early_stopping_patience is not used with early_stopping False; it is read with True.",
    ),
    (
        {"use_pretrained_model": False, "pretrained_weights": "IMAGENET1K_V2"},
        "pretrained_weights is not used with use_pretrained_model False; it is read with True.",
    ),
]
DOUBTFUL: list[tuple[dict[str, Any], str]] = [
    (
        {"early_stopping": True, "early_stopping_min_epochs": 10},
        "early_stopping has no effect: early_stopping_min_epochs 10 is not below epochs 10.",
    ),
    (
        {"early_stopping": True, "early_stopping_patience": 11},
        "early_stopping has no effect: early_stopping_patience 11 is not below epochs 10.",
    ),
    (
        {"lr_scheduler": "step", "lr_scheduler_step": "5, 10, 20"},
        "lr_scheduler_step 10, 20 is beyond the last of 10 epochs.",
    ),
    ({"deterministic": True, "compile": True}, "compile may change results between runs"),
    ({"crop_size": 1048}, "crop_size 1048 is above base_size 520 x scale_max 2: every crop is padded."),
    ({"warmup_epochs": 10}, "warmup_epochs 10 covers all 10 epochs"),
    ({"validate_every": 11}, "validate_every 11 is above epochs 10"),
    ({"ignore": 0}, "ignore 0 is a class id (num_classes 3): that class is never learned."),
    ({"validation": "x/train"}, "train and validation are the same folder x/train"),
    (
        {"train": "a", "train_annotation": "b", "validation": "c", "validation_annotation": "d"},
        "data x is not used: every channel is given explicitly",
    ),
]


@pytest.mark.parametrize(("changes", "text"), UNUSED + DOUBTFUL, ids=[row[1][:40] for row in UNUSED + DOUBTFUL])
def test_warnings(changes: dict[str, Any], text: str) -> None:
    (warning,) = config_warnings(make(**changes))
    assert warning.startswith(text)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"base_size": 120},
        {"early_stopping": True},
        {"early_stopping": True, "early_stopping_min_epochs": 9, "early_stopping_patience": 9},
        {"optimizer": "nag", "momentum": 0.5},
        {"optimizer": "rmsprop", "gamma1": 0.5},
        {"optimizer": "adam", "momentum": 0.9},
        {"lr_scheduler": "step", "lr_scheduler_step": "5, 9", "lr_scheduler_factor": 0.5},
        {"data": "shapes"},
    ],
)
def test_no_warning(changes: dict[str, Any]) -> None:
    assert config_warnings(make(**changes)) == []
