"""Reference of the settings: help text, YAML round trip, documentation and recipes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pspnet.cli.data import ArchiveSettings, PrepareSettings, ShapesSettings, VocSettings
from pspnet.config.command_line import parse_settings
from pspnet.config.parsing import Arguments, load_config, parse_arguments
from pspnet.config.reference import dump_yaml, help_text, markdown_table
from pspnet.config.schema import Config
from pspnet.config.settings import settings_of
from pspnet.errors import ConfigError

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str, name: str = "job.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_help_lists_every_key_within_100_columns() -> None:
    text = help_text()
    assert max(map(len, text.splitlines())) <= 100
    for key, field in settings_of(Config).items():
        assert f"\n  --{key}: " in text
        assert field.description is not None
        assert field.description.endswith(".")
        assert f"\n      {field.description}\n" in text
    assert "\n  --num_classes: required; a whole number from 2 to 254\n" in text
    assert "\n  --learning_rate: default 0.001; a number, greater than 0 and at most 1\n" in text
    assert "\n  --model_dir: default runs/<name>/model; a folder\n" in text
    for flag in ("--config FILE", "--print_config", "--help"):
        assert f"\n  {flag} " in text


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": "shapes", "name": "a.b-c"},
        {"learning_rate": 1e-05, "clip_grad_norm": 1e22, "seed": 2**32 - 1, "workers": 0},
        {"class_names": ["null", "a, b", "x: y # z"], "class_weights": [0.1, 1 / 3, 2]},
        {"class_names": ["ä", "[", "'"], "lr_scheduler": "step", "lr_scheduler_step": 4},
        {"data": "C:\\odd: folder # 1\n", "train": "10", "output_dir": "true", "resume": "a 'b' \"c\""},
        {"model_dir": "elsewhere", "validation": "other", "compile": True},
    ],
)
def test_dump_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = Config(**{"num_classes": 3, "data": "x", **changes})
    text = dump_yaml(config)
    assert load_config(write(tmp_path, text, "dumped.yaml")) == config


def test_dump_has_every_key_and_marks_derived_folders() -> None:
    text = dump_yaml(Config(num_classes=3, data="x", validation="other", model_dir="m"))
    assert re.findall(r"^(?:# )?(\w+): ", text, re.MULTILINE) == list(settings_of(Config))
    assert "\n# train: 'x/train'  (derived from data)\n" in text
    assert "\n# output_dir: 'runs/run'  (derived from name)\n" in text
    assert "\nvalidation: other\n" in text
    assert "\nmodel_dir: m\n" in text
    assert "\nlearning_rate: 0.001\n" in text


def test_derived_folders_of_a_dump_follow_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, dump_yaml(Config(num_classes=3, data="x")))
    config = load_config(file, {"data": "y", "name": "second"})
    assert (config.train, config.model_dir) == ("y/train", "runs/second/model")


def test_documentation_is_current() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    written = re.search(r"<!-- keys: [^\n]*-->\n\n(.*)\n<!-- end of keys -->", text, re.DOTALL)
    assert written is not None
    assert written.group(1) == markdown_table(), (
        "put markdown_table()'s text between the marks in docs/configuration.md"
    )


def test_documented_error_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text("num_classes: 3\ndata: x\nbackbone: resnet50\nlr_scheduler: step\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        parse_arguments(["--config", "job.yaml", "--lr", "3"], {})
    assert f"```\n{caught.value}\n```" in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: str(path.name))
def test_every_recipe_loads(file: Path) -> None:
    assert isinstance(parse_arguments(["--config", str(file), "--data", "shapes"], {}), Arguments)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: str(path.name))
def test_every_recipe_header_has_command_and_result(file: Path) -> None:
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    keys = re.findall(r"^# (\w+):  +\S", header, re.MULTILINE)
    assert keys == ["prepare", "command", "hardware", "time", "result"]
    prepared = re.search(r"pspnet (prepare .*)", header)
    if prepared is not None:  # `pspnet prepare` accepts the command line
        data_set, *flags = re.findall(r"\S+", prepared.group(1))[1:]
        kinds = {"voc": VocSettings, "cityscapes": PrepareSettings, "shapes": ShapesSettings}
        parse_settings(kinds.get(data_set, ArchiveSettings), flags, f"pspnet prepare {data_set}", "")
    assert file.name in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
