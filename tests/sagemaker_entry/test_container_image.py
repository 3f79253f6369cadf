"""Custom container without Docker: parse its steps, do them in a private folder, start its command and query it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pspnet import Predictor
from pspnet.client.transport import EndpointError
from sagemaker_entry import EndpointPredictor
from tests.sagemaker_entry.hosting.hosting_fixtures import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "sagemaker_entry" / "docker"


@dataclass
class Stage:
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        return [text for name, text in self.steps if name == instruction]


def read_stages() -> dict[str, Stage]:
    """Return the instructions of every stage of the Dockerfile, continuation lines joined."""
    text = (DOCKER / "Dockerfile").read_text()
    lines = "\n".join(line for line in text.split("\n") if not line.startswith("#")).replace("\\\n", " ").split("\n")
    stages: dict[str, Stage] = {}
    for line in filter(None, map(str.strip, lines)):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages[alias] = Stage(base)
        elif stages:
            list(stages.values())[-1].steps.append((name, " ".join(rest.split())))
    return stages


def pinned() -> dict[str, str]:
    """Return name -> version of both requirements files."""
    lines = [
        line
        for name in ("requirements.txt", "requirements-torch.txt")
        for line in (DOCKER / name).read_text().split("\n")
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+", line) for line in lines), lines
    return dict(line.split("==") for line in lines)


def test_the_stages_and_who_runs_them() -> None:
    stages = read_stages()
    assert list(stages) == ["packages", "base", "server", "sagemaker"]
    assert stages["server"].of("USER") == ["10001"]
    # SageMaker's requirements of a container: the argument serve, port 8080, root, signals to the process.
    assert stages["sagemaker"].base == "base"
    assert not stages["sagemaker"].steps
    assert json.loads(stages["base"].of("ENTRYPOINT")[0]) == ["python", "-m", "pspnet.cli"]
    assert json.loads(stages["base"].of("CMD")[0]) == ["serve"]
    assert stages["base"].of("EXPOSE") == ["8080"]


def test_copied_files_exist_and_are_not_ignored() -> None:
    allowed = [
        line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().split("\n") if line.startswith("!")
    ]
    sources = [
        source
        for stage in read_stages().values()
        for text in stage.of("COPY")
        if not text.startswith("--from=")
        for source in text.split()[:-1]
    ]
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / source).exists() for source in sources)


def test_the_files_have_no_index_url_and_no_secret() -> None:
    for path in DOCKER.iterdir():
        assert not re.search(r"https?://(?!127\.0\.0\.1)|password|secret|token", path.read_text(), re.IGNORECASE), path


def test_every_version_is_pinned_within_the_packages_bounds() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if sys.version_info < (3, 11):
        pytest.skip("needs tomllib")
    import tomllib

    versions = pinned()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    for requirement in map(Requirement, declared):
        name = canonicalize_name(requirement.name)
        if name in versions:
            assert requirement.specifier.contains(versions[name]), name
    assert {"torch", "numpy", "pillow", "safetensors", "starlette", "uvicorn", "pyyaml"} <= set(versions)


@pytest.mark.slow
def test_the_pinned_versions_can_be_installed_together() -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    command = [uv, "pip", "compile", "--quiet", "--python-version", "3.12", "--python-platform", "linux"]
    command += ["--no-header", "--no-annotate"]
    files = [str(DOCKER / "requirements.txt"), str(DOCKER / "requirements-torch.txt")]
    result = subprocess.run([*command, *files], capture_output=True, text=True, timeout=300)
    if result.returncode and re.search(r"connect|dns|network|offline|timed out", result.stderr, re.IGNORECASE):
        pytest.skip("the package index cannot be reached")
    assert result.returncode == 0, result.stderr
    resolved = {line.split("==")[0] for line in result.stdout.split("\n") if "==" in line}
    # The only additional packages are those of torch's CUDA wheel.
    assert not [name for name in resolved - set(pinned()) if not name.startswith(("nvidia-", "cuda-", "triton"))]


_GUARD = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} in the container", name=name)
sys.meta_path.insert(0, Missing())
"""


def stage_container(folder: Path) -> None:
    """Stage the files of the COPY steps, and block packages of this environment that the container lacks."""
    source, _, target = read_stages()["packages"].of("COPY")[1].partition(" ")
    assert (source, target) == ("pspnet", "/opt/pspnet/pspnet")
    shutil.copytree(ROOT / source, folder / "pspnet", ignore=shutil.ignore_patterns("__pycache__"))
    there = {_normal(name) for name in pinned()}

    def brings(distribution: str) -> bool:
        return _normal(distribution) in there or _normal(distribution).startswith(("nvidia-", "cuda-", "triton"))

    found = packages_distributions().items()
    # The package itself may be installed here too; the container has the staged one.
    blocked = {module for module, distributions in found if not any(map(brings, distributions))} - {"pspnet"}
    assert {"pytest", "cv2"} <= blocked
    (folder / "sitecustomize.py").write_text(_GUARD.replace("BLOCKED", repr(blocked)))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_ping(url: str, process: subprocess.Popen[str], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.3)
    pytest.fail("the container's command did not answer /ping")


@pytest.mark.slow
def test_the_containers_command_answers_with_only_the_pinned_packages(tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="starlette is not installed: pip install 'pspnet[serve]'")
    model, app, port = save_tiny_model(tmp_path / "model"), tmp_path / "opt", free_port()
    app.mkdir()
    stage_container(app)
    base = read_stages()["base"]
    variables = dict(pair.split("=", 1) for text in base.of("ENV") for pair in text.split())
    assert variables["PSPNET_HOST"] == "0.0.0.0"
    assert variables["PSPNET_MODEL_DIR"] == "/opt/ml/model"
    variables |= {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(app), "PSPNET_HOST": "127.0.0.1", "PSPNET_PORT": str(port),
        "PSPNET_MODEL_DIR": str(model), "PSPNET_WARMUP_SIZE": "64x48", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path),
    }  # fmt: skip
    command = [*json.loads(base.of("ENTRYPOINT")[0]), *json.loads(base.of("CMD")[0])]
    assert command[0] == "python"
    process = subprocess.Popen(
        [sys.executable, *command[1:]], cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for_ping(url, process)
        image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        with EndpointPredictor(url) as predictor:
            mask = predictor(image)
            np.testing.assert_array_equal(mask, Predictor.load(model)(Image.fromarray(image)))
            np.testing.assert_array_equal(predictor.probabilities(image).argmax(axis=0), mask)
            assert predictor.summary(image)["width"] == 64
            with pytest.raises(EndpointError, match=r"answered 400: The body is not a readable JPEG, PNG or WebP"):
                predictor(b"\xff\xd8\xff\xe0 but no more")
        check = json.loads(base.of("HEALTHCHECK")[0].partition(" CMD ")[2])
        assert subprocess.run([sys.executable, *check[1:]], env=variables, timeout=60).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.communicate()
    stopped = {**variables, "PSPNET_PORT": str(free_port())}
    assert subprocess.run([sys.executable, *check[1:]], env=stopped, stderr=subprocess.DEVNULL, timeout=60).returncode
