"""Markdown tables in aligned columns, and the formatting of figures."""

from __future__ import annotations

from collections.abc import Sequence

from pspnet.benchmarking.interleave import Quartiles, Timing


def markdown(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with padded columns, right-aligned except the first."""
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(headers))]
    rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def milliseconds(timing: Timing) -> str:
    """Median and quartiles: `434.1 (430.2 to 440.9)`."""
    return _with_spread(Quartiles(*(1000 * value for value in timing.quartiles)), digits=_digits(1000 * timing.median))


def factor(values: Quartiles) -> str:
    """A ratio with its quartiles: `2.31x (2.28 to 2.33)`."""
    lower, median, upper = values
    return f"{median:.2f}x ({lower:.2f} to {upper:.2f})"


def percent(fraction: float) -> str:
    """A fraction between 0 and 1 in percent: `43 %`."""
    return f"{100 * fraction:.0f} %"


def _with_spread(values: Quartiles, digits: int) -> str:
    lower, median, upper = values
    return f"{median:.{digits}f} ({lower:.{digits}f} to {upper:.{digits}f})"


def _digits(value: float) -> int:
    return 1 if value >= 10 else 2 if value >= 1 else 3
