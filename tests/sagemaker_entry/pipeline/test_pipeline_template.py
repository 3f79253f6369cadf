"""CloudFormation template: passes cfn-lint, has exactly the required permissions, routes every event by the queue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pspnet.config.settings import settings_of
from pspnet.stream.sinks import s3 as mask_sinks
from pspnet.stream.sources import kinesis_client
from sagemaker_entry.hosting import sagemaker_transports
from sagemaker_entry.pipeline import handler as lambda_handler
from sagemaker_entry.pipeline.lambda_settings import LambdaSettings

TEMPLATE = Path(__file__).resolve().parents[3] / "sagemaker_entry" / "pipeline" / "pipeline_template.yaml"


class Loader(yaml.SafeLoader):
    """YAML loader for CloudFormation's short forms: !Ref x becomes {"Ref": x}, !GetAtt x {"Fn::GetAtt": x}."""


def _short_form(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    build = {
        yaml.ScalarNode: loader.construct_scalar,
        yaml.SequenceNode: loader.construct_sequence,
        yaml.MappingNode: loader.construct_mapping,
    }[type(node)]
    value = build(node) if isinstance(node, yaml.ScalarNode) else build(node, deep=True)  # type: ignore[operator]
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


Loader.add_multi_constructor("!", _short_form)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(TEMPLATE.read_text(), Loader)
    return found


@pytest.mark.slow
def test_cfn_lint_finds_nothing() -> None:
    pytest.importorskip("cfnlint", reason="cfn-lint is not installed: pip install cfn-lint")
    start = "import sys; from cfnlint.runner import main; sys.exit(main())"
    regions = ["us-east-1", "eu-west-1", "ap-northeast-1"]
    command = [sys.executable, "-c", start, "--regions", *regions, "--", str(TEMPLATE)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def statements(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    properties = resource["Properties"]
    documents = [properties[key] for key in ("PolicyDocument",) if key in properties]
    documents += [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    for document in documents:
        for statement in document["Statement"]:
            yield statement["Fn::If"][1] if "Fn::If" in statement else statement


def actions(resource: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    for statement in statements(resource):
        action = statement["Action"]
        found |= {action} if isinstance(action, str) else set(action)
    return found


# Calls of AWS itself with a function's role: the queue's messages, the log.
_BY_LAMBDA = {
    "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", "logs:CreateLogStream", "logs:PutLogEvents",
}  # fmt: skip


def test_the_function_has_exactly_the_permissions_of_its_calls(template: dict[str, Any]) -> None:
    code = Path(lambda_handler.__file__).read_text()
    calls = {
        "s3:GetObject": ".get_object(",
        "s3:PutObject": ".put_object(",
        "sqs:GetQueueUrl": ".get_queue_url(",
        "sqs:SendMessage": ".send_message(",
        "sns:Publish": ".publish(",
    }
    assert all(call in code for call in calls.values())
    assert code.count("_client(") == 1 + len(calls) + 1  # its definition, the calls, the one at import
    # Without s3:ListBucket, S3 answers 403 instead of 404 for a file that was deleted.
    assert actions(template["Resources"]["SummaryRole"]) == set(calls) | _BY_LAMBDA | {"s3:ListBucket"}


def test_the_stream_machine_has_exactly_the_permissions_of_its_calls(template: dict[str, Any]) -> None:
    calls = {
        "kinesisvideo:GetDataEndpoint": (kinesis_client, ".get_data_endpoint("),
        "kinesisvideo:GetMedia": (kinesis_client, ".get_media("),
        "s3:PutObject": (mask_sinks, ".put_object("),
        "s3:GetObject": (mask_sinks, ".head_object("),
        "sagemaker:InvokeEndpoint": (sagemaker_transports, ".invoke_endpoint("),
    }
    for module, call in calls.values():
        assert call in Path(module.__file__ or "").read_text(), call
    assert actions(template["Resources"]["StreamPolicy"]) == set(calls)


def test_the_camera_may_only_send(template: dict[str, Any]) -> None:
    found = actions(template["Resources"]["CameraPolicy"])
    assert found == {"kinesisvideo:DescribeStream", "kinesisvideo:GetDataEndpoint", "kinesisvideo:PutMedia"}


def test_no_permission_is_for_all_resources_or_actions(template: dict[str, Any]) -> None:
    for name in ("SummaryRole", "StreamPolicy", "CameraPolicy"):
        for statement in statements(template["Resources"][name]):
            assert statement["Effect"] == "Allow"
            resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
            assert all(resource != "*" for resource in resources), f"{name}: {statement['Sid']}"
            assert not any(
                "*" in action for action in actions({"Properties": {"PolicyDocument": {"Statement": [statement]}}})
            )


def test_summaries_trigger_nothing(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    (notification,) = resources["MaskBucket"]["Properties"]["NotificationConfiguration"]["QueueConfigurations"]
    (rule,) = notification["Filter"]["S3Key"]["Rules"]
    variables = resources["SummaryFunction"]["Properties"]["Environment"]["Variables"]
    settings = LambdaSettings.from_environment({"PSPNET_OUTPUT_PREFIX": variables["PSPNET_OUTPUT_PREFIX"]})
    assert rule == {"Name": "prefix", "Value": "masks/"}
    assert not lambda_handler.output_key("masks/a.png", settings).startswith(rule["Value"])


def test_the_function_reads_every_setting_of_the_template(template: dict[str, Any]) -> None:
    variables = template["Resources"]["SummaryFunction"]["Properties"]["Environment"]["Variables"]
    assert set(variables) <= {item.variables[0] for item in settings_of(LambdaSettings).values()}
    defaults = {
        name: template["Parameters"][value["Ref"]]["Default"] if isinstance(value, dict) else value
        for name, value in variables.items()
    }
    assert LambdaSettings.from_environment(defaults) == LambdaSettings.from_environment({})


def test_the_queue_visibility_timeout_and_dead_letter_queue(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    queue, function = resources["MaskQueue"]["Properties"], resources["SummaryFunction"]["Properties"]
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"]
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": "DeadLetterQueue.Arn"}
    assert resources["SummaryEvents"]["Properties"]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert resources["SummaryEvents"]["Properties"]["BatchSize"] == 1  # the whole timeout for each


def test_the_bucket_is_private_and_encrypted(template: dict[str, Any]) -> None:
    bucket = template["Resources"]["MaskBucket"]
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert "BucketEncryption" in bucket["Properties"]
    assert bucket["DeletionPolicy"] == "Retain"


def test_the_template_names_the_packed_handler(template: dict[str, Any]) -> None:
    from sagemaker_entry.pipeline.lambda_package import CODE

    module, _, function = template["Resources"]["SummaryFunction"]["Properties"]["Handler"].rpartition(".")
    assert f"{module.replace('.', '/')}.py" in CODE
    assert callable(getattr(lambda_handler, function))
