"""Device, precision and loader processes by machine. GPUs are mocked."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from pspnet.errors import ConfigError
from pspnet.system import device as devices
from pspnet.system.device import choose_device, choose_workers
from pspnet.system.precision import Precision, choose_precision

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def mock_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> list[int]:
    """Mock a GPU of this compute capability, or none; returns the list of selected indices."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    mock_gpu(monkeypatch, None)
    assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"device = cuda: this PyTorch .* sees no GPU; use --device auto"):
        choose_device("cuda")


def test_auto_is_the_gpu_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = mock_gpu(monkeypatch, (8, 0))
    assert choose_device("auto", local_rank=1) == torch.device("cuda", 1)
    assert choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU
    assert chosen == [1, 0]


@pytest.mark.parametrize(
    ("capability", "name"),
    [((3, 7), "float32"), ((6, 1), "float32"), ((7, 0), "float16"), ((7, 5), "float16"), ((8, 6), "bfloat16"),
     ((9, 0), "bfloat16")],
)  # fmt: skip
def test_auto_precision_by_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    mock_gpu(monkeypatch, capability)
    assert choose_precision("auto", CUDA).name == name


def test_auto_precision_on_a_cpu_is_float32() -> None:
    assert choose_precision("auto", CPU) == Precision("float32", None)


def test_precisions_by_name() -> None:
    assert choose_precision("float32", CUDA) == Precision("float32", None, scale_loss=False)
    assert choose_precision("bfloat16", CPU) == Precision("bfloat16", torch.bfloat16, scale_loss=False)
    assert choose_precision("float16", CUDA) == Precision("float16", torch.float16, scale_loss=True)
    with pytest.raises(ConfigError, match=r"precision = float16 needs a GPU; on a CPU use float32, or bfloat16"):
        choose_precision("float16", CPU)


@pytest.mark.parametrize(("cores", "on_cpu", "on_gpu"), [(1, 0, 1), (2, 0, 2), (4, 2, 4), (6, 4, 6), (64, 4, 16)])
def test_workers_by_cores(monkeypatch: pytest.MonkeyPatch, cores: int, on_cpu: int, on_gpu: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert choose_workers("auto", CPU) == on_cpu
    assert choose_workers("auto", CUDA) == on_gpu
    assert choose_workers(7, CPU) == 7
    assert choose_workers(0, CUDA) == 0


def test_local_processes_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert choose_workers("auto", CUDA, local_processes=4) == 4
    assert choose_workers("auto", CPU, local_processes=4) == 2
    assert choose_workers("auto", CUDA, local_processes=100) == 0


def test_fast_bfloat16_is_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.has_fast_bfloat16(CUDA) is False
    if not hasattr(torch, "cpu"):
        assert devices.has_fast_bfloat16(CPU) is False
        return
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda supported=supported: supported, raising=False)
        assert devices.has_fast_bfloat16(CPU) is supported
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert devices.has_fast_bfloat16(CPU) is False


@pytest.fixture
def determinism_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("determinism_restored")
def test_make_deterministic() -> None:
    torch.backends.cudnn.benchmark = True
    devices.make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_device_description(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert devices.describe(CPU) == "CPU with 3 threads"
    assert devices.describe(CUDA) == "Tesla T4"


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_uses_settings_of_every_torch_version(allowed: bool) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        devices.set_tf32(allowed)
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
