"""Errors that a user can fix. Commands print only their message; other exceptions are bugs and keep their traceback."""

from __future__ import annotations


class PspnetError(ValueError):
    """Base class; messages state what was found, where, what was expected and the fix."""


_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory",  # PyTorch, the system
    "alloc_failed",  # cuBLAS, cuDNN
    "failed to allocate", "bad_alloc", "bad allocation",  # ONNX Runtime, OpenVINO
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """True if an exception reports that GPU or host memory is exhausted.

    The message decides, because libraries share no exception class: PyTorch has one for CUDA only, since 1.13, its CPU
    allocator raises a plain RuntimeError, and ONNX Runtime's exceptions have no public base class.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS)


class ConfigError(PspnetError):
    """Invalid settings; the message lists every problem, one per line."""


class DataError(PspnetError):
    """An image, annotation, label map or channel that training, evaluation or prediction cannot use."""


class AnnotationModeError(DataError):
    """A readable annotation whose pixels are not class ids: RGB, 16-bit, 1-bit, a lossy format."""


class ImageTooLargeError(DataError):
    """An image above the pixels of one forward pass, if larger images are to be refused."""

    def __init__(self, height: int, width: int, pixels: int) -> None:
        self.height, self.width, self.pixels = height, width, pixels
        super().__init__(
            f"the image has {width}x{height} pixels; at most {pixels:,} are allowed as large_images is `refuse`. Use a "
            "smaller image, or the limit large_images=`tile` or `scale`."
        )


class WeightsError(PspnetError):
    """Missing or damaged weights, checkpoints or model directories, or ones of another architecture."""


class ProcessLostError(PspnetError):
    """Another process of a data-parallel run ended; that process reports the reason."""


class TrainingStoppedError(PspnetError):
    """A signal stopped a training run before its last epoch; `exit_code` is 128 + the signal's number."""

    def __init__(self, exit_code: int, checkpoint_dir: str) -> None:
        self.exit_code = exit_code
        super().__init__(
            f"The job was stopped by a signal (exit code {exit_code}) before its last epoch. Its checkpoint is in "
            f"{checkpoint_dir}; the same job resumes from it."
        )


class NonFiniteLossError(PspnetError):
    """The loss became NaN or infinite; raised before the model is saved or scored."""


class DeviceMemoryError(PspnetError):
    """The device is out of memory; the message states what fits, or which setting needs less."""
