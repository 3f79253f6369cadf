"""Settings of `pspnet serve`, from flags and PSPNET_* variables.

Reading them does not import torch, so invalid ones are reported immediately.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pspnet.errors import ConfigError
from pspnet.inference.runtimes.base import NAMES
from pspnet.system.cpu import available_cores

AUTO = "auto"
DEFAULT_MODEL_DIR = Path("/opt/ml/model")
"""Model directory in SageMaker's containers."""
GPU_BATCH = 8
"""Default of --max_batch on GPUs."""


def _whole(low: int, high: int, auto: bool = False) -> Callable[[str], int | str]:
    allowed = f"a whole number from {low} to {high}" + (" or auto" if auto else "")

    def parse(text: str) -> int | str:
        if auto and text == AUTO:
            return AUTO
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(allowed)
        return int(text)

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return value

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(" or ".join(choices))
        return text

    return parse


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("True or False")
    return text.lower() in ("true", "1")


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and 32 <= int(part) <= 4096 for part in parts):
        raise ValueError("WIDTHxHEIGHT with both from 32 to 4096, e.g. 480x360")
    return int(parts[0]), int(parts[1])


def _device(text: str) -> str:
    if text not in (AUTO, "cpu", "cuda") and not (text.startswith("cuda:") and text[5:].isdigit()):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return text


def _host(text: str) -> str:
    if not text or any(character.isspace() or character == "/" for character in text):
        raise ValueError("an address of this machine, e.g. 127.0.0.1 or 0.0.0.0")
    return text


@dataclass(frozen=True)
class Setting:
    """Setting with flag `--name` and variable `PSPNET_NAME`. `parse` raises ValueError with the allowed values."""

    name: str
    default: str
    parse: Callable[[str], Any]
    metavar: str
    help: str


SETTINGS = (
    Setting("host", "127.0.0.1", _host, "ADDRESS", "address to listen on; 0.0.0.0 for all interfaces"),
    Setting("port", "8080", _whole(0, 65535), "N", "port to listen on; 0 for any free port"),
    Setting("workers", "1", _whole(1, 64), "N", "worker processes, each with its own copy of the model"),
    Setting("threads", AUTO, _whole(1, 1024, auto=True), "N", "CPU threads of each worker; auto: cores / workers"),
    Setting("device", AUTO, _device, "NAME", "auto, cpu, cuda or cuda:N; with auto and cuda, workers share the GPUs"),
    Setting(
        "precision", AUTO, _one_of("auto", "float32", "bfloat16", "float16"), "NAME",
        "precision of the network: auto (float32 on CPUs, by device on GPUs), float32, bfloat16 or float16",
    ),
    Setting("runtime", AUTO, _one_of(*NAMES), "NAME", f"runtime of the network: {', '.join(NAMES)}"),
    Setting("queue", "32", _whole(1, 10000), "N", "queued requests per worker; any more are answered with 503"),
    Setting(
        "max_batch", AUTO, _whole(1, 256, auto=True), "N",
        f"largest batch of queued images of the same size; auto: 1 on CPUs, {GPU_BATCH} on GPUs",
    ),
    Setting("warmup_size", "480x360", _size, "WxH", "image size of the warm-up; use the size of your frames"),
    Setting("body_seconds", "30", _seconds(0.1, 3600), "S", "timeout for receiving the body of a request"),
    Setting("stuck_seconds", "300", _seconds(1, 86400), "S", "timeout of a forward pass; its worker is then replaced"),
    Setting("grace_seconds", "25", _seconds(0, 3600), "S", "time to answer accepted requests at a stop"),
    Setting("request_log", "True", _switch, "BOOL", "log one JSON line per request to standard error"),
)  # fmt: skip


@dataclass(frozen=True)
class ServeSettings:
    """Settings of serving. `threads` and `max_batch` may be `auto`; `warmup_size` is (width, height)."""

    model_dir: Path
    host: str
    port: int
    workers: int
    threads: int | str
    device: str
    precision: str
    runtime: str
    queue: int
    max_batch: int | str
    warmup_size: tuple[int, int]
    body_seconds: float
    stuck_seconds: float
    grace_seconds: float
    request_log: bool

    def threads_per_worker(self) -> int:
        """CPU threads of each worker's model."""
        if isinstance(self.threads, int):
            return self.threads
        return max(1, available_cores() // self.workers)


def read_settings(
    model_dir: Path | None = None, flags: Mapping[str, str | None] | None = None, env: Mapping[str, str] = os.environ
) -> ServeSettings:
    """Read the settings: defaults < PSPNET_* variables < flags. An empty variable counts as unset.

    The model directory is `model_dir`, else PSPNET_MODEL_DIR, SM_MODEL_DIR or /opt/ml/model.
    Raises ConfigError that lists every invalid setting.
    """
    values: dict[str, Any] = {}
    problems = []
    for setting in SETTINGS:
        flag, variable = (flags or {}).get(setting.name), f"PSPNET_{setting.name.upper()}"
        source = f"--{setting.name}" if flag is not None else variable
        text = flag if flag is not None else env.get(variable) or setting.default
        try:
            values[setting.name] = setting.parse(text.strip())
        except ValueError as error:
            problems.append(f"{source}: found {text[:60]!r}; expected {error}.")
    if problems:
        raise ConfigError("\n".join(problems))
    found = model_dir or Path(env.get("PSPNET_MODEL_DIR") or env.get("SM_MODEL_DIR") or DEFAULT_MODEL_DIR)
    assert set(values) == {field.name for field in fields(ServeSettings)} - {"model_dir"}
    return ServeSettings(model_dir=found, **values)
