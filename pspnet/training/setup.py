"""Parts of a training run built from a Config: one function per part, called in order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from pspnet.artifact.model_directory import class_names_of
from pspnet.classes import LabelMap
from pspnet.config.folders import REQUIRED_CHANNELS, SHAPES
from pspnet.config.schema import Config
from pspnet.data.augmentation import Augmentation
from pspnet.data.cache.cache_folder import open_cache
from pspnet.data.channels import Pair, find_label_map, load_pairs
from pspnet.data.dataset import SegmentationDataset
from pspnet.data.loader import build_loader
from pspnet.data.samplers import EvaluationBatchSampler, TrainBatchSampler, image_sizes
from pspnet.data.shapes import write_shapes
from pspnet.data.transforms import TrainTransform
from pspnet.errors import ConfigError, DataError
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.system import device as devices
from pspnet.system.distributed import Processes, join_processes
from pspnet.system.precision import Precision, choose_precision
from pspnet.training.memory import choose_micro_batch, fits_in_memory
from pspnet.training.network import BuildNetwork, build_network, resolve_dilation
from pspnet.training.optimization.early_stopping import EarlyStopping
from pspnet.training.optimization.ema import ExponentialMovingAverage
from pspnet.training.optimization.losses import build_loss
from pspnet.training.optimization.optimizer import build_optimizer, parameter_groups
from pspnet.training.optimization.schedule import LearningRateSchedule
from pspnet.training.performance.activation_checkpointing import check_precision_supported, checkpoint_activations
from pspnet.training.performance.compilation import CompiledModel, should_compile
from pspnet.training.performance.prefetch import images_of_rank, most_common_part
from pspnet.training.run_log import RunLog
from pspnet.training.step import TrainingStep


@dataclass(frozen=True)
class Data:
    """Pairs and label maps of both splits."""

    train: list[Pair]
    validation: list[Pair]
    train_map: LabelMap | None
    validation_map: LabelMap | None


@dataclass
class Run:
    """Parts of a run. `model` is the `network` as it is called: possibly compiled or wrapped for data parallelism."""

    config: Config
    device: torch.device
    precision: Precision
    processes: Processes
    data: Data
    network: nn.Module
    model: nn.Module
    step: TrainingStep
    schedule: LearningRateSchedule
    early_stopping: EarlyStopping | None
    sampler: TrainBatchSampler
    train_loader: DataLoader[Any]
    validation_loader: DataLoader[Any]
    batches_per_epoch: int
    checkpoint_dir: Path

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a full epoch."""
        return -(-self.batches_per_epoch // self.config.accumulate_steps)

    @property
    def images_per_step(self) -> int:
        return self.config.mini_batch_size * self.config.accumulate_steps

    @property
    def class_names(self) -> tuple[str, ...]:
        return class_names_of(self.config)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Context manager in which the network holds the averaged weights, if the run keeps them."""
        if self.step.ema is None:
            yield
            return
        with self.step.ema.applied_to(self.network):
            yield


def build_run(config: Config, build: BuildNetwork | None = None) -> Run:
    """Build all parts of a run from `config`; ConfigError, DataError or WeightsError before any training.

    `build` builds the network, by default `build_network`. Comparisons pass another one and train it in the same way.
    """
    config = resolve_dilation(config)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = devices.choose_device(config.device, local_rank)
    precision = choose_precision(config.precision, device)
    if config.deterministic:
        devices.make_deterministic()
    if device.type == "cuda":
        devices.set_tf32(config.tf32)
    processes = join_processes(device.type)
    try:
        return _assemble(config, device, precision, processes, build or build_network)
    except BaseException:
        processes.shutdown()
        raise


def _assemble(
    config: Config, device: torch.device, precision: Precision, processes: Processes, build: BuildNetwork
) -> Run:
    data = load_data(config, processes)
    _check_folders(config, processes)
    network = build(config, device)
    if config.gradient_checkpointing:
        check_precision_supported(precision)
        checkpoint_activations(network)
    class_weights = None if config.class_weights is None else torch.tensor(config.class_weights)
    criterion = build_loss(
        config.loss,
        config.aux_weight,
        config.class_weights,
        config.ohem_threshold,
        config.ohem_min_kept,
        config.align_corners,
    ).to(device)
    if isinstance(network, SegmentationNetwork):
        network.upsampled_in_training = False  # the loss takes the head's logits before up-sampling
    optimizer = build_optimizer(
        config.optimizer,
        parameter_groups(network, config.learning_rate, config.head_lr_multiplier),
        config.learning_rate,
        config.momentum,
        config.weight_decay,
        config.gamma1,
        config.gamma2,
    )
    step = TrainingStep(
        _wrap_data_parallel(network, config, device, processes),
        criterion,
        optimizer,
        device,
        precision,
        processes,
        class_weights=class_weights,
        max_norm=config.clip_grad_norm,
        ema=ExponentialMovingAverage(network, config.ema_decay) if config.ema_decay > 0 else None,
        channels_last=config.channels_last,
        seed=config.seed,
    )
    _fit_to_device(step, network, config)
    sampler, train_loader, validation_loader = build_loaders(config, data, device, processes)
    batches = min(len(sampler), (config.max_steps_per_epoch or len(sampler)) * config.accumulate_steps)
    return Run(
        config=config,
        device=device,
        precision=precision,
        processes=processes,
        data=data,
        network=network,
        model=step.model,
        step=step,
        schedule=_build_schedule(config, batches),
        early_stopping=EarlyStopping(
            config.early_stopping_min_epochs, config.early_stopping_patience, config.early_stopping_tolerance
        )
        if config.early_stopping
        else None,
        sampler=sampler,
        train_loader=train_loader,
        validation_loader=validation_loader,
        batches_per_epoch=batches,
        checkpoint_dir=Path(config.checkpoint_dir),
    )


def load_data(config: Config, processes: Processes) -> Data:
    """Pair the files of both splits; writes the built-in data set first if `data` names it."""
    if config.synthetic:
        config = _with_shapes(config, processes)
    channels = {}
    for name in ("train", "validation"):
        images, annotations = getattr(config, name), getattr(config, f"{name}_annotation")
        channels[name] = load_pairs(Path(images), Path(annotations), name)
    folder = None if config.label_map is None else Path(config.label_map)
    train, validation = channels["train"], channels["validation"]
    if config.max_train_images:
        train = train[: config.max_train_images]
    if config.max_validation_images:
        validation = validation[: config.max_validation_images]
    if len(train) < processes.world_size:
        raise DataError(
            f"channel train: {len(train)} images for {processes.world_size} processes; each needs at least one image."
        )
    return Data(train, validation, find_label_map(folder, "train"), find_label_map(folder, "validation"))


def _with_shapes(config: Config, processes: Processes) -> Config:
    folder = Path("runs") / "data" / SHAPES
    if processes.is_main:
        write_shapes(folder)
    processes.barrier()
    return config.replace(**{name: str(folder / name) for name in REQUIRED_CHANNELS})


def _check_folders(config: Config, processes: Processes) -> None:
    """Fail before training, not after the first epoch, if a folder cannot be written."""
    if not processes.is_main:
        return
    for key in ("model_dir", "output_dir", "checkpoint_dir"):
        folder = Path(getattr(config, key))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".pspnet-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"{key}: {folder} cannot be written ({error.strerror or error}); give another folder with --{key}."
            ) from error


def _wrap_data_parallel(network: nn.Module, config: Config, device: torch.device, processes: Processes) -> nn.Module:
    if processes.world_size == 1:
        return network
    if config.syncbn and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def _fit_to_device(step: TrainingStep, network: nn.Module, config: Config) -> None:
    """Choose the micro-batch size that fits the device's memory, and compile for it if requested."""
    device, processes = step.device, step.processes
    per_process = -(-config.mini_batch_size // processes.world_size)

    # On a CPU the system kills the process instead of raising an error. With synchronised batch norm every process
    # would have to take part in every trial.
    can_try = device.type == "cuda" and not (config.syncbn and processes.world_size > 1)

    def fits(images: int) -> bool:
        return not can_try or fits_in_memory(step, network, images, config.crop_size)

    step.micro_batch_size = choose_micro_batch(
        config.micro_batch_size, fits, per_process, config.crop_size, processes, device, may_split=not config.syncbn
    )
    if should_compile(config.compile, device, config.deterministic):
        own = images_of_rank(config.mini_batch_size, processes.rank, processes.world_size)
        batch_size = most_common_part(own, step.micro_batch_size)
        step.model = CompiledModel(step.model, batch_size, required=config.compile is True)


def build_loaders(
    config: Config, data: Data, device: torch.device, processes: Processes
) -> tuple[TrainBatchSampler, DataLoader[Any], DataLoader[Any]]:
    """Build the training sampler and the two loaders of this process."""
    if config.mini_batch_size < processes.world_size:
        raise ConfigError(
            f"mini_batch_size = {config.mini_batch_size} counts the images of all processes together; with "
            f"{processes.world_size} processes it must be at least {processes.world_size}."
        )
    transform = TrainTransform(
        config.crop_size,
        config.base_size,
        config.scale_min,
        config.scale_max,
        config.flip,
        config.rotation,
        config.blur,
        config.color_jitter,
        augmentation=Augmentation(config.augmentation, config.crop_size) if config.augmentation else None,
        window=config.augmentation_window,
    )
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    cache = open_cache(config.cache_images, config.cache_limit_gb, config.cache_dir, announce=first_here)
    train_set = SegmentationDataset(
        data.train, config.num_classes, transform, data.train_map, config.ignore, config.seed, cache=cache
    )
    validation_set = SegmentationDataset(
        data.validation, config.num_classes, None, data.validation_map, config.ignore, channel="validation", cache=cache
    )
    rank, world = processes.rank, processes.world_size
    sampler = TrainBatchSampler(len(data.train), config.mini_batch_size, config.seed, rank, world)
    validation_sampler = EvaluationBatchSampler(
        image_sizes(data.validation), config.validation_mini_batch_size, rank, world
    )
    workers = devices.choose_workers(config.workers, device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    pin = device.type == "cuda"
    return (
        sampler,
        build_loader(train_set, sampler, workers, pin, persistent=True),
        build_loader(validation_set, validation_sampler, workers, pin),
    )


def _build_schedule(config: Config, batches_per_epoch: int) -> LearningRateSchedule:
    return LearningRateSchedule(
        config.lr_scheduler,
        config.learning_rate,
        steps_per_epoch=-(-batches_per_epoch // config.accumulate_steps),
        epochs=config.epochs,
        power=config.poly_power,
        milestones=config.lr_scheduler_step or (),
        factor=config.lr_scheduler_factor,
        warmup_epochs=config.warmup_epochs,
    )


def describe_run(run: Run, log: RunLog) -> None:
    """Log a summary of the run in a few lines."""
    config, data = run.config, run.data
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    log.line(
        f"{type(run.network).__name__} {config.backbone}, {config.num_classes} classes, "
        f"{parameters / 1e6:.1f} M parameters, on {devices.describe(run.device)}, {run.precision.name}"
        + (f", {run.processes.world_size} processes" if run.processes.world_size > 1 else "")
    )
    log.line(
        f"{len(data.train)} training and {len(data.validation)} validation images; {config.epochs} epochs of "
        f"{run.steps_per_epoch} steps, {run.images_per_step} images each, crop {config.crop_size}"
    )
    if config.num_training_samples not in (None, len(data.train)):
        log.line(
            f"Note: num_training_samples={config.num_training_samples}, but the train channel has {len(data.train)} "
            "images; the schedule follows the channel."
        )
    if run.step.micro_batch_size is not None:
        log.line(f"Note: mini-batches are split into parts of at most {run.step.micro_batch_size} images per device.")
    if run.precision.name == "float32" and devices.has_fast_bfloat16(run.device):
        log.line("Note: this CPU has AMX; --precision bfloat16 trains several times faster on it.")
    if run.precision.name == "bfloat16" and run.device.type == "cpu" and not devices.has_fast_bfloat16(run.device):
        log.line("Note: this CPU has no AMX; --precision float32 is faster on it.")
