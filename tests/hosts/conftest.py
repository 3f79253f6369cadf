"""Fixtures: a tiny model directory and its hosts, each started once per session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.support import hosts
from pspnet.artifact.bundle import write_code
from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.config.schema import Config
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from sagemaker_entry.hosting.endpoint_settings import HostSettings
from sagemaker_entry.hosting.hosting_requests import REALTIME_BYTES, container_environment
from tests.hosts.exchange import encoded, picture


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directory in the layout of training, with random weights."""
    folder = tmp_path_factory.mktemp("tiny")
    config = Config(
        num_classes=5, class_names="sky, road, car, tree, wall", data="x", width=4, use_pretrained_model=False
    )
    torch.manual_seed(3)
    save_artifact(folder, build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    write_code(folder)
    return folder


@pytest.fixture(scope="session")
def predictor(model_dir: Path) -> Predictor:
    return Predictor.load(model_dir, device="cpu")


@pytest.fixture(scope="session")
def toolkit_python() -> Path:
    """Python with SageMaker's inference toolkit."""
    text = os.environ.get("PSPNET_TOOLKIT_PYTHON")
    if not text:
        pytest.skip("PSPNET_TOOLKIT_PYTHON is not set (a Python with SageMaker's toolkit); .ci/hosts.sh creates one")
    if hosts.find_java() is None:
        pytest.skip("TorchServe needs Java 11 or newer: none in JAVA_HOME or on the path")
    return Path(text)


@pytest.fixture(scope="session")
def toolkit(model_dir: Path, toolkit_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    """SageMaker's toolkit with two workers and the container environment of `deploy`, ready."""
    environment = container_environment(HostSettings(model="m", workers=2), REALTIME_BYTES)
    del environment["SAGEMAKER_SUBMIT_DIRECTORY"]  # a path in the container
    # Other deployments lack it: the handlers themselves have to default to a mask.
    del environment["SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"]
    folder = tmp_path_factory.mktemp("toolkit")
    with hosts.toolkit(model_dir, folder, toolkit_python, workers=2, environment=environment) as host:
        host.wait_ready(encoded(picture(32, 32)), "image/png")
        yield host


@pytest.fixture(scope="session")
def serve(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[hosts.Host]:
    """`pspnet serve` with two workers, ready."""
    with hosts.serve(model_dir, tmp_path_factory.mktemp("serve"), workers=2) as host:
        host.wait_ready(encoded(picture(32, 32)), "image/png")
        yield host


@pytest.fixture(params=["serve", "toolkit"])
def host(request: pytest.FixtureRequest) -> hosts.Host:
    """Each of the hosts."""
    found: hosts.Host = request.getfixturevalue(request.param)
    return found
