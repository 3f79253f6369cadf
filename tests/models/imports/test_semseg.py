"""Logits of semseg's weights against semseg's network, which is rebuilt here because it is not on a registry."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from pspnet.errors import WeightsError
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.imports.programs import read_weights
from pspnet.models.pspnet import PSPNet
from pspnet.models.resnet import ResNet

WIDTH, CLASSES = 8, 6
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def layer(before: int, narrow: int, blocks: int, stride: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(before, 4 * narrow, 1, stride, bias=False), nn.BatchNorm2d(4 * narrow))
    first = Bottleneck(before, narrow, stride, shortcut)
    return nn.Sequential(first, *(Bottleneck(4 * narrow, narrow) for _ in range(blocks - 1)))


def dilate(layer: nn.Sequential, dilation: int) -> nn.Sequential:
    """Dilate every 3x3 convolution and remove the stride, as semseg does to its ResNet."""
    for name, module in layer.named_modules():
        if name.endswith("conv2"):
            module.dilation, module.padding, module.stride = (dilation,) * 2, (dilation,) * 2, (1, 1)
        elif name.endswith("downsample.0"):
            module.stride = (1, 1)
    return layer


def stem() -> OrderedDict[str, nn.Module]:
    """Return the stem of semseg's ResNet with the names of its ImageNet file."""
    found: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (before, after, stride) in enumerate(((3, WIDTH, 2), (WIDTH, WIDTH, 1), (WIDTH, 2 * WIDTH, 1)), 1):
        found[f"conv{number}"] = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        found[f"bn{number}"] = nn.BatchNorm2d(after)
        found[f"relu{number}"] = nn.ReLU()
    found["maxpool"] = nn.MaxPool2d(3, 2, 1)
    return found


class Pyramid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size),
                nn.Conv2d(channels, channels // 4, 1, bias=False),
                nn.BatchNorm2d(channels // 4),
                nn.ReLU(),
            )
            for size in (1, 2, 3, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        maps = [F.interpolate(f(x), size, mode="bilinear", align_corners=True) for f in self.features]
        return torch.cat([x, *maps], 1)


def head(before: int, between: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, between, 3, padding=1, bias=False),
        nn.BatchNorm2d(between),
        nn.ReLU(),
        nn.Dropout2d(0.1),
        nn.Conv2d(between, CLASSES, 1),
    )


class SemsegPSPNet(nn.Module):
    """semseg's PSPNet: `layer0` to `layer4`, `ppm`, `cls` and `aux`, all interpolations with corners aligned."""

    def __init__(self, depth: int = 50) -> None:
        super().__init__()
        blocks = BLOCKS[depth]
        self.layer0 = nn.Sequential(*stem().values())
        self.layer1 = layer(2 * WIDTH, WIDTH, blocks[0], 1)
        self.layer2 = layer(4 * WIDTH, 2 * WIDTH, blocks[1], 2)
        self.layer3 = dilate(layer(8 * WIDTH, 4 * WIDTH, blocks[2], 2), 2)
        self.layer4 = dilate(layer(16 * WIDTH, 8 * WIDTH, blocks[3], 2), 4)
        self.ppm = Pyramid(32 * WIDTH)
        self.cls = head(64 * WIDTH, 8 * WIDTH)
        self.aux = head(16 * WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = x.shape[2:]
        layer3 = self.layer3(self.layer2(self.layer1(self.layer0(x))))
        logits = self.cls(self.ppm(self.layer4(layer3)))
        both = (F.interpolate(y, size, mode="bilinear", align_corners=True) for y in (logits, self.aux(layer3)))
        main, auxiliary = both
        return main, auxiliary


def normalised(image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.float() - mean) / std


def auxiliary_logits(model: PSPNet, image: Tensor) -> Tensor:
    """Logits of the auxiliary head in evaluation mode, where forward skips it."""
    layer3, _ = model.backbone(model._normalise(image))
    assert model.auxiliary_head is not None
    return model._upsample(model.auxiliary_head(layer3), image.shape[-2:])


def as_trained(state: dict[str, Tensor], path: Path) -> Path:
    """Write a checkpoint like semseg's training."""
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"epoch": 50, "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}}, path)
    return path


@pytest.mark.parametrize("depth", [50, 101])
def test_logits_of_the_whole_network(
    depth: int, tmp_path: Path, randomise: Callable[..., None], random_image: Callable[..., Tensor]
) -> None:
    original = SemsegPSPNet(depth).eval()
    randomise(original)
    weights = read_weights(as_trained(original.state_dict(), tmp_path / "train_epoch_50.pth"), "semseg")
    assert weights.complete
    assert weights.architecture == {
        "backbone": f"resnet-{depth}", "stem": "deep", "width": WIDTH, "num_classes": CLASSES, "auxiliary_head": True,
        "output_stride": 8, "align_corners": True, "contract_dilation": False,
    }  # fmt: skip
    model = weights.build().eval()
    # semseg accepts only sides of 8 k + 1 pixels; its layers accept any.
    for size in ((57, 57), (41, 89), (64, 48), (33, 50)):
        image = random_image(*size)
        with torch.no_grad():
            main, auxiliary = original(normalised(image))
            torch.testing.assert_close(model(image), main, rtol=0, atol=1e-4)
            torch.testing.assert_close(auxiliary_logits(model, image), auxiliary, rtol=0, atol=1e-4)
            assert main.std() > 0.01  # nearly constant logits would match anything


@pytest.mark.parametrize("wrong", [{"align_corners": False}, {"contract_dilation": True}])
def test_the_conventions_matter(
    wrong: dict[str, bool], tmp_path: Path, randomise: Callable[..., None], random_image: Callable[..., Tensor]
) -> None:
    """Another convention changes the logits, so the comparison above is sensitive."""
    original = SemsegPSPNet().eval()
    randomise(original)
    weights = read_weights(as_trained(original.state_dict(), tmp_path / "a.pth"), "semseg")
    model = dataclasses.replace(weights, architecture={**weights.architecture, **wrong}).build().eval()
    image = random_image(41, 89)
    with torch.no_grad():
        assert (model(image) - original(normalised(image))[0]).abs().max() > 1e-3


def test_features_of_an_imagenet_backbone(
    tmp_path: Path, randomise: Callable[..., None], random_image: Callable[..., Tensor]
) -> None:
    original = nn.Sequential(stem())
    for number, (before, narrow, blocks) in enumerate(zip((2, 4, 8, 16), (1, 2, 4, 8), BLOCKS[50]), 1):
        original.add_module(f"layer{number}", layer(before * WIDTH, narrow * WIDTH, blocks, 1 if number == 1 else 2))
    original.add_module("fc", nn.Linear(4, 4))
    randomise(original.eval())
    torch.save(original.state_dict(), tmp_path / "resnet50_v2.pth", _use_new_zipfile_serialization=False)
    weights = read_weights(tmp_path / "resnet50_v2.pth", "semseg")
    assert not weights.complete
    assert weights.architecture["stem"] == "deep"
    model = weights.build(CLASSES).eval()
    dilate(original.layer3, 2)
    dilate(original.layer4, 4)
    with torch.no_grad():
        x = normalised(random_image(57, 70))
        expected = original[:-1](x)
        torch.testing.assert_close(model.backbone(x)[1], expected, rtol=0, atol=1e-4)


def test_the_backbone_of_a_whole_network(tmp_path: Path, randomise: Callable[..., None]) -> None:
    original = SemsegPSPNet()
    randomise(original)
    weights = read_weights(as_trained(original.state_dict(), tmp_path / "a.pth"), "semseg")
    backbone = ResNet(BLOCKS[50], stem="deep", width=WIDTH)
    weights.load_backbone(backbone)
    assert torch.equal(backbone.stem.bn3.running_var, original.layer0[7].running_var)
    assert torch.equal(backbone.layer4[2].conv3.weight, original.layer4[2].conv3.weight)


def test_a_network_without_auxiliary_head_and_counters(tmp_path: Path, randomise: Callable[..., None]) -> None:
    original = SemsegPSPNet()
    randomise(original)
    state = {n: v for n, v in original.state_dict().items() if "aux." not in n and "num_batches" not in n}
    model = read_weights(as_trained(state, tmp_path / "a.pth"), "semseg").build()
    assert model.auxiliary_head is None
    assert torch.equal(model.head.bn.running_var, original.cls[1].running_var)
    assert model.head.bn.num_batches_tracked == 0


def test_mismatches_are_reported_with_foreign_names(tmp_path: Path) -> None:
    state = SemsegPSPNet().state_dict()
    del state["cls.4.bias"], state["layer0.4.running_mean"]
    state["extra.weight"] = torch.zeros(1)
    state["ppm.features.2.1.weight"] = torch.zeros(3, 4, 1, 1)
    with pytest.raises(WeightsError) as caught:
        read_weights(as_trained(state, tmp_path / "a.pth"), "semseg").build()
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'a.pth'}: does not match the published network of semseg: ")
    assert "2 missing: layer0.4.running_mean, cls.4.bias" in text
    assert "1 unexpected: extra.weight" in text
    assert "1 of another shape: ppm.features.2.1.weight is 3x4x1x1, expected 64x256x1x1" in text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        (
            "cls.4.weight",
            torch.tensor(1.0).expand(10**9, 64, 1, 1),
            r"has 1000000000 classes \(cls.4.weight\)\. Expected 1 to",
        ),
        ("cls.4.weight", torch.tensor(1.0), r"has 0 classes \(cls.4.weight\)"),
        ("layer1.0.conv1.weight", torch.tensor(1.0), r"a Wide ResNet or ResNeXt \(resnet-50 blocks of 0 channels\)"),
        ("layer0.0.weight", torch.tensor(1.0), "the first convolution is missing. Expected that of a stem"),
        ("layer0.0.weight", torch.zeros(5, 3, 3, 3), "the first convolution is 3x3 with 5 channels"),
    ],
)
def test_tensors_of_invalid_shapes(name: str, value: Tensor, text: str, tmp_path: Path) -> None:
    state = {**SemsegPSPNet().state_dict(), name: value}
    with pytest.raises(WeightsError, match=text):
        read_weights(as_trained(state, tmp_path / "a.pth"), "semseg")


def test_psanet_is_rejected(tmp_path: Path) -> None:
    state = {**SemsegPSPNet().state_dict(), "psa.reduce.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match="semseg's PSANet, not a PSPNet"):
        read_weights(as_trained(state, tmp_path / "a.pth"), "semseg")
