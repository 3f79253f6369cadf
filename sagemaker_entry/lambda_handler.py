"""Stable import path of the Lambda function for deployed stacks: `sagemaker_entry.lambda_handler.handler`."""

from sagemaker_entry.pipeline.handler import handler

__all__ = ["handler"]
