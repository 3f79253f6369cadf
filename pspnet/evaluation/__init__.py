"""Evaluation of a model: protocols, int64 confusion matrices, scores, per-image counts and the HTML report.

Imports inference, artifact, data, models and system, and nothing above them. Start with metrics.py and
protocols/whole.py, then run.py (a protocol over a data set).
"""
