"""AWS session, role and bucket of a command."""

from __future__ import annotations

from typing import Any

from sagemaker_entry.aws.account_settings import AccountSettings, ResourceSettings, SessionSettings
from sagemaker_entry.aws.aws_errors import AwsError, aws_errors
from sagemaker_entry.aws.s3_objects import default_bucket_name


def boto_session(settings: SessionSettings) -> Any:
    """Return a boto3 session for the profile and region. Raises AwsError without a region."""
    import boto3

    with aws_errors("AWS session"):
        session = boto3.Session(profile_name=settings.profile, region_name=settings.region)
        if session.region_name is None:
            raise AwsError(
                "AWS session: found no AWS region; give --region, set AWS_DEFAULT_REGION, or run `aws configure`."
            )
    return session


def local_region(settings: SessionSettings) -> str | None:
    """Return the region that a session would have, without a request to AWS."""
    import boto3

    with aws_errors("AWS session"):
        region: str | None = boto3.Session(profile_name=settings.profile, region_name=settings.region).region_name
    return region


def find_bucket(session: Any, settings: AccountSettings) -> str:
    """Return the named bucket, which must exist, or SageMaker's default bucket, which is created if missing."""
    from botocore.exceptions import ClientError

    s3 = session.client("s3")
    if settings.bucket is not None:
        with aws_errors(f"bucket {settings.bucket}", settings):
            s3.head_bucket(Bucket=settings.bucket)
        return settings.bucket
    with aws_errors("looking up the caller's identity"):
        account = session.client("sts").get_caller_identity()["Account"]
    bucket = default_bucket_name(session.region_name, account)
    with aws_errors(f"bucket {bucket}", settings):
        try:
            # With the owner, so that nothing is written to another account's bucket of this name.
            s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
                raise
            elsewhere = {"LocationConstraint": session.region_name}
            options = {} if session.region_name == "us-east-1" else {"CreateBucketConfiguration": elsewhere}
            s3.create_bucket(Bucket=bucket, **options)
            print(f"Created the bucket {bucket}.")
    return bucket


def find_role(session: Any, settings: ResourceSettings) -> str:
    """Return the ARN of the given role (a name is looked up), or of the caller's own role, as in a notebook."""
    if settings.role is not None and settings.role.startswith("arn:"):
        return settings.role
    iam = session.client("iam")
    name = settings.role
    if name is None:
        with aws_errors("looking up the caller's identity"):
            caller = session.client("sts").get_caller_identity()["Arn"]
        if ":assumed-role/" not in caller:
            raise AwsError(
                f"role: not given, and the caller {caller} is not a role that SageMaker can assume; give --role with "
                "the ARN of one (docs/sagemaker.md shows how to create it)."
            )
        name = caller.split("/")[1]
    with aws_errors(f"role {name}", settings):
        arn: str = iam.get_role(RoleName=name)["Role"]["Arn"]
    return arn
