"""The AWS session, role and bucket of a command, and every error of AWS as one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pspnet.errors import PspnetError
from sagemaker_entry.training.job_request import default_bucket_name
from sagemaker_entry.training.job_settings import JobSettings


class AwsError(PspnetError):
    """What AWS refused or cannot find; the text is one sentence with the fix."""


CREDENTIALS_FIX = "run `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_WRONG_KEYS = ("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")


@contextmanager
def aws_errors(doing: str, settings: JobSettings | None = None) -> Iterator[None]:
    """Turn every error of AWS and its SDKs into an AwsError; `doing` names the step, such as "submitting the job"."""
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
        # The SDK raises its own errors for a role that it has judged, and a bare ValueError for a missing region.
        sentence = _sdk_sentence(error)
        if sentence is None:
            raise
        raise AwsError(f"{doing}: {sentence}") from error


def _local_sentence(error: Exception) -> str:
    """A sentence for what boto3 finds before it asks AWS."""
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


def _client_sentence(error: Any, settings: JobSettings | None) -> str:
    """A sentence for an answer of AWS."""
    details = error.response.get("Error", {})
    code, message = str(details.get("Code", "")), _one_line(str(details.get("Message", "")))
    if code in _EXPIRED:
        return "the AWS sign-in has expired; run `aws sso login`, or get new keys."
    if code in _WRONG_KEYS:
        return f"AWS does not know these credentials; {CREDENTIALS_FIX}."
    if code in ("NoSuchBucket", "404"):
        bucket = details.get("BucketName") or (settings.bucket if settings else None)
        return f"there is no S3 bucket {bucket or 'of this name'}; create it (`aws s3 mb`) or give another --bucket."
    if code == "ResourceLimitExceeded":
        machine = f" for {settings.instance_type}" if settings else ""
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
        return f"AWS refused it ({message}); the policy in docs/sagemaker.md lists the permissions that are needed."
    if code in ("NoSuchEntity", "NoSuchEntityException"):
        return f"there is no such IAM role ({message}); give --role with the ARN of one that exists."
    return f"AWS answered {code or 'with an error'}: {message}"


def _validation_sentence(message: str, settings: JobSettings | None) -> str:
    if "assume" in message.lower() or "rolearn" in message.lower().replace(" ", ""):
        role = f" {settings.role}" if settings and settings.role else ""
        return (
            f"SageMaker cannot take on the role{role} ({message}); give --role with a role that exists and trusts "
            "sagemaker.amazonaws.com."
        )
    if "instancetype" in message.lower().replace(" ", ""):
        machine = settings.instance_type if settings else "this type"
        return f"SageMaker does not know or offer {machine} here ({message}); give another --instance_type or --region."
    return f"SageMaker refused the request: {message}"


def _sdk_sentence(error: Exception) -> str | None:
    text = _one_line(str(error))
    if type(error).__name__ == "RoleValidationError":
        if "could be resolved" in text:
            return "the caller is no role that SageMaker could take on; give --role with the ARN of one."
        reason = re.search(r"Its trust policy[^;]*?assume it|Missing permissions: [^\n]*", str(error))
        return (
            f"the role cannot be used ({_one_line(reason.group(0)) if reason else 'permissions are missing'}); "
            "docs/sagemaker.md shows the policies that it needs."
        )
    if isinstance(error, ValueError) and "region" in text.lower():
        return "found no AWS region; give --region, set AWS_DEFAULT_REGION, or run `aws configure`."
    if isinstance(error, ValueError) and "IAM role" in text and "does not exist" in text:
        return f"{text.split('.')[0]}; give --role with the ARN of one that exists."
    if type(error).__module__.startswith(("sagemaker.", "boto3.", "s3transfer.")):
        return text if text.endswith(".") else f"{text}."
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def boto_session(settings: JobSettings) -> Any:
    """A boto3 session for the profile and region; raises AwsError where there is no region."""
    import boto3

    with aws_errors("AWS session"):
        session = boto3.Session(profile_name=settings.profile, region_name=settings.region)
        if session.region_name is None:
            raise AwsError(
                "AWS session: found no AWS region; give --region, set AWS_DEFAULT_REGION, or run `aws configure`."
            )
    return session


def local_region(settings: JobSettings) -> str | None:
    """The region that a session would have, without asking AWS."""
    import boto3

    with aws_errors("AWS session"):
        region: str | None = boto3.Session(profile_name=settings.profile, region_name=settings.region).region_name
    return region


def find_bucket(session: Any, settings: JobSettings) -> str:
    """The named bucket, which must exist, or SageMaker's default bucket, which is created where it is missing."""
    from botocore.exceptions import ClientError

    s3 = session.client("s3")
    if settings.bucket is not None:
        with aws_errors(f"bucket {settings.bucket}", settings):
            s3.head_bucket(Bucket=settings.bucket)
        return settings.bucket
    with aws_errors("asking AWS who you are"):
        account = session.client("sts").get_caller_identity()["Account"]
    bucket = default_bucket_name(session.region_name, account)
    with aws_errors(f"bucket {bucket}", settings):
        try:
            # The owner is named, so that a stranger's bucket of this name is never written to.
            s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
                raise
            elsewhere = {"LocationConstraint": session.region_name}
            options = {} if session.region_name == "us-east-1" else {"CreateBucketConfiguration": elsewhere}
            s3.create_bucket(Bucket=bucket, **options)
            print(f"Created the bucket {bucket}.")
    return bucket


def find_role(session: Any, settings: JobSettings) -> str:
    """The ARN of the given role (a name is looked up), or of the caller's own role, as a notebook has one."""
    if settings.role is not None and settings.role.startswith("arn:"):
        return settings.role
    iam = session.client("iam")
    name = settings.role
    if name is None:
        with aws_errors("asking AWS who you are"):
            caller = session.client("sts").get_caller_identity()["Arn"]
        if ":assumed-role/" not in caller:
            raise AwsError(
                f"role: none was given, and the caller {caller} is no role that SageMaker could take on; give --role "
                "with the ARN of one (docs/sagemaker.md shows how to make it)."
            )
        name = caller.split("/")[1]
    with aws_errors(f"role {name}", settings):
        arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    return arn
