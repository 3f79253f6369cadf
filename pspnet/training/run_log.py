"""Log of a run: lines on standard output, progress bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pspnet.system.atomic_files import atomic_write


class RunLog:
    """Log written by the main process of a run; the other processes hold a silent one.

    Args:
        output_dir: gets metrics.jsonl and tensorboard/.
        silent: True in all processes but the main one.
        bar: progress bar (True), plain lines (False), or a bar if standard error is a terminal (None).
        tensorboard: whether to write TensorBoard files; without the package a note is logged instead.
        resume_step: None for a new run, else the optimizer steps already taken; later records are dropped from
            metrics.jsonl, since they will be written again.
    """

    def __init__(
        self,
        output_dir: Path,
        silent: bool = False,
        bar: bool | None = None,
        tensorboard: bool = True,
        resume_step: int | None = None,
    ) -> None:
        self.silent = silent
        self.show_bar = sys.stderr.isatty() if bar is None else bar
        self._bar: Any = None
        self._writer: Any = None
        self._metrics_path = output_dir / "metrics.jsonl"
        if silent:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        self._truncate_metrics(resume_step)
        if tensorboard:
            self._writer = self._open_tensorboard(output_dir / "tensorboard", resume_step)

    def line(self, text: str) -> None:
        """Print one line on standard output, above the progress bar if one is shown."""
        if self.silent:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, flush=True)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        if not self.silent and self.show_bar:
            self._bar = tqdm(
                total=steps, initial=done, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False, dynamic_ncols=True
            )

    def step(self, **shown: str) -> None:
        """Advance the progress bar by one optimizer step; `shown` becomes its suffix."""
        if self._bar is not None:
            if shown:
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update()

    def end_epoch(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def record(self, step: int, epoch: int, **values: float) -> None:
        """Append a line to metrics.jsonl and write the same values to TensorBoard."""
        if self.silent:
            return
        with open(self._metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "epoch": epoch, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name.replace(":", "/"), value, step)

    def pictures(self, step: int, name: str, pictures: Sequence[np.ndarray]) -> None:
        """Write (H, W, 3) uint8 pictures to TensorBoard."""
        if self._writer is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        for number, picture in enumerate(pictures):
            # Encoded here because add_image of torch 1.12 fails with Pillow 10 and newer.
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, format="PNG")
            height, width, channels = picture.shape
            image = Summary.Image(
                height=height, width=width, colorspace=channels, encoded_image_string=encoded.getvalue()
            )
            summary = Summary(value=[Summary.Value(tag=f"{name}/{number}", image=image)])
            self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        self.end_epoch()
        if self._writer is not None:
            self._writer.close()

    def _truncate_metrics(self, step: int | None) -> None:
        kept = []
        if step is not None and self._metrics_path.is_file():
            for text in self._metrics_path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(text)["step"] <= step:
                        kept.append(text + "\n")
                except (ValueError, KeyError):
                    continue  # a truncated line of a killed run
        # Atomic, so that a full disk does not lose the records of an earlier run.
        with atomic_write(self._metrics_path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def _open_tensorboard(self, folder: Path, resume_step: int | None) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            # The error names the missing package, which may be a dependency of TensorBoard.
            self.line(f"No TensorBoard files are written: {error}. `pip install tensorboard`, or --tensorboard False.")
            return None
        if resume_step is None and folder.is_dir():
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
        return SummaryWriter(str(folder), purge_step=None if resume_step is None else resume_step + 1)
