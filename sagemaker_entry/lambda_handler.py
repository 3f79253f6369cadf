"""The name under which deployed stacks find the Lambda function: `sagemaker_entry.lambda_handler.handler`."""

from sagemaker_entry.pipeline.handler import handler

__all__ = ["handler"]
