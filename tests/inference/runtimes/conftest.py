"""Model directories small enough for tests that export and compile."""

from __future__ import annotations

from pathlib import Path

import pytest

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.config.schema import Config
from pspnet.models.build import build_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSPNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A model of three classes; its exports in these tests are other graphs (see tiny_exports)."""
    config = Config(num_classes=3, data="x", width=4, use_pretrained_model=False)
    save_artifact(tmp_path / "model", build_model(**architecture_of(config)), config, {}, {})
    return tmp_path / "model"
