"""Checks of a data set before training: every file is read, every problem is counted and listed.

Imports `data.channels`, `data.io`, `classes` and `errors`. Start with `examine.py`; `checks.py` has the single checks.
"""
