"""The backbone against torchvision's ResNet: blocks, names, strides and dilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock as ReferenceBasicBlock
from torchvision.models.resnet import Bottleneck as ReferenceBottleneck
from torchvision.models.resnet import ResNet as ReferenceResNet

from pspnet.errors import PspnetError
from pspnet.models import build
from pspnet.models.resnet import ResNet, zero_residual_branches


def randomise_batch_norm(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def reference_features(model: ReferenceResNet, x: Tensor) -> tuple[Tensor, Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    layer3 = model.layer3(model.layer2(model.layer1(x)))
    return layer3, model.layer4(layer3)


def dilate_first_blocks(model: ReferenceResNet) -> None:
    """Set the full dilation in every block of a dilated layer, as semseg does."""
    for layer in (model.layer3, model.layer4):
        dilation = layer[-1].conv2.dilation
        layer[0].conv2.dilation = dilation
        layer[0].conv2.padding = dilation


@pytest.mark.slow
@pytest.mark.parametrize("contract_dilation", [False, True])
@pytest.mark.parametrize(
    ("output_stride", "replaced", "strides"),
    [
        (32, [False, False, False], (16, 32)),
        (16, [False, False, True], (16, 16)),
        (8, [False, True, True], (8, 8)),
    ],
)
def test_equals_torchvision(
    output_stride: int, replaced: list[bool], strides: tuple[int, int], contract_dilation: bool
) -> None:
    torch.manual_seed(0)
    blocks = [2, 1, 2, 2]
    reference = ReferenceResNet(ReferenceBottleneck, blocks, replace_stride_with_dilation=replaced).eval()
    if not contract_dilation:
        dilate_first_blocks(reference)
    randomise_batch_norm(reference)
    ours = ResNet(blocks, output_stride, contract_dilation=contract_dilation).eval()
    state = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    renamed = {f"stem.{name}" if name.startswith(("conv1.", "bn1.")) else name: state[name] for name in state}
    ours.load_state_dict(renamed, strict=True)

    x = torch.randn(1, 3, 71, 64)
    with torch.no_grad():
        expected = reference_features(reference, x)
        found = ours(x)
    for features, wanted, stride in zip(found, expected, strides, strict=True):
        assert features.shape[-2:] == (-(-71 // stride), 64 // stride)
        torch.testing.assert_close(features, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("output_stride", "layer3", "layer4"),
    [(8, (1, 2), (1, 4)), (16, (2, 1), (1, 2)), (32, (2, 1), (2, 1))],
)
def test_stride_and_dilation(output_stride: int, layer3: tuple[int, int], layer4: tuple[int, int]) -> None:
    model = ResNet((1, 2, 3, 3), output_stride, width=8)
    for layer, (stride, dilation) in ((model.layer3, layer3), (model.layer4, layer4)):
        assert layer[0].downsample[0].stride == (stride, stride)
        assert [block.conv2.stride[0] for block in layer] == [stride, 1, 1]
        assert [block.conv2.dilation[0] for block in layer] == [dilation] * 3
        assert [block.conv2.padding[0] for block in layer] == [dilation] * 3
    assert model.layer2[0].conv2.stride == (2, 2)
    assert model.layer1[0].conv2.stride == (1, 1)


@pytest.mark.parametrize(("output_stride", "first3", "first4"), [(8, 1, 2), (16, 1, 1), (32, 1, 1)])
def test_contracted_dilation(output_stride: int, first3: int, first4: int) -> None:
    """The first block of each layer keeps the previous layer's dilation; the others are unchanged."""
    plain = ResNet((1, 2, 3, 3), output_stride, width=8)
    model = ResNet((1, 2, 3, 3), output_stride, width=8, contract_dilation=True)
    for layer, reference, first in ((model.layer3, plain.layer3, first3), (model.layer4, plain.layer4, first4)):
        assert layer[0].conv2.dilation == layer[0].conv2.padding == (first, first)
        assert layer[0].conv2.stride == reference[0].conv2.stride
        assert [block.conv2.dilation for block in layer[1:]] == [block.conv2.dilation for block in reference[1:]]


def test_basic_blocks_equal_torchvisions() -> None:
    reference = ReferenceResNet(ReferenceBasicBlock, [2, 1, 2, 2]).eval()
    randomise_batch_norm(reference)
    ours = ResNet([2, 1, 2, 2], 32, basic=True).eval()
    state = {name: value for name, value in reference.state_dict().items() if not name.startswith("fc.")}
    ours.load_state_dict({f"stem.{n}" if n.startswith(("conv1.", "bn1.")) else n: v for n, v in state.items()})
    x = torch.randn(1, 3, 71, 64)
    with torch.no_grad():
        for found, wanted in zip(ours(x), reference_features(reference, x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (ours.layer3_channels, ours.out_channels) == (256, 512)


@pytest.mark.parametrize("basic", [False, True])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_contracted_dilation_is_the_undilated_network_on_a_finer_grid(output_stride: int, basic: bool) -> None:
    def backbone(*arguments: Any, **options: Any) -> ResNet:
        torch.manual_seed(0)
        model = ResNet((2, 1, 2, 2), *arguments, width=8, basic=basic, **options).double().eval()
        randomise_batch_norm(model)
        return model

    x = torch.randn(1, 3, 143, 96, dtype=torch.float64)
    step = 32 // output_stride
    with torch.no_grad():
        expected = backbone(32)(x)[1]
        found = backbone(output_stride, contract_dilation=True)(x)[1][..., ::step, ::step]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        others = [backbone(output_stride)(x)[1]]
        if basic:
            others.append(backbone(output_stride, contract_dilation=True, dilate_both=False)(x)[1])
        for other in others:
            assert (other[..., ::step, ::step] - expected).norm() > 0.01 * expected.norm()


def test_dilations_of_basic_blocks() -> None:
    """All dilations of the 3x3 convolutions, first and second of each block."""

    def dilations(**options: Any) -> list[list[int]]:
        model = ResNet((1, 1, 2, 2), width=8, basic=True, **options)
        layers = (model.layer3, model.layer4)
        return [[conv.dilation[0] for block in layer for conv in (block.conv1, block.conv2)] for layer in layers]

    assert dilations() == [[2, 2, 2, 2], [4, 4, 4, 4]]
    assert dilations(contract_dilation=True) == [[1, 2, 2, 2], [2, 4, 4, 4]]
    assert dilations(contract_dilation=True, dilate_both=False) == [[1, 1, 2, 1], [2, 1, 4, 1]]
    assert dilations(output_stride=32) == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert dilations(output_stride=32, dilations=(2, 4), contract_dilation=True) == [[1, 2, 2, 2], [2, 4, 4, 4]]


@pytest.mark.parametrize("stem", ["conv7", "deep", "deep-narrow"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (48, 65)])
def test_shapes_and_width(stem: str, size: tuple[int, int]) -> None:
    model = ResNet((1, 1, 1, 1), 8, stem, width=8)
    layer3, layer4 = model(torch.randn(2, 3, *size))
    cells = tuple(-(-side // 8) for side in size)
    assert (model.layer3_channels, model.out_channels) == (128, 256)
    assert layer3.shape == (2, 128, *cells)
    assert layer4.shape == (2, 256, *cells)


def test_stem_names_and_shapes() -> None:
    conv7 = ResNet((1, 1, 1, 1)).state_dict()
    deep = ResNet((1, 1, 1, 1), stem="deep").state_dict()
    assert conv7["stem.conv1.weight"].shape == (64, 3, 7, 7)
    assert conv7["stem.bn1.running_var"].shape == (64,)
    assert conv7["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)
    assert [deep[f"stem.conv{i}.weight"].shape for i in (1, 2, 3)] == [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)]
    assert deep["layer1.0.conv1.weight"].shape == (64, 128, 1, 1)
    assert deep["layer1.0.downsample.0.weight"].shape == (256, 128, 1, 1)
    narrow = ResNet((1, 1, 1, 1), stem="deep-narrow").state_dict()
    assert [narrow[f"stem.conv{i}.weight"].shape for i in (1, 2, 3)] == [(32, 3, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3)]
    assert narrow["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)
    assert list(narrow) == list(deep)


def test_deep_stem_composition() -> None:
    """Stride 2 on the first convolution only, batch norm and ReLU after each, then 3x3 max pooling of stride 2."""
    torch.manual_seed(0)
    model = ResNet((1, 1, 1, 1), stem="deep", width=4).eval()
    randomise_batch_norm(model)
    x = expected = torch.randn(1, 3, 37, 40)
    for index, stride in ((1, 2), (2, 1), (3, 1)):
        weight = model.state_dict()[f"stem.conv{index}.weight"]
        bn = getattr(model.stem, f"bn{index}")
        expected = nn.functional.conv2d(expected, weight, stride=stride, padding=1)
        scale = (bn.weight / (bn.running_var + bn.eps).sqrt()).view(1, -1, 1, 1)
        expected = (expected - bn.running_mean.view(1, -1, 1, 1)) * scale + bn.bias.view(1, -1, 1, 1)
        expected = expected.clamp(min=0)
    expected = nn.functional.max_pool2d(expected, 3, 2, 1)
    torch.testing.assert_close(model.stem(x), expected, rtol=1e-4, atol=1e-5)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = ResNet((1, 1, 1, 1), width=32)
    weight = model.layer4[0].conv2.weight  # fan out = 256 * 9
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert abs(weight).max() > 3.5 * weight.std()  # normal, not uniform
    assert torch.equal(model.layer4[0].bn3.weight, torch.ones(1024))
    assert torch.equal(model.layer4[0].bn3.bias, torch.zeros(1024))


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50"])
def test_residual_branches_start_at_zero(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """build_model zeroes the last batch norm of every block and changes nothing else."""
    torch.manual_seed(0)
    before = build.build_model(3, name, width=8)
    monkeypatch.setattr(build, "zero_residual_branches", zero_residual_branches)
    torch.manual_seed(0)
    after = build.build_model(3, name, width=8).state_dict()
    last = "bn2.weight" if name == "resnet-18" else "bn3.weight"
    changed = {key for key, value in before.state_dict().items() if not torch.equal(value, after[key])}
    assert changed == {key for key in after if key.startswith("backbone.layer") and key.endswith(last)}
    assert not any(after[key].any() for key in changed)


def test_invalid_values() -> None:
    with pytest.raises(PspnetError, match=r"dilations is \(2,\): expected two positive numbers, of layer3 and layer4"):
        ResNet((1, 1, 1, 1), dilations=(2,))
    with pytest.raises(PspnetError, match="output_stride is 4: expected one of 8, 16, 32"):
        ResNet((1, 1, 1, 1), output_stride=4)
    with pytest.raises(PspnetError, match="stem is 'conv3': expected one of conv7, deep, deep-narrow"):
        ResNet((1, 1, 1, 1), stem="conv3")
    with pytest.raises(PspnetError, match="width is 5: expected an even number, since the stem deep-narrow halves it"):
        ResNet((1, 1, 1, 1), stem="deep-narrow", width=5)
    with pytest.raises(PspnetError, match=r"layers is \(1, 1, 1\): expected four positive block counts"):
        ResNet((1, 1, 1))
    with pytest.raises(PspnetError, match="width is 0: expected a positive number"):
        ResNet((1, 1, 1, 1), width=0)
