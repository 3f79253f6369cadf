"""Mask sinks of a stream: mask files, S3, overlay video, web page, window, standard output and webhook.

Imports masks and the packages below it; av, boto3 and tkinter are imported only by the sinks that need them. Start with
`base.py`, the protocol, and `factory.open_sinks`.
"""
