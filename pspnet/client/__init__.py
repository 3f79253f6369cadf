"""Client of a segmentation endpoint: `EndpointClient` over a `Transport`, and the decoder of its probabilities.

Imports only data.io and the packages below it; SageMaker's own transports are in sagemaker_entry/hosting.
Start with endpoint_client.py.
"""
