"""Drawing of the confusion matrix: cells with numbers for few classes, an image for many.

Rows are the ground truth; a cell's colour shows its fraction of the row. Correct pixels are blue and wrong ones orange,
which people with common colour blindness can distinguish; the strength is the square root of the fraction, so that 1 %
is still visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pspnet.evaluation.html_report.pictures import png_uri

MAX_TABLE_CLASSES = 32
_BLUE, _ORANGE = (8, 81, 156), (179, 72, 0)


@dataclass(frozen=True)
class Cell:
    """One cell of a table: text, background, whether that is dark, and tooltip."""

    text: str
    background: str
    dark: bool
    title: str


@dataclass(frozen=True)
class Confusions:
    """Confusion matrix to draw, as `rows` of cells or as an `image` with `data` for the tooltip.

    Attributes:
        largest: true class, predicted class, pixels, fraction of the true class; most pixels first.
    """

    names: tuple[str, ...]
    rows: list[list[Cell]] | None
    image: str | None
    data: dict[str, Any]
    largest: list[tuple[str, str, int, float]]


def draw_confusions(counts: np.ndarray, names: tuple[str, ...]) -> Confusions:
    """Draw a (C, C) int64 confusion matrix whose rows are the ground truth."""
    totals = counts.sum(axis=1)
    fractions = np.divide(counts, totals[:, None], out=np.zeros(counts.shape), where=totals[:, None] > 0)
    colours = cell_colours(fractions)
    as_table = len(names) <= MAX_TABLE_CLASSES
    flat = counts.reshape(-1)
    codes = np.flatnonzero(flat)
    data = {"names": list(names), "codes": codes.tolist(), "counts": flat[codes].tolist(), "totals": totals.tolist()}
    rows = [_table_row(index, counts, fractions, colours, names) for index in range(len(names))] if as_table else None
    image = None if as_table else png_uri(Image.fromarray(colours))
    return Confusions(names, rows, image, {} if as_table else data, largest_confusions(counts, names))


def cell_colours(fractions: np.ndarray) -> np.ndarray:
    """(C, C) fractions 0..1 -> (C, C, 3) uint8: white for 0, blue on the diagonal and orange elsewhere for 1."""
    full = np.where(np.eye(len(fractions), dtype=bool)[..., None], _BLUE, _ORANGE)
    strength = np.sqrt(fractions)[..., None]
    return np.asarray(np.round(255 - strength * (255 - full)), dtype=np.uint8)


def largest_confusions(counts: np.ndarray, names: tuple[str, ...], most: int = 20) -> list[tuple[str, str, int, float]]:
    """Return the pairs of a true and a wrong predicted class with most pixels."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    totals = counts.sum(axis=1)
    order = np.argsort(-wrong.reshape(-1), kind="stable")[:most]
    pairs = [divmod(int(code), len(counts)) for code in order if wrong.reshape(-1)[code] > 0]
    return [(names[a], names[b], int(counts[a, b]), float(counts[a, b] / totals[a])) for a, b in pairs]


def _table_row(
    index: int, counts: np.ndarray, fractions: np.ndarray, colours: np.ndarray, names: tuple[str, ...]
) -> list[Cell]:
    cells = []
    for column, name in enumerate(names):
        colour, percent = colours[index, column], 100 * fractions[index, column]
        text = f"{percent:.0f}" if percent >= 0.5 else ("·" if counts[index, column] else "")
        red, green, blue = (int(part) for part in colour)
        title = f"{names[index]} predicted as {name}: {counts[index, column]:,} px, {percent:.2f} % of {names[index]}"
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        cells.append(Cell(text, f"#{red:02x}{green:02x}{blue:02x}", dark, title))
    return cells
