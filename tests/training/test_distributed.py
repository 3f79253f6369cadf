"""Two CPU processes under torchrun compared with one process. One launch serves nearly all tests.

PSPNET_PYTHON38 may name a Python 3.8 with torch 1.12.1, which is tested for the same shutdown.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pspnet.artifact.model_directory import architecture_of, save_artifact
from pspnet.config.schema import Config
from pspnet.data.loader import Batch, load_batches
from pspnet.data.shapes import write_shapes
from pspnet.evaluation.metrics import Scores
from pspnet.evaluation.protocols.whole import evaluate_whole
from pspnet.models.build import build_model
from pspnet.system.distributed import Processes, join_processes
from pspnet.system.precision import Precision
from pspnet.training.optimization.losses import build_loss
from pspnet.training.setup import build_run
from pspnet.training.state.checkpoint import load_checkpoint
from pspnet.training.step import TrainingStep

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240
CLASS_WEIGHTS = [1.0, 3.0, 0.5]

LEAVE_REPEATEDLY = """
import sys
import torch
from torch import distributed, nn
from pspnet.system.distributed import Processes

folder, rank = sys.argv[1], int(sys.argv[2])
processes = Processes(rank, 2, rank)
for number in range(60):
    store = distributed.FileStore(f"{folder}/{number}", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))  # holds the last reference to the group
    processes.any(True, torch.device("cpu"))
    processes.min(rank)
    processes.copy_from_main([torch.zeros(1)])
    processes.barrier()
    processes.shutdown()
    del model
"""


def small_config(data: Path, run: Path, **changes: Any) -> Config:
    """Two epochs of three steps; the last step has one image, fewer than there are processes."""
    settings: dict[str, Any] = {
        "num_classes": 7, "use_pretrained_model": False, "width": 4, "crop_size": 32, "base_size": 64, "epochs": 2,
        "mini_batch_size": 3, "validation_mini_batch_size": 2, "learning_rate": 0.001, "optimizer": "adam",
        "device": "cpu", "precision": "float32", "progress": "lines", "log_every": 1, "tensorboard": False,
        "workers": 0, "sample_images": 0, "data": str(data), "output_dir": str(run), "model_dir": str(run / "model"),
        "checkpoint_dir": str(run / "checkpoints"),
    }  # fmt: skip
    return Config(**{**settings, **changes})


def write_undecided_model(config: Config, folder: Path) -> None:
    """Write a model whose predictions vary over the image. After this short training a random network would predict one
    class everywhere, and nearly any error would leave its scores unchanged."""
    torch.manual_seed(1)
    network = build_model(**architecture_of(config))
    with torch.no_grad():
        network.head.classifier.weight.mul_(30)
    save_artifact(folder, network, config, {}, {})


def plain_network() -> nn.Module:
    """Two convolutions without batch norm, so that the result does not depend on how a batch is distributed."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))


def images_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    """(3 steps, 6 images, ...); every image has another number of ignored pixels."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(3, 6, 3, 8, 8, generator=generator)
    targets = torch.randint(0, 3, (3, 6, 8, 8), generator=generator).to(torch.uint8)
    for number in range(6):
        targets[:, number, :number] = 255
    targets[1, :2] = 255
    return images, targets


def train_plain_network(processes: Processes, groups: list[list[int]]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Return weights and losses after three steps with one mini-batch per group of image numbers."""
    network = plain_network()
    model: nn.Module = network
    if processes.world_size > 1:
        model = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    cpu, weights = torch.device("cpu"), torch.tensor(CLASS_WEIGHTS)
    step = TrainingStep(
        model, build_loss("cross_entropy", class_weights=CLASS_WEIGHTS), optimizer, cpu, Precision("float32", None),
        processes, class_weights=weights,
    )  # fmt: skip
    losses = []
    for number, (images, targets) in enumerate(zip(*images_and_targets())):
        batches = [Batch(images[group], targets[group], [str(index) for index in group]) for group in groups]
        losses.append(float(step(batches, number, network)))
    return {name: value.clone() for name, value in network.state_dict().items()}, losses


def work_as_process(data: Path, folder: Path) -> None:
    """Work of each of the two processes; it writes `folder/rank<r>.pt`."""
    import signal

    from torch import distributed

    from pspnet.errors import ConfigError, PspnetError
    from pspnet.system.signals import StopRequest
    from pspnet.training.loop import train

    processes = join_processes("cpu")
    # Several runs share this launch, so the first one must not destroy the group.
    Processes.shutdown = lambda self: None  # type: ignore[method-assign]
    rank = processes.rank
    results: dict[str, Any] = {"rank": (processes.rank, processes.world_size, processes.is_main)}
    results["sum"] = processes.sum(torch.tensor([rank + 1, 10])).tolist()
    results["any"] = [processes.any(rank == 1, torch.device("cpu")), processes.any(False, torch.device("cpu"))]
    own = torch.full((2,), float(rank))
    processes.copy_from_main([own])
    results["copied"] = own.tolist()

    results["plain"] = train_plain_network(processes, [[[0, 1], [2]], [[3], [4, 5]]][rank])

    outcome = train(small_config(data, folder / "straight", model=str(folder / "start")))
    results["straight"] = outcome.scores.to_json(tuple("abcdefg")), outcome.history
    outcome = train(small_config(data, folder / "averaged", model=str(folder / "start"), ema_decay=0.5))
    results["averaged"] = outcome.scores.to_json(tuple("abcdefg")), outcome.history

    taken, original, stop = [0], TrainingStep.__call__, StopRequest()

    def stopped_in_one_process(self: TrainingStep, *arguments: Any) -> torch.Tensor:
        taken[0] += 1
        if rank == 1 and taken[0] == 4:
            stop.signal_number = int(signal.SIGINT)
        return original(self, *arguments)

    TrainingStep.__call__ = stopped_in_one_process  # type: ignore[method-assign]
    config = small_config(data, folder / "resumed", model=str(folder / "start"))
    results["stopped"] = train(config, stop).exit_code
    distributed.barrier()
    results["steps"] = load_checkpoint(folder / "resumed" / "checkpoints" / "last.safetensors")["position"]["step"]
    distributed.barrier()
    results["resumed"] = train(config).exit_code

    for name, changes in (("batch", {"mini_batch_size": 1}), ("images", {"max_train_images": 1})):
        try:
            train(small_config(data, folder / "wrong", **changes))
        except ValueError as error:
            results[name] = (isinstance(error, ConfigError), str(error))

    # Last, because it ends the process that reads the broken file, and so the group.
    broken = folder / "broken"
    if rank == 0:
        shutil.copytree(str(data), str(broken))
        (broken / "validation" / "validation_00000.jpg").write_bytes(b"no image")
    distributed.barrier()
    try:
        train(small_config(broken, folder / "lost", max_steps_per_epoch=1))
    except PspnetError as error:
        results["lost"] = (type(error).__name__, str(error))
    torch.save(results, str(folder / f"rank{rank}.pt"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # As under torchrun: sums in another order would differ in the last bit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=7, validation=5, size=(64, 48))
    return folder


@pytest.fixture(scope="module")
def launched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder that the two processes wrote to, and the results of each."""
    folder = tmp_path_factory.mktemp("processes")
    write_undecided_model(small_config(data, folder), folder / "start")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2", "--master_addr",
        "127.0.0.1", "--master_port", port, __file__, str(data), str(folder),
    ]  # fmt: skip
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert process.returncode == 0, process.stderr[-4000:]
    (folder / "out.txt").write_text(process.stdout)
    return folder, [torch.load(str(folder / f"rank{rank}.pt")) for rank in (0, 1)]


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = join_processes("cpu")
    assert alone == Processes(0, 1, 0)
    assert alone.is_main
    assert alone.sum(torch.tensor([2, 3])).tolist() == [2, 3]
    assert alone.any(True, torch.device("cpu")) is True
    assert alone.any(False, torch.device("cpu")) is False
    alone.copy_from_main([torch.zeros(1)])
    alone.barrier()
    alone.shutdown()


@pytest.mark.slow
def test_collective_operations(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    ranks = launched[1]
    assert [found["rank"] for found in ranks] == [(0, 2, True), (1, 2, False)]
    assert [found["sum"] for found in ranks] == [[3, 20], [3, 20]]
    assert [found["any"] for found in ranks] == [[True, False], [True, False]]
    assert [found["copied"] for found in ranks] == [[0.0, 0.0], [0.0, 0.0]]


def test_two_processes_equal_one_process_over_the_whole_batch(
    launched: tuple[Path, list[dict[str, Any]]],
) -> None:
    """Also with gradients accumulated over mini-batches of different sizes and numbers of ignored pixels."""
    whole, losses = train_plain_network(Processes(), [[0, 1, 2, 3, 4, 5]])
    start = plain_network().state_dict()
    for found in launched[1]:
        weights, theirs = found["plain"]
        assert theirs == pytest.approx(losses, rel=1e-6)
        for name in whole:
            torch.testing.assert_close(weights[name], whole[name], rtol=0, atol=1e-6)
            assert not torch.allclose(weights[name], start[name], atol=1e-3)
    first, second = (found["plain"][0] for found in launched[1])
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["straight", "averaged"])
def test_scores_are_exactly_those_of_one_process(
    data: Path, launched: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    """Validation of the saved weights in one process gives exactly the counts of two processes."""
    folder, ranks = launched
    assert ranks[0][name] == ranks[1][name]
    counts = load_checkpoint(folder / name / "checkpoints" / "best.safetensors")["counts"]
    assert (counts.sum(dim=0) > 100).sum() >= 3, "a single predicted class would prove nothing"
    run = build_run(small_config(data, folder / "one", model=str(folder / name / "model")))
    confusion = evaluate_whole(run.network, load_batches(run.validation_loader), 7, run.device, None, True)
    assert torch.equal(confusion.counts, counts)
    written = json.loads((folder / name / "metrics.json").read_text())
    assert written == {**Scores.from_counts(counts.numpy()).to_json(run.class_names), "images": 5}


def test_a_signal_to_one_process_stops_all_and_the_resumed_run_is_bit_identical(
    launched: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, ranks = launched
    assert [found["stopped"] for found in ranks] == [143, 130]
    assert [found["steps"] for found in ranks] == [4, 4]
    assert [found["resumed"] for found in ranks] == [0, 0]
    straight, resumed = (
        load_checkpoint(folder / name / "checkpoints" / "last.safetensors") for name in ("straight", "resumed")
    )
    assert straight["position"]["step"] == 6
    assert all(torch.equal(straight["model"][name], resumed["model"][name]) for name in straight["model"])
    assert straight["history"] == resumed["history"]


def test_only_the_main_process_logs(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    out = (launched[0] / "out.txt").read_text()
    # Three complete runs, one of them resumed, and one that failed.
    assert out.count("PSPNet resnet-50, 7 classes") == 5
    assert out.count(", 2 processes\n") == 5
    assert out.count("epoch=1 validation:mIOU=") == 3
    assert out.count("epoch=2 validation:mIOU=") == 3


def test_fewer_images_than_processes_are_rejected(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in launched[1]:
        is_config_error, text = found["batch"]
        assert is_config_error
        assert text == (
            "mini_batch_size = 1 counts the images of all processes together; with 2 processes it must be at least 2."
        )
        assert found["images"][1] == ("channel train: 1 images for 2 processes; each needs at least one image.")


def test_a_failed_process_is_reported_as_the_cause_by_the_others(
    launched: tuple[Path, list[dict[str, Any]]],
) -> None:
    first, second = (found["lost"] for found in launched[1])
    assert first[0] == "DataError"
    assert "validation_00000.jpg: not a readable image" in first[1]
    assert second[0] == "ProcessLostError"
    assert second[1].startswith(
        "Another process of this run has ended, so this one ends too; see its message for the cause."
    )


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, os.environ.get("PSPNET_PYTHON38")], ids=["this Python", "python38"])
def test_processes_leave_their_group_without_deadlock(tmp_path: Path, python: str | None) -> None:
    if python is None:
        pytest.skip("PSPNET_PYTHON38 names no Python 3.8 with torch 1.12.1 (.ci/python38.sh makes one)")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    commands = [[python, "-c", LEAVE_REPEATEDLY, str(tmp_path), str(rank)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        assert [process.wait(timeout=90) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    work_as_process(Path(sys.argv[1]), Path(sys.argv[2]))
