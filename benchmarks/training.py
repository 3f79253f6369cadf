"""Speed of a training step: ours with its options, the plain network, and networks of other libraries.

    python benchmarks/training.py --output training.json
    python benchmarks/training.py --device cuda --crop 473 --batch 16 --rounds 10 --memory --output training.json

A step is everything between two batches: normalisation, forward, loss (0.4 of the auxiliary head's if it has one),
backward and optimizer (sgd with momentum). The batch is bytes in host memory; a copy to a GPU counts. All cases take
the same batch. The cases are interleaved: each round takes one step of each, in changing order, and speed-ups over
`plain` are taken per round. `of peak`: operations of the case's network in its plain form, forward and backward, per
second, as a fraction of a large matrix product's rate in the case's precision; work that a form saves counts as done.

    plain           PSPNet as published (pspnet.benchmarking.plain), eager, float32, PyTorch's default memory format
    plain-compile   the same through torch.compile
    plain-autocast  the same under autocast, on devices with fast bfloat16 or float16
    ours            this project's training step with its defaults, float32
    ours-upsampled  ours, with logits up-sampled before the loss
    ours-nchw       ours, without channels_last
    ours-recompute  ours, with activation checkpointing (gradient_checkpointing)
    ours-compile    ours, through torch.compile
    ours-autocast   ours, in the precision of `precision auto`, or bfloat16 on a CPU with AMX
    torchvision-deeplabv3, smp-pspnet
                    torchvision's deeplabv3_resnet50 with its auxiliary head; segmentation-models-pytorch's PSPNet with
                    its defaults (a much smaller network, without auxiliary head); both run like `plain`

--memory starts each case in its own process and reports the peak memory of two steps: of the GPU, or of the process.
Cases that cannot run here are reported with the reason.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support.library_networks import build_smp
from pspnet.benchmarking.flops import count_flops
from pspnet.benchmarking.interleave import Timing, measure, ratio_quartiles
from pspnet.benchmarking.peak import measure_peak
from pspnet.benchmarking.peak_memory import ChildError, ask_child, peak_mib
from pspnet.benchmarking.plain import make_plain
from pspnet.benchmarking.record import machine_text, run_record, write_record
from pspnet.benchmarking.table import factor, markdown, milliseconds, percent
from pspnet.data.loader import Batch
from pspnet.errors import ConfigError, PspnetError
from pspnet.models.build import build_algorithm, build_model
from pspnet.models.pspnet import SegmentationNetwork
from pspnet.system.device import (
    choose_device,
    has_fast_bfloat16,
    set_tf32,
    tuned_convolutions,
)
from pspnet.system.distributed import Processes
from pspnet.system.exit_codes import run_guarded
from pspnet.system.precision import Precision, choose_precision
from pspnet.training.optimization.losses import build_loss
from pspnet.training.optimization.optimizer import build_optimizer, parameter_groups
from pspnet.training.performance.activation_checkpointing import checkpoint_activations
from pspnet.training.performance.compilation import CompiledModel, should_compile
from pspnet.training.step import TrainingStep, build_scaler

PLAIN = "plain"
OURS = ("ours", "ours-upsampled", "ours-nchw", "ours-recompute", "ours-compile", "ours-autocast")
LIBRARIES = ("torchvision-deeplabv3", "smp-pspnet")
CASES = (PLAIN, "plain-compile", "plain-autocast", *OURS, *LIBRARIES)
DEFAULT_CASES = (PLAIN, "ours", "ours-upsampled", "ours-nchw", *LIBRARIES)
_RATE = 0.001


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, write the JSON file; or, as a child, measure the memory of one case."""
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    if device.type == "cuda":
        set_tf32(True)
    batch = make_batch(arguments)
    if arguments.child is not None:
        return _measure_memory(open_case(arguments.child, arguments, device, batch), device)
    steps: dict[str, Callable[[], object]] = {}
    missing = {}
    for name in arguments.cases:
        try:
            steps[name] = open_case(name, arguments, device, batch)
        except PspnetError as error:
            missing[name] = str(error)
            print(f"{name} is left out: {error}", flush=True)
    if PLAIN not in steps:
        raise ConfigError(f"--cases: {PLAIN} is the reference of the others; name it too.")
    with tuned_convolutions(device.type == "cuda"):
        times = measure(steps, arguments.rounds, arguments.warmup, arguments.seed)
    results = describe(times, arguments, device, batch)
    record = run_record()
    print(f"\n{machine_text(record['machine'])}\n{_table(times, results, arguments.batch)}")
    if arguments.output is not None:
        settings = {"crop": arguments.crop, "batch": arguments.batch, "num_classes": arguments.num_classes}
        write_record(arguments.output, {**record, "settings": settings, "missing": missing, "cases": results})
        print(f"\nWritten: {arguments.output}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--cases", nargs="+", choices=CASES, default=list(DEFAULT_CASES), metavar="CASE")
    add("--crop", type=int, default=240, help="side of the images (%(default)s)")
    add("--batch", type=int, default=16, help="images per step (%(default)s)")
    add("--num_classes", type=int, default=21, help="default: %(default)s")
    add("--width", type=int, default=64, help="base width of ours and of plain (%(default)s)")
    add("--rounds", type=int, default=3, help="timed steps of each case (%(default)s)")
    add("--warmup", type=int, default=1, help="warm-up steps of each case (%(default)s)")
    add("--seed", type=int, default=0, help="of the batch and the orders (%(default)s)")
    add("--threads", type=int, default=0, help="CPU threads (default: PyTorch's choice)")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--memory", action="store_true", help="also measure the memory of each case")
    add("--output", type=Path, help="JSON file to write")
    add("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("crop", "batch", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: found {getattr(arguments, name)}; expected at least 1")
    return arguments


def make_batch(arguments: argparse.Namespace) -> Batch:
    """Random bytes and class ids, a tenth of the rows ignored, in the loader's format."""
    generator = torch.Generator().manual_seed(arguments.seed)
    shape = (arguments.batch, arguments.crop, arguments.crop)
    images = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    targets = torch.randint(0, arguments.num_classes, shape, generator=generator, dtype=torch.uint8)
    targets[:, : arguments.crop // 10] = 255
    batch = Batch(images, targets, [])
    return batch.pin_memory() if torch.cuda.is_available() else batch


def open_case(name: str, arguments: argparse.Namespace, device: torch.device, batch: Batch) -> Callable[[], object]:
    """The training step of a case; it returns when the step has finished. PspnetError if the case cannot run here."""
    precision = case_precision(name, device)
    network = build_network(name, arguments).train()
    if name in OURS:
        return _our_step(name, network, precision, arguments, device, batch)
    network = network.to(device)
    model: Any = network
    if name.endswith("-compile"):
        should_compile(True, device)
        model = torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=0.9, weight_decay=1e-4)
    scaler = build_scaler(precision.scale_loss)

    def step() -> None:
        images, targets = batch.images.to(device).contiguous(), batch.targets.to(device).long()
        with torch.autocast(device.type, precision.autocast_dtype, enabled=precision.autocast_dtype is not None):
            outputs = model(images)
        loss = _plain_loss(outputs, targets)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad(set_to_none=True)
        _finish(device)

    return step


def _plain_loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
    """PyTorch's cross-entropy, plus 0.4 of the auxiliary head's."""
    if isinstance(outputs, torch.Tensor):
        return nn.functional.cross_entropy(outputs, targets, ignore_index=255)
    main, auxiliary = (nn.functional.cross_entropy(logits, targets, ignore_index=255) for logits in outputs)
    return main + 0.4 * auxiliary


def _our_step(
    name: str,
    network: nn.Module,
    precision: Precision,
    arguments: argparse.Namespace,
    device: torch.device,
    batch: Batch,
) -> Callable[[], object]:
    channels_last = name != "ours-nchw"
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    network = network.to(device)
    assert isinstance(network, SegmentationNetwork)
    network.upsampled_in_training = name == "ours-upsampled"
    if name == "ours-recompute":
        checkpoint_activations(network)
    model: nn.Module = network
    if name == "ours-compile":
        should_compile(True, device)
        model = CompiledModel(network, arguments.batch)
    optimizer = build_optimizer("sgd", parameter_groups(network, _RATE), _RATE)
    loss = build_loss("cross_entropy").to(device)
    step = TrainingStep(model, loss, optimizer, device, precision, Processes(), channels_last=channels_last)

    def run() -> None:
        step([batch], 0, network)
        step.drain(wait=True)
        _finish(device)

    return run


def build_network(name: str, arguments: argparse.Namespace) -> nn.Module:
    """The network of a case with random weights; PspnetError if its library is missing."""
    torch.manual_seed(0)
    if name == "torchvision-deeplabv3":
        return build_algorithm("deeplab", num_classes=arguments.num_classes)
    if name == "smp-pspnet":
        return build_smp("PSPNet", arguments.num_classes)
    network = build_model(arguments.num_classes, width=arguments.width)
    return network if name in OURS else make_plain(network)


def case_precision(name: str, device: torch.device) -> Precision:
    """The precision of a case; ConfigError for autocast on a device with nothing faster than float32."""
    if not name.endswith("-autocast"):
        return choose_precision("float32", device)
    if has_fast_bfloat16(device):
        return choose_precision("bfloat16", device)
    precision = choose_precision("auto", device)
    if precision.autocast_dtype is None:
        raise ConfigError("this device has no precision that is faster than float32.")
    return precision


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(
    times: dict[str, Timing], arguments: argparse.Namespace, device: torch.device, batch: Batch
) -> dict[str, dict[str, Any]]:
    """The record of each case: times, images per second, speed-up, operations, fraction of the peak, memory."""
    flops_of = functools.lru_cache(maxsize=None)(lambda network: step_flops(network, arguments, batch))
    peak_of = functools.lru_cache(maxsize=None)(lambda dtype: measure_peak(device.type, dtype, repeats=5))
    results = {}
    for name, timing in times.items():
        flops = flops_of(name if name in LIBRARIES else PLAIN)
        peak = peak_of(case_precision(name, device).dtype)
        results[name] = {
            **timing.record(),
            "images_per_second": round(arguments.batch / timing.median, 4),
            "ratio": ratio_quartiles(times[PLAIN], timing)._asdict(),
            "flops": flops,
            "share_of_peak": round(flops / timing.median / peak, 4),
            "peak_flops_per_second": round(peak),
        }
        if arguments.memory:
            results[name]["memory_mib"] = _memory_of(name, arguments)
    return results


def step_flops(name: str, arguments: argparse.Namespace, batch: Batch) -> int:
    """Operations of forward and backward over the batch, for the network of a case that is not ours."""
    network = build_network(name, arguments).train()
    two = min(2, arguments.batch)  # batch norm needs more than one value per channel

    def step() -> None:
        _plain_loss(network(batch.images[:two]), batch.targets[:two].long()).backward()

    return int(count_flops(step) * arguments.batch // two)


def _measure_memory(step: Callable[[], object], device: torch.device) -> int:
    for _ in range(2):
        step()
    mib = round(torch.cuda.max_memory_allocated() / 2**20, 1) if device.type == "cuda" else peak_mib()
    print(json.dumps({"memory_mib": mib}))
    return 0


def _memory_of(name: str, arguments: argparse.Namespace) -> float | None:
    command = [sys.executable, __file__, "--child", name]
    for key in ("crop", "batch", "num_classes", "width", "threads", "device"):
        command += [f"--{key}", str(getattr(arguments, key))]
    try:
        found: float = ask_child(command)["memory_mib"]
    except ChildError as error:
        print(f"{name}: its memory could not be measured: {error}")
        return None
    return found


def _table(times: dict[str, Timing], results: dict[str, dict[str, Any]], batch: int) -> str:
    headers = ["case", "ms a step", "images/s", f"to {PLAIN}", "TFLOP a step", "of peak"]
    memory = ["MiB"] if any(result.get("memory_mib") for result in results.values()) else []
    rows = []
    for name, timing in times.items():
        result = results[name]
        row = [
            name,
            milliseconds(timing),
            f"{batch / timing.median:.2f}",
            factor(ratio_quartiles(times[PLAIN], timing)),
        ]
        row += [f"{result['flops'] / 1e12:.3f}", percent(result["share_of_peak"])]
        rows.append(row + [f"{result['memory_mib'] or 0:.0f}" for _ in memory])
    return markdown([*headers, *memory], rows)


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
