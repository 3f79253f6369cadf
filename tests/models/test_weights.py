"""ImageNet weights from a temporary torch.hub cache, failed downloads, damaged files and strict loading."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pspnet.errors import WeightsError
from pspnet.models.resnet import ResNet
from pspnet.models.weights import load_imagenet_backbone, load_state_strict

R50_V1 = "resnet50-0676ba61.pth"
LAYERS = (3, 4, 6, 3)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of torch.hub's checkpoints; a download fails the test unless it is patched."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("tried to download"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """State dict like torchvision's ResNet-50 file, with different values in every tensor."""
    state = torchvision.models.resnet50().state_dict()
    return {
        name: torch.full_like(value, index) + torch.arange(value.numel()).view(value.shape).to(value.dtype) % 7
        for index, (name, value) in enumerate(state.items())
    }


def test_loads_every_tensor_from_the_cache(cache: Path, published: dict[str, Tensor]) -> None:
    torch.save(published, str(cache / R50_V1))
    backbone = ResNet(LAYERS)
    load_imagenet_backbone(backbone, "resnet-50")
    loaded = backbone.state_dict()
    expected = {name: value for name, value in published.items() if not name.startswith("fc.")}
    assert len(loaded) == len(expected) == 318
    for name, value in loaded.items():
        source = name[len("stem.") :] if name.startswith("stem.") else name
        assert torch.equal(value, expected[source]), name


def test_file_without_batch_counters(cache: Path, published: dict[str, Tensor]) -> None:
    """Files from before PyTorch 0.4.1."""
    half = {n: v.half() for n, v in published.items() if not n.endswith("num_batches_tracked")}
    torch.save(half, str(cache / R50_V1))
    backbone = ResNet(LAYERS, output_stride=16)
    load_imagenet_backbone(backbone, "resnet-50", "IMAGENET1K_V1")
    assert backbone.layer4[2].bn3.num_batches_tracked.item() == 0
    assert torch.equal(backbone.layer4[2].bn3.weight, published["layer4.2.bn3.weight"])
    assert backbone.stem.conv1.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "weights", "file"),
    [
        ("resnet-50", "IMAGENET1K_V1", R50_V1),
        ("resnet-50", "IMAGENET1K_V2", "resnet50-11ad3fa6.pth"),
        ("resnet-101", "IMAGENET1K_V1", "resnet101-63fe2227.pth"),
        ("resnet-101", "IMAGENET1K_V2", "resnet101-cd907fc2.pth"),
        ("resnet-18", "IMAGENET1K_V1", "resnet18-f37072fd.pth"),
        ("resnet-34", "IMAGENET1K_V1", "resnet34-b627a593.pth"),
    ],
)
def test_failed_download_reports_url_file_and_flag(
    name: str, weights: str, file: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def fail(url: str, path: str, hash_prefix: str, **_: object) -> None:
        requests.append((url, path, hash_prefix))
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    backbone = ResNet((1, 1, 1, 1), width=4)
    before = snapshot(backbone)
    with pytest.raises(WeightsError, match=r"could not be downloaded: URLError.*no route to host") as caught:
        load_imagenet_backbone(backbone, name, weights)
    url = f"https://download.pytorch.org/models/{file}"
    assert requests == [(url, str(cache / file), file[-12:-4])]
    for part in (f"download {url}", f"copy it to {cache / file}", "`--use_pretrained_model False`", "TORCH_HOME"):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    "error", [RuntimeError("invalid hash value"), OSError("No space left on device"), TimeoutError("timed out")]
)
def test_other_download_failures(error: Exception, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(WeightsError, match=f"could not be downloaded: {type(error).__name__}: {error}"):
        load_imagenet_backbone(ResNet((1, 1, 1, 1), width=4), "resnet-50")


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("TORCH_HOME", str(blocked))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(WeightsError, match="could not be downloaded: NotADirectoryError"):
        load_imagenet_backbone(ResNet((1, 1, 1, 1), width=4), "resnet-50")


def test_download_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch, published: dict[str, Tensor]) -> None:
    def fetch(url: str, path: str, hash_prefix: str, **_: object) -> None:
        torch.save({n: v.half() for n, v in published.items()}, path)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    backbone = ResNet(LAYERS)
    load_imagenet_backbone(backbone, "resnet-50")
    assert torch.equal(backbone.stem.bn1.bias, published["bn1.bias"])


def damage(path: Path, kind: str) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, str(path))
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "page":
        path.write_bytes(b"<html><body>Sign in to the network</body></html>")
    elif kind == "list":
        torch.save([1, 2, 3], str(path))


@pytest.mark.parametrize("kind", ["truncated", "empty", "page", "list"])
def test_damaged_cache_file(kind: str, cache: Path) -> None:
    path = cache / R50_V1
    damage(path, kind)
    with pytest.raises(WeightsError, match="is damaged or not a weights file") as caught:
        load_imagenet_backbone(ResNet((1, 1, 1, 1), width=4), "resnet-50")
    for part in (str(path), f"({path.stat().st_size:,} bytes)", "Delete it", "--use_pretrained_model False"):
        assert part in str(caught.value)
    assert path.exists()


def test_weights_of_another_backbone(cache: Path, published: dict[str, Tensor]) -> None:
    state = {n: v for n, v in published.items() if n.startswith(("conv1", "bn1", "layer1"))}
    torch.save({**state, "extra.weight": torch.zeros(1)}, str(cache / R50_V1))
    backbone = ResNet((3, 1, 1, 1))
    before = snapshot(backbone)
    with pytest.raises(WeightsError, match=r"(?s)missing: layer2\.0\.conv1\.weight.*1 unexpected: extra\.weight"):
        load_imagenet_backbone(backbone, "resnet-50")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_settings_without_published_weights(cache: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"stem is 'deep', for which torchvision publishes no .*stem conv7, or.*False"
    ):
        load_imagenet_backbone(ResNet((1, 1, 1, 1), stem="deep", width=4), "resnet-50")
    with pytest.raises(
        WeightsError, match="backbone is 'resnet-152': ImageNet weights exist for resnet-18, resnet-34, r"
    ):
        load_imagenet_backbone(ResNet((1, 1, 1, 1), width=4), "resnet-152")
    with pytest.raises(WeightsError, match=r"'IMAGENET1K_V2': expected one of IMAGENET1K_V1 for backbone resnet-18\."):
        load_imagenet_backbone(ResNet((1, 1, 1, 1), width=4, basic=True), "resnet-18", "IMAGENET1K_V2")
    with pytest.raises(WeightsError, match="weights is 'V3': expected one of IMAGENET1K_V1, IMAGENET1K_V2"):
        load_imagenet_backbone(ResNet((1, 1, 1, 1), width=4), "resnet-50", "V3")


def test_strict_load_sets_every_value() -> None:
    source, target = ResNet((1, 1, 1, 1), width=4), ResNet((1, 1, 1, 1), width=4)
    load_state_strict(target, source.state_dict(), "there.safetensors")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_strict_load_reports_every_kind_of_mismatch() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = snapshot(module)
    del state["0.bias"], state["1.running_var"]
    state["0.weight"] = torch.zeros(4, 2, 1, 1)
    state["1.num_batches_tracked"] = "seven"  # type: ignore[assignment]
    state.update({f"extra.{index}": torch.zeros(1) for index in range(7)})
    before = snapshot(module)
    with pytest.raises(WeightsError) as caught:
        load_state_strict(module, state, "runs/a/model.safetensors")
    lines = str(caught.value).splitlines()
    assert lines[0] == "runs/a/model.safetensors does not match the model (7 entries expected, 12 found):"
    assert lines[1] == "  2 missing: 0.bias, 1.running_var"
    assert lines[2] == "  7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more"
    assert lines[3] == (
        "  2 of another shape: 0.weight is 4x2x1x1, expected 4x3x1x1, 1.num_batches_tracked is a str, expected scalar"
    )
    assert "backbone, stem, num_classes" in lines[4]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
