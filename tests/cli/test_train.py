"""`train.py`: exit codes, one message for every mistake, and signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from pspnet.cli.train import train_command
from pspnet.data.shapes import write_shapes
from pspnet.system.exit_codes import run_guarded
from pspnet.training import run_log as log
from pspnet.training.state import checkpoint
from pspnet.training.state.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180
SMALL = [
    "--num_classes=7", "--use_pretrained_model=False", "--width=4", "--crop_size=32", "--base_size=64", "--epochs=1",
    "--mini_batch_size=2", "--validation_mini_batch_size=2", "--optimizer=adam", "--device=cpu", "--precision=float32",
    "--workers=0", "--progress=lines", "--log_every=1", "--tensorboard=False", "--sample_images=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, train=6, validation=3, size=(64, 48))
    return folder


@pytest.fixture
def data(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(str(shapes), str(tmp_path / "data")))


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    folders = [f"--output_dir={run}", f"--model_dir={run / 'model'}", f"--checkpoint_dir={run / 'checkpoints'}"]
    return [*SMALL, f"--data={data}", *folders, *more]


if TYPE_CHECKING:  # Python 3.8 cannot evaluate it
    Train = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Train:
    """Run the train command in this process -> exit code, standard output, standard error."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_guarded(train_command, argv)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def environment(threads: str = "1") -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}


# -------------------- the command line


def test_help_and_wrong_values_need_no_torch(tmp_path: Path) -> None:
    """In a new process, because this one has imported torch."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')\n")
    command = [sys.executable, str(ROOT / "train.py")]
    # The folder of the substitute comes before site-packages.
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    shown = subprocess.run([*command, "--help"], env=env, capture_output=True, text=True, timeout=SECONDS)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--learning_rate: default 0.001; " in shown.stdout
    wrong = subprocess.run(
        [*command, "--learning-rate", "fast", "--epohcs", "3"], env=env, capture_output=True, text=True, timeout=SECONDS
    )
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("error: The configuration has 4 problems:\n")
    assert "learning_rate: found 'fast'" in wrong.stderr
    assert "epohcs: unknown key (flag --epohcs); did you mean epochs?" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_help_lists_every_setting(train: Train) -> None:
    code, out, err = train("--help")
    assert (code, err) == (0, "")
    for key in ("backbone", "early_stopping_patience", "train_annotation", "checkpoint_dir", "sample_images"):
        assert f"\n  --{key}: " in out


def test_print_config_shows_the_settings_and_does_not_train(train: Train, shapes: Path, tmp_path: Path) -> None:
    code, out, err = train(*arguments(shapes, tmp_path / "run", "--learning-rate", "1e-4", "--print_config"))
    assert (code, err) == (0, "")
    assert "learning_rate: 0.0001\n" in out
    assert f"model_dir: {tmp_path / 'run' / 'model'}\n" in out
    assert not (tmp_path / "run").exists()


def test_without_arguments_it_uses_the_built_in_data(train: Train) -> None:
    code, out, err = train("--print_config")
    assert (code, err) == (0, "")
    assert "data: shapes\n" in out
    assert "name: quickstart\n" in out


def test_contradicting_settings_cause_warnings(train: Train, shapes: Path, tmp_path: Path) -> None:
    code, _, err = train(*arguments(shapes, tmp_path, "--early_stopping", "True", "--print_config"))
    assert code == 0
    assert err.startswith("warning: early_stopping has no effect: early_stopping_min_epochs 5 is not below epochs 1.")


# -------------------- the data


def test_missing_channel_folder(train: Train, data: Path, tmp_path: Path) -> None:
    code, _, err = train(*arguments(data, tmp_path / "run", "--train", str(tmp_path / "gone")))
    assert code == 2
    assert f"train: no such folder: '{tmp_path / 'gone'}' (flag --train); give an existing folder" in err
    shutil.rmtree(str(data / "validation_annotation"))
    code, _, err = train(*arguments(data, tmp_path / "run"))
    assert code == 2
    assert "validation_annotation: no such folder: " in err
    assert not (tmp_path / "run").exists()


def test_unpaired_files(train: Train, data: Path, tmp_path: Path) -> None:
    (data / "train_annotation" / "train_00002.png").unlink()
    shutil.copy(str(data / "validation_annotation" / "validation_00000.png"), str(data / "train_annotation"))
    code, _, err = train(*arguments(data, tmp_path / "run"))
    assert code == 1
    assert "channel train: 1 images in " in err
    assert "have no annotation of the same stem" in err
    assert "train_00002.jpg. Add the annotations or remove the images." in err
    assert "validation_00000.png. Add the images or remove the annotations." in err


def test_empty_channel(train: Train, data: Path, tmp_path: Path) -> None:
    for folder in ("validation", "validation_annotation"):
        for path in (data / folder).iterdir():
            path.unlink()
    code, _, err = train(*arguments(data, tmp_path / "run"))
    assert code == 1
    assert "error: channel validation: no images in " in err


def spoil_image(data: Path) -> None:
    for path in (data / "train").iterdir():
        path.write_bytes(path.read_bytes()[:300])


def colour_masks(data: Path) -> None:
    for path in (data / "train_annotation").iterdir():
        Image.new("RGB", (64, 48)).save(path)


def write_foreign_ids(data: Path) -> None:
    for path in (data / "train_annotation").iterdir():
        Image.fromarray(np.full((48, 64), 200, dtype=np.uint8)).save(path)


def resize_masks(data: Path) -> None:
    for path in (data / "train_annotation").iterdir():
        Image.fromarray(np.zeros((64, 48), dtype=np.uint8)).save(path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize(
    ("spoil", "texts"),
    [
        (spoil_image, (".jpg: not a readable image (", "Replace or remove the file.")),
        (
            colour_masks,
            (".png: found an RGB PNG; an annotation is an 8-bit ", "Convert the colours to class ids"),
        ),
        (write_foreign_ids, (".png: class ids [200] are outside 0..6 and are not 255 (ignored).", "add a label map")),
        (resize_masks, (".png: the mask is 48x64 px but its image ", "is 64x48 px; expected the same size.")),
    ],
)
def test_damaged_files_stop_training_and_are_named(
    train: Train, data: Path, tmp_path: Path, spoil: Callable[[Path], None], texts: tuple[str, ...], workers: str
) -> None:
    spoil(data)
    code, _, err = train(*arguments(data, tmp_path / "run", "--workers", workers))
    assert code == 1
    assert err.startswith(f"error: {data / 'train'}")
    assert err.count("\n") == 1, "one message, on one line"
    for text in texts:
        assert text in err
    assert not (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_damaged_validation_file_keeps_the_checkpoint(train: Train, data: Path, tmp_path: Path) -> None:
    path = data / "validation" / "validation_00001.jpg"
    path.write_bytes(b"no image")
    run = tmp_path / "run"
    code, _, err = train(*arguments(data, run, "--checkpoint_every", "2"))
    assert code == 1
    assert "validation_00001.jpg: not a readable image (unknown image format)" in err
    assert load_checkpoint(run / "checkpoints" / "last.safetensors")["position"]["step"] == 2


# -------------------- checkpoints, models and folders


@pytest.mark.slow
def test_checkpoints_and_models_that_do_not_fit(train: Train, shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*arguments(shapes, run, "--max_steps_per_epoch", "1"))[0] == 0
    last, model = run / "checkpoints" / "last.safetensors", run / "model"

    code, _, err = train(*arguments(shapes, run, "--optimizer", "sgd", "--max_steps_per_epoch", "1"))
    assert code == 1
    assert err.startswith(f"error: {last}: this checkpoint belongs to another run: optimizer was adam and is now sgd.")

    code, _, err = train(*arguments(shapes, tmp_path / "b", "--model", str(model), "--num_classes", "8"))
    assert code == 1
    assert err.startswith(
        f"error: channel model: {model} holds another architecture: num_classes is 7 there and 8 here."
    )

    code, _, err = train(*arguments(shapes, tmp_path / "b", "--resume", str(model / "model.safetensors")))
    assert code == 1
    assert "model.safetensors: not a checkpoint of this program" in err

    save_file({"x": torch.zeros(3)}, str(tmp_path / "foreign.safetensors"))
    code, _, err = train(*arguments(shapes, tmp_path / "b", "--resume", str(tmp_path / "foreign.safetensors")))
    assert code == 1
    assert "foreign.safetensors: not a checkpoint of this program" in err

    last.write_bytes(last.read_bytes()[:5000])
    code, _, err = train(*arguments(shapes, run, "--max_steps_per_epoch", "1"))
    assert code == 1
    assert err.startswith(f"error: {last}: the checkpoint is damaged or truncated (")
    assert "or start again with `--resume never`." in err
    assert last.stat().st_size == 5000


@pytest.mark.parametrize("key", ["model_dir", "output_dir", "checkpoint_dir"])
def test_folder_that_cannot_be_written(train: Train, shapes: Path, tmp_path: Path, key: str) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, err = train(*arguments(shapes, tmp_path / "run", f"--{key}", str(tmp_path / "file" / "folder")))
    assert code == 2
    assert (
        f"error: {key}: {tmp_path / 'file' / 'folder'} cannot be written (Not a directory); give another folder" in err
    )
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_folder_without_permission(train: Train, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    code, _, err = train(*arguments(shapes, tmp_path / "run", "--model_dir", str(tmp_path / "closed" / "model")))
    assert code == 2
    assert "cannot be written (Permission denied); give another folder with --model_dir." in err


@pytest.mark.slow
def test_disk_that_fills_up_keeps_the_last_checkpoint(
    train: Train, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = checkpoint.save_file, []

    def fills_up(tensors: dict[str, torch.Tensor], name: str, metadata: dict[str, str]) -> None:
        if "last" in name:
            written.append(name)
        if len(written) == 2:
            Path(name).write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        original(tensors, name, metadata)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fills_up)
        code, _, err = train(*arguments(shapes, run, "--epochs", "3"))
    last = run / "checkpoints" / "last.safetensors"
    assert code == 1
    assert err.startswith(f"error: {last}: the checkpoint could not be written (I/O error: No space left on device")
    assert "Free some space or give another folder with --checkpoint_dir" in err
    assert load_checkpoint(last)["position"]["epoch"] == 2
    assert {path.name for path in last.parent.iterdir()} == {"last.safetensors", "best.safetensors"}
    code, out, _ = train(*arguments(shapes, run, "--epochs", "3"))
    assert code == 0
    assert f"Resuming from {last}: epoch 2, step 3." in out


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 KiB, if the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    try:
        mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_full_disk_under_curves_and_tensorboard(train: Train, shapes: Path, tmp_path: Path, tiny_disk: Path) -> None:
    elsewhere = ["--model_dir", str(tmp_path / "model"), "--checkpoint_dir", str(tmp_path / "checkpoints")]
    code, _, err = train(*arguments(shapes, tiny_disk, "--epochs", "40", "--tensorboard", "True", *elsewhere))
    assert code == 1
    assert "the disk is full; free some space and run the same command again." in err
    assert load_checkpoint(tmp_path / "checkpoints" / "last.safetensors")["position"]["step"] > 0


def test_records_of_an_earlier_run_survive_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1}\n{"step": 9, "epoch": 2}\n')

    def full(self: Path, *arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "write_text", full)
        log.RunLog(tmp_path, tensorboard=False, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    log.RunLog(tmp_path, tensorboard=False, resume_step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "epoch": 1}\n'


# -------------------- signals


def run_until(pattern: str, number: int, whole_group: bool, command: list[str]) -> tuple[int, str, str]:
    """Start a command, signal it when a line begins with `pattern`; return exit code, standard output and error."""
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(pattern):
                (os.killpg if whole_group else os.kill)(process.pid, number)
                break
        out, err = process.communicate()
    finally:
        watchdog.cancel()
        process.kill()
    return process.returncode, "".join(lines) + out, err


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_signals_leave_a_checkpoint_from_which_the_same_command_resumes(
    train: Train, shapes: Path, tmp_path: Path
) -> None:
    """SIGTERM to all processes, loader workers included, as `timeout` and job schedulers send it; then Ctrl-C."""
    settings = arguments(shapes, tmp_path, "--epochs", "500", "--workers", "2")
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    last = tmp_path / "checkpoints" / "last.safetensors"

    code, out, err = run_until("epoch=1 step=2/3", signal.SIGTERM, True, command)
    assert code == 143, err
    assert err == "\nSIGTERM: stopping after this step, with a checkpoint; a second signal stops immediately.\n"
    assert f"\nStopped. Checkpoint: {last}. The same command resumes from it.\n" in out
    first = load_checkpoint(last)["position"]

    code, out, err = run_until(f"epoch={first['epoch'] + 1} step=1/3", signal.SIGINT, False, command)
    assert code == 130, err
    assert f"Resuming from {last}: epoch {first['epoch']}, step {first['step']}." in out
    assert "Traceback" not in err
    second = load_checkpoint(last)["position"]
    assert second["step"] > first["step"]

    code, out, _ = train(*settings, "--epochs", str(second["epoch"]))
    assert code == 0
    assert f"Resuming from {last}: epoch {second['epoch']}, step {second['step']}." in out
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert load_checkpoint(last)["position"]["step"] == 3 * second["epoch"]


# -------------------- the guard


def test_system_errors_become_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def failing(error: BaseException) -> Callable[[object], int]:
        def command(argv: object) -> int:
            raise error

        return command

    cases: list[tuple[BaseException, int, str]] = [
        (OSError(28, "No space left on device", "a.png"), 1, "error: a.png: the disk is full; free some space and run"),
        (PermissionError(13, "Permission denied", "b"), 1, "error: b: permission denied; choose"),
        (FileNotFoundError(2, "No such file or directory", "c"), 1, "error: c: No such file or directory\n"),
        (OSError("only a text"), 1, "error: only a text\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ]
    for error, code, text in cases:
        assert run_guarded(failing(error), []) == code
        assert capsys.readouterr().err.startswith(text)
    with pytest.raises(ZeroDivisionError):
        run_guarded(failing(ZeroDivisionError()), [])
