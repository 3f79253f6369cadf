"""Frame sources of a stream: files, folders, cameras, URLs and Kinesis Video Streams.

Imports data and the packages below it; av and boto3 are imported only by the sources that need them. Start with `base.py`,
the protocol, and `factory.open_source`.
"""
