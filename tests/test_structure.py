"""Imports run downward: entries -> training, evaluation, serving -> data, models -> config, classes, errors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "pspnet").rglob("*.py"))

ENTRIES = {
    "pspnet.cli.dispatch", "pspnet.cli.benchmark", "pspnet.cli.data", "pspnet.cli.evaluate", "pspnet.cli.export",
    "pspnet.cli.import_weights", "pspnet.cli.predict", "pspnet.cli.report", "pspnet.cli.serve", "pspnet.cli.stream",
    "pspnet.cli.train", "pspnet.training.launch", "train", "inference", "sagemaker_entry",
}  # fmt: skip
BASE = {"pspnet", "pspnet.system.cpu", "pspnet.errors", "pspnet.system.atomic_files"}
SETTINGS = {
    "pspnet.classes", "pspnet.config.schema", "pspnet.config.rules", "pspnet.config.parsing", "pspnet.config.values",
    "pspnet.system.sagemaker_job", "pspnet.system.locations",
}  # fmt: skip
# What the modules of each folder may import of the project, besides their own folder.
ALLOWED = {
    "models": BASE,
    "benchmarking": BASE | {"pspnet.data", "pspnet.models"},
    "data": BASE | {"pspnet.classes"},
    "evaluation": BASE | {"pspnet.classes", "pspnet.data", "pspnet.models"},
    "export": BASE
    | {
        "pspnet.classes",
        "pspnet.data",
        "pspnet.models",
        "pspnet.evaluation",
        "pspnet.inference.runtimes",
        "pspnet.serving",
    },
    "reporting": BASE | {"pspnet.classes", "pspnet.data", "pspnet.evaluation"},
    "runtimes": BASE | {"pspnet.models"},
    "serving": BASE | SETTINGS | {"pspnet.data", "pspnet.models", "pspnet.evaluation", "pspnet.inference.runtimes"},
    "stream": BASE | {"pspnet.classes", "pspnet.data", "pspnet.serving"},
    "training": BASE | SETTINGS | {"pspnet.data", "pspnet.models", "pspnet.evaluation", "pspnet.serving"},
}
# The only modules that may see a Config; everything else takes plain arguments.
CONFIG_READERS = {"config_checks", "config_sources", "entry", "loop", "network", "setup", "results", "artifact"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Project modules that a file imports anywhere in it, except for type checking only."""
    found = set()
    tree = ast.parse(path.read_text())
    type_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = ROOT / Path(*node.module.split(".")) / f"{alias.name}.py"
                found.add(f"{node.module}.{alias.name}" if inner.is_file() else node.module)
    return {name for name in found if name.split(".")[0] in ("pspnet", "train", "inference", "sagemaker_entry")}


def within(name: str, allowed: set[str]) -> bool:
    return name in allowed or any(name.startswith(f"{prefix}.") for prefix in allowed - BASE)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_run_downward(path: Path) -> None:
    name = module_name(path)
    folder = name.split(".")[1] if name.count(".") >= 1 else ""
    if folder in ALLOWED:
        allowed = ALLOWED[folder] | {f"pspnet.{folder}"}
        wrong = {target for target in imports_of(path) if not within(target, allowed)}
        assert not wrong, f"{name} may not import {sorted(wrong)}"
    elif name not in ENTRIES and name != "pspnet":
        wrong = {target for target in imports_of(path) if not within(target, BASE | SETTINGS)}
        assert not wrong, f"{name} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_imports_an_entry(path: Path) -> None:
    if module_name(path) not in ENTRIES:
        assert not imports_of(path) & ENTRIES


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_only_a_few_modules_see_a_config(path: Path) -> None:
    if "pspnet.config.schema" in imports_of(path):
        assert path.stem in CONFIG_READERS


def test_there_is_no_utils_module() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_settings_doctor_and_preparation_need_no_torch() -> None:
    code = (
        "import sys, pspnet.cli.train, pspnet.cli.dispatch, pspnet.config.parsing\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'albumentations' not in sys.modules and 'segmentation_models_pytorch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
