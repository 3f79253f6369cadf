"""Endpoint client by SageMaker endpoint name or URL, with the interface of `pspnet.Predictor`."""

from __future__ import annotations

from pspnet.client.endpoint_client import EndpointClient
from pspnet.client.transport import TIMEOUT, HttpTransport, Transport
from sagemaker_entry.aws.account_settings import SessionSettings
from sagemaker_entry.hosting.hosting_requests import REALTIME_BYTES


class EndpointPredictor(EndpointClient):
    """An `EndpointClient` that chooses its transport by endpoint name or URL.

    >>> predictor = EndpointPredictor("xporter-segmentation-20261123")  # or "http://127.0.0.1:8080"
    >>> mask = predictor("frame.jpg")  # (H, W) uint8 class ids, the size of the frame
    """

    def __init__(
        self,
        endpoint: str,
        *,
        region: str | None = None,
        profile: str | None = None,
        retries: int = 4,
        timeout: float = TIMEOUT,
        asynchronous: bool = False,
    ) -> None:
        """Send no image yet.

        Args:
            endpoint: name of a SageMaker endpoint (needs boto3), or the http(s):// URL of a server.
            region, profile: AWS region and profile; from the environment or the AWS configuration if not given.
            retries: retries of a request that a busy endpoint refused.
            timeout: seconds until a request fails.
            asynchronous: detect an asynchronous endpoint, and wait for its answers on S3.

        Raises PspnetError for an invalid URL, or if boto3, the region or the profile is missing.
        """
        if endpoint.startswith(("http://", "https://")):
            transport: Transport = HttpTransport(endpoint, timeout)
        else:
            transport = _sagemaker_transport(endpoint, region, profile, timeout, asynchronous)
        super().__init__(transport, endpoint, retries)


def _sagemaker_transport(
    name: str, region: str | None, profile: str | None, timeout: float, asynchronous: bool
) -> Transport:
    from sagemaker_entry.aws.aws_packages import require_packages

    require_packages("boto3")
    from sagemaker_entry.aws.session import boto_session
    from sagemaker_entry.hosting.sagemaker_transports import AsyncTransport, RuntimeTransport, async_output_path

    session = boto_session(SessionSettings(region=region, profile=profile))
    answers = async_output_path(session, name) if asynchronous else None
    if answers is not None:
        return AsyncTransport(name, session, answers)
    return RuntimeTransport(name, session, REALTIME_BYTES, timeout)
