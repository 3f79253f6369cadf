"""Markdown tables and number formatting."""

from __future__ import annotations

from pspnet.benchmarking.interleave import Quartiles, Timing
from pspnet.benchmarking.table import factor, markdown, milliseconds, percent


def test_a_table_is_markdown_in_columns_of_one_width() -> None:
    assert markdown(["case", "ms"], [["plain", 434.1], ["eager", 9]]).splitlines() == [
        "| case  |    ms |",
        "| ----- | ----: |",
        "| plain | 434.1 |",
        "| eager |     9 |",
    ]
    assert markdown(["a", "b"], []) == "| a   |   b |\n| --- | --: |"


def test_figures_have_as_many_digits_as_they_need() -> None:
    assert milliseconds(Timing((0.4341, 0.4301, 0.4409))) == "434.1 (432.1 to 437.5)"
    assert milliseconds(Timing((0.0034,))) == "3.40 (3.40 to 3.40)"
    assert milliseconds(Timing((0.00034,))) == "0.340 (0.340 to 0.340)"
    assert factor(Quartiles(2.284, 2.312, 2.333)) == "2.31x (2.28 to 2.33)"
    assert percent(0.434) == "43 %"
