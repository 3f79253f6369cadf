"""Errors that a user can mend. Entries print their text alone; anything else is a defect and keeps its traceback."""

from __future__ import annotations


class PspnetError(ValueError):
    """Base of every error whose text says what was found, where, what was expected and the fix."""


_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory",  # PyTorch, the system
    "alloc_failed",  # cuBLAS, cuDNN
    "failed to allocate", "bad_alloc", "bad allocation",  # ONNX Runtime, OpenVINO
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a GPU's or the machine's memory did not suffice.

    Libraries have no class in common for it: PyTorch has one of its own on CUDA only, and since 1.13 only, its CPU
    allocator raises a bare RuntimeError, and ONNX Runtime's exceptions have no public base class. So the text decides.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS)


class ConfigError(PspnetError):
    """A setting that cannot be used; the text lists every problem found, one a line."""


class DataError(PspnetError):
    """An image, annotation, label map or channel that training, evaluation or prediction cannot use."""


class AnnotationModeError(DataError):
    """An annotation that opens, but whose pixels are no class ids: RGB, 16-bit, 1-bit, a lossy format."""


class ImageTooLargeError(DataError):
    """An image above the pixels of one forward pass, if larger images are to be refused."""

    def __init__(self, height: int, width: int, pixels: int) -> None:
        self.height, self.width, self.pixels = height, width, pixels
        super().__init__(
            f"the image has {width}x{height} pixels; at most {pixels:,} are allowed as large_images is `refuse`. Use a "
            "smaller image, or the limit large_images=`tile` or `scale`."
        )


class WeightsError(PspnetError):
    """Weights, a checkpoint or a model directory that is missing, damaged or of another architecture."""


class ProcessLostError(PspnetError):
    """Another process of a data-parallel run ended, for a reason that it told itself."""


class NonFiniteLossError(PspnetError):
    """The loss became NaN or infinite; raised before a spoilt model could be saved or scored."""


class DeviceMemoryError(PspnetError):
    """The device's memory is full; the text says what fits, or which setting needs less."""
