"""The complete network: sizes, input dtypes, gradients, precision, parameter counts and messages."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspnet.errors import PspnetError
from pspnet.models.build import build_model
from pspnet.models.constants import IMAGENET_MEAN, IMAGENET_STD
from pspnet.models.pspnet import PSPNet
from pspnet.models.pyramid import PSPHead
from pspnet.models.resnet import ResNet


def tiny(**options: object) -> PSPNet:
    torch.manual_seed(0)
    return build_model(**{"num_classes": 5, "width": 8, **options})


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def expected_parameters(blocks: tuple[int, ...], stem: str, classes: int, auxiliary: bool) -> int:
    """Count the parameters of the published architecture: convolutions without bias, two per batch norm channel."""
    if stem == "conv7":
        count, channels = 3 * 49 * 64 + 2 * 64, 64
    else:
        count, channels = (3 * 9 * 64 + 128) + (64 * 9 * 64 + 128) + (64 * 9 * 128 + 256), 128
    for narrow, repeats in zip((64, 128, 256, 512), blocks, strict=True):
        wide = 4 * narrow
        count += channels * wide + 2 * wide  # projection of the first block's shortcut
        for _ in range(repeats):
            count += channels * narrow + 9 * narrow * narrow + narrow * wide + 2 * (narrow + narrow + wide)
            channels = wide
    count += 4 * (2048 * 512 + 2 * 512)  # pyramid
    count += 4096 * 512 * 9 + 2 * 512 + 512 * classes + classes
    if auxiliary:
        count += 1024 * 256 * 9 + 2 * 256 + 256 * classes + classes
    return count


@pytest.mark.parametrize(
    ("backbone", "stem", "classes", "auxiliary", "published"),
    [
        ("resnet-50", "conv7", 21, True, 48_957_802),
        ("resnet-50", "conv7", 21, False, 46_592_597),
        ("resnet-50", "conv7", 19, True, 48_956_262),
        ("resnet-50", "deep", 21, True, 49_081_578),  # the "49.1 M" of the literature
        ("resnet-50", "deep", 19, False, 46_715_347),
        ("resnet-101", "conv7", 21, True, 67_949_930),
        ("resnet-101", "conv7", 19, False, 65_583_699),
        ("resnet-101", "deep", 21, True, 68_073_706),
        ("resnet-101", "deep", 19, True, 68_072_166),
    ],
)
@pytest.mark.usefixtures("skip_initialisation")
def test_parameter_count(backbone: str, stem: str, classes: int, auxiliary: bool, published: int) -> None:
    model = build_model(classes, backbone, stem, auxiliary_head=auxiliary)
    blocks = {"resnet-50": (3, 4, 6, 3), "resnet-101": (3, 4, 23, 3)}[backbone]
    assert expected_parameters(blocks, stem, classes, auxiliary) == published
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.parametrize(("backbone", "of_backbone"), [("resnet-18", 11_176_512), ("resnet-34", 21_284_672)])
@pytest.mark.usefixtures("skip_initialisation")
def test_parameter_count_of_basic_blocks(backbone: str, of_backbone: int) -> None:
    """The heads have 128 and 64 channels, as in mmsegmentation's r18; torchvision's classifier is left out."""
    model = build_model(19, backbone)
    head = 4 * (512 * 128 + 2 * 128) + 1024 * 128 * 9 + 2 * 128 + 128 * 19 + 19
    auxiliary = 256 * 64 * 9 + 2 * 64 + 64 * 19 + 19
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == of_backbone
    assert sum(parameter.numel() for parameter in model.parameters()) == of_backbone + head + auxiliary


@pytest.mark.parametrize("stem", ["conv7", "deep"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_every_parameter_gets_a_gradient(stem: str, output_stride: int) -> None:
    model = tiny(stem=stem, output_stride=output_stride, dropout=0.0).train()
    logits, auxiliary = model(images(2, 3, 64, 48))
    target = torch.arange(2 * 64 * 48).view(2, 64, 48) % 5
    (F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(auxiliary, target)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (41, 67), (50, 35)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_any_size_and_batch_of_one(size: tuple[int, int], align_corners: bool) -> None:
    model = tiny(align_corners=align_corners).train()
    logits, auxiliary = model(images(1, 3, *size))
    assert logits.shape == auxiliary.shape == (1, 5, *size)
    assert torch.isfinite(logits).all()
    model.eval()
    assert model(images(1, 3, *size)).shape == (1, 5, *size)


def test_auxiliary_head_runs_in_training_only() -> None:
    model = tiny().eval()
    calls = []
    model.auxiliary_head.register_forward_hook(lambda *_: calls.append(1))
    assert isinstance(model(images(2, 3, 32, 32)), Tensor)
    assert calls == []
    assert len(model.train()(images(2, 3, 32, 32))) == 2
    assert calls == [1]
    without = tiny(auxiliary_head=False).train()
    assert isinstance(without(images(2, 3, 32, 32)), Tensor)
    assert not any(name.startswith("auxiliary_head") for name in without.state_dict())


@pytest.mark.parametrize("align_corners", [False, True])
def test_equals_the_composition_of_its_parts(align_corners: bool) -> None:
    model = tiny(align_corners=align_corners, dropout=0.0).train()
    batch = images(2, 3, 45, 38)
    reference = copy.deepcopy(model)
    mean, std = ((torch.tensor(v).view(3, 1, 1)) for v in (IMAGENET_MEAN, IMAGENET_STD))
    layer3, layer4 = reference.backbone((batch.float() - mean) / std)
    expected = [
        F.interpolate(head(features), size=(45, 38), mode="bilinear", align_corners=align_corners)
        for head, features in ((reference.head, layer4), (reference.auxiliary_head, layer3))
    ]
    for found, wanted in zip(model(batch), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert model.head.align_corners is align_corners


def test_uint8_equals_float() -> None:
    model = tiny().eval()
    batch = images(2, 3, 40, 33)
    assert torch.equal(model(batch), model(batch.float()))
    assert torch.equal(model(batch), model(batch.double()))


def test_normalisation_is_rgb_on_the_scale_0_to_255() -> None:
    model = tiny(mean=(1, 2, 3), std=(2, 4, 5)).eval()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.tensor([5.0, 10.0, 13.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert seen[0][0, :, 7, 9].tolist() == [2.0, 2.0, 2.0]
    assert not {"mean", "std"} & set(model.state_dict())
    default = tiny()
    assert default.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert default.std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_channels_last_equals_contiguous() -> None:
    model = tiny().eval()
    batch = images(2, 3, 40, 40)
    expected = model(batch)
    model = model.to(memory_format=torch.channels_last)
    found = model(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_autocast_gives_float32_logits_near_the_float32_ones() -> None:
    model = tiny().eval()
    batch = images(2, 3, 40, 40)
    with torch.no_grad():
        expected = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(batch)
            trained = model.train()(batch)
    assert found.dtype == trained[0].dtype == trained[1].dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert tiny().double().eval()(batch).dtype == torch.float64


def test_half_precision_weights_give_float32_logits() -> None:
    assert tiny().bfloat16().eval()(images(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # deprecation and intended constants
def test_trace_equals_eager() -> None:
    model = tiny().eval()
    batch = images(1, 3, 41, 50)
    with torch.no_grad():
        traced = torch.jit.trace(model, batch)
        other = images(1, 3, 41, 50) // 2
        # A graph computes interpolation weights in float32.
        torch.testing.assert_close(traced(other), model(other), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export came with torch 2.1")
def test_export_equals_eager() -> None:
    model = PSPNet(ResNet((1, 1, 1, 1), width=8), PSPHead(256, 5)).eval()
    batch = images(1, 3, 41, 50)
    with torch.no_grad():
        program = torch.export.export(model, (batch,))
        expected = model(batch)
    # PyTorch 2.1 exports other operators than eager mode; newer versions are bit-identical.
    torch.testing.assert_close(program.module()(batch), expected, rtol=1e-5, atol=1e-5)


def test_conversion_to_sync_batch_norm() -> None:
    model = tiny()
    keys = list(model.state_dict())
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == count == 59
    assert list(synced.state_dict()) == keys


def test_invalid_images() -> None:
    model = tiny().eval()
    with pytest.raises(PspnetError, match=r"images are 40x31 pixels: PSPNet needs at least 32x32"):
        model(images(1, 3, 31, 40))
    with pytest.raises(PspnetError, match=r"the shape \(1, 40, 40, 3\): expected \(N, 3, H, W\), RGB"):
        model(images(1, 40, 40, 3))
    with pytest.raises(PspnetError, match=r"the shape \(3, 40, 40\)"):
        model(images(3, 40, 40))
    with pytest.raises(PspnetError, match=r"images are torch.int64: expected uint8 or floating point"):
        model(images(1, 3, 40, 40).long())
    with pytest.raises(PspnetError, match=r"one image of 32x32 pixels leaves a single cell at output_stride 32"):
        tiny(output_stride=32).train()(images(1, 3, 32, 32))


def test_invalid_settings() -> None:
    with pytest.raises(
        PspnetError, match="backbone is 'resnet-152': expected one of resnet-18, resnet-34, resnet-50, r"
    ):
        tiny(backbone="resnet-152")
    with pytest.raises(PspnetError, match="stem is 'shallow': expected one of conv7, deep"):
        tiny(stem="shallow")
    with pytest.raises(PspnetError, match="output_stride is 4: expected one of 8, 16, 32"):
        tiny(output_stride=4)
    with pytest.raises(PspnetError, match="num_classes is 0: expected 1 or more"):
        tiny(num_classes=0)
    with pytest.raises(PspnetError, match=r"dropout is 1\.0: expected 0 <= dropout < 1"):
        tiny(dropout=1.0)
    with pytest.raises(PspnetError, match=r"std \(1, 0, 1\): expected three numbers each.*every std positive"):
        tiny(std=(1, 0, 1))
    with pytest.raises(PspnetError, match=r"mean is \(1, 2\)"):
        tiny(mean=(1, 2))
