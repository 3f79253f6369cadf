"""Rules between settings: missing folders, settings that exclude each other, and doubtful combinations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from pspnet.config.fields import BASIC_BACKBONES, Fields
from pspnet.config.folders import CHANNELS, REQUIRED_CHANNELS, SHAPES
from pspnet.config.problems import InvalidConfigError, Problem
from pspnet.config.settings import settings_of
from pspnet.config.values import show
from pspnet.models.zoo import find_published, name_hint


def check_channels(config: Fields, sources: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError that lists every missing data folder, with its key and source."""
    sources, problems = dict(sources or {}), []
    if config.data and config.data != SHAPES and not os.path.isdir(config.data) and "train" in config.derived():
        problems.append(_missing_folder("data", config.data))
    for key in CHANNELS:
        folder = getattr(config, key)
        if folder is None or os.path.isdir(folder) or (key == "model" and find_published(folder) is not None):
            continue
        if key in config.derived():
            if problems and problems[0].key == "data":
                continue  # one line for their common parent
            sources[key] = f"from data, {sources['data']}" if "data" in sources else "from data"
        problems.append(_missing_folder(key, folder))
    if problems:
        raise InvalidConfigError(problems, sources)


def _missing_folder(key: str, folder: str) -> Problem:
    if os.path.exists(folder):
        return Problem(key, f"{show(folder, 200)} is a file", "give the folder that holds the images")
    fix = "give an existing folder"
    if key == "model" and os.path.basename(folder) == folder:
        fix += f" or the name of a published model; {name_hint(folder)}"
    return Problem(key, f"no such folder: {show(folder, 200)}", fix)


def cross_problems(config: Fields) -> Iterator[Problem]:
    """Problems of settings that exclude each other."""
    yield from _channel_problems(config)
    yield from _network_problems(config)
    yield from _class_problems(config)
    if config.lr_scheduler == "step" and not config.lr_scheduler_step:
        yield Problem("lr_scheduler_step", "missing", 'lr_scheduler step needs it, such as "10, 20"', ("lr_scheduler",))
    if config.optimizer == "nag" and config.momentum == 0:
        yield Problem("momentum", "found 0", "optimizer nag needs a value above 0; sgd accepts 0", ("optimizer",))
    if config.scale_min > config.scale_max:
        found = f"found {config.scale_min:g}, above scale_max {config.scale_max:g}"
        yield Problem("scale_min", found, "give a value of at most scale_max", ("scale_max",))
    if not config.augmentation_window and not config.augmentation:
        fix = "give a pipeline that replaces the window with augmentation, or use True"
        yield Problem("augmentation_window", "found False without augmentation", fix, ("augmentation",))
    if config.device == "cpu" and config.precision == "float16":
        yield Problem("precision", "found 'float16' with device cpu", "float16 needs a GPU; use float32", ("device",))
    if config.compile is not False and config.gradient_checkpointing:
        fix = "torch.compile does not support it: use one of them"
        yield Problem("gradient_checkpointing", f"found True with compile {config.compile}", fix, ("compile",))
    if config.micro_batch_size is not None and config.syncbn:
        fix = "syncbn needs the statistics of the full mini-batch: use one of them"
        yield Problem("micro_batch_size", f"found {show(config.micro_batch_size)} with syncbn True", fix, ("syncbn",))


def _channel_problems(config: Fields) -> Iterator[Problem]:
    given = [key for key in REQUIRED_CHANNELS if getattr(config, key) is not None]
    if config.data is None and not given:
        fix = (
            f"give --data FOLDER with {', '.join(REQUIRED_CHANNELS)}, a flag for each of these, "
            "SM_CHANNEL_* in the environment, or --data shapes for the built-in synthetic set"
        )
        yield Problem("data", "missing", fix, REQUIRED_CHANNELS)
    elif given or config.data != SHAPES:
        unused = " (data shapes is not used when other channels are given)" if config.data == SHAPES else ""
        for key in REQUIRED_CHANNELS:
            if key not in given:
                fix = f"give --{key} FOLDER or SM_CHANNEL_{key.upper()}{unused}"
                yield Problem(key, "missing", fix, ("data",))


def _network_problems(config: Fields) -> Iterator[Problem]:
    if config.crop_size < 32:
        fix = f"algorithm {config.algorithm} needs at least 32"
        yield Problem("crop_size", f"found {config.crop_size}", fix, ("algorithm",))
    if config.algorithm != "psp":
        yield from _torchvision_problems(config)
        return
    others = ("use_pretrained_model", "pretrained_weights")
    from_torchvision = config.use_pretrained_model and config.pretrained_weights.startswith("IMAGENET")
    if from_torchvision and config.stem != "conv7":
        fix = (
            "torchvision has no weights for it: use stem conv7, use_pretrained_model False, or a file of weights "
            "with pretrained_weights"
        )
        yield Problem("stem", f"found {config.stem!r} with use_pretrained_model True", fix, others)
    if config.use_pretrained_model and config.width != 64:
        fix = "the published weights have width 64: use that, or use_pretrained_model False"
        yield Problem("width", f"found {config.width} with use_pretrained_model True", fix, ("use_pretrained_model",))
    if from_torchvision and config.backbone in BASIC_BACKBONES and config.pretrained_weights != "IMAGENET1K_V1":
        fix = f"torchvision has only IMAGENET1K_V1 for {config.backbone}: use that, or a file of weights"
        yield Problem("pretrained_weights", f"found {show(config.pretrained_weights)}", fix, ("backbone",))


def _torchvision_problems(config: Fields) -> Iterator[Problem]:
    """Settings that torchvision's networks do not support."""
    fields = settings_of(type(config))
    if config.backbone in BASIC_BACKBONES:
        fix = "torchvision's networks dilate only resnet-50 and resnet-101: use one of them, or algorithm psp"
        yield Problem("backbone", f"found {config.backbone} with algorithm {config.algorithm}", fix, ("algorithm",))
    unused = {"contract_dilation": False, "dilate_both": True}  # written by runs of these networks
    for key in (
        "stem", "output_stride", "align_corners", "contract_dilation", "dilations", "dilate_both", "width", "dropout",
    ):  # fmt: skip
        value = getattr(config, key)
        if value not in (fields[key].default, unused.get(key, fields[key].default)):
            fix = f"torchvision's network does not support it: remove {key}, or use algorithm psp"
            yield Problem(key, f"found {show(value)} with algorithm {config.algorithm}", fix, ("algorithm",))


def _class_problems(config: Fields) -> Iterator[Problem]:
    classes = config.num_classes
    if config.class_names is not None and len(config.class_names) != classes:
        found = f"found {len(config.class_names)} names with num_classes {classes}"
        yield Problem("class_names", found, "give one name per class, in the order of the class ids", ("num_classes",))
    if config.class_weights is not None and len(config.class_weights) != classes:
        found = f"found {len(config.class_weights)} weights with num_classes {classes}"
        yield Problem(
            "class_weights", found, "give one weight per class, in the order of the class ids", ("num_classes",)
        )
    if config.class_weights is not None and config.loss not in ("cross_entropy", "ohem"):
        fix = "only cross_entropy and ohem support class weights: remove class_weights or change loss"
        yield Problem("class_weights", f"given with loss {config.loss}", fix, ("loss",))


def config_warnings(config: Fields) -> list[str]:
    """Warnings about settings that are valid but probably a mistake, one sentence each."""
    return [*_schedule_warnings(config), *_unused_warnings(config), *_data_warnings(config)]


def _schedule_warnings(config: Fields) -> Iterator[str]:
    if config.early_stopping and config.early_stopping_min_epochs >= config.epochs:
        yield (
            f"early_stopping has no effect: early_stopping_min_epochs {config.early_stopping_min_epochs} "
            f"is not below epochs {config.epochs}."
        )
    elif config.early_stopping and config.early_stopping_patience >= config.epochs:
        yield (
            f"early_stopping has no effect: early_stopping_patience {config.early_stopping_patience} "
            f"is not below epochs {config.epochs}."
        )
    late = [step for step in config.lr_scheduler_step or () if step >= config.epochs]
    if config.lr_scheduler == "step" and late:
        yield f"lr_scheduler_step {', '.join(map(str, late))} is beyond the last of {config.epochs} epochs."
    if config.warmup_epochs >= config.epochs:
        yield (
            f"warmup_epochs {config.warmup_epochs:g} covers all {config.epochs} epochs: the run ends before "
            "learning_rate is reached."
        )
    if config.validate_every > config.epochs:
        yield f"validate_every {config.validate_every} is above epochs {config.epochs}: only the last epoch is scored."
    if config.deterministic and config.compile is True:
        yield "compile may change results between runs, which deterministic forbids: use one of them."


def _unused_warnings(config: Fields) -> Iterator[str]:
    """Warnings about changed settings that have no effect with the value of another one."""
    readers: dict[str, dict[str, tuple[object, ...]]] = {
        "optimizer": {
            "momentum": ("sgd", "nag"),
            "weight_decay": ("sgd", "nag"),
            "gamma1": ("rmsprop",),
            "gamma2": ("rmsprop",),
        },
        "lr_scheduler": {"lr_scheduler_factor": ("step",), "lr_scheduler_step": ("step",), "poly_power": ("poly",)},
        "loss": {"ohem_threshold": ("ohem",), "ohem_min_kept": ("ohem",)},
        "early_stopping": {
            f"early_stopping_{part}": (True,) for part in ("min_epochs", "patience", "tolerance")
        },
        "use_pretrained_model": {"pretrained_weights": (True,)},
        "augmentation_window": dict.fromkeys(("scale_min", "scale_max", "flip", "rotation"), (True,)),
    }  # fmt: skip
    for switch, keys in readers.items():
        chosen = getattr(config, switch)
        for key, used_by in keys.items():
            if chosen not in used_by and getattr(config, key) != settings_of(type(config))[key].default:
                yield f"{key} is not used with {switch} {chosen}; it is read with {' and '.join(map(str, used_by))}."


def _data_warnings(config: Fields) -> Iterator[str]:
    if config.augmentation_window and config.crop_size > config.base_size * config.scale_max:
        yield (
            f"crop_size {config.crop_size} is above base_size {config.base_size} x scale_max {config.scale_max:g}: "
            "every crop is padded."
        )
    if config.data is not None and config.train is not None and not set(REQUIRED_CHANNELS) & set(config.derived()):
        yield f"data {config.data} is not used: every channel is given explicitly (a flag, the file or SM_CHANNEL_*)."
    if config.train is not None and config.train == config.validation:
        yield f"train and validation are the same folder {config.train}: the scores do not measure generalisation."
    if config.ignore < config.num_classes:
        yield f"ignore {config.ignore} is a class id (num_classes {config.num_classes}): that class is never learned."
