"""Config on SageMaker: channels and folders from the environment, hyperparameters in both toolkits' spelling."""

from __future__ import annotations

from pathlib import Path

import pytest

from pspnet.classes import VOC_CLASSES
from pspnet.config.parsing import load_config, parse_arguments
from pspnet.config.rules import check_channels, config_warnings
from pspnet.config.schema import Config
from pspnet.errors import ConfigError

ROOT = Path(__file__).parents[2]
BASE = ["--num_classes", "3", "--data", "x"]


def parse(*argv: str) -> Config:
    return parse_arguments([*BASE, *argv], {}).config


def write(folder: Path, text: str, name: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


SAGEMAKER_ENV = {
    "SM_CHANNEL_TRAIN": "/in/train",
    "SM_CHANNEL_TRAIN_ANNOTATION": "/in/train_annotation",
    "SM_CHANNEL_VALIDATION": "/in/validation",
    "SM_CHANNEL_VALIDATION_ANNOTATION": "/in/validation_annotation",
    "SM_MODEL_DIR": "/opt/ml/model",
    "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
    "SM_NUM_GPUS": "1",
    "SM_HPS": '{"epochs": 99}',
    "SM_HP_EPOCHS": "99",
}
USERS_JOB = {
    "algorithm": "psp", "backbone": "resnet-50", "crop_size": "240", "early_stopping": "True",
    "early_stopping_min_epochs": "10", "early_stopping_patience": "2", "epochs": "10", "learning_rate": "0.0001",
    "lr_scheduler": "poly", "mini_batch_size": "16", "num_classes": "21", "optimizer": "rmsprop",
    "use_pretrained_model": "True", "validation_mini_batch_size": "16",
}  # fmt: skip
SORTED_PAIRS = [text for key, value in sorted(USERS_JOB.items()) for text in (f"--{key}", value)]


def test_a_sagemaker_job() -> None:
    config = parse_arguments(SORTED_PAIRS, SAGEMAKER_ENV).config
    assert (config.train, config.validation_annotation) == ("/in/train", "/in/validation_annotation")
    assert (config.model_dir, config.output_dir) == ("/opt/ml/model", "/opt/ml/output/data")
    assert config.checkpoint_dir == "/opt/ml/checkpoints"
    assert (config.epochs, config.learning_rate, config.optimizer) == (10, 0.0001, "rmsprop")
    assert config_warnings(config) == [
        "early_stopping has no effect: early_stopping_min_epochs 10 is not below epochs 10."
    ]


def test_both_toolkits_spellings_are_equivalent() -> None:
    toolkit = ["--early_stopping", "True", "--class_weights", "[1, 2, 3]", "--label_map", "", "--optimizer", "sgd"]
    driver = ["--optimizer", '"sgd"', "--label_map", "null", "--early_stopping", "true", "--class_weights", '"1, 2, 3"']
    assert parse(*toolkit) == parse(*driver)
    assert parse(*toolkit).class_weights == (1.0, 2.0, 3.0)


def test_hyperparameters_added_by_sagemaker_are_ignored() -> None:
    assert parse("--_tuning_objective_metric", "validation:mIOU", "--sagemaker_program", "train.py") == parse()


def test_flag_beats_file_beats_environment_beats_data(tmp_path: Path) -> None:
    file = write(tmp_path, "num_classes: 3\ndata: x\nvalidation: from_file\nmodel_dir: m\n", "a.yaml")
    env = {"SM_CHANNEL_TRAIN": "from_env", "SM_CHANNEL_VALIDATION": "unused", "SM_CHANNEL_TRAIN_ANNOTATION": "unused",
           "SM_MODEL_DIR": "unused", "SM_CHANNEL_LABEL_MAP": "", "SM_CHANNEL_MODEL": "start"}  # fmt: skip
    arguments = parse_arguments(["--train_annotation", "from_flag", "--config", file], env)
    config = arguments.config
    assert (config.train_annotation, config.validation, config.train) == ("from_flag", "from_file", "from_env")
    assert (config.validation_annotation, config.model_dir) == ("x/validation_annotation", "m")
    assert (config.label_map, config.model) == (None, "start")
    assert arguments.sources["train"] == "environment SM_CHANNEL_TRAIN"
    assert arguments.sources["model_dir"] == f"{file}, line 4"


def test_one_channel_with_all_folders() -> None:
    config = parse_arguments(["--num_classes", "3"], {"SM_CHANNEL_DATA": "/in/data"}).config
    assert config.train == "/in/data/train"


def test_missing_folders_name_the_source() -> None:
    arguments = parse_arguments(["--num_classes", "3"], {**SAGEMAKER_ENV, "SM_CHANNEL_VALIDATION": "/"})
    with pytest.raises(ConfigError) as caught:
        check_channels(arguments.config, arguments.sources)
    assert str(caught.value).splitlines()[1:] == [
        f"  {key}: no such folder: '/in/{key}' (environment SM_CHANNEL_{key.upper()}); give an existing folder"
        for key in ("train", "train_annotation", "validation_annotation")
    ]


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_CHANNEL_DATA", "/in/data")
    assert parse_arguments(["--num_classes", "3"]).config.data == "/in/data"


def test_voc2012_matches_the_users_job() -> None:
    config = load_config(ROOT / "configs" / "voc2012.yaml", {"data": "x"})
    assert (
        config
        == parse_arguments([*SORTED_PAIRS, "--data", "x", "--class_names", "voc", "--name", "voc2012"], {}).config
    )
    assert config.class_names == VOC_CLASSES
