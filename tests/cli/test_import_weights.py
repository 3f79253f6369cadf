"""`pspnet import`: from a file to a model directory that predicts, and its messages."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.artifact.model_directory import load_artifact
from pspnet.classes import CAMVID_CLASSES, palette_for
from pspnet.cli import import_weights as cli_import
from pspnet.cli.dispatch import dispatch
from pspnet.errors import DataError, WeightsError
from pspnet.inference.predictor import Predictor
from pspnet.models.build import build_model
from pspnet.models.imports import gluoncv, mmsegmentation
from pspnet.models.pspnet import PSPNet
from pspnet.system.exit_codes import run_guarded
from tests.models.mxnet_files import file_of


def run(*arguments: object) -> int:
    return run_guarded(dispatch, ["import", *map(str, arguments)])


def gluoncv_archive(path: Path, model: PSPNet) -> Path:
    layout = gluoncv._LAYOUTS["deep"]
    state = {
        layout.foreign_name(name): value for name, value in model.state_dict().items() if "num_batches" not in name
    }
    with tarfile.open(path, "w:gz") as tar:
        contents = (("hyperparams.json", json.dumps({"algorithm": "psp"}).encode()), ("model_algo-1", file_of(state)))
        for name, content in contents:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def mmseg_file(path: Path, model: PSPNet, **meta: object) -> Path:
    layout = mmsegmentation._layouts("backbone.")["deep-narrow"]
    state = {layout.foreign_name(name): value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "meta": meta}, path)
    return path


def test_the_built_in_algorithms_artifact_becomes_a_model_that_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(11, stem="deep", width=4, align_corners=True, contract_dilation=True).eval()
    file = gluoncv_archive(tmp_path / "model.tar.gz", model)
    folder = tmp_path / "imported"
    assert run(file, "--from", "gluoncv", "--classes", "camvid", "--output", folder) == 0
    assert capsys.readouterr().out == (
        "309 arrays of gluoncv: PSPNet resnet-50, 11 classes, with auxiliary head; stem deep, output_stride 8, "
        f"align_corners True, contract_dilation True.\nWritten: {folder}\n"
    )
    artifact = load_artifact(folder)
    assert artifact.class_names == CAMVID_CLASSES
    assert np.array_equal(artifact.palette, palette_for(CAMVID_CLASSES))
    assert artifact.source == {
        "program": "gluoncv", "file": "model.tar.gz", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "heads": "imported", "hyperparameters": {"algorithm": "psp"},
    }  # fmt: skip
    assert (folder / "code" / "inference.py").is_file()
    assert not (folder / "code" / "pspnet" / "models" / "imports").exists()

    pixels = np.random.default_rng(0).integers(0, 256, (41, 57, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    assert run_guarded(dispatch, ["predict", str(folder), str(tmp_path / "frame.png"), "--output", str(tmp_path)]) == 0
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with Image.open(tmp_path / "frame.png") as mask:
        found = np.asarray(mask)
    top = logits.topk(2, dim=1).values[0]
    clear = (top[0] - top[1] > 1e-3 * logits.abs().max()).numpy()  # pixels that rounding cannot change
    assert clear.mean() > 0.8
    assert np.array_equal(found[clear], logits.argmax(1)[0].numpy()[clear])


def test_names_and_colours_of_the_file(tmp_path: Path) -> None:
    model = build_model(2, stem="deep-narrow", width=4)
    colours = [[1, 2, 3], [4, 5, 6]]
    file = mmseg_file(tmp_path / "a.pth", model, dataset_meta={"classes": ("sky", "road"), "palette": colours}, iter=9)
    assert run(file, "--from", "mmsegmentation", "--output", tmp_path / "first") == 0
    artifact = load_artifact(tmp_path / "first")
    assert artifact.class_names == ("sky", "road")
    assert artifact.palette[:2].tolist() == colours
    assert artifact.source["iter"] == 9
    names = tmp_path / "names.txt"
    names.write_text("left\n\n right \n")
    assert run(file, "--from", "mmsegmentation", "--output", tmp_path / "second", "--classes", names) == 0
    artifact = load_artifact(tmp_path / "second")
    assert artifact.class_names == ("left", "right")
    assert artifact.palette[:2].tolist() == palette_for(("left", "right"))[:2].tolist()


def test_a_backbone_reports_that_its_heads_are_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = build_model(2, width=4).backbone.state_dict()
    torch.save({f"encoder.{name.replace('stem.', '')}": value for name, value in state.items()}, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", "--from", "smp", "--output", tmp_path / "model") == 1
    assert "a backbone without heads. Give their classes with --classes" in capsys.readouterr().err
    assert run(tmp_path / "a.pth", "--from", "smp", "--output", tmp_path / "model", "--classes", "voc") == 0
    assert "A backbone alone: the heads are random, so train it first" in capsys.readouterr().out
    artifact = load_artifact(tmp_path / "model")
    assert artifact.source["heads"] == "random"
    with pytest.raises(WeightsError, match=r"backbone with random heads, which cannot predict\. Train it first"):
        Predictor.load(tmp_path / "model")(np.zeros((40, 40, 3), np.uint8))
    assert len(artifact.class_names) == 21


def test_messages_are_one_line_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = mmseg_file(tmp_path / "a.pth", build_model(2, stem="deep-narrow", width=4))
    output = tmp_path / "model"
    for arguments, text in (
        ((tmp_path / "none.pth", "--from", "smp"), "none.pth: cannot be read (No such file or directory)."),
        (
            (file, "--from", "semseg"),
            "names are from mmsegmentation, not semseg: use --from mmsegmentation.",
        ),
        (
            (file, "--from", "mmsegmentation", "--classes", "voc"),
            "has 2 classes, but --classes 21. Give 2",
        ),
        (
            (file, "--from", "mmsegmentation", "--classes", "sea"),
            "--classes: found 'sea', which is neither voc, ",
        ),
    ):
        assert run(*arguments, "--output", output) == 1
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
        assert not output.exists()


def test_a_model_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert run(tmp_path / "a.pth", "--from", "smp", "--output", tmp_path) == 1
    assert "holds a model already; give another folder, or delete it" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == "{}"


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = mmseg_file(tmp_path / "a.pth", build_model(2, stem="deep-narrow", width=4))
    assert run(file, "--from", "mmsegmentation", "--output", file / "model") == 1
    assert "cannot be written (Not a directory); give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "found"), [("", "no name"), ("\n\n", "no name"), ("a\nb\na\n", "the name 'a' twice")])
def test_class_name_files(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match=f"has {found}; expected one name per line, all different"):
        cli_import.read_class_names(str(tmp_path / "names.txt"))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="nor a readable text file"):
        cli_import.read_class_names(str(tmp_path / "bytes.txt"))


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import contextlib, sys\nfrom pspnet.cli.dispatch import COMMANDS, dispatch\n"
        "dispatch(['--help'])\nassert not {'numpy', 'dataclasses', 'pspnet.config.settings'} & set(sys.modules)\n"
        "for name in set(COMMANDS) - {'serve', 'stream', 'sagemaker'}:\n"
        "    with contextlib.suppress(SystemExit):\n        dispatch([name, '--help'])\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'torch or numpy was imported'\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
