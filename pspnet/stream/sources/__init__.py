"""Frame sources of a stream: files, folders, cameras, URLs and Kinesis Video Streams.

Imports data and the packages below it; only the sources that need av or boto3 import them. Start with `base.py`,
the protocol, and `factory.open_source`.
"""
