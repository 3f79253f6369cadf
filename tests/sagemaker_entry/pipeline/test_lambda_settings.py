"""Lambda function settings from the environment, and their error messages."""

from __future__ import annotations

import pytest

from pspnet.classes import CAMVID_CLASSES
from pspnet.driving.view import Camera, View
from pspnet.errors import ConfigError
from sagemaker_entry.pipeline.lambda_settings import LambdaSettings


def settings(**values: str) -> dict[str, str]:
    return {f"PSPNET_{name}": value for name, value in values.items()}


def test_the_defaults_give_class_fractions_only() -> None:
    found = LambdaSettings.from_environment({})
    assert (found.output_prefix, found.classes, found.forward_to) == ("summaries/", (), None)
    assert found.largest_bytes == 64 * 1024 * 1024
    assert found.view(CAMVID_CLASSES) is None


def test_empty_values_are_the_defaults() -> None:
    names = ("OUTPUT_PREFIX", "CLASSES", "DRIVABLE", "VEHICLE_WIDTH", "COLUMN", "CAMERA_HEIGHT", "FORWARD_TO")
    assert LambdaSettings.from_environment(settings(**dict.fromkeys(names, ""))) == LambdaSettings.from_environment({})


def test_names_and_ids_of_classes() -> None:
    found = LambdaSettings.from_environment(settings(CLASSES="sky, road ,kerb", DRIVABLE="road, 7"))
    assert found.classes == ("sky", "road", "kerb")
    assert found.view(found.classes) == View(frozenset({1, 7}))
    # Masks may include their own names.
    assert found.view(("road", "sky")) == View(frozenset({0, 7}))


def test_a_view_with_a_camera() -> None:
    found = LambdaSettings.from_environment(
        settings(
            CLASSES="camvid",
            DRIVABLE="road",
            VEHICLE_WIDTH="0.4",
            COLUMN="0.45",
            BOTTOM="0.9",
            CAMERA_HEIGHT="0.3",
            CAMERA_PITCH="-2.5",
            CAMERA_FOCAL="0.9",
        )
    )
    assert found.view(found.classes) == View(frozenset({3}), 0.45, 0.9, 0.4, None, Camera(0.3, -2.5, 0.9))


def test_a_target() -> None:
    target = LambdaSettings.from_environment(
        settings(FORWARD_TO="arn:aws:sqs:eu-west-1:123456789012:results.fifo")
    ).target
    assert target is not None
    assert (target.service, target.region) == ("sqs", "eu-west-1")
    assert (target.account, target.name) == ("123456789012", "results.fifo")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"OUTPUT_PREFIX": "out"}, "output_prefix: found 'out' .environment PSPNET_OUTPUT_PREFIX.; allowed: a folder"),
        ({"OUTPUT_PREFIX": "/"}, "output_prefix: found '/'"),
        ({"DRIVABLE": "3,256"}, "drivable: found '3,256' .environment PSPNET_DRIVABLE.; allowed: names, or ids"),
        ({"DRIVABLE": "3", "HORIZON": "x"}, "horizon: found 'x' .environment PSPNET_HORIZON.; allowed: a number"),
        ({"DRIVABLE": "3", "HORIZON": "1.5"}, "horizon: found 1.5; expected a fraction"),
        ({"DRIVABLE": "3", "VEHICLE_WIDTH": "2"}, "width: found 2; expected a fraction of the image's width"),
        ({"DRIVABLE": "3", "CAMERA_HEIGHT": "1"}, "camera_height: given without the others .*; a camera needs"),
        (
            {"DRIVABLE": "3", "CAMERA_HEIGHT": "0", "CAMERA_PITCH": "0", "CAMERA_FOCAL": "1"},
            "camera: found height 0",
        ),
        ({"COLUMN": "0.5"}, "drivable: not set, and the other numbers need it"),
        ({"FORWARD_TO": "https://example.com"}, "forward_to: found 'https://example.com' .*; allowed: the ARN"),
        ({"LARGEST_BYTES": "1 MB"}, "largest_bytes: found '1 MB'"),
    ],
)
def test_a_wrong_value_is_one_sentence(values: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        LambdaSettings.from_environment(settings(**values))


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        LambdaSettings.from_environment(settings(OUTPUT_PREFIX="out", COLUMN="x", FORWARD_TO="y"))
    assert len(str(caught.value).splitlines()) == 4


def test_a_drivable_class_must_be_a_class_of_the_masks() -> None:
    found = LambdaSettings.from_environment(settings(DRIVABLE="road"))
    with pytest.raises(ConfigError, match="PSPNET_DRIVABLE: found road; the masks' classes are unknown: set PSPNET"):
        found.view(())
