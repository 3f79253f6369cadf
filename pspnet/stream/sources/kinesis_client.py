"""GetMedia of Kinesis Video Streams through boto3: where to begin, the body in pieces, refusals as sentences."""

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
"""How long a connection may take, and how long an open one may be silent before it counts as lost."""
_PIECE = 64 * 1024
_PIECES = 64
"""Pieces that are kept at most; a reader that is slower than the stream holds up the connection instead."""

_STREAM_ARN = re.compile(r"arn:[a-z-]+:kinesisvideo:[a-z0-9-]+:\d{12}:stream/([\w.-]{1,256})/\d+", re.ASCII)
_STREAM_NAME = re.compile(r"[\w.-]{1,256}", re.ASCII)
_DENIED = ("AccessDenied", "AccessDeniedException", "NotAuthorizedException", "UnauthorizedOperation")
_WRONG_KEYS = ("UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")

# What GetMedia says within the stream. Source: its API reference, AWS_KINESISVIDEO_ERROR_ID.
FRAGMENT_NOT_FOUND = 4000
_STREAM_ERRORS = {
    3002: "writing to the stream failed",
    FRAGMENT_NOT_FOUND: "the fragment that was asked for is not there any more",
    4500: "this identity may not use the stream's KMS key",
    4501: "the stream's KMS key is disabled",
    4502: "the stream's KMS key does not pass its checks",
    4503: "the stream's KMS key is not available",
    4504: "the stream's KMS key is of the wrong usage",
    4505: "the stream's KMS key is in a state in which it cannot be used",
    4506: "the stream's KMS key is not there any more",
    5000: "Kinesis Video Streams had an internal error",
}


class LostError(Exception):
    """The connection ended in a way that another one may mend; the text says why."""

    def __init__(self, reason: str, gone: bool = False) -> None:
        self.gone = gone  # what was asked for is not there any more: ask for something else
        super().__init__(reason)


def stream_parameters(text: str) -> dict[str, str]:
    """GetMedia's parameters for what stands behind kvs://, a stream's name or ARN. Raises SourceError."""
    if _STREAM_ARN.fullmatch(text):
        return {"StreamARN": text}
    if _STREAM_NAME.fullmatch(text):
        return {"StreamName": text}
    raise SourceError(
        f"kvs://{text}: is no Kinesis video stream; expected kvs://NAME (letters, digits, _ . -) or kvs://ARN."
    )


def start_selector(start: str) -> dict[str, Any]:
    """GetMedia's StartSelector for "now", "earliest", seconds since the epoch, "fragment:NUMBER" or "token:TOKEN".

    Raises SourceError for anything else.
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
        f"start: found {start!r}; expected now, earliest, seconds since the epoch, fragment:NUMBER (begins behind it) "
        "or token:TOKEN."
    )


def at_time(seconds: float) -> dict[str, Any]:
    """The StartSelector for the fragment of a producer's time."""
    return {
        "StartSelectorType": "PRODUCER_TIMESTAMP",
        "StartTimestamp": datetime.fromtimestamp(seconds, tz=timezone.utc),
    }


class MediaClient:
    """Opens GetMedia connections to one stream."""

    def __init__(self, text: str, options: SourceOptions, session: Any = None, stall: float = STALL_SECONDS) -> None:
        """`session`: a boto3 session, made from the options if not given. Raises SourceError."""
        self.name = f"kvs://{text}"
        self._stream = stream_parameters(text)
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise SourceError(f"{self.name}: needs boto3; install it with `pip install boto3`.") from error
        # Another try is the source's own business: it knows where to go on.
        self._settings = Config(connect_timeout=CONNECT_SECONDS, read_timeout=stall, retries={"total_max_attempts": 1})
        try:
            self._session = session or boto3.Session(region_name=options.region, profile_name=options.profile)
            self._control = self._session.client(
                "kinesisvideo", endpoint_url=options.aws_endpoint, config=self._settings
            )
        except BotoCoreError as error:
            raise self._refused(error) from error
        self._media: Any = None

    def connect(self, selector: dict[str, Any]) -> Any:
        """The body of GetMedia. Raises LostError where another try may help, SourceError where none will."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            if self._media is None:
                endpoint = self._control.get_data_endpoint(APIName="GET_MEDIA", **self._stream)["DataEndpoint"]
                self._media = self._session.client("kinesis-video-media", endpoint_url=endpoint, config=self._settings)
            return self._media.get_media(StartSelector=selector, **self._stream)["Payload"]
        except (BotoCoreError, ClientError) as error:
            # Endpoints of a stream change; the next try asks for it anew.
            self._media = None
            raise self._refused(error, selector) from error

    def _refused(self, error: Exception, selector: dict[str, Any] | None = None) -> Exception:
        from botocore.exceptions import ClientError

        if not isinstance(error, ClientError):
            return self._not_sent(error)
        details = error.response.get("Error", {})
        code = str(details.get("Code", "")).split(":")[0]
        message = " ".join(str(details.get("Message", "")).split()).rstrip(".")
        said = f"{code}{f': {message}' if message else ''}"
        if code == "ResourceNotFoundException":
            return SourceError(
                f"{self.name}: there is no such Kinesis video stream in this account and region; `aws kinesisvideo "
                "list-streams` shows those there are."
            )
        if code in _DENIED:
            return SourceError(
                f"{self.name}: AWS refused it ({said}); the identity needs kinesisvideo:GetDataEndpoint and "
                "kinesisvideo:GetMedia for the stream."
            )
        if code in _EXPIRED:
            return SourceError(f"{self.name}: the AWS sign-in has expired; run `aws sso login`, or get new keys.")
        if code in _WRONG_KEYS:
            return SourceError(f"{self.name}: AWS does not know these credentials ({said}); run `aws configure`.")
        if code == "ConnectionLimitExceededException":
            return LostError("the stream has as many readers as AWS allows")
        if code == "ClientLimitExceededException":
            return LostError("the stream was asked more often than AWS allows")
        if code in ("InvalidArgumentException", "ValidationException"):
            if selector and selector["StartSelectorType"] in ("CONTINUATION_TOKEN", "PRODUCER_TIMESTAMP"):
                return LostError(f"AWS cannot go on there ({said})", gone=True)
            return SourceError(f"{self.name}: AWS refused the request ({said}); check the stream and where to begin.")
        return LostError(f"AWS answered {said}")

    def _not_sent(self, error: Exception) -> Exception:
        """For what boto3 finds before AWS has answered."""
        name, text = type(error).__name__, " ".join(str(error).split()).rstrip(".")
        if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
            return SourceError(f"{self.name}: found no AWS credentials; run `aws configure` or `aws sso login`.")
        if name == "NoRegionError":
            return SourceError(f"{self.name}: found no AWS region; give --region or set AWS_DEFAULT_REGION.")
        if name == "ProfileNotFound" or "SSO" in name or "Token" in name or name == "ParamValidationError":
            return SourceError(f"{self.name}: {text}.")
        return LostError(f"AWS cannot be reached ({text})")


def stream_error(name: str, identity: str, text: str) -> Exception:
    """What the error tags of a stream mean: LostError where another try may help, else SourceError."""
    number = int(identity) if identity.isascii() and identity.isdigit() else 0
    said = f"{_STREAM_ERRORS.get(number, 'the stream ended with an error')} ({' '.join(f'{identity} {text}'.split())})"
    if 4500 <= number < 4600:
        return SourceError(f"{name}: {said}; check the key's state and policy, or give the stream another key.")
    return LostError(said, gone=number == FRAGMENT_NOT_FOUND)


class Body:
    """The pieces of a GetMedia body, read in a thread, so that whoever waits for them can be called away."""

    def __init__(self, client: MediaClient, selector: dict[str, Any], closed: threading.Event) -> None:
        self._closed = closed
        self._done = threading.Event()
        self._pieces: queue.Queue[bytes | Exception | None] = queue.Queue(_PIECES)
        threading.Thread(target=self._read, args=(client, selector), name="kinesis", daemon=True).start()

    def pieces(self) -> Iterator[bytes]:
        """The bytes as they come in, until the body ends or the source is closed. Raises LostError, SourceError."""
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
                for piece in _as_they_come(body):
                    if not self._put(piece):
                        return
            self._put(None)
        except (LostError, SourceError) as error:
            self._put(error)
        except Exception as error:
            # Three libraries have their own errors for a connection that broke; to the reader they are one.
            timed_out = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()
            reason = "nothing came for too long" if timed_out else " ".join(str(error).split())
            self._put(LostError(f"the connection was lost: {reason}"))

    def _put(self, piece: bytes | Exception | None) -> bool:
        while not (self._closed.is_set() or self._done.is_set()):
            with contextlib.suppress(queue.Full):
                self._pieces.put(piece, timeout=0.2)
                return True
        return False


def _as_they_come(body: Any) -> Iterator[bytes]:
    """A botocore StreamingBody piece by piece, each as soon as it is there.

    Its own read(n) waits until all n bytes have come, which would hold back the end of every frame until the next.
    """
    raw: Any = getattr(body, "_raw_stream", None)
    yield from raw.stream(_PIECE) if hasattr(raw, "stream") else body.iter_chunks(512)
