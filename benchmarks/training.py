"""How fast a training step is: ours with its options, the plain network, and other networks, in turns.

    python benchmarks/training.py --output training.json
    python benchmarks/training.py --device cuda --crop 473 --batch 16 --rounds 10 --memory --output training.json

A step is everything between two batches: normalisation, forward, loss (0.4 of the auxiliary head's where there is one),
backward and optimizer (sgd with momentum). The batch lies ready as bytes in the host's memory; a copy to a GPU counts.
Every case takes the same batch. In each round every case takes one step, in changing order; ratios to `plain` are those
of the same round. `of peak`: operations of the case's network in its plain form, forward and backward, per second, as a
share of a large matrix product's rate in the case's number format; work that a form saves counts as done.

    plain           PSPNet as published (pspnet.benchmarking.plain), eager, float32, PyTorch's own memory layout
    plain-compile   the same through torch.compile
    plain-autocast  the same under autocast; where the device is fast in bfloat16 or float16
    ours            this project's training step with its defaults, float32
    ours-upsampled  ours, with logits up-sampled before the loss
    ours-nchw       ours, without channels_last
    ours-foreach    ours, with PyTorch's default optimizer in place of the fused one
    ours-parts      ours, in two parts of half the images (micro_batch_size)
    ours-recompute  ours, with gradient_checkpointing
    ours-compile    ours, through torch.compile
    ours-autocast   ours, in the number format that `precision auto` takes, or bfloat16 on a CPU with AMX
    torchvision-deeplabv3, smp-pspnet
                    torchvision's deeplabv3_resnet50 with its auxiliary head; segmentation-models-pytorch's PSPNet with
                    its defaults (a much smaller network, without auxiliary head); both in the plain way

--memory starts every case in a process of its own and tells the most memory that two steps took: of the GPU, or of the
process. What cannot run here is named with the reason.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

# The project and this folder's modules, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support.library_networks import build_smp
from pspnet.benchmarking.flops import count_flops
from pspnet.benchmarking.interleave import Timing, measure, ratio_quartiles
from pspnet.benchmarking.peak import measure_peak
from pspnet.benchmarking.peak_memory import ChildError, ask_child, peak_mib
from pspnet.benchmarking.plain import make_plain
from pspnet.benchmarking.record import machine_text, run_record, write_record
from pspnet.benchmarking.table import factor, markdown, milliseconds, percent
from pspnet.data.dataset import Batch
from pspnet.errors import ConfigError, PspnetError
from pspnet.models.build import build_algorithm
from pspnet.models.pspnet import SegmentationNetwork, build_model
from pspnet.system.device import (
    Precision,
    choose_device,
    choose_precision,
    has_fast_bfloat16,
    set_tf32,
    tuned_convolutions,
)
from pspnet.system.distributed import Processes
from pspnet.system.exit_codes import run_guarded
from pspnet.training.optimization.losses import build_loss
from pspnet.training.optimization.optimizer import build_optimizer, parameter_groups
from pspnet.training.performance.activation_checkpointing import recompute_blocks
from pspnet.training.performance.compilation import CompiledModel, compile_wanted
from pspnet.training.step import TrainingStep, build_scaler

PLAIN = "plain"
OURS = (
    "ours", "ours-upsampled", "ours-nchw", "ours-foreach", "ours-parts", "ours-recompute", "ours-compile",
    "ours-autocast",
)  # fmt: skip
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
    if arguments.child is not None:
        return _measure_memory(arguments.child, arguments, device)
    batch = make_batch(arguments)
    steps, missing = open_cases(arguments, device, batch)
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}", flush=True)
    if PLAIN not in steps:
        raise ConfigError(f"--cases: {PLAIN} is what the others are compared with; name it too.")
    with tuned_convolutions(device.type == "cuda"):
        times = measure(steps, arguments.rounds, arguments.warmup, arguments.seed)
    results = describe(times, arguments, device, batch)
    if arguments.memory:
        for name in times:
            results[name]["memory_mib"] = _memory_of(name, arguments)
    record = run_record()
    print(f"\n{machine_text(record['machine'])}\n{_table(times, results, arguments.batch)}")
    if arguments.output is not None:
        settings = {"crop": arguments.crop, "batch": arguments.batch, "num_classes": arguments.num_classes}
        write_record(arguments.output, {**record, "settings": settings, "missing": missing, "cases": results})
        print(f"\nWritten: {arguments.output}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(DEFAULT_CASES), metavar="CASE")
    parser.add_argument("--crop", type=int, default=240, help="side of the images (%(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (%(default)s)")
    parser.add_argument("--num_classes", type=int, default=21, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=64, help="base width of ours and of plain (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each case that are timed (%(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each case before (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; PyTorch's own choice if not given")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--memory", action="store_true", help="tell the memory of each case too")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("crop", "batch", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name}: found {getattr(arguments, name)}; expected at least 1")
    return arguments


def make_batch(arguments: argparse.Namespace) -> Batch:
    """Random bytes and class ids, a tenth of the rows ignored; as the loader gives them."""
    generator = torch.Generator().manual_seed(arguments.seed)
    shape = (arguments.batch, arguments.crop, arguments.crop)
    images = torch.randint(0, 256, (*shape, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    targets = torch.randint(0, arguments.num_classes, shape, generator=generator, dtype=torch.uint8)
    targets[:, : arguments.crop // 10] = 255
    batch = Batch(images, targets, [])
    return batch.pin_memory() if torch.cuda.is_available() else batch


def open_cases(
    arguments: argparse.Namespace, device: torch.device, batch: Batch
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The steps of the cases that can run here, and why the others cannot."""
    steps: dict[str, Callable[[], object]] = {}
    missing = {}
    for name in arguments.cases:
        try:
            steps[name] = open_case(name, arguments, device, batch)
        except PspnetError as error:
            missing[name] = str(error)
    return steps, missing


def open_case(name: str, arguments: argparse.Namespace, device: torch.device, batch: Batch) -> Callable[[], object]:
    """One training step of a case, which is finished when it returns. PspnetError says why it cannot run here."""
    precision = case_precision(name, device)
    network = build_network(name, arguments).train()
    if name in OURS:
        return _our_step(name, network, precision, arguments, device, batch)
    network = network.to(device)
    model: Any = network
    if name.endswith("-compile"):
        compile_wanted(True, device)
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
    """Cross-entropy as PyTorch has it, with 0.4 of the auxiliary head's."""
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
        recompute_blocks(network)
    model: nn.Module = network
    if name == "ours-compile":
        compile_wanted(True, device)
        model = CompiledModel(network, arguments.batch)
    groups = parameter_groups(network, _RATE)
    optimizer = build_optimizer("sgd", groups, _RATE)
    if name == "ours-foreach":
        optimizer = torch.optim.SGD(groups, lr=_RATE, momentum=0.9, weight_decay=1e-4)
    step = TrainingStep(
        model, build_loss("cross_entropy").to(device), optimizer, device, precision, Processes(),
        channels_last=channels_last,
        micro_batch_size=max(1, arguments.batch // 2) if name == "ours-parts" else None,
    )  # fmt: skip

    def run() -> None:
        step([batch], 0, network)
        step.take_in(wait=True)
        _finish(device)

    return run


def build_network(name: str, arguments: argparse.Namespace) -> nn.Module:
    """The network of a case with random weights; PspnetError where its library is missing."""
    torch.manual_seed(0)
    if name == "torchvision-deeplabv3":
        return build_algorithm("deeplab", num_classes=arguments.num_classes)
    if name == "smp-pspnet":
        return build_smp("PSPNet", arguments.num_classes)
    network = build_model(arguments.num_classes, width=arguments.width)
    return network if name in OURS else make_plain(network)


def case_precision(name: str, device: torch.device) -> Precision:
    """The number format of a case; ConfigError for autocast where the device has nothing faster than float32."""
    if not name.endswith("-autocast"):
        return choose_precision("float32", device)
    if has_fast_bfloat16(device):
        return choose_precision("bfloat16", device)
    precision = choose_precision("auto", device)
    if precision.autocast_dtype is None:
        raise ConfigError("this device has no number format that is faster than float32.")
    return precision


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(
    times: dict[str, Timing], arguments: argparse.Namespace, device: torch.device, batch: Batch
) -> dict[str, dict[str, Any]]:
    """What is known of each case: times, images a second, ratio to the plain network, operations, share of the peak."""
    counted: dict[str, int] = {}
    peaks: dict[torch.dtype, float] = {}
    results = {}
    for name, timing in times.items():
        network = name if name in LIBRARIES else PLAIN
        if network not in counted:
            counted[network] = step_flops(network, arguments, batch)
        dtype = case_precision(name, device).dtype
        if dtype not in peaks:
            peaks[dtype] = measure_peak(device.type, dtype, repeats=5)
        rate = counted[network] / timing.median
        results[name] = {
            **timing.record(),
            "images_per_second": round(arguments.batch / timing.median, 4),
            "ratio": ratio_quartiles(times[PLAIN], timing)._asdict(),
            "flops": counted[network],
            "share_of_peak": round(rate / peaks[dtype], 4),
            "peak_flops_per_second": round(peaks[dtype]),
        }
    return results


def step_flops(name: str, arguments: argparse.Namespace, batch: Batch) -> int:
    """Operations of forward and backward over the batch, of the network of a case that is not ours."""
    network = build_network(name, arguments).train()
    two = min(2, arguments.batch)  # batch norm over one image has nothing to normalise with

    def step() -> None:
        _plain_loss(network(batch.images[:two]), batch.targets[:two].long()).backward()

    return int(count_flops(step) * arguments.batch // two)


def _measure_memory(name: str, arguments: argparse.Namespace, device: torch.device) -> int:
    step = open_case(name, arguments, device, make_batch(arguments))
    for _ in range(2):
        step()
    cuda = device.type == "cuda"
    print(f'{{"memory_mib": {round(torch.cuda.max_memory_allocated() / 2**20, 1) if cuda else peak_mib()}}}')
    return 0


def _memory_of(name: str, arguments: argparse.Namespace) -> float | None:
    own = copy.copy(vars(arguments))
    given = [
        word
        for key in ("crop", "batch", "num_classes", "width", "threads", "device")
        for word in (f"--{key}", str(own[key]))
    ]
    try:
        found: float = ask_child([sys.executable, __file__, "--child", name, *given])["memory_mib"]
    except ChildError as error:
        print(f"{name}: its memory could not be measured: {error}")
        return None
    return found


def _table(times: dict[str, Timing], results: dict[str, dict[str, Any]], batch: int) -> str:
    headers = ["case", "ms a step", "images/s", f"to {PLAIN}", "TFLOP a step", "of peak"]
    memory = any(result.get("memory_mib") for result in results.values())
    rows = []
    for name, timing in times.items():
        result = results[name]
        row = [
            name,
            milliseconds(timing),
            f"{batch / timing.median:.2f}",
            factor(ratio_quartiles(times[PLAIN], timing)),
            f"{result['flops'] / 1e12:.3f}",
            percent(result["share_of_peak"]),
        ]
        rows.append([*row, *([f"{result['memory_mib'] or 0:.0f}"] if memory else [])])
    return markdown([*headers, *(["MiB"] if memory else [])], rows)


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
