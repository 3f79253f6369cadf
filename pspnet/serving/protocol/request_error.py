"""Errors that an endpoint answers with, and the mapping of library errors to them."""

from __future__ import annotations

import logging

from pspnet.errors import ImageTooLargeError, PspnetError, is_out_of_memory

_log = logging.getLogger(__name__)


class RequestError(PspnetError):
    """A request that cannot be answered; `status` is the HTTP status, the text one plain sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def as_request_error(error: BaseException) -> RequestError:
    """What to answer where `error` was raised. One that no request should cause is logged with its traceback."""
    answer = known_answer(error)
    if answer is not None:
        return answer
    _log.error("a request failed", exc_info=error)
    return RequestError(500, "The endpoint failed to answer this request; its log says why.")


def known_answer(error: BaseException) -> RequestError | None:
    """What to answer to an error of the request itself or for want of memory; None for a defect."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ImageTooLargeError):
        return RequestError(
            413,
            f"The image has {error.width}x{error.height} pixels; this endpoint takes at most {error.pixels:,} of them "
            "(PSPNET_PASS_PIXELS) as PSPNET_LARGE_IMAGES is `refuse`. Send a smaller one.",
        )
    if isinstance(error, PspnetError):
        return RequestError(400, " ".join(str(error).split()))
    if is_out_of_memory(error):
        _log.error("out of memory: %s", error)
        return RequestError(503, "The endpoint ran out of memory for this request; try again or send a smaller image.")
    return None
