"""Controlled comparison: several networks trained and scored in exactly the same way, over several seeds.

    python benchmarks/comparison.py --data CAMVID

Everything but the network is this project's and the same for all: data, order and augmentation of the samples (they
depend on the seed only), optimizer, schedule, number of steps, precision, and the score, taken on the whole validation
channel at full resolution after the last step (no choice of a best epoch). All start from random weights.

The networks:

    pspnet            ours with its default settings: 7x7 stem, up-sampling without aligned corners.
    pspnet-published  PSPNet as its authors published it (hszhao/semseg): three 3x3 convolutions as stem, aligned
                      corners. Depth, output stride, dilation of the first blocks, pyramid, dropout 0.1 and auxiliary
                      loss of 0.4 are the same as in `pspnet`, so only these two choices are compared. The authors'
                      schedule is not part of the network: --optimizer sgd --learning_rate 0.01 sets it for all.
    smp-pspnet        segmentation-models-pytorch's PSPNet with its own defaults: it uses the feature map after the
                      encoder's third stage and has no auxiliary loss; about a fifteenth of the operations.
    smp-deeplabv3     segmentation-models-pytorch's DeepLabV3 with its own defaults, output stride 8, no auxiliary loss.
    fcn, deeplab      torchvision's, as `--algorithm` offers them; not in the default list.

Finished runs are lines of OUTPUT/runs.jsonl; the same command skips them, so it can be interrupted and resumed.
OUTPUT/summary.json and the table hold mean and sample standard deviation over the seeds, and each network's mean
difference to the first one over equal seeds.

The defaults are for a CPU: with crops of 128 and 240 steps of 8, twelve runs take about 40 minutes on two cores with
AMX (estimated from operation counts, not measured). Such short training compares how fast the networks learn from
random weights, not their final quality; raise --steps and --crop_size on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.support.library_networks import build_smp
from pspnet.benchmarking.table import markdown
from pspnet.config.schema import Config
from pspnet.data.channels import load_pairs
from pspnet.errors import ConfigError
from pspnet.evaluation.metrics import Scores
from pspnet.system.device import choose_device, has_fast_bfloat16
from pspnet.system.exit_codes import run_guarded
from pspnet.system.precision import choose_precision
from pspnet.system.signals import StopRequest
from pspnet.training.loop import Trainer
from pspnet.training.network import BuildNetwork, build_network
from pspnet.training.run_log import RunLog
from pspnet.training.setup import build_run, describe_run


def _library(name: str) -> BuildNetwork:
    def build(config: Config, device: torch.device) -> nn.Module:
        torch.manual_seed(config.seed)
        network: nn.Module = build_smp(name, config.num_classes, config.backbone)
        if config.channels_last:
            network = network.to(memory_format=torch.channels_last)
        return network.to(device)

    return build


@dataclass(frozen=True)
class Entrant:
    """A compared network: its builder and settings."""

    build: BuildNetwork = build_network
    settings: Mapping[str, Any] = field(default_factory=dict)


ENTRANTS = {
    "pspnet": Entrant(),
    "pspnet-published": Entrant(settings={"stem": "deep", "align_corners": True}),
    "smp-pspnet": Entrant(_library("PSPNet")),
    "smp-deeplabv3": Entrant(_library("DeepLabV3")),
    "fcn": Entrant(settings={"algorithm": "fcn"}),
    "deeplab": Entrant(settings={"algorithm": "deeplab"}),
}
DEFAULT_NETWORKS = ("pspnet", "pspnet-published", "smp-pspnet", "smp-deeplabv3")


def main(argv: Sequence[str]) -> int:
    """Run what is missing, then print the table; returns 0, or 128 + signal number after a stop signal."""
    args = parse(argv)
    shared = shared_settings(args)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "runs.jsonl"
    wanted = [(network, seed) for seed in args.seeds for network in args.networks]
    done = [(record["network"], record["seed"]) for record in finished(path, shared)]
    with StopRequest() as stop:
        for number, (network, seed) in enumerate(wanted, 1):
            if (network, seed) in done:
                continue
            print(f"\n== run {number} of {len(wanted)}: {network}, seed {seed}", flush=True)
            record = run_one(network, seed, shared, stop)
            if record is None:
                return stop.exit_code
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    records = [record for record in finished(path, shared) if (record["network"], record["seed"]) in wanted]
    summary = summarise(records, args.networks)
    content = {"settings": shared, "torch": torch.__version__, "networks": summary}
    (args.output / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n" + table(summary, args.networks[0]))
    print(f"\nWritten: {args.output / 'summary.json'}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exit with a message if it is invalid."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder that holds the channels")
    add("--num_classes", type=int, default=11, help="classes")
    add("--output", type=Path, default=Path("runs/comparison"), help="folder of the results")
    add("--networks", nargs="+", choices=ENTRANTS, default=DEFAULT_NETWORKS, metavar="NETWORK", help="networks")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds")
    add("--steps", type=int, default=240, help="optimizer steps per run, rounded up to full epochs of equal length")
    for name, default in (("crop_size", 128), ("base_size", 480), ("mini_batch_size", 8)):
        add(f"--{name}", type=int, default=default, help="as in training")
    add("--optimizer", default="adam", help="as in training")
    add("--learning_rate", type=float, default=0.001, help="as in training")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--precision", default="auto", help="auto: by device; bfloat16 on a CPU with AMX")
    return parser.parse_args(argv)


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of all runs except the seed; runs with other settings are not compared. Raises ConfigError."""
    device = choose_device(args.device)
    precision = "bfloat16" if args.precision == "auto" and has_fast_bfloat16(device) else args.precision
    if args.steps < 1:
        raise ConfigError(f"--steps: found {args.steps}; expected at least 1.")
    data = args.data
    images = len(load_pairs(data / "train", data / "train_annotation"))
    per_epoch = math.ceil(images / max(1, args.mini_batch_size))
    epochs = math.ceil(args.steps / per_epoch)
    settings = {
        "data": str(data), "num_classes": args.num_classes, "use_pretrained_model": False, "epochs": epochs,
        "max_steps_per_epoch": math.ceil(args.steps / epochs), "validate_every": epochs, "crop_size": args.crop_size,
        "base_size": args.base_size, "scale_min": 0.5, "scale_max": 1.5, "color_jitter": 0.2,
        "mini_batch_size": args.mini_batch_size, "validation_mini_batch_size": 4, "optimizer": args.optimizer,
        "learning_rate": args.learning_rate, "device": device.type,
        "precision": choose_precision(precision, device).name,
    }  # fmt: skip
    Config(**settings)
    return {**settings, "train_images": images}


def finished(path: Path, shared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of runs with these settings; a line truncated by a crash counts as not run."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record["settings"] == dict(shared):
            records.append(record)
    return records


def run_one(network: str, seed: int, shared: Mapping[str, Any], stop: StopRequest) -> dict[str, Any] | None:
    """Train and score one network, with checkpoints in a temporary folder; None after a stop signal."""
    entrant = ENTRANTS[network]
    settings = {key: value for key, value in shared.items() if key != "train_images"}
    with tempfile.TemporaryDirectory(prefix="pspnet-comparison-") as folder:
        folders = dict.fromkeys(("output_dir", "model_dir", "checkpoint_dir"), folder)
        config = Config(**{**settings, **entrant.settings, **folders}, seed=seed, tensorboard=False, log_every=20)
        run = build_run(config, entrant.build)
        log = RunLog(Path(folder), tensorboard=False)
        try:
            describe_run(run, log)
            trainer = Trainer(run, log, stop)
            started = time.monotonic()
            if not trainer.fit():
                return None
            seconds = time.monotonic() - started
        finally:
            log.close()
            run.processes.shutdown()
    assert trainer.best_counts is not None  # the one validation, after the last step
    scores = Scores.from_counts(trainer.best_counts.cpu().numpy())
    return {
        "network": network,
        "seed": seed,
        "mIOU": scores.mIOU,
        "pixel_accuracy": scores.pixel_accuracy,
        "per_class_iou": scores.per_class_iou,
        "steps": config.epochs * run.steps_per_epoch,
        "seconds": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        "settings": dict(shared),
    }


def summarise(records: Sequence[Mapping[str, Any]], networks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of each network, and its difference to the first one over equal seeds."""
    by_network = {name: {r["seed"]: r for r in records if r["network"] == name} for name in networks}
    first = by_network[networks[0]]
    summary = {}
    for name, runs in by_network.items():
        differences = [100 * (run["mIOU"] - first[seed]["mIOU"]) for seed, run in runs.items() if seed in first]
        summary[name] = {
            "seeds": sorted(runs),
            "mIOU": _mean_and_spread([100 * run["mIOU"] for run in runs.values()]),
            "pixel_accuracy": _mean_and_spread([100 * run["pixel_accuracy"] for run in runs.values()]),
            "difference": _mean_and_spread(differences),
            "seconds": _mean_and_spread([run["seconds"] for run in runs.values()]),
            "parameters": next(iter(runs.values()))["parameters"],
            "steps": next(iter(runs.values()))["steps"],
        }
    return summary


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for the latter with a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def table(summary: Mapping[str, Mapping[str, Any]], first: str) -> str:
    """A Markdown table: scores in percent, mean and sample standard deviation over the seeds."""
    headers = ["network", "parameters", "mIoU", f"to {first}", "pixel accuracy", "seconds with validation", "seeds"]
    rows = []
    for name, values in summary.items():
        difference = "" if name == first else _show(values["difference"], "+")
        row = [name, f"{values['parameters'] / 1e6:.1f} M", _show(values["mIOU"]), difference]
        row += [_show(values["pixel_accuracy"]), _show(values["seconds"], digits=0)]
        rows.append([*row, ", ".join(map(str, values["seeds"]))])
    return markdown(headers, rows)


def _show(value: tuple[float, float | None], sign: str = "", digits: int = 1) -> str:
    mean, spread = value
    return f"{mean:{sign}.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
