"""What the entries share: the train command, and errors turned into one message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pspnet.config_checks import check_channels, config_warnings
from pspnet.config_sources import dump_yaml, help_text, parse_arguments
from pspnet.errors import ConfigError, ProcessLostError, PspnetError
from pspnet.job import describe_defect, job_arguments, report_failure
from pspnet.locations import find_beside

USER_ERROR = 1
CONFIG_ERROR = 2

_PRINT_THREAD_ERROR = threading.excepthook


def run_guarded(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command. What a user can mend ends in one message on standard error and a non-zero exit code.

    Exit codes: 0 done, 1 data, weights or the disk, 2 settings, 130 Ctrl-C, 143 SIGTERM. A defect of the program
    keeps its traceback. In a SageMaker job the message also goes to the job's failure file.
    """
    thread_hook, threading.excepthook = threading.excepthook, _report_thread
    try:
        return command(argv)
    except ProcessLostError as error:
        # The process that was lost has the reason, or torchrun has where that one was killed.
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except PspnetError as error:
        return _fail(str(error), CONFIG_ERROR if isinstance(error, ConfigError) else USER_ERROR)
    except OSError as error:
        return _fail(_describe(error), USER_ERROR)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except Exception as error:
        report_failure(describe_defect(error), os.environ)
        raise
    finally:
        threading.excepthook = thread_hook


def _fail(message: str, exit_code: int) -> int:
    report_failure(message, os.environ)
    print(f"error: {message}", file=sys.stderr)
    return exit_code


def _report_thread(arguments: threading.ExceptHookArgs) -> None:
    """Say nothing of a disk that TensorBoard's writer thread found full: the command gets the same error from it."""
    foreign = type(arguments.thread).__module__.startswith("tensorboard.")
    if not (foreign and isinstance(arguments.exc_value, OSError)):
        _PRINT_THREAD_ERROR(arguments)


def _describe(error: OSError) -> str:
    path = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{path}the disk is full; free some space and run the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}no permission to write or read here; choose another folder or change its permissions."
    return f"{path}{error.strerror or error}"


def _find_quickstart() -> Path | None:
    configs = find_beside("configs")
    return None if configs is None or not (configs / "quickstart.yaml").is_file() else configs / "quickstart.yaml"


def train_command(argv: Sequence[str]) -> int:
    """`train.py` and `pspnet train`: settings from flags, file and environment; then train."""
    arguments = parse_arguments(job_arguments(argv, os.environ), os.environ, default_file=_find_quickstart())
    if arguments.help_requested:
        print(help_text())
        return 0
    config = arguments.config
    for warning in config_warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.print_config:
        print(dump_yaml(config), end="")
        return 0
    check_channels(config, arguments.sources)
    # Imported here, so that --help and wrong settings answer at once.
    from pspnet.training.loop import train

    exit_code = train(config).exit_code
    if exit_code:
        report_failure(
            f"The job was stopped by a signal (exit code {exit_code}) before its last epoch. Its checkpoint is in "
            f"{config.checkpoint_dir}; the same job goes on from it.",
            os.environ,
        )
    return exit_code
