"""Metric definitions of a job: patterns of the lines that training prints after every epoch. Needs no AWS package."""

from __future__ import annotations

_NUMBER = r"([0-9.eE+-]+)"

METRIC_DEFINITIONS: tuple[tuple[str, str], ...] = (
    ("train:loss", rf"epoch=[0-9]+ .*train:loss={_NUMBER}"),
    ("train:throughput", rf"epoch=[0-9]+ .*train:throughput={_NUMBER}"),
    ("learning_rate", rf"epoch=[0-9]+ train:loss=.* learning_rate={_NUMBER}"),
    ("validation:mIOU", rf"epoch=[0-9]+ .*validation:mIOU={_NUMBER}"),
    ("validation:pixel_accuracy", rf"epoch=[0-9]+ .*validation:pixel_accuracy={_NUMBER}"),
)
"""(name, regular expression) of every metric; the first group is the value, as SageMaker requires."""
