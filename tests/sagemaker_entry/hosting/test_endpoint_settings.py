"""Endpoint settings and requests: local validation, and validation of the requests by boto3's API description."""

from __future__ import annotations

from typing import Any

import pytest

from pspnet.errors import ConfigError
from pspnet.system.exit_codes import run_guarded
from sagemaker_entry import commands as cli
from sagemaker_entry.hosting import hosting_images
from sagemaker_entry.hosting import hosting_requests as requests
from sagemaker_entry.hosting.deploy import names, requests_of
from sagemaker_entry.hosting.endpoint_settings import HostSettings, TransformSettings
from sagemaker_entry.hosting.hosting_requests import HostContext
from sagemaker_entry.hosting.transform import Images, transform_request

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
CONTEXT = HostContext("cars", "cars-1", "repo/image:1", ROLE, "s3://b/model.tar.gz", "bucket")
SERVICES = {"RegisterScalableTarget": "application-autoscaling", "PutScalingPolicy": "application-autoscaling"}


def check_against_aws(operation: str, parameters: dict[str, Any]) -> None:
    """Check names, types, bounds and enums against boto3's API description."""
    session_module = pytest.importorskip("botocore.session", reason="boto3 is not installed")
    from botocore.validate import ParamValidator

    model = session_module.get_session().get_service_model(SERVICES.get(operation, "sagemaker"))
    shape = model.operation_model(operation).input_shape
    assert ParamValidator().validate(parameters, shape).generate_report() == ""
    check_bounds(parameters, shape, operation)


def check_bounds(value: Any, shape: Any, where: str) -> None:
    """Check what ParamValidator leaves out: patterns, enums and upper bounds."""
    import re

    if shape.type_name == "structure":
        for key, inner in value.items():
            check_bounds(inner, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list":
        assert len(value) <= shape.metadata.get("max", 1000), where
        for inner in value:
            check_bounds(inner, shape.member, where)
    elif shape.type_name == "string":
        assert len(value) <= shape.metadata.get("max", 10_000), where
        assert not getattr(shape, "enum", None) or value in shape.enum, f"{where}: {value}"
        pattern = shape.metadata.get("pattern", "")
        # botocore has Java patterns, and a wrong one for the addresses of captured data.
        if pattern and not any(text in pattern for text in ("\\p", "\\u", "([^/])/?")):
            assert re.fullmatch(pattern, value), f"{where}: {value}"
    elif shape.type_name in ("integer", "long", "float", "double"):
        assert shape.metadata.get("min", value) <= value <= shape.metadata.get("max", value), where


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        HostSettings(model="m"),
        HostSettings(model="m", tag=("team=cars",), env=("A=b",), instance_type="ml.g4dn.xlarge", instance_count=2),
        HostSettings(model="m", serverless=True, memory=2048, concurrency=3),
        HostSettings(model="m", asynchronous=True, output_path="s3://b/answers", max_instances=2, min_instances=0),
        HostSettings(model="m", data_capture=20, max_instances=4, network_isolation=True, image_uri="ours:1"),
        HostSettings(model="m", update=True, endpoint_name="cars"),
    ],
)
def test_requests_match_the_api_description(settings: HostSettings) -> None:
    for operation, parameters in requests_of(settings, CONTEXT).items():
        check_against_aws(operation, parameters)


def test_the_requests_of_the_first_users_endpoint() -> None:
    sent = requests_of(HostSettings(model="m"), CONTEXT)
    assert list(sent) == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]
    tags = [{"Key": "pspnet", "Value": "cars"}]
    environment = sent["CreateModel"]["PrimaryContainer"].pop("Environment")
    assert sent["CreateModel"] == {
        "ModelName": "cars-1",
        "PrimaryContainer": {"Image": "repo/image:1", "Mode": "SingleModel", "ModelDataUrl": "s3://b/model.tar.gz"},
        "ExecutionRoleArn": ROLE,
        "Tags": tags,
    }
    assert environment["SAGEMAKER_PROGRAM"] == "inference.py"
    assert environment["SAGEMAKER_SUBMIT_DIRECTORY"] == "/opt/ml/model/code"
    assert environment["PSPNET_REQUEST_BYTES"] == environment["PSPNET_ANSWER_BYTES"] == "6291456"
    assert int(environment["TS_MAX_REQUEST_SIZE"]) > 6291456
    assert sent["CreateEndpointConfig"]["ProductionVariants"] == [
        {
            "VariantName": "AllTraffic", "ModelName": "cars-1", "InitialVariantWeight": 1.0,
            "InstanceType": "ml.t2.xlarge", "InitialInstanceCount": 1, "ModelDataDownloadTimeoutInSeconds": 600,
            "ContainerStartupHealthCheckTimeoutInSeconds": 600,
        }
    ]  # fmt: skip
    assert "DataCaptureConfig" not in sent["CreateEndpointConfig"]
    assert sent["CreateEndpoint"] == {"EndpointName": "cars", "EndpointConfigName": "cars-1", "Tags": tags}


def test_limits_follow_the_kind_of_endpoint_and_env_overrides_them() -> None:
    def environment(settings: HostSettings) -> dict[str, str]:
        return requests_of(settings, CONTEXT)["CreateModel"]["PrimaryContainer"]["Environment"]

    assert environment(HostSettings(model="m", serverless=True))["PSPNET_ANSWER_BYTES"] == "4000000"
    slow = environment(HostSettings(model="m", asynchronous=True))
    assert (slow["PSPNET_REQUEST_BYTES"], slow["SAGEMAKER_MODEL_SERVER_TIMEOUT"]) == ("100000000", "900")
    own = environment(HostSettings(model="m", env=("PSPNET_PIXELS=5", "TS_MAX_REQUEST_SIZE=7")))
    assert (own["PSPNET_PIXELS"], own["TS_MAX_REQUEST_SIZE"]) == ("5", "7")


def test_the_server_reads_the_variables() -> None:
    from pspnet.inference.limits import Limits

    environment = requests.container_environment(HostSettings(model="m"), 5_000_000)
    limits = Limits.from_environment(environment)
    assert (limits.request_bytes, limits.answer_bytes) == (5_000_000, 5_000_000)


def test_names() -> None:
    assert names(HostSettings(model="m"), "20260101000000") == ("xporter-segmentation-20260101000000",) * 2
    endpoint, name = names(HostSettings(model="m", endpoint_name="a" * 63), "20260101000000")
    assert endpoint == "a" * 63
    assert name == "a" * 48 + "-20260101000000"


def test_the_transform_payload_fits_the_largest_image() -> None:
    settings = TransformSettings(model="m", images="s3://b/i", output="s3://b/o", accept="image/png", concurrent=4)
    small = transform_request(settings, Images("s3://b/i/", "image/jpeg", 90_000), "m", "job-1")
    check_against_aws("CreateTransformJob", small)
    assert (small["MaxPayloadInMB"], small["MaxConcurrentTransforms"]) == (6, 4)
    assert small["TransformInput"]["ContentType"] == "image/jpeg"
    large = transform_request(settings, Images("s3://b/i/", "image/png", 40 * 1024 * 1024 + 1), "m", "job-1")
    assert (large["MaxPayloadInMB"], large["MaxConcurrentTransforms"]) == (41, 2)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--instance_count", "0"],
            "instance_count: found '0' (flag --instance_count); allowed: a whole number, at least 1",
        ),
        (["--endpoint_name", "a_b"], "endpoint_name: found 'a_b'"),
        (["--base_name", "a" * 49], "base_name: found"),
        (["--serverless", "--memory", "1000"], "memory: found '1000' (flag --memory); allowed: 1024, 2048"),
        (["--memroy", "1024"], "memroy: unknown key (flag --memroy); did you mean memory?"),
        (["--serverless", "--asynchronous"], "serverless: given with asynchronous"),
        (["--serverless", "--concurrency", "201"], "allowed: 1 to 200"),
        (["--serverless", "--data_capture", "5"], "serverless endpoints do not support it"),
        (["--serverless", "--max_instances", "3"], "max_instances: given with serverless"),
        (["--concurrency", "2"], "concurrency: given for a real-time endpoint"),
        (["--output_path", "s3://b/o"], "output_path: given without asynchronous"),
        (["--asynchronous", "--output_path", "b/o"], "output_path: found 'b/o'"),
        (["--max_instances", "2", "--instance_count", "3"], "give at least min_instances and instance_count"),
        (["--max_instances", "2", "--min_instances", "0"], "0 with --asynchronous only"),
        (["--min_instances", "2"], "min_instances: given without max_instances"),
        (["--max_instances", "2", "--no_wait"], "max_instances: given with no_wait"),
        (["--data_capture", "101"], "data_capture: found '101'"),
        (["--network_isolation"], "network_isolation: given without image_uri"),
        (["--update"], "update: given without endpoint_name"),
        (["--tag", "pspnet=mine"], "this one marks what `delete` may remove"),
        (["--tag", "team"], "tag: found ['team'] (flag --tag); allowed: KEY=VALUE"),
        (["--env", "=1"], "env: found ['=1']"),
        (["--role", "arn:aws:iam::12:role/R"], "role: found"),
        (["--instance_type", "ml.t2.huge"], "does not list it for SageMaker hosting"),
        (["--instance_type", "ml.inf2.xlarge"], "AWS's own accelerators"),
        (["--instance_type", "ml.p2.xlarge"], "(K80) is retired"),
    ],
)
def test_all_wrong_settings_are_reported_in_one_message(
    argv: list[str], expected: str, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("botocore")
    assert run_guarded(cli.dispatch, ["deploy", "s3://b/model.tar.gz", "--dry_run", *argv]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.out == ""


def test_the_image_follows_the_instance_type() -> None:
    pytest.importorskip("sagemaker.core", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")
    choose = hosting_images.choose_host_image
    start = "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-inference"
    assert choose("ml.t2.xlarge", "eu-west-1") == f"{start}:2.6.0-cpu-py312"
    assert choose(None, "eu-west-1") == f"{start}:2.6.0-cpu-py312"
    assert choose("ml.g4dn.xlarge", "eu-west-1") == f"{start}:2.6.0-gpu-py312"
    assert choose("ml.c7g.large", "eu-west-1").startswith(f"{start}-arm64:2.6.0-cpu")
    with pytest.raises(ConfigError, match="region: this SageMaker SDK knows no PyTorch inference image in nowhere-1"):
        choose("ml.t2.xlarge", "nowhere-1")


@pytest.mark.parametrize(
    ("machine", "image", "expected"),
    [
        ("ml.t2.xlarge", "pytorch-inference:2.6.0-gpu-py312", "is for GPUs, and ml.t2.xlarge has none"),
        (None, "pytorch-inference:2.6.0-gpu-py312", "a serverless endpoint has none"),
        ("ml.t2.xlarge", "pytorch-training:2.6.0-cpu-py312", "cannot serve this model"),
        ("ml.t2.xlarge", "pytorch-inference:1.12.1-cpu-py38", "from 2.1.0 to 2.6.0"),
        ("ml.t2.xlarge", "pytorch-inference-arm64:2.6.0-cpu-py312", "use a pytorch-inference image"),
        ("ml.c7g.large", "pytorch-inference:2.6.0-cpu-py312", "use a pytorch-inference-arm64 image"),
    ],
)
def test_impossible_images_are_refused(machine: str | None, image: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        hosting_images.check_host_image(machine, f"763104351884.dkr.ecr.eu-west-1.amazonaws.com/{image}")


def test_other_images_are_not_checked() -> None:
    hosting_images.check_host_image("ml.t2.xlarge", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/our-own:3")
    hosting_images.check_host_image(
        "ml.g5.xlarge", "763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-inference:2.6.0-gpu-py312"
    )


@pytest.mark.parametrize("command", ["deploy", "predict", "transform", "status", "delete"])
def test_help_and_unknown_flags_of_every_command(command: str, capsys: pytest.CaptureFixture) -> None:
    from pspnet.cli import dispatch as pspnet_cli

    with pytest.raises(SystemExit) as ended:
        pspnet_cli.dispatch(["sagemaker", command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: pspnet sagemaker {command}")
    assert "--region" in out
    with pytest.raises(ConfigError, match=r"epochs: unknown key .flag --epochs."):
        cli.dispatch([command, "x", "y", "--output", "o", "--epochs", "3"])


def test_all_problems_of_the_command_line_are_listed(capsys: pytest.CaptureFixture) -> None:
    argv = ["deploy", "m", "--instance-count", "zero", "--memory", "5", "--serverles", "--no-wait", "maybe"]
    assert run_guarded(cli.dispatch, argv) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  command line: unexpected 'maybe'; expected MODEL and settings as --key value",
        "  serverles: unknown key (flag --serverles); did you mean serverless?",
        "  instance_count: found 'zero' (flag --instance-count); allowed: a whole number, at least 1",
        "  memory: found '5' (flag --memory); allowed: 1024, 2048, 3072, 4096, 5120 or 6144",
    ]


@pytest.mark.slow
def test_flags_accept_hyphens(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("sagemaker.core", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'")
    pytest.importorskip("botocore")
    argv = [
        "deploy",
        "s3://b/model.tar.gz",
        "--dry-run",
        "--region",
        "eu-west-1",
        "--role",
        ROLE,
        "--base-name",
        "cars",
    ]
    assert cli.dispatch([*argv, "--max-instances", "2", "--data-capture", "7", "--bucket", "ours"]) == 0
    captured = capsys.readouterr()
    assert '"InitialSamplingPercentage": 7' in captured.out
    assert '"MaxCapacity": 2' in captured.out
    assert captured.err == ""
