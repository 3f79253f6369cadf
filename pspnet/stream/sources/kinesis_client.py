"""GetMedia client of Kinesis Video Streams through boto3: start selectors, body chunks and error messages."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from pspnet.stream.sources.base import SourceError, SourceOptions

CONNECT_SECONDS, STALL_SECONDS = 5.0, 10.0
"""Timeouts of connecting, and of reading from an open connection."""
_PIECE = 64 * 1024
_PIECES = 64
"""Maximum number of buffered pieces; a slower reader blocks the connection."""

_STREAM_ARN = re.compile(r"arn:[a-z-]+:kinesisvideo:[a-z0-9-]+:\d{12}:stream/([\w.-]{1,256})/\d+", re.ASCII)
_STREAM_NAME = re.compile(r"[\w.-]{1,256}", re.ASCII)
_DENIED = ("AccessDenied", "AccessDeniedException", "NotAuthorizedException", "UnauthorizedOperation")
_WRONG_KEYS = ("UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")

# Errors that GetMedia reports within the stream. Source: its API reference, AWS_KINESISVIDEO_ERROR_ID.
FRAGMENT_NOT_FOUND = 4000
_STREAM_ERRORS = {
    3002: "writing to the stream failed",
    FRAGMENT_NOT_FOUND: "the requested fragment no longer exists",
    4500: "this identity has no permission for the stream's KMS key",
    4501: "the stream's KMS key is disabled",
    4502: "the stream's KMS key failed validation",
    4503: "the stream's KMS key is not available",
    4504: "the stream's KMS key has the wrong key usage",
    4505: "the stream's KMS key is in an invalid state",
    4506: "the stream's KMS key no longer exists",
    5000: "Kinesis Video Streams had an internal error",
}


class LostError(Exception):
    """The connection was lost and can be retried."""

    def __init__(self, reason: str, expired: bool = False) -> None:
        self.expired = expired  # the requested start no longer exists; retry with another one
        super().__init__(reason)


def stream_parameters(text: str) -> dict[str, str]:
    """Return GetMedia's parameters for the name or ARN of a stream. Raises SourceError."""
    if _STREAM_ARN.fullmatch(text):
        return {"StreamARN": text}
    if _STREAM_NAME.fullmatch(text):
        return {"StreamName": text}
    raise SourceError(
        f"kvs://{text}: not a Kinesis video stream; expected kvs://NAME (letters, digits, _ . -) or kvs://ARN."
    )


def start_selector(start: str) -> dict[str, Any]:
    """Return the StartSelector for "now", "earliest", seconds since the epoch, "fragment:NUMBER" or "token:TOKEN".

    Raises SourceError for other values.
    """
    kind, _, value = start.partition(":")
    if start.lower() in ("now", "earliest"):
        return {"StartSelectorType": start.upper()}
    if kind == "fragment" and re.fullmatch(r"[0-9]{1,128}", value):
        return {"StartSelectorType": "FRAGMENT_NUMBER", "AfterFragmentNumber": value}
    if kind == "token" and re.fullmatch(r"[\w.-]{1,128}", value, re.ASCII):
        return {"StartSelectorType": "CONTINUATION_TOKEN", "ContinuationToken": value}
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return at_time(float(start))
    raise SourceError(
        f"start: found {start!r}; expected now, earliest, seconds since the epoch, fragment:NUMBER (starts after it) "
        "or token:TOKEN."
    )


def at_time(seconds: float) -> dict[str, Any]:
    """Return the StartSelector for a producer's time."""
    return {
        "StartSelectorType": "PRODUCER_TIMESTAMP",
        "StartTimestamp": datetime.fromtimestamp(seconds, tz=timezone.utc),
    }


class MediaClient:
    """Client that opens GetMedia connections to one stream."""

    def __init__(self, text: str, options: SourceOptions, session: Any = None, stall: float = STALL_SECONDS) -> None:
        """session: a boto3 session; default: created from the options. Raises SourceError."""
        self.name = f"kvs://{text}"
        self._stream = stream_parameters(text)
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise SourceError(f"{self.name}: needs boto3; install it with `pip install boto3`.") from error
        # The source retries, since it knows the position to resume from.
        self._settings = Config(connect_timeout=CONNECT_SECONDS, read_timeout=stall, retries={"total_max_attempts": 1})
        try:
            self._session = session or boto3.Session(region_name=options.region, profile_name=options.profile)
            self._control = self._session.client(
                "kinesisvideo", endpoint_url=options.aws_endpoint, config=self._settings
            )
        except BotoCoreError as error:
            raise self._translate(error) from error
        self._media: Any = None

    def connect(self, selector: dict[str, Any]) -> Any:
        """Return the body of GetMedia. Raises LostError for errors to retry, SourceError for permanent ones."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._media is None:
                endpoint = self._control.get_data_endpoint(APIName="GET_MEDIA", **self._stream)["DataEndpoint"]
                self._media = self._session.client("kinesis-video-media", endpoint_url=endpoint, config=self._settings)
            return self._media.get_media(StartSelector=selector, **self._stream)["Payload"]
        except (BotoCoreError, ClientError) as error:
            # The endpoint of a stream can change; the next attempt requests it again.
            self._media = None
            raise self._translate(error, selector) from error

    def _translate(self, error: Exception, selector: dict[str, Any] | None = None) -> Exception:
        from botocore.exceptions import ClientError

        if not isinstance(error, ClientError):
            return self._translate_local(error)
        details = error.response.get("Error", {})
        code = str(details.get("Code", "")).split(":")[0]
        message = " ".join(str(details.get("Message", "")).split()).rstrip(".")
        response = f"{code}{f': {message}' if message else ''}"
        if code == "ResourceNotFoundException":
            return SourceError(
                f"{self.name}: no such Kinesis video stream in this account and region; list them with `aws "
                "kinesisvideo list-streams`."
            )
        if code in _DENIED:
            return SourceError(
                f"{self.name}: access denied by AWS ({response}); the identity needs kinesisvideo:GetDataEndpoint and "
                "kinesisvideo:GetMedia for the stream."
            )
        if code in _EXPIRED:
            return SourceError(f"{self.name}: the AWS sign-in has expired; run `aws sso login`, or get new keys.")
        if code in _WRONG_KEYS:
            return SourceError(f"{self.name}: AWS rejected the credentials ({response}); run `aws configure`.")
        if code == "ConnectionLimitExceededException":
            return LostError("the stream has reached the AWS limit of readers")
        if code == "ClientLimitExceededException":
            return LostError("the stream has reached the AWS rate limit")
        if code in ("InvalidArgumentException", "ValidationException"):
            if selector and selector["StartSelectorType"] in ("CONTINUATION_TOKEN", "PRODUCER_TIMESTAMP"):
                return LostError(f"AWS cannot resume from there ({response})", expired=True)
            return SourceError(f"{self.name}: AWS rejected the request ({response}); check the stream and --start.")
        return LostError(f"AWS returned {response}")

    def _translate_local(self, error: Exception) -> Exception:
        """Translate an error that boto3 raises without a response of AWS."""
        name, text = type(error).__name__, " ".join(str(error).split()).rstrip(".")
        if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
            return SourceError(f"{self.name}: found no AWS credentials; run `aws configure` or `aws sso login`.")
        if name == "NoRegionError":
            return SourceError(f"{self.name}: found no AWS region; pass --region or set AWS_DEFAULT_REGION.")
        if name == "ProfileNotFound" or "SSO" in name or "Token" in name or name == "ParamValidationError":
            return SourceError(f"{self.name}: {text}.")
        return LostError(f"AWS cannot be reached ({text})")


def stream_error(name: str, identity: str, text: str) -> Exception:
    """Translate the error tags of a stream: LostError for errors to retry, else SourceError."""
    number = int(identity) if identity.isascii() and identity.isdigit() else 0
    reason = (
        f"{_STREAM_ERRORS.get(number, 'the stream ended with an error')} ({' '.join(f'{identity} {text}'.split())})"
    )
    if 4500 <= number < 4600:
        return SourceError(f"{name}: {reason}; check the key's state and policy, or assign another key to the stream.")
    return LostError(reason, expired=number == FRAGMENT_NOT_FOUND)


class Body:
    """Pieces of a GetMedia body, read in a thread so that the consumer can be interrupted."""

    def __init__(self, client: MediaClient, selector: dict[str, Any], closed: threading.Event) -> None:
        self._closed = closed
        self._done = threading.Event()
        self._pieces: queue.Queue[bytes | Exception | None] = queue.Queue(_PIECES)
        threading.Thread(target=self._read, args=(client, selector), name="kinesis", daemon=True).start()

    def pieces(self) -> Iterator[bytes]:
        """Yield bytes as they arrive, until the body ends or the source is closed. Raises LostError, SourceError."""
        try:
            while not self._closed.is_set():
                with contextlib.suppress(queue.Empty):
                    piece = self._pieces.get(timeout=0.2)
                    if piece is None:
                        return
                    if isinstance(piece, Exception):
                        raise piece
                    yield piece
        finally:
            self._done.set()

    def _read(self, client: MediaClient, selector: dict[str, Any]) -> None:
        try:
            body = client.connect(selector)
            with contextlib.closing(body):
                for piece in _stream(body):
                    if not self._put(piece):
                        return
            self._put(None)
        except (LostError, SourceError) as error:
            self._put(error)
        except Exception as error:
            # Three libraries have their own exceptions for a lost connection.
            timed_out = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()
            reason = "the read timed out" if timed_out else " ".join(str(error).split())
            self._put(LostError(f"the connection was lost: {reason}"))

    def _put(self, piece: bytes | Exception | None) -> bool:
        while not (self._closed.is_set() or self._done.is_set()):
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.2)
                return True
        return False


def _stream(body: Any) -> Iterator[bytes]:
    """Yield pieces of a botocore StreamingBody without buffering.

    Its own read(n) blocks until n bytes have arrived, which would delay the end of every frame until the next one.
    """
    raw: Any = getattr(body, "_raw_stream", None)
    yield from raw.stream(_PIECE) if hasattr(raw, "stream") else body.iter_chunks(512)
