"""Features of torchvision's and segmentation-models-pytorch's weights against both packages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from pspnet.errors import WeightsError
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.imports import torchvision as torchvision_weights
from pspnet.models.imports.programs import read_backbone, read_weights
from pspnet.models.imports.torch_file import TorchFile
from pspnet.models.resnet import ResNet

smp = pytest.importorskip("segmentation_models_pytorch")

pytestmark = pytest.mark.usefixtures("skip_initialisation")

BLOCKS = (3, 4, 6, 3)


def torchvision_features(model: torchvision.models.ResNet, x: Tensor) -> tuple[Tensor, Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    layer3 = model.layer3(model.layer2(model.layer1(x)))
    return layer3, model.layer4(layer3)


@pytest.mark.slow
@pytest.mark.parametrize("counters", [True, False])
def test_torchvision_features(
    counters: bool, tmp_path: Path, randomise: Callable[..., None], random_image: Callable[..., Tensor]
) -> None:
    original = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    randomise(original)
    # Both versions of the published weights have these names; files from before PyTorch 0.4.1 lack the counters.
    state = {n: v for n, v in original.state_dict().items() if counters or not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "resnet50-0676ba61.pth", _use_new_zipfile_serialization=counters)
    weights = read_weights(tmp_path / "resnet50-0676ba61.pth", "torchvision")
    assert (weights.complete, weights.architecture) == (
        False, {"backbone": "resnet-50", "stem": "conv7", "width": 64, "contract_dilation": True},
    )  # fmt: skip
    # torchvision dilates this way; the published PSPNet does not.
    backbone = ResNet(BLOCKS, contract_dilation=True).eval()
    weights.load_backbone(backbone)
    for size in ((64, 48), (41, 67)):
        x = random_image(*size).float() / 100
        with torch.no_grad():
            for found, expected in zip(backbone(x), torchvision_features(original, x)):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
@pytest.mark.parametrize("program", ["torchvision", "smp"])
def test_basic_blocks(
    name: str, blocks: tuple[int, ...], program: str, tmp_path: Path, randomise: Callable[..., None],
    random_image: Callable[..., Tensor],
) -> None:  # fmt: skip
    original = getattr(torchvision.models, name)().eval()
    randomise(original)
    state = original.state_dict()
    if program == "smp":
        smp.encoders.get_encoder(name, weights=None).load_state_dict(state)  # smp drops the classifier itself
        state = {f"encoder.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth", program)
    assert weights.architecture == {
        "backbone": f"resnet-{name[6:]}", "stem": "conv7", "width": 64, "contract_dilation": True,
    }  # fmt: skip
    backbone = ResNet(blocks, 32, basic=True).eval()
    weights.load_backbone(backbone)
    x = random_image(64, 48).float() / 100
    with torch.no_grad():
        for found, expected in zip(backbone(x), torchvision_features(original, x)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(WeightsError, match="its names are from"):
        read_weights(tmp_path / "a.pth", "semseg")


@pytest.mark.slow
@pytest.mark.parametrize(("output_stride", "whole"), [(8, True), (16, False), (32, False)])
def test_smp_features(
    output_stride: int, whole: bool, tmp_path: Path, randomise: Callable[..., None],
    random_image: Callable[..., Tensor],
) -> None:  # fmt: skip
    original = smp.DeepLabV3("resnet50", encoder_weights=None, classes=3).eval()
    encoder = smp.encoders.get_encoder("resnet50", weights=None, output_stride=output_stride).eval()
    randomise(encoder)
    original.encoder.load_state_dict(encoder.state_dict())
    torch.save((original if whole else encoder).state_dict(), tmp_path / "smp.pth")
    backbone = ResNet(BLOCKS, output_stride).eval()
    read_weights(tmp_path / "smp.pth", "smp").load_backbone(backbone)
    x = random_image(64, 96).float() / 100
    with torch.no_grad():
        layer3, layer4 = encoder(x)[-2:]
        for found, expected in zip(backbone(x), (layer3, layer4)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_smp_from_safetensors(tmp_path: Path, randomise: Callable[..., None]) -> None:
    from safetensors.torch import save_file

    encoder = smp.encoders.get_encoder("resnet101", weights=None)
    randomise(encoder)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    save_file({**state, "decoder.conv.weight": torch.zeros(3)}, str(tmp_path / "model.safetensors"))
    weights = read_weights(tmp_path / "model.safetensors", "smp")
    assert weights.architecture["backbone"] == "resnet-101"
    model = weights.build(4)
    assert torch.equal(model.backbone.layer3[22].conv3.weight, encoder.layer3[22].conv3.weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet152", "a ResNet of 3, 8, 36, 3 bottleneck blocks"),
        ("wide_resnet50_2", "a Wide ResNet or ResNeXt"),
        ("resnext50_32x4d", "a Wide ResNet or ResNeXt"),
        ("vgg11", "not a ResNet, it has no layer1.0.conv1.weight"),
    ],
)
def test_other_backbones_are_rejected(name: str, text: str, tmp_path: Path) -> None:
    with torch.device("meta"):  # names and shapes are enough
        names = getattr(torchvision.models, name)().state_dict()
    state = {n: torch.tensor(0.0).expand(v.shape) for n, v in names.items() if "classifier" not in n}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=text):
        read_weights(tmp_path / "a.pth", "torchvision")


@pytest.mark.parametrize(
    ("name", "algorithm"), [("fcn_resnet50", "fcn"), ("deeplabv3_resnet50", "deeplab"), ("fcn_resnet101", "fcn")]
)
def test_torchvision_segmentation_networks(
    name: str, algorithm: str, randomise: Callable[..., None], random_image: Callable[..., Tensor]
) -> None:
    original = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    ).eval()
    randomise(original)
    state = original.state_dict()
    weights = torchvision_weights.convert(TorchFile("a.pth", state))
    assert (weights.algorithm, weights.complete) == (algorithm, True)
    assert weights.full_architecture() == {
        "num_classes": 5, "backbone": f"resnet-{name[-2:].replace('01', '101')}", "auxiliary_head": True,
        "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
    }  # fmt: skip
    model = weights.build().eval()
    image = random_image(41, 67)
    with torch.no_grad():
        expected = original(model._normalise(image))["out"]
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-4)
    broken = {n: v for n, v in state.items() if n != "aux_classifier.0.weight"}
    with pytest.raises(WeightsError, match=r"1 missing: aux_classifier\.0\.weight"):
        torchvision_weights.convert(TorchFile("a.pth", broken)).build()
    without = {n: v for n, v in state.items() if not n.startswith("aux_classifier.")}
    assert torchvision_weights.convert(TorchFile("a.pth", without)).build().auxiliary_head is None


def test_torchvision_segmentation_names_are_recognised(tmp_path: Path) -> None:
    state = {"backbone.layer1.0.conv1.weight": torch.zeros(1), "classifier.0.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="its names are from torchvision, not semseg: use --from torchvision"):
        read_weights(tmp_path / "a.pth", "semseg")


def test_backbone_needs_classes(tmp_path: Path, randomise: Callable[..., None]) -> None:
    original = ResNet(BLOCKS, width=4)
    randomise(original)
    state = {f"encoder.{n}": v for n, v in original.state_dict().items()}
    torch.save({n.replace(".stem", ""): v for n, v in state.items()}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth", "smp")
    with pytest.raises(WeightsError, match=r"a backbone without heads\. Give their classes with --classes"):
        weights.build()
    model = weights.build(4)
    assert model.head.classifier.out_channels == 4
    assert torch.equal(model.backbone.layer1[0].conv1.weight, state["encoder.layer1.0.conv1.weight"])


def test_program_of_a_backbone_is_detected(tmp_path: Path, randomise: Callable[..., None]) -> None:
    original = ResNet(BLOCKS, stem="deep-narrow", width=4)
    randomise(original)
    state = original.state_dict()
    order = ("conv1", "bn1", "relu", "conv2", "bn2", "relu", "conv3", "bn3")
    names = {f"stem.{name}.": f"stem.{index}." for index, name in enumerate(order)}
    renamed = {}
    for name, value in state.items():
        start = ".".join(name.split(".")[:2]) + "."
        renamed[name.replace(start, names.get(start, start))] = value
    torch.save({**renamed, "fc.weight": torch.zeros(2)}, tmp_path / "resnet50_v1c.pth")
    weights = read_backbone(tmp_path / "resnet50_v1c.pth")
    assert (weights.program, weights.architecture["stem"]) == ("mmsegmentation", "deep-narrow")
    backbone = ResNet(BLOCKS, stem="deep-narrow", width=4)
    weights.load_backbone(backbone)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="its names match none of smp, mmsegmentation, semseg, torchvision"):
        read_backbone(tmp_path / "other.pth")
