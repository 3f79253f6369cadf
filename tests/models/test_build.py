"""FCN and DeepLabV3 with PSPNet's interface, against torchvision's networks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import segmentation

from pspnet.errors import PspnetError
from pspnet.models.build import build_algorithm
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import PSPNet, SegmentationNetwork
from pspnet.models.torchvision_networks import FCN, DeepLabV3
from pspnet.models.weights import load_imagenet_backbone

CLASSES = 5
TORCHVISION = {"fcn": segmentation.fcn_resnet50, "deeplab": segmentation.deeplabv3_resnet50}


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["fcn", "deeplab"])
def pair(request: pytest.FixtureRequest) -> tuple[SegmentationNetwork, nn.Module]:
    """Our network and torchvision's with the same weights and random statistics."""
    torch.manual_seed(0)
    ours = build_algorithm(request.param, num_classes=CLASSES)
    theirs = TORCHVISION[request.param](weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours.load_state_dict({our_name(name): value for name, value in theirs.state_dict().items()})
    return ours, theirs


def our_name(name: str) -> str:
    """torchvision's name -> ours."""
    for old, new in (("aux_classifier.", "auxiliary_head."), ("classifier.", "head.")):
        if name.startswith(old):
            return new + name[len(old) :]
    part = name.split(".")[1]
    return name.replace("backbone.", "backbone.stem.") if part in ("conv1", "bn1") else name


def normalised(batch: Tensor) -> Tensor:
    mean, std = ((torch.tensor(values).view(3, 1, 1)) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (batch.float() - mean) / std


@pytest.mark.slow
def test_evaluation_equals_torchvisions(pair: tuple[SegmentationNetwork, nn.Module]) -> None:
    ours, theirs = (model.eval() for model in pair)
    batch = images(2, 3, 49, 38)
    with torch.no_grad():
        found, expected = ours(batch), theirs(normalised(batch))["out"]
        assert torch.equal(found, ours(batch.float()))
    assert found.shape == (2, CLASSES, 49, 38)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_training_with_dropout_equals_torchvisions(pair: tuple[SegmentationNetwork, nn.Module]) -> None:
    ours, theirs = (model.train() for model in pair)
    batch = images(2, 3, 40, 40)
    torch.manual_seed(5)
    logits, auxiliary = ours(batch)
    torch.manual_seed(5)
    expected = theirs(normalised(batch))
    torch.testing.assert_close(logits, expected["out"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(auxiliary, expected["aux"], rtol=1e-4, atol=1e-4)
    (logits.square().mean() + auxiliary.square().mean()).backward()
    without = [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    ours.zero_grad(set_to_none=True)


def test_training_on_one_small_image(pair: tuple[SegmentationNetwork, nn.Module]) -> None:
    """torchvision's DeepLabV3 raises: its image pooling passes batch norm one value per channel."""
    ours, theirs = (model.train() for model in pair)
    with torch.no_grad():
        assert torch.isfinite(ours(images(1, 3, 32, 32))[0]).all()
        if isinstance(ours, DeepLabV3):
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                theirs(normalised(images(1, 3, 32, 32)))


def test_autocast_gives_float32_logits(pair: tuple[SegmentationNetwork, nn.Module]) -> None:
    ours = pair[0].train()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, auxiliary = ours(images(2, 3, 32, 40))
        evaluated = ours.eval()(images(2, 3, 32, 40))
    assert logits.dtype == auxiliary.dtype == evaluated.dtype == torch.float32


def test_small_images_are_rejected_with_the_name_of_the_network(pair: tuple[SegmentationNetwork, nn.Module]) -> None:
    name = type(pair[0]).__name__
    assert name in ("FCN", "DeepLabV3")
    with pytest.raises(PspnetError, match=rf"images are 40x31 pixels: {name} needs at least 32x32"):
        pair[0](images(1, 3, 31, 40))


@pytest.mark.parametrize(
    ("algorithm", "backbone", "published"),
    [
        ("fcn", "resnet-50", 35_322_218),
        ("fcn", "resnet-101", 54_314_346),
        ("deeplab", "resnet-50", 42_004_074),
        ("deeplab", "resnet-101", 60_996_202),
    ],
)
@pytest.mark.usefixtures("skip_initialisation")
def test_parameter_counts_equal_torchvisions(algorithm: str, backbone: str, published: int) -> None:
    model = build_algorithm(algorithm, num_classes=21, backbone=backbone)
    assert isinstance(model, FCN if algorithm == "fcn" else DeepLabV3)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.usefixtures("skip_initialisation")
def test_without_auxiliary_head() -> None:
    model = build_algorithm("fcn", num_classes=3, auxiliary_head=False)
    assert model.auxiliary_head is None
    assert not [name for name in model.state_dict() if name.startswith("auxiliary_head")]


@pytest.mark.usefixtures("skip_initialisation")
def test_imagenet_weights_set_every_tensor_of_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("tried to download"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    names = torchvision.models.resnet50().state_dict()
    published = {name: torch.full_like(value, index) for index, (name, value) in enumerate(names.items())}
    torch.save(published, str(folder / "resnet50-0676ba61.pth"))
    model = build_algorithm("deeplab", num_classes=3)
    load_imagenet_backbone(model.backbone, "resnet-50")
    loaded = model.backbone.state_dict()
    expected = {name: value for name, value in published.items() if not name.startswith("fc.")}
    assert len(loaded) == len(expected) == 318
    for name, value in loaded.items():
        assert torch.equal(value, expected[name[len("stem.") :] if name.startswith("stem.") else name]), name


def test_psp_is_pspnet() -> None:
    model = build_algorithm("psp", num_classes=3, width=4, stem="deep")
    assert isinstance(model, PSPNet)
    assert model.backbone.stem_name == "deep"


def test_invalid_settings() -> None:
    with pytest.raises(PspnetError, match="algorithm is 'unet': expected one of psp, fcn, deeplab"):
        build_algorithm("unet", num_classes=3)
    with pytest.raises(PspnetError, match="backbone is 'resnet-18': expected one of resnet-50, resnet-101"):
        build_algorithm("fcn", num_classes=3, backbone="resnet-18")
    with pytest.raises(PspnetError, match="num_classes is 0: expected 1 or more"):
        build_algorithm("fcn", num_classes=0)
    with pytest.raises(TypeError, match="stem"):
        build_algorithm("fcn", num_classes=3, stem="deep")


def test_missing_torchvision_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models.segmentation", None)
    with pytest.raises(PspnetError, match=r"'deeplab', which needs torchvision, but importing it failed .*psp"):
        build_algorithm("deeplab", num_classes=3)
    build_algorithm("psp", num_classes=3, width=4)
