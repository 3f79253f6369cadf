"""`pspnet models`: the list, its filter and the table of docs/models.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from pspnet.cli.dispatch import dispatch
from pspnet.models.zoo import MODELS
from pspnet.system.exit_codes import run_guarded

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PSPNET_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> int:
    return run_guarded(dispatch, ["models", *arguments])


def test_the_list_shows_which_models_are_cached(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "models" / "voc-r50-40k").mkdir(parents=True)
    (home / "models" / "voc-r50-40k" / "config.json").touch()
    assert run("VOC", "r50") == 0
    head, first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (head[0], head[-1]) == ("name", "cached")
    assert first[0] == "voc-r50-20k"
    assert " ".join(second) == (
        "voc-r50-40k voc-r50 Pascal VOC 2012 + Aug 21 PSPNet resnet-50 77.29 78.48 whole, short side 512 49.0 M "
        "Apache-2.0 yes"
    )


def test_all_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(MODELS)


def test_the_document_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--format", "markdown") == 0
    assert (ROOT / "docs" / "models.md").read_text(encoding="utf-8").endswith("\n\n" + capsys.readouterr().out)


def test_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sunrgbd") == 2
    assert "no published model matches sunrgbd; `pspnet models` lists all." in capsys.readouterr().err
    assert run("--format", "yaml") == 2
    assert "format: found 'yaml' (flag --format); allowed: text or markdown" in capsys.readouterr().err
