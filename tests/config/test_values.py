"""Conversion of text to values for files, flags and SageMaker's hyperparameters."""

from __future__ import annotations

from typing import Any

import pytest

from pspnet.classes import CAMVID_CLASSES, VOC_CLASSES
from pspnet.config.schema import Config
from pspnet.errors import ConfigError


def make(**changes: Any) -> Config:
    return Config(**{"num_classes": 3, "data": "x", **changes})


def problem_of(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    (line,) = str(caught.value).splitlines()[1:]
    return line.strip()


@pytest.mark.parametrize("text", ["True", "true", "TRUE", "yes", "on", "1", 1, True, '"true"'])
def test_true(text: Any) -> None:
    assert make(syncbn=text).syncbn is True


@pytest.mark.parametrize("text", ["False", "false", "no", "off", "0", 0, False, "'False'"])
def test_false(text: Any) -> None:
    assert make(tensorboard=text).tensorboard is False


@pytest.mark.parametrize("text", ["maybe", "2", 2, 1.0, "TrueFalse", [True]])
def test_invalid_booleans(text: Any) -> None:
    assert problem_of(syncbn=text) == f"syncbn: found {text!r}; allowed: True or False"


@pytest.mark.parametrize("text", ["16", " 16 ", "16.0", 16.0, "1.6e1", '"16"', "+16", "016"])
def test_whole_numbers(text: Any) -> None:
    batch = make(mini_batch_size=text).mini_batch_size
    assert batch == 16
    assert type(batch) is int


@pytest.mark.parametrize(
    "text",
    ["1_6", "0x10", "16.5", "sixteen", "16 17", True, "True", "1e999", "9" * 400, 2**63, "1e19", "٣", {}, [16, 17]],
)
def test_invalid_whole_numbers(text: Any) -> None:
    assert problem_of(mini_batch_size=text).startswith("mini_batch_size: found ")


@pytest.mark.parametrize("text", ["1e-4", "0.0001", "1E-4", ".0001", 0.0001, '"1e-4"'])
def test_numbers(text: Any) -> None:
    assert make(learning_rate=text).learning_rate == 0.0001


NOT_FINITE = ["nan", "NaN", "inf", "-inf", ".nan", float("nan"), float("inf"), "1e999", 10**400, True]


@pytest.mark.parametrize("text", NOT_FINITE)
def test_non_finite_numbers_are_rejected(text: Any) -> None:
    line = problem_of(aux_weight=text)
    assert line.startswith("aux_weight: found ")
    assert line.endswith("; allowed: a number, at least 0")


@pytest.mark.parametrize("nothing", ["", " ", None, "null", "None", "~", "[]", [], '""'])
def test_unset_values_keep_the_default(nothing: Any) -> None:
    config = make(epochs=nothing, class_weights=nothing, optimizer=nothing, lr_scheduler_step=nothing, name=nothing)
    assert config == make()


def test_unset_required_key_is_missing() -> None:
    assert problem_of(num_classes="") == "num_classes: missing; it is required: a whole number from 2 to 254"
    assert problem_of(num_classes=None) == "num_classes: missing; it is required: a whole number from 2 to 254"


STEPS = ["10, 20", "10,20", "[10, 20]", "(10, 20)", "['10', '20']", '["10", "20"]', [10, 20], ["10", "20.0"], (10, 20)]


@pytest.mark.parametrize("text", STEPS)
def test_steps(text: Any) -> None:
    assert make(lr_scheduler="step", lr_scheduler_step=text).lr_scheduler_step == (10, 20)


def test_a_single_step() -> None:
    assert make(lr_scheduler="step", lr_scheduler_step="7").lr_scheduler_step == (7,)
    assert make(lr_scheduler="step", lr_scheduler_step=7).lr_scheduler_step == (7,)


@pytest.mark.parametrize("text", ["20, 10", "10, 10", "0, 10", "10,, 20", "10 20", "a", "10, 20.5", "[10", [[10]]])
def test_steps_must_ascend(text: Any) -> None:
    assert problem_of(lr_scheduler="step", lr_scheduler_step=text) == (
        f"lr_scheduler_step: found {text!r}; allowed: ascending whole numbers of at least 1, separated by commas, "
        'such as "10, 20"'
    )


def test_class_weights_and_names() -> None:
    config = make(class_weights="[0.5, 1, 2e0]", loss="ohem", class_names='["sky", "road, wet", "car"]')
    assert config.class_weights == (0.5, 1.0, 2.0)
    assert config.class_names == ("sky", "road, wet", "car")
    assert make(class_names="sky, 'road', car").class_names == ("sky", "road", "car")
    assert make(num_classes=21, class_names="voc").class_names == VOC_CLASSES
    assert make(num_classes=11, class_names=["camvid"]).class_names == CAMVID_CLASSES


def test_quotes_of_json_encoded_strings_are_removed() -> None:
    config = make(optimizer='"adam"', backbone="'resnet-101'", data='"some folder"', class_names='"a, b, c"')
    assert (config.optimizer, config.backbone, config.data) == ("adam", "resnet-101", "some folder")
    assert config.class_names == ("a", "b", "c")
