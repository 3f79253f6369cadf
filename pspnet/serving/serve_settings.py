"""Settings of `pspnet serve`, from flags and PSPNET_* variables.

Reading them does not import torch, so invalid ones are reported immediately.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pspnet.config.settings import setting
from pspnet.inference.limits import Limits
from pspnet.inference.runtimes.base import RuntimeName
from pspnet.system.cpu import available_cores

AUTO = "auto"
GPU_BATCH = 8
"""Default of --max_batch on GPUs."""
_NETWORK, _QUEUE, _TIMEOUTS = "Model and runtime", "Request queue", "Timeouts and log"


def _check_size(text: str) -> str:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and 32 <= int(part) <= 4096 for part in parts):
        raise ValueError("not WIDTHxHEIGHT")
    return text.lower()


def _check_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text, re.ASCII):
        raise ValueError("not a device")
    return text


def _check_host(text: str) -> str:
    if re.search(r"[\s/]", text):
        raise ValueError("not an address")
    return text


@dataclass(frozen=True, init=False)
class ServeSettings(Limits):
    """Settings of serving, with the limits of its requests. `threads` and `max_batch` may be `auto`."""

    model_dir: Path = setting(
        Path("/opt/ml/model"),
        "model_dir of a training run, or a folder with model.tar.gz; default /opt/ml/model",
        positional=True, variables=("PSPNET_MODEL_DIR", "SM_MODEL_DIR"),
    )  # fmt: skip
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 for all interfaces", group="Server", check=_check_host,
        allowed="an address of this machine, e.g. 127.0.0.1 or 0.0.0.0",
    )  # fmt: skip
    port: int = setting(8080, "port to listen on; 0 for any free port", group="Server", ge=0, le=65535)
    workers: int = setting(1, "worker processes, each with its own copy of the model", group="Server", ge=1, le=64)
    threads: Literal["auto"] | int = setting(
        AUTO, "CPU threads of each worker; auto: cores / workers", group=_NETWORK, ge=1, le=1024,
        allowed="auto or a whole number from 1 to 1024",
    )  # fmt: skip
    device: str = setting(
        AUTO, "with auto and cuda, workers are assigned to the GPUs round-robin", group=_NETWORK, check=_check_device,
        allowed="auto, cpu, cuda or cuda:N",
    )  # fmt: skip
    precision: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        AUTO, "precision of the network; auto: float32 on CPUs, by device on GPUs", group=_NETWORK
    )
    runtime: RuntimeName = setting(AUTO, "runtime of the network", group=_NETWORK)
    warmup_size: str = setting(
        "480x360", "image size of the warm-up; use the size of your frames", group=_NETWORK, check=_check_size,
        allowed="WIDTHxHEIGHT, both from 32 to 4096, e.g. 480x360",
    )  # fmt: skip
    queue: int = setting(32, "queued requests per worker; any more are answered with 503", group=_QUEUE, ge=1, le=10000)
    max_batch: Literal["auto"] | int = setting(
        AUTO, f"largest batch of queued images of the same size; auto: 1 on CPUs, {GPU_BATCH} on GPUs", group=_QUEUE,
        allowed="auto or a whole number from 1 to 256", ge=1, le=256,
    )  # fmt: skip
    body_seconds: float = setting(30.0, "timeout for receiving the body of a request", group=_TIMEOUTS, ge=0.1, le=3600)
    stuck_seconds: float = setting(
        300.0, "timeout of a forward pass; its worker is then replaced", group=_TIMEOUTS, ge=1, le=86400
    )
    grace_seconds: float = setting(25.0, "time to answer accepted requests at a stop", group=_TIMEOUTS, ge=0, le=3600)
    request_log: bool = setting(True, "log one JSON line per request to standard error", group=_TIMEOUTS)

    def threads_per_worker(self) -> int:
        """CPU threads of each worker's model."""
        if isinstance(self.threads, int):
            return self.threads
        return max(1, available_cores() // self.workers)

    def warmup_width_height(self) -> tuple[int, int]:
        """Image size of the warm-up."""
        width, height = map(int, self.warmup_size.split("x"))
        return width, height
