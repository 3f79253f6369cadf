"""AWS fixtures: moto's server on the loopback address. No test reaches the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REGION = "ap-northeast-1"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"
AWS_VARIABLES = ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the developer's AWS settings and the instance metadata service."""
    for name in (*AWS_VARIABLES, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto_address() -> Iterator[str]:
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass
class Aws:
    """Fake AWS: its session, the received requests, and answers that replace moto's."""

    session: Any
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusals: dict[str, Exception] = field(default_factory=dict)
    answers: dict[str, Callable[[dict[str, Any]], Any]] = field(default_factory=dict)

    def sent(self, operation: str) -> list[dict[str, Any]]:
        return [parameters for name, parameters in self.requests if name == operation]

    def refuse(self, operation: str, code: str, message: str) -> None:
        from botocore.exceptions import ClientError

        self.refusals[operation] = ClientError({"Error": {"Code": code, "Message": message}}, operation)


@pytest.fixture
def aws(moto_address: str, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """An empty account in one region, with the role of the jobs."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")
    import urllib.request

    from botocore.client import BaseClient

    urllib.request.urlopen(urllib.request.Request(f"{moto_address}/moto-api/reset", method="POST")).close()
    for name, value in (
        ("AWS_ENDPOINT_URL", moto_address),
        ("AWS_ACCESS_KEY_ID", "testing"),
        ("AWS_SECRET_ACCESS_KEY", "testing"),
        ("AWS_DEFAULT_REGION", REGION),
        ("SAGEMAKER_VALIDATE_ROLE", "false"),
    ):
        monkeypatch.setenv(name, value)
    account = Aws(boto3.Session())
    call = BaseClient._make_api_call

    def recorded(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        account.requests.append((operation, parameters))
        if operation in account.refusals:
            raise account.refusals[operation]
        if operation in account.answers:
            return account.answers[operation](parameters)
        answer = call(client, operation, parameters)
        # moto includes empty structures that AWS leaves out and the SDK's models refuse.
        return without_empty(answer) if operation == "DescribeTrainingJob" else answer

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    trust = '{"Version": "2012-10-17", "Statement": []}'
    account.session.client("iam").create_role(RoleName="SageMakerRole", AssumeRolePolicyDocument=trust)
    account.requests.clear()
    return account


def without_empty(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if value not in ({}, [], None, "")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A tiny data set: 4 training and 2 validation images of 7 classes."""
    from pspnet.data.shapes import write_shapes

    folder = tmp_path / "data"
    write_shapes(folder, 4, 2, (48, 32), 0)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as training writes it. Do not modify it."""
    from tests.sagemaker_entry.hosting.hosting_fixtures import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("hosting") / "model")


@pytest.fixture
def stored(aws: Aws, tiny_model: Path, tmp_path: Path) -> str:
    """The S3 address of that model's archive."""
    from tests.sagemaker_entry.hosting.hosting_fixtures import pack, upload

    return upload(aws, pack(tiny_model, tmp_path / "model.tar.gz", ("code", "config.json", "model.safetensors")))
