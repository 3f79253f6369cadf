"""AwsError, and the context manager that converts errors of AWS and its SDKs into it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pspnet.errors import PspnetError
from sagemaker_entry.aws.account_settings import AccountSettings, ResourceSettings


class AwsError(PspnetError):
    """An error of AWS or its SDKs; the text is one sentence with the fix."""


CREDENTIALS_FIX = "run `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_WRONG_KEYS = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")


@contextmanager
def aws_errors(doing: str, settings: AccountSettings | None = None) -> Iterator[None]:
    """Convert every error of AWS and its SDKs into an AwsError; `doing` names the step, as in "submitting the job"."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise AwsError(f"{doing}: {_client_sentence(error, settings)}") from error
    except BotoCoreError as error:
        raise AwsError(f"{doing}: {_local_sentence(error)}") from error
    except PspnetError:
        raise
    except Exception as error:
        # The SDK raises its own errors for a role that it validates, and a bare ValueError for a missing region.
        sentence = _sdk_sentence(error)
        if sentence is None:
            raise
        raise AwsError(f"{doing}: {sentence}") from error


def _local_sentence(error: Exception) -> str:
    """Describe an error that boto3 raises without an answer from AWS."""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return f"found no AWS credentials; {CREDENTIALS_FIX}."
    if name == "NoRegionError":
        return "found no AWS region; give --region, set AWS_DEFAULT_REGION, or run `aws configure`."
    if name == "ProfileNotFound":
        return f"{error}; give a profile that `aws configure list-profiles` shows."
    if "SSO" in name or "Token" in name:
        return "the AWS sign-in has expired; run `aws sso login`."
    if name in ("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"):
        return f"AWS cannot be reached ({_one_line(str(error))}); check the network and the region."
    return f"{_one_line(str(error))}."


def _client_sentence(error: Any, settings: AccountSettings | None) -> str:
    """Describe an error answer of AWS."""
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), _one_line(str(details.get("Message", "")))
    if code in _EXPIRED:
        return "the AWS sign-in has expired; run `aws sso login`, or get new keys."
    if code in _WRONG_KEYS:
        return f"AWS rejected the credentials; {CREDENTIALS_FIX}."
    if code in ("NoSuchBucket", "404"):
        bucket = details.get("BucketName") or (settings.bucket if settings else None)
        return f"no such S3 bucket{f' {bucket}' if bucket else ''}; create it (`aws s3 mb`) or give another --bucket."
    if code == "ResourceLimitExceeded":
        machine = f" for {settings.machine}" if isinstance(settings, ResourceSettings) else ""
        # AWS names the quota: The account-level service limit 'ml.t2.xlarge for endpoint usage' is 0 Instances ...
        quota = re.search(r"limit '([^']+)'", message)
        return (
            f"the account's quota{machine} is used up or zero ({message}); ask for more in the Service Quotas console "
            f"(Amazon SageMaker, `{quota.group(1) if quota else '<instance type> for training job usage'}`) or give "
            "another --instance_type."
        )
    if code in ("ValidationException", "ValidationError"):
        return _validation_sentence(message, settings)
    if code in _DENIED:
        return f"access denied ({message}); the policy in docs/sagemaker.md lists the required permissions."
    if code in ("NoSuchEntity", "NoSuchEntityException"):
        return f"no such IAM role ({message}); give --role with the ARN of an existing role."
    return f"AWS answered {code or 'with an error'}: {message}"


def _validation_sentence(message: str, settings: AccountSettings | None) -> str:
    if "assume" in message.lower() or "rolearn" in message.lower().replace(" ", ""):
        role = f" {settings.role}" if isinstance(settings, ResourceSettings) and settings.role else ""
        return (
            f"SageMaker cannot assume the role{role} ({message}); give --role with an existing role that trusts "
            "sagemaker.amazonaws.com."
        )
    if "instancetype" in message.lower().replace(" ", ""):
        machine = settings.machine if isinstance(settings, ResourceSettings) else "this instance type"
        return f"SageMaker does not offer {machine} here ({message}); give another --instance_type or --region."
    return f"SageMaker refused the request: {message}"


def _sdk_sentence(error: Exception) -> str | None:
    text = _one_line(str(error))
    if type(error).__name__ == "RoleValidationError":
        if "could be resolved" in text:
            return "the caller is not a role that SageMaker can assume; give --role with the ARN of one."
        reason = re.search(r"Its trust policy[^;]*?assume it|Missing permissions: [^\n]*", str(error))
        return (
            f"the role cannot be used ({_one_line(reason.group(0)) if reason else 'permissions are missing'}); "
            "docs/sagemaker.md shows the required policies."
        )
    if isinstance(error, ValueError) and "region" in text.lower():
        return "found no AWS region; give --region, set AWS_DEFAULT_REGION, or run `aws configure`."
    if isinstance(error, ValueError) and "IAM role" in text and "does not exist" in text:
        return f"{text.split('.')[0]}; give --role with the ARN of an existing role."
    if type(error).__module__.startswith(("sagemaker.", "boto3.", "s3transfer.")):
        return text if text.endswith(".") else f"{text}."
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
