"""Error answers of an endpoint, and the mapping of exceptions to them."""

from __future__ import annotations

import logging

from pspnet.errors import ImageTooLargeError, PspnetError, is_out_of_memory

_log = logging.getLogger(__name__)


class RequestError(PspnetError):
    """Rejected request; `status` is the HTTP status, the message one plain sentence for the client."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def as_request_error(error: BaseException) -> RequestError:
    """Map an exception to an error answer. An unexpected one becomes a 500 and is logged with its traceback."""
    answer = known_answer(error)
    if answer is not None:
        return answer
    _log.error("a request failed", exc_info=error)
    return RequestError(500, "The endpoint failed to answer this request; see its log for the reason.")


def known_answer(error: BaseException) -> RequestError | None:
    """Map an error of the request or an out-of-memory error to an answer; None for an unexpected exception."""
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
