"""Models by name: download from a loopback server, conversion, cache and messages."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from torchvision.models.segmentation import fcn_resnet50

import pspnet
from pspnet.artifact import model_directory, published
from pspnet.artifact.model_directory import load_artifact
from pspnet.artifact.published import cached_folder, find_model, is_cached
from pspnet.classes import ADE20K_CLASSES, VOC_CLASSES
from pspnet.cli.dispatch import dispatch
from pspnet.errors import WeightsError
from pspnet.models.build import build_model
from pspnet.models.constants import BACKBONES
from pspnet.models.imports import mmsegmentation
from pspnet.models.zoo import MODELS, PublishedModel
from pspnet.serving.loading import load_predictor
from pspnet.serving.serve_settings import ServeSettings
from pspnet.stream.model import LocalModel
from pspnet.system import download as download_module
from pspnet.training.network import build_network
from tests.system.file_server import Server, running_server

# (strides, dilations) of a backbone.
LAYERS = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 32: ((1, 2, 2, 2), (1, 1, 2, 4))}
# The architectures that this version builds, and the first row of each.
ARCHITECTURES = {
    (model.backbone, model.stem, model.output_stride, model.align_corners): model.key
    for model in reversed(list(MODELS.values()))
    if model.algorithm == "psp" and model.backbone in BACKBONES
    and LAYERS[model.output_stride] in mmsegmentation._OUTPUT_STRIDES
}  # fmt: skip
CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(type='ResNetV1c', depth=50, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1), contract_dilation=True),
    decode_head=dict(type='PSPHead', pool_scales=(1, 2, 3, 6), align_corners=False))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running_server() as running:
        monkeypatch.setenv("PSPNET_MODELS_URL", running.url.rsplit("/", 1)[0] + "/mirror/")
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no waiting between attempts."""
    monkeypatch.setenv("PSPNET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download_module, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(published, "_ATTEMPTS", 2)
    return tmp_path / "home"


def mmseg_bytes(model: PublishedModel, meta: dict[str, Any]) -> bytes:
    """A file of mmsegmentation's layout with the model's architecture, 8 channels wide."""
    torch.manual_seed(0)
    with torch.no_grad():
        network = build_model(
            model.num_classes, model.backbone, model.stem, align_corners=model.align_corners, width=8,
            contract_dilation=True,
        )  # fmt: skip
    layout = mmsegmentation._layouts("backbone.")[model.stem]
    state = {layout.foreign_name(name): value for name, value in network.state_dict().items()}
    file = io.BytesIO()
    torch.save({"state_dict": state, "meta": meta}, file)
    return file.getvalue()


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PublishedModel]:
    """Serve a file for a key of the table, whose hash is replaced by the file's."""

    def serve(key: str, content: bytes | None = None, **meta: Any) -> PublishedModel:
        model = MODELS[key]
        server.content = mmseg_bytes(model, meta) if content is None else content
        digest = hashlib.sha256(server.content).hexdigest()
        model = replace(model, file=model.file.replace(model.sha256_prefix, digest[:8]))
        monkeypatch.setitem(MODELS, key, model)
        return model

    return serve


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", ARCHITECTURES.values())
def test_every_architecture_downloads_converts_and_predicts(
    key: str, publish: Callable[..., PublishedModel], server: Server, home: Path
) -> None:
    strides, dilations = LAYERS[MODELS[key].output_stride]
    config = CONFIG.replace("(1, 2, 1, 1)", str(strides)).replace("(1, 1, 2, 4)", str(dilations))
    model = publish(key, config=config.replace("corners=False", f"corners={MODELS[key].align_corners}"))
    predictor = pspnet.Predictor.load(key, "cpu", runtime="eager")
    assert predictor(np.zeros((40, 52, 3), np.uint8)).shape == (40, 52)
    folder = home / "models" / key
    artifact = load_artifact(folder)
    expected = {**model.architecture, "contract_dilation": True, "width": 8}
    assert {name: artifact.architecture[name] for name in expected} == expected
    content = json.loads((folder / "config.json").read_text())
    longest, shortest = model.test_size
    assert content["test_size"] == {"long_side": longest, "short_side": shortest}
    assert content["source"]["sha256"] == hashlib.sha256(server.content).hexdigest()
    assert content["source"]["published"] == {
        "name": key, "url": f"{os.environ['PSPNET_MODELS_URL']}{model.file}", "license": "Apache-2.0",
        "dataset": model.dataset, "protocol": model.protocol, "mIoU": model.miou,
        "mIoU_multi_scale": model.miou_multi_scale,
    }  # fmt: skip
    assert (folder / "code" / "inference.py").is_file()
    assert not list((home / "models" / "downloads").iterdir())


def test_a_short_name_is_cached_and_then_works_offline(
    publish: Callable[..., PublishedModel], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish("voc-r50-40k", CLASSES=[f"c{index}" for index in range(21)], config=CONFIG)
    assert not is_cached(model)
    folder = find_model("voc-r50")
    assert folder == cached_folder(model)
    assert is_cached(model)
    assert load_artifact(folder).class_names == VOC_CLASSES
    assert server.asked == [None]
    monkeypatch.setenv("PSPNET_MODELS_URL", "http://127.0.0.1:9/")
    assert find_model(Path("voc-r50")) == find_model("voc-r50-40k") == folder
    assert not pspnet.load_model("voc-r50").training
    assert server.asked == [None]


def test_class_names_of_the_data_set_or_of_the_file(publish: Callable[..., PublishedModel]) -> None:
    publish("ade20k-r50-80k")
    assert load_artifact(find_model("ade20k-r50-80k")).class_names == ADE20K_CLASSES
    names, colours = [f"land {index}" for index in range(7)], [[index, 2, 3] for index in range(7)]
    publish("loveda-r50-80k", CLASSES=names, PALETTE=colours)
    artifact = load_artifact(find_model("loveda-r50"))
    assert artifact.class_names == tuple(names)
    assert artifact.palette[:7].tolist() == colours


def test_an_existing_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voc-r50").mkdir()
    assert find_model("voc-r50") == Path("voc-r50")
    assert find_model("some/voc-r50") == Path("some/voc-r50")
    with pytest.raises(WeightsError, match=r"^voc-r5: no such folder, and no published model .*did you mean voc-r50"):
        find_model("voc-r5")
    with pytest.raises(WeightsError, match=r"^modell: no such folder.*; `pspnet models` lists the names\."):
        pspnet.Predictor.load("modell")


def test_an_interrupted_download_resumes(publish: Callable[..., PublishedModel], server: Server, home: Path) -> None:
    publish("voc-r50-40k")
    server.cuts = [300_000, 500_000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(published, "_ATTEMPTS", 1)
        with pytest.raises(WeightsError, match=r"model voc-r50-40k: .* stopped after 300,000 bytes .*the same command"):
            find_model("voc-r50")
    assert [name for name in files_below(home) if not name.endswith(".lock")] == [
        f"models/downloads/{MODELS['voc-r50-40k'].file.split('/')[1]}.part"
    ]
    assert load_artifact(find_model("voc-r50"))
    assert server.asked == [None, "bytes=300000-", "bytes=800000-"]


@pytest.mark.parametrize("fault", ["wrong hash", "truncated file", "404", "no network", "full disk", "read-only"])
def test_failed_downloads(
    fault: str, publish: Callable[..., PublishedModel], server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish("voc-r50-40k", b"\x00" * 5000)
    url, name = os.environ["PSPNET_MODELS_URL"] + model.file, model.file.split("/")[1]
    if fault == "wrong hash":
        server.content = b"\x01" * 5000
        text = f"{url}: the downloaded file has SHA256 {'[0-9a-f]{64}'}, expected {model.sha256_prefix}. It was removed"
    elif fault == "truncated file":
        server.content = server.content[:-1]
        text = f"{url}: the downloaded file has SHA256 "
    elif fault == "404":
        server.statuses = [404]
        text = f"{url}: the server returned HTTP 404 Not Found"
    elif fault == "no network":
        monkeypatch.setenv("PSPNET_MODELS_URL", "http://127.0.0.1:9")
        text = (
            r"http://127.0.0.1:9/.*: the download stopped after 0 bytes \(.*refused\), 2 attempts in a row failed. Run "
            f"the same command again to resume, or .* save it as {home}/models/downloads/{name}"
        )
    elif fault == "full disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        text = f"{home}/models/downloads: 5,000 more bytes are needed and 100 are free"
    else:

        def deny(*_: object, **__: object) -> None:
            raise OSError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", deny)
        text = "Permission denied"
    with pytest.raises(WeightsError, match=f"^model voc-r50-40k: .*{text}") as caught:
        find_model("voc-r50")
    assert "\n" not in str(caught.value)
    assert all(path.endswith((".lock", ".part")) for path in files_below(home))


def test_a_full_disk_while_converting_leaves_no_model(
    publish: Callable[..., PublishedModel], server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("voc-r50-40k")

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_directory, "save_file", fail)
        with pytest.raises(WeightsError, match=r"voc-r50-40k: .*No space left on device.*Free some space"):
            find_model("voc-r50")
    assert os.listdir(home / "models" / "downloads") == [MODELS["voc-r50-40k"].file.split("/")[1]]
    assert sorted(os.listdir(home / "models")) == [".voc-r50-40k.lock", "downloads"]
    find_model("voc-r50")  # the verified file is used again
    assert server.asked == [None]


@pytest.mark.parametrize(
    ("key", "other", "meta", "text"),
    [
        ("voc-r50-40k", "cityscapes-r50-40k", {}, "num_classes is 19 there and 21 in the table"),
        ("voc-r101-40k", "voc-r50-40k", {}, "backbone is 'resnet-50' there and 'resnet-101' in the table"),
        ("cityscapes-r50b-80k", "cityscapes-r50-80k", {}, "stem is 'deep-narrow' there and 'conv7' in the table"),
        (
            "cityscapes-r50-40k-769",
            "cityscapes-r50-40k",
            {"config": CONFIG},
            "align_corners is False there and True in the table",
        ),
        (
            "voc-r50-40k",
            "voc-r50-40k",
            {"config": CONFIG.replace("(1, 1, 2, 4)", "(1, 1, 1, 2)").replace("(1, 2, 1, 1)", "(1, 2, 2, 1)")},
            "output_stride is 16 there and 8 in the table",
        ),
    ],
)
def test_a_file_that_contradicts_the_table_is_rejected(
    key: str, other: str, meta: dict[str, Any], text: str, publish: Callable[..., PublishedModel], home: Path
) -> None:
    publish(key, mmseg_bytes(MODELS[other], meta))
    with pytest.raises(WeightsError, match=rf"not the published model {key}: {re.escape(text)}\. Delete the file"):
        find_model(key)
    assert not (home / "models" / key).exists()


def test_the_cache_folder() -> None:
    model = MODELS["voc-r50-40k"]
    assert cached_folder(model, {"PSPNET_HOME": "/a", "PSPNET_CACHE": "/b"}) == Path("/a/models/voc-r50-40k")
    assert cached_folder(model, {"PSPNET_CACHE": "/b"}) == Path("/b/models/voc-r50-40k")
    assert cached_folder(model, {}) == Path.home() / ".cache/pspnet/models/voc-r50-40k"


def test_simultaneous_requests_download_once(publish: Callable[..., PublishedModel], server: Server) -> None:
    publish("voc-r50-40k")
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(find_model, ["voc-r50"] * 3))
    assert len(folders) == 1
    assert server.asked == [None]


def test_names_are_accepted_in_place_of_model_directories(
    publish: Callable[..., PublishedModel], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("voc-r50-40k")
    for folder, mode in (("images", "RGB"), ("annotations", "L")):
        (tmp_path / folder).mkdir()
        Image.new(mode, (41, 40)).save(tmp_path / folder / "a.png")
    images, annotations, masks = (str(tmp_path / name) for name in ("images", "annotations", "masks"))
    scores = pspnet.evaluate("voc-r50", images, annotations)
    assert 0 <= scores.pixel_accuracy <= 1
    assert pspnet.export("voc-r50", "torchscript") == home / "models/voc-r50-40k/exports/torchscript-float32"
    assert dispatch(["predict", "voc-r50", images, "--output", masks, "--runtime", "eager"]) == 0
    arguments = ["--images", images, "--annotations", annotations, "--output", str(tmp_path / "scores")]
    assert dispatch(["evaluate", "voc-r50", *arguments, "--report", "False"]) == 0
    assert dispatch(["benchmark", "voc-r50", "--size", "40x48", "--runtimes", "eager", "--rounds", "1"]) == 0
    assert "PSPNet, 21 classes" in capsys.readouterr().out
    assert LocalModel.load(Path("voc-r50"), "cpu", runtime="eager").class_names == VOC_CLASSES
    settings = ServeSettings(model_dir="voc-r50", device="cpu", runtime="eager")
    assert load_predictor(settings, 0).class_names == VOC_CLASSES


def test_training_starts_from_a_name(publish: Callable[..., PublishedModel]) -> None:
    publish("voc-r50-40k")
    config = pspnet.Config(
        data="shapes", num_classes=21, stem="deep-narrow", contract_dilation=True, width=8, use_pretrained_model=False,
        model="voc-r50",
    )  # fmt: skip
    network = build_network(config, torch.device("cpu"))
    for name, value in pspnet.load_model("voc-r50").state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_torchvisions_networks(publish: Callable[..., PublishedModel], home: Path) -> None:
    with torch.no_grad():
        network = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    publish("fcn_resnet50", file.getvalue())
    artifact = load_artifact(find_model("fcn_resnet50"))
    assert (artifact.algorithm, artifact.class_names) == ("fcn", VOC_CLASSES)
    assert torch.equal(artifact.model.head[4].weight, network.classifier[4].weight)
    content = json.loads((home / "models" / "fcn_resnet50" / "config.json").read_text())
    assert content["test_size"] == {"long_side": None, "short_side": 520}
    assert "torchvision" in (home / "models" / "fcn_resnet50" / "code" / "requirements.txt").read_text()
