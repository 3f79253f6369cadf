"""Config built from Python: defaults, bounds, text values, suggestions, copies."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pspnet.config.problems import InvalidConfigError
from pspnet.config.schema import Config
from pspnet.config.settings import settings_of
from pspnet.errors import ConfigError, PspnetError


def make(**changes: Any) -> Config:
    return Config(**{"num_classes": 3, "data": "x", **changes})


def problems_of(**values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    head, *lines = str(caught.value).splitlines()
    assert head == f"The configuration has {len(lines)} problem{'s' if len(lines) != 1 else ''}:"
    return [line.strip() for line in lines]


def problem_of(**changes: Any) -> str:
    lines = problems_of(**{"num_classes": 3, "data": "x", **changes})
    assert len(lines) == 1, lines
    return lines[0]


BUILT_IN_DEFAULTS = {
    "backbone": "resnet-50", "algorithm": "psp", "use_pretrained_model": True, "num_training_samples": None,
    "base_size": 520, "crop_size": 240, "epochs": 10, "mini_batch_size": 16, "validation_mini_batch_size": 16,
    "learning_rate": 0.001, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0001, "gamma1": 0.9, "gamma2": 0.9,
    "lr_scheduler": "poly", "lr_scheduler_factor": 0.1, "lr_scheduler_step": None, "early_stopping": False,
    "early_stopping_min_epochs": 5, "early_stopping_patience": 4, "early_stopping_tolerance": 0.0, "syncbn": False,
}  # fmt: skip
OWN_DEFAULTS = {
    "stem": "conv7", "output_stride": 8, "align_corners": False, "contract_dilation": "auto", "width": 64,
    "dilations": None, "dilate_both": "auto",
    "dropout": 0.1,
    "pretrained_weights": "IMAGENET1K_V1", "label_map": None, "model": None, "class_names": None, "name": "run",
    "model_dir": "runs/run/model", "output_dir": "runs/run", "checkpoint_dir": "runs/run/checkpoints", "seed": 0,
    "deterministic": False, "aux_weight": 0.4, "head_lr_multiplier": 1.0, "warmup_epochs": 0.0, "poly_power": 0.9,
    "ignore": 255, "workers": "auto", "cache_images": "none", "cache_limit_gb": 8.0,
    "cache_dir": "~/.cache/pspnet/images", "device": "auto", "precision": "auto", "channels_last": True,
    "compile": False,
    "accumulate_steps": 1, "ema_decay": 0.0, "clip_grad_norm": 0.0, "class_weights": None, "loss": "cross_entropy",
    "ohem_threshold": 0.7, "ohem_min_kept": 0.0625, "scale_min": 0.5, "scale_max": 2.0, "flip": 0.5, "rotation": 0.0,
    "blur": 0.0, "color_jitter": 0.0, "augmentation": None, "augmentation_window": True,
    "resume": "auto", "log_every": 10, "validate_every": 1, "checkpoint_every": 0,
    "max_steps_per_epoch": 0, "max_train_images": 0, "max_validation_images": 0, "tensorboard": True,
    "progress": "auto", "sample_images": 4, "tf32": True, "gradient_checkpointing": False, "micro_batch_size": None,
}  # fmt: skip
GIVEN = {"num_classes": 3, "data": "x", "train": "x/train", "train_annotation": "x/train_annotation",
         "validation": "x/validation", "validation_annotation": "x/validation_annotation"}  # fmt: skip


def test_defaults() -> None:
    assert make().to_dict() == {**BUILT_IN_DEFAULTS, **OWN_DEFAULTS, **GIVEN}


# Each bound from both sides: key, the smallest and largest allowed values, and values just outside.
BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("num_classes", [2, 254], [1, 255, 0, -3, 2.5]),
    ("num_training_samples", [1], [0, -1]),
    ("base_size", [17], [16]),
    ("crop_size", [25], [16, 0]),
    ("epochs", [1], [0, -1, 1.5]),
    ("mini_batch_size", [1], [0]),
    ("validation_mini_batch_size", [1], [0]),
    ("learning_rate", [1e-9, 1], [0, 1.0001, -0.1]),
    ("momentum", [0, 1], [-0.1, 1.1]),
    ("weight_decay", [0, 1], [-0.1, 1.1]),
    ("gamma1", [0, 1], [-0.1, 1.1]),
    ("gamma2", [0, 1], [-0.1, 1.1]),
    ("lr_scheduler_factor", [0.01, 1], [0, 1.1]),
    ("early_stopping_min_epochs", [1], [0]),
    ("early_stopping_patience", [1], [0]),
    ("early_stopping_tolerance", [0, 1], [-0.01, 1.01]),
    ("dropout", [0, 0.99], [1, -0.1]),
    ("seed", [0, 2**32 - 1], [-1, 2**32]),
    ("ignore", [0, 255], [-1, 256]),
    ("workers", [0, 8, "auto"], [-1, "many", 1.5, True]),
    ("compile", [True, False, "auto"], ["maybe", 2]),
    ("micro_batch_size", [1, 16, "auto"], [0, "many", 1.5, True]),
    ("aux_weight", [0, 2], [-0.1]),
    ("head_lr_multiplier", [0.1, 10], [0]),
    ("warmup_epochs", [0, 0.5], [-1]),
    ("poly_power", [0.5], [0]),
    ("accumulate_steps", [1], [0]),
    ("ema_decay", [0, 0.9999], [1, -0.1]),
    ("clip_grad_norm", [0, 5], [-1]),
    ("ohem_threshold", [0.1, 1], [0, 1.1]),
    ("ohem_min_kept", [0.01, 1], [0, 1.1]),
    ("flip", [0, 1], [-0.1, 1.1]),
    ("rotation", [0, 45], [-1, 46]),
    ("blur", [0, 1], [1.1]),
    ("color_jitter", [0, 1], [1.1]),
    ("log_every", [1], [0]),
    ("validate_every", [1], [0]),
    ("max_steps_per_epoch", [0, 5], [-1]),
    ("max_train_images", [0], [-1]),
    ("max_validation_images", [0], [-1]),
    ("sample_images", [0], [-1]),
    ("output_stride", [8, 16, 32], [4, "eight"]),
]


@pytest.mark.parametrize(("key", "inside", "outside"), BOUNDS, ids=[row[0] for row in BOUNDS])
def test_bounds(key: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        expected = 32 if key == "crop_size" else value
        assert getattr(make(**{key: value}), key) == expected
        assert getattr(make(**{key: str(value)}), key) == expected
    for value in outside:
        assert problem_of(**{key: value}) == f"{key}: found {value!r}; allowed: {settings_of(Config)[key].allowed}"


def test_width_is_4_to_64_without_pretrained_weights() -> None:
    assert make(width=4, use_pretrained_model=False).width == 4
    assert problem_of(width=65, use_pretrained_model=False) == "width: found 65; allowed: a whole number from 4 to 64"


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("num_classes", "a whole number from 2 to 254"),
        ("crop_size", "a whole number, greater than 16"),
        ("epochs", "a whole number, at least 1"),
        ("learning_rate", "a number, greater than 0 and at most 1"),
        ("ema_decay", "a number, at least 0 and less than 1"),
        ("num_training_samples", "a whole number, at least 1"),
        ("optimizer", "sgd, adam, adagrad, nag or rmsprop"),
        ("output_stride", "8, 16 or 32"),
        ("syncbn", "True or False"),
        ("workers", "auto or a whole number, at least 0"),
    ],
)
def test_description_of_allowed_values(key: str, text: str) -> None:
    assert settings_of(Config)[key].allowed == text


@pytest.mark.parametrize(("given", "used"), [(25, 32), (32, 32), ("240", 240), (241, 248), (473, 480)])
def test_crop_size_is_rounded_up_to_a_multiple_of_8(given: Any, used: int) -> None:
    assert make(crop_size=given).crop_size == used


def test_a_crop_too_small_for_the_network_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"crop_size: found 24; algorithm psp needs at least 32"):
        make(crop_size=17)


@pytest.mark.parametrize("algorithm", ["fcn", "deeplab"])
def test_other_algorithms_reject_pspnet_settings(algorithm: str) -> None:
    assert make(algorithm=algorithm, backbone="resnet-101", aux_weight=0).algorithm == algorithm
    with pytest.raises(ConfigError, match=rf"crop_size: found 24; algorithm {algorithm} needs at least 32"):
        make(algorithm=algorithm, crop_size=17)
    settings = {"stem": "deep", "output_stride": 16, "align_corners": True, "width": 32, "dropout": 0.2}
    assert problems_of(algorithm=algorithm, num_classes=3, data="x", **settings) == [
        f"{key}: found {value!r} with algorithm {algorithm}; torchvision's network does not support it: "
        f"remove {key}, or use algorithm psp"
        for key, value in settings.items()
    ]


def test_unknown_algorithm() -> None:
    assert problem_of(algorithm="psb") == ("algorithm: found 'psb'; allowed: psp, fcn or deeplab. Did you mean psp?")


@pytest.mark.parametrize(
    ("key", "value", "like"),
    [
        ("backbone", "resnet50", "resnet-50"),
        ("backbone", "ResNet_101", "resnet-101"),
        ("optimizer", "SGD", "sgd"),
        ("optimizer", "rmsprob", "rmsprop"),
        ("lr_scheduler", "cosin", "cosine"),
        ("precision", "float-16", "float16"),
    ],
)
def test_nearest_value(key: str, value: str, like: str) -> None:
    assert (
        problem_of(**{key: value})
        == f"{key}: found {value!r}; allowed: {settings_of(Config)[key].allowed}. Did you mean {like}?"
    )


def test_no_suggestion_for_a_dissimilar_value() -> None:
    assert problem_of(optimizer="lion99") == "optimizer: found 'lion99'; allowed: sgd, adam, adagrad, nag or rmsprop"


@pytest.mark.parametrize(
    ("key", "like"),
    [
        ("num_classe", "num_classes"),
        ("learning_rat", "learning_rate"),
        ("Epochs", "epochs"),
        ("lr", "learning_rate"),
        ("batch_size", "mini_batch_size"),
        ("crop", "crop_size"),
        ("early_stoping_patience", "early_stopping_patience"),
    ],
)
def test_nearest_key(key: str, like: str) -> None:
    assert problem_of(**{key: 1}) == f"{key}: unknown key; did you mean {like}?"


def test_no_suggestion_for_a_dissimilar_key() -> None:
    assert problem_of(zzz=1) == "zzz: unknown key; --help lists all keys"


def test_all_problems_at_once() -> None:
    lines = problems_of(num_classe=3, optimizer="SDG", epochs=0, lr_scheduler="step", stem="deep", scale_min=3)
    assert [line.split(":")[0] for line in lines] == [
        "num_classe", "num_classes", "epochs", "optimizer", "data", "stem", "lr_scheduler_step", "scale_min",
    ]  # fmt: skip


def test_problems_that_depend_on_an_invalid_value_are_not_reported() -> None:
    lines = problems_of(num_classes=1, class_names="a, b, c", class_weights="1, 1", data="x")
    assert lines == ["num_classes: found 1; allowed: a whole number from 2 to 254"]


def test_errors_name_no_python_types() -> None:
    text = "\n".join(problems_of(num_classes="x", foo=1, backbone=5, train=["a"], workers="w", syncbn="s", name="a/b"))
    assert not re.search(r"pydantic|input|type=|valid|Field|literal", text)


@pytest.mark.slow
def test_long_values_are_truncated() -> None:
    line = problem_of(epochs="9" * 5000 + "x")
    assert len(line) < 130
    assert "999..." in line


def test_errors_are_pspnet_errors_and_picklable() -> None:
    with pytest.raises(PspnetError) as caught:
        make(epochs=0)
    assert isinstance(caught.value, InvalidConfigError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_frozen() -> None:
    config = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 5  # type: ignore[misc]
    assert config.epochs == 10


def test_json_and_copies_are_equal(tmp_path: Path) -> None:
    config = make(
        class_weights="1, 2.5, 1e-3", lr_scheduler="step", lr_scheduler_step="3, 5", workers=2, model=tmp_path
    )
    assert Config(**json.loads(json.dumps(config.to_json()))) == config
    assert Config(**config.to_dict()) == config
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config != make()


def test_replace_checks_and_derives_folders_again() -> None:
    config = make(name="a", checkpoint_dir="kept")
    other = config.replace(name="b", data="y", epochs="3")
    assert (other.model_dir, other.train, other.checkpoint_dir) == ("runs/b/model", "y/train", "kept")
    assert (other.epochs, config.epochs) == (3, 10)
    with pytest.raises(ConfigError, match="epochs: found 0; allowed: a whole number, at least 1"):
        config.replace(epochs=0)


def test_reading_a_config_does_not_import_torch() -> None:
    code = (
        "import sys; from pspnet.config.schema import Config; import pspnet.config.parsing; "
        "Config(num_classes=2, data='x'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
