"""Rules of the layout that import-linter does not express. The import directions are in pyproject.toml."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pspnet", "sagemaker_entry", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# The only modules that may see a Config; everything else takes plain arguments.
CONFIG_READERS = {
    "pspnet", "pspnet.artifact.model_directory", "pspnet.cli.train", "pspnet.config", "pspnet.config.parsing",
    "pspnet.config.reference", "pspnet.config.rules", "pspnet.training.loop", "pspnet.training.network",
    "pspnet.training.results", "pspnet.training.setup", "pspnet.training.train",
}  # fmt: skip
# Names of commands and of roles that every family of modules has.
SHARED_NAMES = {"__init__", "__main__", "base", "factory"} | {path.stem for path in (ROOT / "pspnet/cli").glob("*.py")}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_config(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(
        (isinstance(node, ast.ImportFrom) and node.module in ("pspnet.config", "pspnet.config.schema"))
        or (isinstance(node, ast.Import) and any(alias.name == "pspnet.config.schema" for alias in node.names))
        for node in ast.walk(tree)
    )


@pytest.mark.slow
def test_only_a_few_modules_see_a_config() -> None:
    readers = {module_name(path) for path in FILES if path.parts[-2:] and imports_config(path)}
    assert {name for name in readers if name.startswith("pspnet")} <= CONFIG_READERS


def test_there_is_no_utils_module() -> None:
    assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_settings_doctor_and_preparation_need_no_torch() -> None:
    code = (
        "import sys, pspnet, pspnet.cli.train, pspnet.cli.dispatch, pspnet.config.parsing\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'albumentations' not in sys.modules and 'segmentation_models_pytorch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_a_folder_has_at_most_fourteen_modules() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for path in FILES:
        folders[path.parent] += 1
    assert not {str(folder): count for folder, count in folders.items() if count > 14}
    assert {path.stem for path in (ROOT / "pspnet").glob("*.py")} == {"__init__", "__main__", "classes", "errors"}


def test_a_module_name_stands_for_one_subject() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        if path.stem not in SHARED_NAMES:
            places[path.stem].append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}
