"""Config from files and flags: spellings, precedence and error messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pspnet.config.parsing import load_config, parse_arguments
from pspnet.config.schema import Config
from pspnet.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = ["--num_classes", "3", "--data", "x"]


def parse(*argv: str, **env: str) -> Config:
    return parse_arguments([*BASE, *argv], env).config


def problems_of(argv: list[str], **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(argv, env)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def write(folder: Path, text: str, name: str = "job.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- flags


@pytest.mark.parametrize(
    "argv",
    [
        ["--learning_rate", "1e-4"],
        ["--learning-rate", "1e-4"],
        ["--learning_rate=1e-4"],
        ["--learning-rate=0.0001"],
        ["--learning_rate", "0.5", "--learning-rate", "1e-4"],
    ],
)
def test_flag_spellings(argv: list[str]) -> None:
    assert parse(*argv).learning_rate == 0.0001


def test_boolean_flag_needs_no_value() -> None:
    assert parse("--early_stopping").early_stopping is True
    assert parse("--early-stopping", "--epochs", "3").early_stopping is True
    assert parse("--early_stopping", "False").early_stopping is False
    assert parse("--early_stopping=false").early_stopping is False


def test_values_that_look_like_flags() -> None:
    assert problems_of([*BASE, "--rotation", "-5"]) == [
        "rotation: found '-5' (flag --rotation); allowed: a number from 0 to 45"
    ]
    assert parse("--output_dir=--odd").output_dir == "--odd"
    assert parse("--class_names=a=1,b=2,c=3").class_names == ("a=1", "b=2", "c=3")


def test_flag_without_a_value() -> None:
    assert problems_of(["--data", "x", "--num_classes", "--epochs"]) == [
        "num_classes: flag --num_classes has no value; allowed: a whole number from 2 to 254",
        "epochs: flag --epochs has no value; allowed: a whole number, at least 1",
    ]
    assert problems_of(["--num_classes", "3", "--data"]) == [
        "data: flag --data has no value; allowed: a folder, or shapes for the built-in synthetic set"
    ]


def test_positional_arguments_are_problems() -> None:
    fix = "settings are given as --key value, a config file as --config FILE"
    assert problems_of(["job.yaml", *BASE, "-e", "3", "--epochs", "3", "4"]) == [
        f"command line: unexpected 'job.yaml'; {fix}",
        f"command line: unexpected '-e'; {fix}",
        f"command line: unexpected '3'; {fix}",
        f"command line: unexpected '4'; {fix}",
    ]


def test_unknown_flag_suggests_the_nearest() -> None:
    assert problems_of([*BASE, "--lerning-rate", "0.1", "--crop", "--lr=3"]) == [
        "lerning_rate: unknown key (flag --lerning-rate); did you mean learning_rate?",
        "crop: unknown key (flag --crop); did you mean crop_size?",
        "lr: unknown key (flag --lr); did you mean learning_rate?",
    ]


def test_sources_of_values() -> None:
    arguments = parse_arguments([*BASE, "--learning-rate=0.1", "--epochs", ""], {"SM_MODEL_DIR": "/m"})
    assert arguments.sources == {
        "num_classes": "flag --num_classes",
        "data": "flag --data",
        "learning_rate": "flag --learning-rate",
        "model_dir": "environment SM_MODEL_DIR",
        "checkpoint_dir": "environment SM_MODEL_DIR",
    }


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_takes_precedence_over_errors(flag: str) -> None:
    arguments = parse_arguments(["--nonsense", "1", flag], {})
    assert arguments.help_requested
    assert arguments.checked is None
    with pytest.raises(AssertionError, match="help was requested"):
        _ = arguments.config


@pytest.mark.parametrize("flag", ["--print_config", "--print-config", "--print_config=True"])
def test_print_config(flag: str) -> None:
    arguments = parse_arguments([*BASE, flag], {})
    assert arguments.print_config
    assert not arguments.help_requested
    assert arguments.config == parse()
    assert parse_arguments(BASE, {}).print_config is False


def test_print_config_with_a_value() -> None:
    assert problems_of([*BASE, "--print_config", "job.yaml"]) == ["--print_config: found 'job.yaml'; it takes no value"]


# ---- files


def test_flags_replace_file_values_in_any_order(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 4\ndata: there\nepochs: 7\nseed: 1\n")
    for argv in (
        ["--config", file, "--epochs", "8"],
        ["--epochs", "8", "--config", file],
        ["--epochs=8", f"--config={file}"],
    ):
        arguments = parse_arguments(argv, {})
        config = arguments.config
        assert (config.num_classes, config.epochs, config.seed, config.mini_batch_size) == (4, 8, 1, 16)
        assert arguments.config_file == Path(file)
        assert arguments.sources["epochs"] == "flag --epochs"
        assert arguments.sources["seed"] == f"{file}, line 4"


def test_empty_flag_restores_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 4\ndata: there\nepochs: 7\n")
    assert parse_arguments(["--config", file, "--epochs", ""], {}).config.epochs == 10


def test_file_values_are_parsed_like_flags(tmp_path: Path) -> None:
    text = """
num-classes: 3        # hyphens work here too
data: "my data"
learning_rate: 1e-4
epochs: 012
syncbn: yes
early_stopping: True
deterministic: 1
lr_scheduler: step
lr_scheduler_step: 10, 20
class_weights: [1, 2.5, 1e-3]
class_names:
  - no
  - sky, blue
  - 1.0
workers: '2'
label_map:
model: ~
momentum: null
"""
    config = load_config(write(tmp_path, text))
    assert (config.num_classes, config.data, config.learning_rate, config.epochs) == (3, "my data", 0.0001, 12)
    assert (config.syncbn, config.early_stopping, config.deterministic) == (True, True, True)
    assert config.lr_scheduler_step == (10, 20)
    assert config.class_weights == (1.0, 2.5, 0.001)
    assert config.class_names == ("no", "sky, blue", "1.0")
    assert (config.workers, config.label_map, config.model, config.momentum) == (2, None, None, 0.9)


def test_file_and_flag_problems_together(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 1\nlerning_rate: 3\ndata: x\nseed: {a: 1}\nepochs: [1, [2]]\n")
    assert problems_of(["--config", file, "--optimizer", "SDG"]) == [
        f"lerning_rate: unknown key ({file}, line 2); did you mean learning_rate?",
        f"num_classes: found '1' ({file}, line 1); allowed: a whole number from 2 to 254",
        f"epochs: found ['1', {{}}] ({file}, line 5); allowed: a whole number, at least 1",
        "optimizer: found 'SDG' (flag --optimizer); allowed: sgd, adam, adagrad, nag or rmsprop. Did you mean sgd?",
        f"seed: found {{}} ({file}, line 4); allowed: a whole number from 0 to 4294967295",
    ]


def test_run_name_comes_from_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 3\ndata: x\n", "my job (2).yaml")
    config = load_config(file)
    assert (config.name, config.model_dir) == ("my-job-2-", "runs/my-job-2-/model")
    assert load_config(file, {"name": "other"}).output_dir == "runs/other"
    assert load_config(write(tmp_path, "num_classes: 3\ndata: x\nname: own\n")).name == "own"
    assert parse().name == "run"


def test_missing_file() -> None:
    assert problems_of(["--config", "no/such.yaml", "--epochs"]) == [
        "epochs: flag --epochs has no value; allowed: a whole number, at least 1",
        "--config: cannot read no/such.yaml: No such file or directory; give the name of an existing YAML file",
    ]


@pytest.mark.parametrize("argv", [["--config"], ["--config", ""], ["--config="], ["--config", "--epochs", "3"]])
def test_config_without_a_name(argv: list[str]) -> None:
    assert problems_of(argv) == ["--config: has no value; give the name of a YAML file"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- epochs: 3\n", "contains a list"),
        (b"just words\n", "contains a text"),
        (b"epochs: 3\nseed: [1, 2\n", r"is not valid YAML, line 3, column 1: expected ',' or '\]'"),
        (b"epochs: 3\n\tseed: 1\n", "is not valid YAML, line 2, column 1"),
        (b"epochs: 3\n---\nepochs: 4\n", "is not valid YAML, line 2, column 1: but found another document"),
        (b"name: \xff\xfe\n", "is not valid YAML: it is not UTF-8 text"),
        (b"name: \x01\n", "is not valid YAML: unreadable characters"),
        (b'name: "\\UFFFFFFFF"\n', "is not valid YAML: unreadable characters"),
        (b"a: " + b"[" * 5000, "is not valid YAML"),
    ],
    ids=["empty", "comment", "list", "text", "bracket", "tab", "documents", "encoding", "control", "escape", "deep"],
)
def test_files_without_settings(tmp_path: Path, content: bytes, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    (line,) = problems_of(["--config", str(file)])
    assert re.match(rf'--config: {re.escape(str(file))} {text}.*; write one "key: value" per line$', line)


def test_folder_as_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--config: cannot read {re.escape(str(tmp_path))}: Is a directory"):
        load_config(tmp_path)


def test_key_twice_in_a_file(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 3\nlearning_rate: 0.1\ndata: x\nlearning-rate: 0\n")
    assert problems_of(["--config", file]) == [
        f"learning_rate: given twice in {file}, on lines 2 and 4 ({file}, line 4); keep one of them",
        f"learning_rate: found '0' ({file}, line 4); allowed: a number, greater than 0 and at most 1",
    ]
    good = write(tmp_path, "num_classes: 3\ndata: x\ndata: y\n")
    assert len(problems_of(["--config", good])) == 1


def test_yaml_tags_are_not_evaluated(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 3\ndata: x\nname: !!python/object/apply:os.getcwd []\n")
    assert load_config(file).name == "job"
    file = write(tmp_path, "num_classes: 3\ndata: x\nclass_names: &a [*a]\n")
    assert problems_of(["--config", file])[0].startswith("class_names: found [{}]")


def test_byte_order_mark_and_windows_line_endings(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(b"\xef\xbb\xbfnum_classes: 3\r\ndata: x\r\n")
    assert load_config(file).num_classes == 3


def test_default_file_is_read_only_without_other_settings(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 3\ndata: shapes\n", "quickstart.yaml")
    arguments = parse_arguments([], {}, default_file=file)
    assert (arguments.config.name, arguments.config_file) == ("quickstart", Path(file))
    assert parse_arguments(["--print_config"], {}, default_file=Path(file)).config.synthetic
    assert parse_arguments(BASE, {}, default_file=file).config_file is None
    with pytest.raises(ConfigError, match="num_classes: missing"):
        parse_arguments(["--epochs", "3"], {}, default_file=file)
    with pytest.raises(ConfigError, match="num_classes: missing"):
        parse_arguments([], {"SM_CHANNEL_TRAIN": "/t"}, default_file=file)


def test_load_config_overrides(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 3\ndata: x\n")
    assert load_config(file, {"learning-rate": 0.5, "epochs": "2"}).epochs == 2
    assert load_config(overrides={"num_classes": 3, "data": "x"}) == Config(num_classes=3, data="x")
    with pytest.raises(ConfigError, match=r"epochs: found 0 \(override\); allowed: a whole number, at least 1"):
        load_config(file, {"epochs": 0})
