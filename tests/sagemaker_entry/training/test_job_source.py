"""Source of a training job, from a checkout and from an installed wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pspnet.errors import PspnetError
from pspnet.system import locations
from sagemaker_entry.training import job_source as source
from sagemaker_entry.training.job_source import LARGEST_SOURCE, requirements, stage_source

ROOT = Path(__file__).resolve().parents[3]


def test_the_source_is_the_package_the_scripts_and_the_configs(tmp_path: Path) -> None:
    staged = stage_source(tmp_path)
    assert staged == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    names = {str(path) for path in staged}
    assert {"train.py", "inference.py", "requirements.txt", "configs/voc2012.yaml", "pspnet/cli/train.py"} <= names
    assert {name.split("/")[0] for name in names} == {
        "train.py", "inference.py", "pyproject.toml", "requirements.txt", "configs", "pspnet",
    }  # fmt: skip
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pspnet").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith("templates/report.html") for name in package)
    assert any(name.endswith("page/page.js") for name in package)
    assert {name for name in names if name.startswith("pspnet/")} == package
    assert sum((tmp_path / name).stat().st_size for name in names) < LARGEST_SOURCE


def test_the_staged_script_runs_outside_the_checkout(tmp_path: Path) -> None:
    stage_source(tmp_path / "code")
    command = [sys.executable, "-I", "train.py", "--config", "configs/voc2012.yaml", "--data=x", "--print_config"]
    # -I leaves out the folder of the script as well, so the package is found only through PYTHONPATH's replacement.
    command[1:3] = ["-c", "import sys, runpy; sys.path.insert(0, '.'); runpy.run_path('train.py', run_name='__main__')"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(command, cwd=tmp_path / "code", env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "num_classes: 21" in result.stdout


def test_a_wheel_holds_scripts_and_configs_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "pspnet"
    (package / "scripts").mkdir(parents=True)
    (package / "configs").mkdir()
    (package.parent / "train.py").write_text("another project's")
    files = ("scripts/train.py", "scripts/inference.py", "__init__.py", "py.typed", "templates/a.html")
    for name in (*files, "__pycache__/a.pyc", "templates/.cache", ".cache/b.txt", "c.pyc"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(f"# {name}")
    shutil.copy(ROOT / "pyproject.toml", package / "scripts")
    (package / "configs" / "voc2012.yaml").write_text("num_classes: 21")
    monkeypatch.setattr(locations, "PACKAGE", package)
    monkeypatch.setattr(source, "PACKAGE", package)
    staged = stage_source(tmp_path / "job")
    assert [str(path) for path in staged] == [
        "configs/voc2012.yaml", "inference.py", "pspnet/__init__.py", "pspnet/py.typed", "pspnet/templates/a.html",
        "pyproject.toml", "requirements.txt", "train.py",
    ]  # fmt: skip
    assert (tmp_path / "job" / "train.py").read_text() == "# scripts/train.py"


def test_an_incomplete_installation_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "PACKAGE", tmp_path / "pspnet")
    with pytest.raises(PspnetError, match=r"train\.py is missing next to the package.*Install the package again"):
        stage_source(tmp_path / "job")


def test_requirements_fit_the_image(tmp_path: Path) -> None:
    stage_source(tmp_path / "old", python38=True)
    stage_source(tmp_path / "new")
    old = (tmp_path / "old" / "requirements.txt").read_text()
    new = (tmp_path / "new" / "requirements.txt").read_text()
    assert (old, new) == (requirements(True), requirements())
    assert "albumentations==1.4.18" in old
    assert "opencv-python-headless>=4.9\n" in old
    assert "albumentations==1.4.18" not in new
    for text in (old, new):
        packages = {line.split(">")[0].split("=")[0] for line in text.splitlines() if not line.startswith("#")}
        assert {"safetensors", "pyyaml", "opencv-python-headless", "albumentations", "tqdm"} <= packages
        assert not packages & {"torch", "torchvision", "numpy", "urllib3"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs tomllib")
def test_the_core_requirements_are_those_of_pyproject() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = locations.core_requirements(ROOT / "pyproject.toml")
    assert [f"{name}{bounds}" for name, bounds in found.items()] == project["dependencies"]
