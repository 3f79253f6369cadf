"""The serving code of a model runs on its own, and packed models are read without trusting the archive."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pspnet.artifact import bundle
from pspnet.artifact.bundle import served_files, unpacked, write_code
from pspnet.artifact.model_directory import architecture_of, load_artifact, save_artifact
from pspnet.config.schema import Config
from pspnet.errors import WeightsError
from pspnet.models.build import build_model
from pspnet.system import locations


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    config = Config(num_classes=3, data="x", width=4, use_pretrained_model=False)
    save_artifact(tmp_path / "model", build_model(**architecture_of(config)), config, {}, {"epoch": 1})
    return tmp_path / "model"


# Blocks packages missing in the inference images, then predicts with the code in the model directory.
STANDALONE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pydantic", "yaml", "cv2", "albumentations", "tqdm", "tensorboard"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.path = [path for path in sys.path if path not in ("", ROOT)]
import io, runpy
from PIL import Image
handlers = runpy.run_path(MODEL + "/code/inference.py")
import pspnet
assert pspnet.__file__.startswith(MODEL), pspnet.__file__
model = handlers["model_fn"](MODEL)
buffer = io.BytesIO()
Image.new("RGB", (48, 40)).save(buffer, format="PNG")
prediction = handlers["predict_fn"](handlers["input_fn"](buffer.getvalue(), "image/png"), model)
print(handlers["output_fn"](prediction, "application/json")[0].decode())
"""


def test_model_directory_predicts_with_its_own_code(model_dir: Path) -> None:
    write_code(model_dir)
    code = STANDALONE.replace("MODEL", repr(str(model_dir))).replace("ROOT", repr(str(locations.PACKAGE.parent)))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=model_dir, env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert sum(entry["pixels"] for entry in answer["classes"]) == 48 * 40


def test_code_contains_only_serving_files(model_dir: Path) -> None:
    (model_dir / "code").mkdir()
    (model_dir / "code" / "old.py").write_text("")
    code = write_code(model_dir)
    names = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert {
        "inference.py",
        "requirements.txt",
        "pspnet/serving/protocol/request_error.py",
        "pspnet/serving/protocol/request_image.py",
        "pspnet/models/pspnet.py",
    } <= names
    assert not [name for name in names if "training" in name or "schema" in name or "cli" in name or "/old" in name]
    assert not [name for name in names if "evaluation" in name or name.startswith("pspnet/data/d")]
    assert (code / "requirements.txt").read_text().splitlines()[1:] == ["safetensors>=0.4"]
    assert sorted(path.name for path in model_dir.iterdir()) == ["code", "config.json", "model.safetensors"]


def test_served_files_import_served_files_only() -> None:
    served = {"pspnet." + ".".join(path.with_suffix("").parts).replace(".__init__", "") for path in served_files()}
    served |= {"pspnet"}
    for path in [*served_files(), Path("../inference.py")]:
        tree = ast.parse((locations.PACKAGE / path).read_text())
        # `_fetch` downloads published models, which endpoints never need.
        optional = [
            node
            for node in ast.walk(tree)
            if (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
            or (isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "_fetch"))
        ]
        skipped = {id(child) for node in optional for child in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pspnet") and id(node) not in skipped:
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert node.module in served or names <= served, f"{path} imports {node.module}"


def test_missing_handlers_are_reported(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "PACKAGE", model_dir / "pspnet")
    with pytest.raises(WeightsError, match=r"inference\.py is missing.*the model itself is complete"):
        write_code(model_dir)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_only_weights_and_config_are_unpacked(model_dir: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    channel.mkdir()
    with tarfile.open(channel / "model.tar.gz", "w:gz") as tar:
        add(tar, "../escaped", b"x")
        for name in ("config.json", "model.safetensors"):
            tar.add(model_dir / name, arcname=f"./{name}")
        add(tar, "code/inference.py", b"x")
    with unpacked(channel) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        assert load_artifact(folder).architecture["num_classes"] == 3
    assert not folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["channel", "model"]


def test_model_directory_is_used_in_place(model_dir: Path) -> None:
    with unpacked(model_dir) as folder:
        assert folder == model_dir


def test_damaged_archive_is_reported(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").write_bytes(b"no archive")
    with pytest.raises(WeightsError, match=r"model\.tar\.gz: not a readable model archive"), unpacked(tmp_path):
        pass


def rejection(folder: Path, **members: tarfile.TarInfo | bytes) -> str:
    """Return the error for an archive with these members."""
    with tarfile.open(folder / "model.tar.gz", "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, bytes):
                add(tar, name.replace("_", "."), content)
            else:
                # addfile of Python 3.13 requires as much content as the member claims.
                tar.fileobj.write(content.tobuf())
    with pytest.raises(WeightsError) as caught, unpacked(folder):
        pass
    return str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_not_followed(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("config.json")
    link.type, link.linkname = kind, "/etc/passwd"
    assert "its config.json is a link or special file; expected a plain file" in rejection(tmp_path, a=link)


def test_oversized_members_are_rejected_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bundle._MAX_BYTES, "config.json", 100)
    assert "its config.json has 101 bytes; expected at most 100" in rejection(tmp_path, config_json=b"x" * 101)


def test_member_larger_than_the_archive(tmp_path: Path) -> None:
    member = tarfile.TarInfo("model.safetensors")
    member.size = 1_000_000_000
    assert "not a readable model archive" in rejection(tmp_path, a=member)


def test_first_of_two_members_is_used(model_dir: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    channel.mkdir()
    with tarfile.open(channel / "model.tar.gz", "w:gz") as tar:
        for name in ("model.safetensors", "config.json"):
            tar.add(model_dir / name, arcname=name)
        add(tar, "config.json", b"{}")
    with unpacked(channel) as folder:
        assert load_artifact(folder).architecture["num_classes"] == 3


def test_size_of_other_members_is_limited(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_MAX_REST", 1_000_000)
    channel = tmp_path / "channel"
    channel.mkdir()
    with tarfile.open(channel / "model.tar.gz", "w:gz") as tar:
        for name in ("model.safetensors", "config.json"):
            tar.add(model_dir / name, arcname=name)
        add(tar, "zeros", bytes(3_000_000))
    with pytest.raises(WeightsError, match=r"more than 1,000,000 bytes besides config\.json"), unpacked(channel):
        pass


def test_truncated_archive_is_reported(model_dir: Path, tmp_path: Path) -> None:
    channel = tmp_path / "channel"
    channel.mkdir()
    with tarfile.open(channel / "model.tar.gz", "w:gz") as tar:
        tar.add(model_dir / "config.json", arcname="config.json")
        tar.add(model_dir / "model.safetensors", arcname="model.safetensors")
    content = (channel / "model.tar.gz").read_bytes()
    for damaged in (content[: len(content) // 2], content[:3000] + bytes(500) + content[3500:], content[:-6]):
        (channel / "model.tar.gz").write_bytes(damaged)
        with pytest.raises(WeightsError, match="not a readable model archive"), unpacked(channel):
            pass
