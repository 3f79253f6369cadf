"""Choice of the training image by instance type, and impossible pairs."""

from __future__ import annotations

import pytest

from pspnet.errors import ConfigError
from sagemaker_entry.aws.container_images import has_gpu
from sagemaker_entry.training.training_images import (
    P2_NOTE,
    check_image,
    check_known,
    check_pair,
    choose_image,
    image_python38,
)

REGISTRY = "763104351884.dkr.ecr.ap-northeast-1.amazonaws.com/pytorch-training"


@pytest.fixture
def sdk() -> None:
    pytest.importorskip(
        "sagemaker.core.image_uris", reason="sagemaker is not installed: pip install 'pspnet[sagemaker]'"
    )


@pytest.mark.parametrize("machine", ["ml.p2.xlarge", "ml.p2.8xlarge", "ml.p2.16xlarge"])
def test_k80_instances_get_the_newest_allowed_image(sdk: None, machine: str) -> None:
    uri = choose_image(machine, "ap-northeast-1")
    assert uri == f"{REGISTRY}:1.12.1-gpu-py38"
    assert image_python38(uri)


def test_other_instances_get_the_newest_image_of_the_sdk(sdk: None) -> None:
    from sagemaker.core import image_uris

    versions = image_uris.config_for_framework("pytorch")["training"]["versions"]
    numbers = [tuple(int(part) for part in version.split(".")) for version in versions]
    newest = ".".join(map(str, max(numbers)))
    gpu, cpu = choose_image("ml.g5.xlarge", "ap-northeast-1"), choose_image("ml.m5.xlarge", "ap-northeast-1")
    assert gpu.startswith(f"{REGISTRY}:{newest}-gpu-py3")
    assert cpu == gpu.replace("-gpu-", "-cpu-")
    assert not image_python38(gpu)
    assert max(numbers) >= (2, 10, 0)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["ml.p3.2xlarge", "ml.p3dn.24xlarge"])
def test_v100_instances_get_the_newest_supported_image(sdk: None, machine: str) -> None:
    assert choose_image(machine, "ap-northeast-1") == f"{REGISTRY}:2.8.0-gpu-py312"


def test_a_version_can_be_chosen(sdk: None) -> None:
    assert choose_image("ml.g4dn.xlarge", "ap-northeast-1", "2.6.0") == f"{REGISTRY}:2.6.0-gpu-py312"
    with pytest.raises(
        ConfigError, match=r"pytorch_version: found 2\.6\.9; AWS's training images have 1\.12\.1, .*2\.6\.0"
    ):
        choose_image("ml.g4dn.xlarge", "ap-northeast-1", "2.6.9")


def test_an_unknown_region_is_reported(sdk: None) -> None:
    with pytest.raises(ConfigError, match=r"region: this SageMaker SDK knows no PyTorch training image in nowhere-1"):
        choose_image("ml.g5.xlarge", "nowhere-1")


@pytest.mark.parametrize(
    ("machine", "version", "message"),
    [
        ("ml.p2.xlarge", "1.13.1", r"ml\.p2\.xlarge \(K80\) runs PyTorch up to 1\.12\.1, and the image has 1\.13\.1"),
        ("ml.p2.xlarge", "2.10.0", r"today's equivalents are ml\.g4dn\.xlarge .* and ml\.g5\.xlarge"),
        (
            "ml.p3.8xlarge",
            "2.9.0",
            r"ml\.p3\.8xlarge \(V100\) runs PyTorch up to 2\.8\.0, and the image has 2\.9\.0\.$",
        ),
        ("ml.g4dn.xlarge", "1.11.0", r"PyTorch 1\.11\.0 is too old"),
        ("ml.p5.48xlarge", "1.12.1", r"GPUs of ml\.p5\.48xlarge need PyTorch 2\.0 or newer"),
        ("ml.g7e.2xlarge", "2.6.0", r"need PyTorch 2\.7 or newer"),
        ("ml.trn1.2xlarge", "2.6.0", r"AWS's own accelerator"),
        ("ml.m7g.xlarge", "2.6.0", r"ARM processor"),
        ("ml.g5g.xlarge", "2.6.0", r"ARM processor"),
        ("g5.xlarge", "2.6.0", r"expected ml\.FAMILY\.SIZE"),
        ("ml.g5.xlarge", "newest", r"pytorch_version: found 'newest'"),
    ],
)
def test_impossible_pairs_are_refused(machine: str, version: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_pair(machine, version)


def test_possible_pairs_pass() -> None:
    for machine, version in (("ml.p2.xlarge", "1.12.1"), ("ml.g5.xlarge", "1.12.1"), ("ml.p6-b200.48xlarge", "2.10.0")):
        check_pair(machine, version)


def test_a_given_image_is_checked_by_name() -> None:
    check_image("ml.p2.xlarge", f"{REGISTRY}:1.12.1-gpu-py38")
    check_image("ml.p2.xlarge", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/our-own:3")
    check_image("ml.g5.xlarge", f"{REGISTRY}:2.6.0-cpu-py312")
    for machine, uri, message in (
        ("ml.p2.xlarge", f"{REGISTRY}:2.6.0-gpu-py312", r"runs PyTorch up to 1\.12\.1"),
        ("ml.m5.xlarge", f"{REGISTRY}:2.6.0-gpu-py312", r"is for GPUs, and ml\.m5\.xlarge has none"),
        (
            "ml.g5.xlarge",
            f"{REGISTRY.replace('training', 'inference')}:2.6.0-gpu-py312",
            r"cannot train on a GPU",
        ),
        ("ml.trn1.2xlarge", "our-own:3", r"AWS's own accelerator"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_image(machine, uri)


def test_unknown_instance_types_are_refused_with_the_nearest_one() -> None:
    pytest.importorskip("botocore", reason="boto3 is not installed: pip install 'pspnet[sagemaker]'")
    check_known("ml.p2.xlarge")
    with pytest.raises(ConfigError, match=r"unknown ml\.g4nd\.xlarge; .* did you mean ml\.g4dn\.xlarge\?"):
        check_known("ml.g4nd.xlarge")


def test_every_gpu_instance_of_the_sdk_has_a_gpu(sdk: None) -> None:
    from sagemaker.core.instance_types_gpu_info import retrieve

    known = {name for region in ("us-east-1", "us-west-2") for name, info in retrieve(region).items() if info["Count"]}
    assert len(known) > 20
    assert not {name for name in known if not has_gpu(name)}
    assert not has_gpu("ml.m5.24xlarge")


def test_the_note_names_current_instance_types() -> None:
    assert "ml.g4dn.xlarge" in P2_NOTE
    assert "ml.g5.xlarge" in P2_NOTE
