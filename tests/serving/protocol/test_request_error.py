"""Tests of mapping exceptions to error answers."""

from __future__ import annotations

import logging

import pytest
import torch

from pspnet.errors import DataError
from pspnet.serving.protocol.request_error import RequestError, as_request_error


def test_library_errors_become_400() -> None:
    original = RequestError(413, "Too large.")
    assert as_request_error(original) is original
    found = as_request_error(DataError("the image\nis odd."))
    assert (found.status, str(found)) == (400, "the image is odd.")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        # ONNX Runtime's exceptions derive from Exception only.
        Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for buffer of size 9"),
        RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223: std::bad_alloc"),
    ],
)
def test_out_of_memory_becomes_503(error: Exception) -> None:
    found = as_request_error(error)
    assert found.status == 503
    assert str(found).startswith("The endpoint ran out of memory")


def test_unexpected_exception_is_logged_but_not_returned(caplog: pytest.LogCaptureFixture) -> None:
    try:
        {}["secret"]
    except KeyError as error:
        with caplog.at_level(logging.ERROR):
            found = as_request_error(error)
    assert found.status == 500
    assert str(found) == "The endpoint failed to answer this request; see its log for the reason."
    assert "Traceback" in caplog.text
    assert "secret" in caplog.text
