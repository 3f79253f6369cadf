"""Mask files: lossless codecs, segments with an index, reader, writer and storage.

Imports numpy, Pillow, `pspnet.errors` and `pspnet.classes` only (boto3 lazily, for S3), so that small readers such as a
Lambda function can ship it. Start with `reader.read_masks`; docs/mask_format.md specifies the bytes.
"""
