"""Small evaluation folders as written by `pspnet evaluate`, with names that must not become markup."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pspnet.classes import palette_for
from pspnet.data.channels import load_pairs
from pspnet.evaluation.html_report.samples import keep_masks
from pspnet.evaluation.image_counts import DETAILS, Tally
from pspnet.evaluation.per_image import Record, write_records
from pspnet.evaluation.provenance import data_fingerprint, write_provenance
from pspnet.evaluation.summary import Result, metrics_json

EVIL = "<script>alert(1)</script>"
MakeEvaluation = Callable[..., Path]


def names_of(classes: int) -> tuple[str, ...]:
    """Class names: class 1 looks like a script, class 2 like the end of an attribute."""
    return tuple(
        [f"class {index}" if index not in (1, 2) else (EVIL, '"><img src=x>')[index - 1] for index in range(classes)]
    )


def masks_of(classes: int, images: int, seed: int, size: tuple[int, int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truths, the same for every seed, and predictions that are mostly right."""
    rng, noise = np.random.default_rng(5), np.random.default_rng(seed)
    targets, predictions = [], []
    for _ in range(images):
        blocks = rng.integers(0, classes, (size[0] // 8, size[1] // 8), dtype=np.uint8)
        target = blocks.repeat(8, 0).repeat(8, 1)
        wrong = noise.random(target.shape) < noise.random() * 0.4
        predictions.append(np.where(wrong, (target + 1) % classes, target).astype(np.uint8))
        target[:2] = 255
        targets.append(target)
    return targets, predictions


def write_evaluation(
    root: Path,
    name: str = "scores",
    classes: int = 5,
    images: int = 8,
    seed: int = 1,
    protocols: tuple[str, ...] = ("whole",),
    details: tuple[str, ...] = DETAILS,
) -> Path:
    """Return the folder `root/name`; its data is in `root/data`, shared by all evaluations of that root."""
    size, folder = (40, 56), root / name
    targets, predictions = masks_of(classes, images, seed, size)
    for kind in ("images", "targets"):
        (root / "data" / kind).mkdir(parents=True, exist_ok=True)
    for index, target in enumerate(targets):
        image = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "data" / "images" / f"{index}&<b>.png")
        Image.fromarray(target).save(root / "data" / "targets" / f"{index}&<b>.png")
    pairs = load_pairs(root / "data" / "images", root / "data" / "targets")[:images]
    tally, records = Tally(classes, details), {}
    for protocol in protocols:
        record = records[protocol] = Record(classes, {"settings": {"crop_size": 40}, "seconds": 1.5})
        for pair, target, mask in zip(pairs, targets, predictions):
            confidences = torch.from_numpy(np.random.default_rng(seed).random((1, *size), dtype=np.float32))
            rows = tally.rows(torch.from_numpy(mask)[None], torch.from_numpy(target)[None], confidences)
            matrix, counted = tally.split(rows[0].numpy())
            record.add(pair.stem, matrix, details=counted)
    palette = palette_for(names_of(classes))
    write_records(folder / "per_image.npz", records)
    results = {protocol: Result.of(protocol, record, images) for protocol, record in records.items()}
    (folder / "metrics.json").write_text(json.dumps(metrics_json(results, names_of(classes))))
    facts = {
        "command": f"pspnet evaluate {EVIL}",
        "images": str(root / "data" / "images"),
        "annotations": str(root / "data" / "targets"),
        "label_map": None,
        "ignore": 255,
        "data": data_fingerprint(pairs),
        "classes": list(names_of(classes)),
        "palette": palette[:classes].tolist(),
        "model": {"directory": str(root / "run" / "model"), "training": {"config": {"crop_size": 40, "name": EVIL}}},
    }
    write_provenance(folder, facts)
    found = {pair.stem: mask for pair, mask in zip(pairs, predictions)}
    first = records[protocols[0]]
    keep_masks(folder / "samples" / protocols[0], first, pairs, palette, lambda pair, _: found[pair.stem], None, 255)
    return folder


def write_run(root: Path, epochs: int = 6) -> Path:
    """Write a training run's log and scores to `root/run`."""
    lines = []
    for epoch in range(1, epochs + 1):
        step = 10 * epoch
        lines.append({"step": step - 5, "epoch": epoch, "loss": 2.0 / epoch, "learning_rate": 0.01 / epoch})
        lines.append({"step": step, "epoch": epoch, "train:loss": 2.0 / epoch})
        scores = {"validation:mIOU": 0.1 * min(epoch, 5), "validation:pixel_accuracy": 0.5}
        lines.append({"step": step, "epoch": epoch, **scores})
    run = root / "run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    iou = dict(zip(names_of(5), (0.5, 0.25, None, 0.75, 1.0)))
    metrics = {"mIOU": 0.625, "pixel_accuracy": 0.5, "per_class_iou": iou, "pixels": 1000, "images": 4}
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture
def make_evaluation(tmp_path: Path) -> MakeEvaluation:
    return lambda **options: write_evaluation(tmp_path, **options)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: write_run(tmp_path, **options)
