"""AWS account access shared by all commands: session, errors, settings, resources, S3 objects and container images.

Imports pspnet's config, system and errors, and nothing else of sagemaker_entry. Start with session.py, aws_errors.py.
"""
