"""What a run leaves for people: model directory, metrics.json, a table of scores and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from pspnet.artifact.bundle import write_code
from pspnet.artifact.model_directory import save_artifact
from pspnet.classes import palette_for
from pspnet.config.schema import Config
from pspnet.data.dataset import read_pair
from pspnet.data.io.images import write_image
from pspnet.evaluation.metrics import Scores, constant_scores, format_scores
from pspnet.evaluation.protocols.whole import predict_whole
from pspnet.evaluation.visualization import sample_row, sample_sheet
from pspnet.system.atomic_files import atomic_write
from pspnet.training.run_log import RunLog
from pspnet.training.setup import Run

SAMPLE_TITLES = ("image", "truth", "prediction", "errors (red)")


def write_results(run: Run, log: RunLog, counts: np.ndarray, epoch: int, seconds: float, steps: int) -> None:
    """Save the model directory and the results; `run.network` must hold the weights that `counts` was measured with."""
    config, output_dir = run.config, Path(run.config.output_dir)
    scores = Scores.from_counts(counts)
    report = {**scores.to_json(run.class_names), "images": len(run.data.validation)}
    save_artifact(
        Path(config.model_dir),
        run.network,
        config,
        report,
        {"epoch": epoch, "steps": steps, "seconds": round(seconds, 1)},
    )
    write_code(Path(config.model_dir))
    with atomic_write(output_dir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    constant = constant_scores(counts)
    log.line(f"\nBest epoch: {epoch}, validation channel at full resolution")
    log.line(format_scores(scores, run.class_names, len(run.data.validation)))
    log.line(
        f"Always answering the commonest class would score mIoU {100 * constant.mIOU:.1f} and pixel accuracy "
        f"{100 * constant.pixel_accuracy:.1f}."
    )
    log.line(f"Trained {seconds:.0f} s. Model: {config.model_dir}")
    if config.sample_images:
        path = write_samples(run, log, config, output_dir / "samples.png", steps)
        log.line(f"Pictures: {path}")


def write_samples(run: Run, log: RunLog, config: Config, path: Path, steps: int) -> Path:
    """Image, truth, prediction and errors of some validation images, spread evenly over the channel."""
    pairs = run.data.validation
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(config.sample_images, len(pairs))).round().astype(int))
    palette = palette_for(run.class_names)
    was_training = run.network.training
    run.network.eval()
    rows = []
    for index in chosen:
        image, truth = read_pair(pairs[index], config.num_classes, run.data.validation_map, config.ignore)
        pixels = torch.from_numpy(np.array(image)).unsqueeze(0).permute(0, 3, 1, 2).to(run.device)  # (1, 3, H, W)
        prediction = predict_whole(run.network, pixels, run.precision.autocast_dtype)[0]  # (H, W)
        rows.append(sample_row(image, truth, prediction.to(torch.uint8).cpu().numpy(), palette))
    run.network.train(was_training)
    write_image(path, sample_sheet(rows, SAMPLE_TITLES))
    log.pictures(steps, "validation", [np.concatenate(row, axis=1) for row in rows])
    return path
