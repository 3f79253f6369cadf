"""Data pipeline: channels of image and annotation files, checks, transforms and batches.

Imports `config`, `masks`, `system`, `classes` and `errors`. Start with `channels.py` (pairs of files), `dataset.py` and
`loader.py` (batches); `prepare/` converts published data sets and `doctor/` checks a data set.
"""
