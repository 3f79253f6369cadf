"""Error messages and exit codes of every command."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence

from pspnet.errors import ConfigError, ProcessLostError, PspnetError
from pspnet.system.sagemaker_job import describe_exception, report_failure

USER_ERROR = 1
CONFIG_ERROR = 2

_PRINT_THREAD_ERROR = threading.excepthook


def run_guarded(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command; errors that a user can fix become one message on standard error and a non-zero exit code.

    Exit codes: 0 success, 1 data, weights or disk, 2 settings, 130 Ctrl-C, 143 SIGTERM. An unexpected exception keeps
    its traceback. In a SageMaker job the message is also written to the job's failure file.
    """
    thread_hook, threading.excepthook = threading.excepthook, _report_thread
    try:
        return command(argv)
    except ProcessLostError as error:
        # The lost process reports the reason, or torchrun if it was killed.
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
        report_failure(describe_exception(error), os.environ)
        raise
    finally:
        threading.excepthook = thread_hook


def _fail(message: str, exit_code: int) -> int:
    report_failure(message, os.environ)
    print(f"error: {message}", file=sys.stderr)
    return exit_code


def _report_thread(arguments: threading.ExceptHookArgs) -> None:
    """Skip OSErrors of TensorBoard's writer thread, such as a full disk: the command receives the same error."""
    is_tensorboard = type(arguments.thread).__module__.startswith("tensorboard.")
    if not (is_tensorboard and isinstance(arguments.exc_value, OSError)):
        _PRINT_THREAD_ERROR(arguments)


def _describe(error: OSError) -> str:
    path = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{path}the disk is full; free some space and run the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}permission denied; choose another folder or change its permissions."
    return f"{path}{error.strerror or error}"
