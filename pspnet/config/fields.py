"""Settings of a training run: type, default, bounds and description of each. Imports no torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pspnet.classes import MAX_CLASSES, NAMED_CLASS_SETS
from pspnet.config.folders import SHAPES, derived_folders
from pspnet.config.settings import Settings, setting

IMAGENET_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_V2")
"""torchvision's names of its ImageNet weights."""

BASIC_BACKBONES = ("resnet-18", "resnet-34")
"""As in pspnet.models.constants, which settings do not import."""

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
"""File name suffixes of weights."""


def _expanded(value: Any) -> Any:
    """Paths with `~` replaced by the home folder."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def _multiple_of_8(value: int) -> int:
    return -(-value // 8) * 8


def _ascending(value: tuple[int, ...]) -> tuple[int, ...]:
    if list(value) != sorted(set(value)):
        raise ValueError("not ascending")
    return value


def _pair(value: tuple[int, ...]) -> tuple[int, ...]:
    if len(value) != 2:
        raise ValueError("not two numbers")
    return value


def _weights(value: str) -> str:
    if value not in IMAGENET_WEIGHTS and not value.endswith(WEIGHT_SUFFIXES):
        raise ValueError("neither a known name nor a file of weights")
    return os.path.expanduser(value)


def _folder_name(value: str) -> str:
    # The name becomes a folder under runs/, so it must not lead anywhere else.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("not a plain name")
    return value


def known_class_names(value: tuple[str, ...]) -> tuple[str, ...]:
    """Class names, with the name of a known set replaced by its classes. Raises ValueError for repeated names."""
    names = NAMED_CLASS_SETS.get(value[0], value) if len(value) == 1 else value
    if not all(names) or len(set(names)) < len(names):
        raise ValueError("empty or repeated names")
    return names


_built_in = partial(setting, group="Hyperparameters of the built-in algorithm")
_channel = partial(setting, group="Data channels", check=_expanded)
_network = partial(setting, group="Network")
_output = partial(setting, group="Outputs", check=_expanded)
_training = partial(setting, group="Training")
_augment = partial(setting, group="Augmentation")
_control = partial(setting, group="Run control")


@dataclass(frozen=True, init=False)
class Fields(Settings):
    """Every setting by itself; `Config` adds the rules between settings."""

    backbone: Literal["resnet-18", "resnet-34", "resnet-50", "resnet-101"] = _built_in(
        "resnet-50", "Network that extracts the features."
    )
    algorithm: Literal["psp", "fcn", "deeplab"] = _built_in(
        "psp", "Network: PSPNet, or torchvision's FCN or DeepLabV3."
    )
    use_pretrained_model: bool = _built_in(True, "Start the backbone from ImageNet weights.")
    num_classes: int = _built_in(
        ...,
        "Number of classes, including the background, excluding ignored pixels.",
        placeholder=2,
        ge=2,
        le=MAX_CLASSES,
    )
    num_training_samples: int | None = _built_in(None, "Images per epoch; counted from the channel if not given.", ge=1)
    base_size: int = _built_in(520, "Long side of a training image in pixels, before the random scale.", gt=16)
    crop_size: int = _built_in(
        240, "Side of the training crop in pixels; rounded up to a multiple of 8.", check=_multiple_of_8, gt=16
    )
    epochs: int = _built_in(10, "Passes over the training images.", ge=1)
    mini_batch_size: int = _built_in(16, "Images per training step, over all devices.", ge=1)
    validation_mini_batch_size: int = _built_in(16, "Images per validation step.", ge=1)
    learning_rate: float = _built_in(0.001, "Learning rate at the start of the schedule.", gt=0, le=1)
    optimizer: Literal["sgd", "adam", "adagrad", "nag", "rmsprop"] = _built_in("sgd", "Optimizer; nag is Nesterov's.")
    momentum: float = _built_in(0.9, "Momentum of sgd and nag.", ge=0, le=1)
    weight_decay: float = _built_in(0.0001, "Weight decay of sgd and nag.", ge=0, le=1)
    gamma1: float = _built_in(0.9, "Decay of rmsprop's mean squared gradient.", ge=0, le=1)
    gamma2: float = _built_in(0.9, "Momentum term of rmsprop.", ge=0, le=1)
    lr_scheduler: Literal["poly", "cosine", "step"] = _built_in(
        "poly", "Learning rate schedule, updated at every step."
    )
    lr_scheduler_factor: float = _built_in(0.1, "Factor of each drop of the step schedule.", gt=0, le=1)
    lr_scheduler_step: tuple[int, ...] | None = _built_in(
        None,
        "Epochs after which the step schedule drops the learning rate.",
        allowed='ascending whole numbers of at least 1, separated by commas, such as "10, 20"',
        check=_ascending,
        ge=1,
    )
    early_stopping: bool = _built_in(False, "Stop when the validation mIoU no longer improves.")
    early_stopping_min_epochs: int = _built_in(5, "Minimum number of epochs before stopping.", ge=1)
    early_stopping_patience: int = _built_in(4, "Epochs without sufficient improvement before stopping.", ge=1)
    early_stopping_tolerance: float = _built_in(0.0, "Relative mIoU gain that counts as an improvement.", ge=0, le=1)
    syncbn: bool = _built_in(False, "Synchronise batch norm statistics between GPUs.")

    data: str | None = _channel(
        None,
        "Folder with the channels below as subfolders, or the built-in synthetic set.",
        allowed="a folder, or shapes for the built-in synthetic set",
    )
    train: str | None = _channel(None, "Training images.", allowed="a folder")
    train_annotation: str | None = _channel(None, "Annotations of the training images.", allowed="a folder")
    validation: str | None = _channel(None, "Validation images.", allowed="a folder")
    validation_annotation: str | None = _channel(None, "Annotations of the validation images.", allowed="a folder")
    label_map: str | None = _channel(None, "Label maps: pixel value to class id.", allowed="a folder")
    model: str | None = _channel(None, "Model directory or published model to start from.", allowed="a folder or name")
    ignore: int = _channel(255, "Class id, after the label map, that is ignored in training and scoring.", ge=0, le=255)
    class_names: tuple[str, ...] | None = _channel(
        None,
        "Class names in the order of their ids.",
        allowed=f"unique names separated by commas, or a known set: {', '.join(NAMED_CLASS_SETS)}",
        check=known_class_names,
    )

    stem: Literal["conv7", "deep", "deep-narrow"] = _network(
        "conv7",
        "First layers: one 7x7 (torchvision), three 3x3 (semseg), or half as wide (mmsegmentation).",
    )
    output_stride: Literal[8, 16, 32] = _network(
        8, "Ratio of input size to feature map size; 8 as published, 32 without dilation."
    )
    align_corners: bool = _network(False, "Interpolate with corner pixels aligned, as semseg's weights expect.")
    contract_dilation: Literal["auto"] | bool = _network(
        "auto",
        "Halve the dilation of a layer's first block; auto: True with ImageNet weights, or a file's.",
        allowed="auto, True or False",
    )
    dilations: tuple[int, ...] | None = _network(
        None,
        "Dilations of layer3 and layer4; those of output_stride, or of a model, if not given.",
        allowed='two whole numbers from 1 to 8, separated by commas, such as "2, 4"',
        check=_pair,
        ge=1,
        le=8,
    )
    dilate_both: Literal["auto"] | bool = _network(
        "auto",
        "Dilate both convolutions of blocks in resnet-18 and -34; auto: True, or a model's.",
        allowed="auto, True or False",
    )
    width: int = _network(64, "Base width of the backbone; 64 as published, less for trial runs.", ge=4, le=64)
    pretrained_weights: str = _network(
        "IMAGENET1K_V1",
        "Weights for use_pretrained_model: torchvision's, or a file.",
        allowed=f"{', '.join(IMAGENET_WEIGHTS)} or a file ending in {', '.join(WEIGHT_SUFFIXES)}",
        check=_weights,
    )
    dropout: float = _network(0.1, "Dropout probability before the last layer of each head.", ge=0, lt=1)

    name: str = _output(
        "run",
        "Name of the run; defaults to the config file's name.",
        allowed="letters, digits and . _ -",
        check=_folder_name,
    )
    model_dir: str = _output(
        "", "Folder of the trained model (runs/<name>/model, or SM_MODEL_DIR).", allowed="a folder"
    )
    output_dir: str = _output(
        "", "Folder of scores and pictures (runs/<name>, or SM_OUTPUT_DATA_DIR).", allowed="a folder"
    )
    checkpoint_dir: str = _output(
        "",
        "Folder of checkpoints (runs/<name>/checkpoints, or /opt/ml/checkpoints on SageMaker).",
        allowed="a folder",
    )

    seed: int = _training(0, "Random seed of weights, sample order and augmentation.", ge=0, le=2**32 - 1)
    deterministic: bool = _training(False, "Use deterministic algorithms only; slower on a GPU.")
    device: Literal["auto", "cpu", "cuda"] = _training("auto", "Training device; auto uses a GPU if available.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _training(
        "auto", "Precision of the forward pass; auto chooses by device."
    )
    channels_last: bool = _training(True, "Use the channels_last memory format, usually faster.")
    tf32: bool = _training(True, "Allow TF32 for float32 products on Ampere and newer GPUs.")
    compile: Literal["auto"] | bool = _training(
        False,
        "Use torch.compile (torch 2.1 or newer); auto compiles on GPUs that support it.",
        allowed="auto, True or False",
    )
    gradient_checkpointing: bool = _training(
        False, "Activation checkpointing of layer3 and layer4: saves memory, costs time."
    )
    micro_batch_size: Literal["auto"] | int | None = _training(
        None,
        "Images per forward pass; larger mini-batches accumulate gradients; auto: as many as fit.",
        allowed="auto or a whole number, at least 1",
        ge=1,
    )
    workers: Literal["auto"] | int = _training(
        "auto",
        "Data loader processes; 0 loads in the main process.",
        allowed="auto or a whole number, at least 0",
        ge=0,
    )
    cache_images: Literal["none", "memory", "disk"] = _training(
        "none", "Cache of decoded images for later epochs; samples do not change."
    )
    cache_limit_gb: float = _training(8.0, "Size limit of the cache in GB; images beyond it are decoded again.", gt=0)
    cache_dir: str = _training(
        "~/.cache/pspnet/images", "Folder for cache_images disk; several jobs may share it.", allowed="a folder"
    )
    loss: Literal["cross_entropy", "ohem", "dice", "lovasz", "focal"] = _training(
        "cross_entropy", "Loss; dice, lovasz and focal need segmentation-models-pytorch."
    )
    class_weights: tuple[float, ...] | None = _training(
        None,
        "Weight of each class in the loss (cross_entropy and ohem).",
        allowed='positive numbers separated by commas, one per class, such as "0.5, 1, 2"',
        gt=0,
    )
    ohem_threshold: float = _training(
        0.7, "Pixels whose true class has a lower probability count as hard examples in ohem.", gt=0, le=1
    )
    ohem_min_kept: float = _training(0.0625, "Minimum fraction of pixels that ohem keeps.", gt=0, le=1)
    aux_weight: float = _training(0.4, "Weight of the auxiliary loss; 0 disables the auxiliary head.", ge=0)
    head_lr_multiplier: float = _training(1.0, "Learning rate of the heads relative to the backbone's.", gt=0)
    warmup_epochs: float = _training(0.0, "Epochs of linear warm-up from 0.", ge=0)
    poly_power: float = _training(0.9, "Exponent of the poly schedule.", gt=0)
    accumulate_steps: int = _training(1, "Gradient accumulation: batches per optimizer step.", ge=1)
    ema_decay: float = _training(
        0.0, "Decay of the exponential moving average of the weights; 0 disables it.", ge=0, lt=1
    )
    clip_grad_norm: float = _training(0.0, "Maximum gradient norm; 0 disables clipping.", ge=0)

    scale_min: float = _augment(0.5, "Minimum random scale.", gt=0)
    scale_max: float = _augment(2.0, "Maximum random scale.", gt=0)
    flip: float = _augment(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    rotation: float = _augment(0.0, "Maximum rotation in degrees, in both directions.", ge=0, le=45)
    blur: float = _augment(0.0, "Probability of a Gaussian blur.", ge=0, le=1)
    color_jitter: float = _augment(0.0, "Strength of changes in brightness, contrast and colour.", ge=0, le=1)

    augmentation: str | None = _augment(
        None,
        "File of an albumentations pipeline, applied to the window of the settings above.",
        allowed="a .yaml or .json file of albumentations.save",
        check=_expanded,
    )
    augmentation_window: bool = _augment(True, "False: the pipeline of augmentation replaces the window.")

    resume: str = _control(
        "auto", "Resume from a checkpoint; auto uses the latest one if any.", allowed="auto, never or a checkpoint file"
    )
    log_every: int = _control(10, "Steps between two loss log lines.", ge=1)
    checkpoint_every: int = _control(0, "Steps between checkpoints within an epoch; 0 saves at its end only.", ge=0)
    validate_every: int = _control(1, "Epochs between two validations.", ge=1)
    max_steps_per_epoch: int = _control(0, "Limit of steps per epoch, for trial runs; 0 for no limit.", ge=0)
    max_train_images: int = _control(0, "Limit of training images, for trial runs; 0 for no limit.", ge=0)
    max_validation_images: int = _control(0, "Limit of validation images, for trial runs; 0 for no limit.", ge=0)
    tensorboard: bool = _control(True, "Write TensorBoard scalars and pictures.")
    progress: Literal["auto", "bar", "lines"] = _control(
        "auto", "Progress bar or plain lines; auto uses a bar in a terminal."
    )
    sample_images: int = _control(4, "Validation images drawn with ground truth and prediction.", ge=0)

    @property
    def synthetic(self) -> bool:
        """True if the run uses the built-in synthetic set, which the program writes itself."""
        return self.data == SHAPES and self.train is None

    @property
    def from_imagenet(self) -> bool:
        """True if the backbone starts from torchvision's weights."""
        return self.use_pretrained_model and self.model is None and self.pretrained_weights in IMAGENET_WEIGHTS

    @property
    def contracts_dilation(self) -> bool:
        """The value of contract_dilation; auto is resolved without reading the files that the weights come from."""
        return self.from_imagenet if self.contract_dilation == "auto" else self.contract_dilation

    def derived(self) -> dict[str, str]:
        """The folder settings that are derived from `data` and `name`."""
        values = self.to_dict()
        derived = derived_folders({key: values[key] for key in ("data", "name") if values[key] is not None})
        return {key: folder for key, folder in derived.items() if values[key] == folder}
