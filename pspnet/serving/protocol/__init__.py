"""HTTP protocol of an endpoint: content types, codecs and the errors that a client sees.

May import inference and everything below it, but neither the app nor its processes. Start reading in request_image.py
and answers.py.
"""
