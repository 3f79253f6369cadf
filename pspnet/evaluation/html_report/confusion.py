"""The confusion matrix as a picture: cells with numbers for few classes, an image for many.

Rows are the truth; a cell's colour is its share of its row. Right answers are blue and wrong ones orange, which people
with any common colour blindness tell apart; the strength is the square root of the share, so that 1 % is still seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pspnet.evaluation.html_report.pictures import png_uri

MOST_CLASSES_AS_TABLE = 32
_BLUE, _ORANGE = (8, 81, 156), (179, 72, 0)


@dataclass(frozen=True)
class Cell:
    """One cell of a table: what stands in it, its colours, and all of it in words."""

    text: str
    background: str
    dark: bool
    title: str


@dataclass(frozen=True)
class Confusions:
    """A confusion matrix to be drawn, as `rows` of cells or else as an `image`, with `data` for the hover.

    Attributes:
        largest: true class, predicted class, pixels, share of the true class; most pixels first.
    """

    names: tuple[str, ...]
    rows: list[list[Cell]] | None
    image: str | None
    data: dict[str, Any]
    largest: list[tuple[str, str, int, float]]


def draw_confusions(counts: np.ndarray, names: tuple[str, ...]) -> Confusions:
    """A (C, C) int64 confusion matrix, rows the truth."""
    truth = counts.sum(axis=1)
    shares = np.divide(counts, truth[:, None], out=np.zeros(counts.shape), where=truth[:, None] > 0)
    colours = cell_colours(shares)
    as_table = len(names) <= MOST_CLASSES_AS_TABLE
    flat = counts.reshape(-1)
    codes = np.flatnonzero(flat)
    data = {"names": list(names), "codes": codes.tolist(), "counts": flat[codes].tolist(), "truth": truth.tolist()}
    rows = [_table_row(index, counts, shares, colours, names) for index in range(len(names))] if as_table else None
    image = None if as_table else png_uri(Image.fromarray(colours))
    return Confusions(names, rows, image, {} if as_table else data, largest_confusions(counts, names))


def cell_colours(shares: np.ndarray) -> np.ndarray:
    """(C, C) shares 0..1 -> (C, C, 3) uint8: white for 0, blue on the diagonal and orange elsewhere for 1."""
    full = np.where(np.eye(len(shares), dtype=bool)[..., None], _BLUE, _ORANGE)
    strength = np.sqrt(shares)[..., None]
    return np.asarray(np.round(255 - strength * (255 - full)), dtype=np.uint8)


def largest_confusions(counts: np.ndarray, names: tuple[str, ...], most: int = 20) -> list[tuple[str, str, int, float]]:
    """The pairs of a true and another predicted class with most pixels."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    truth = counts.sum(axis=1)
    order = np.argsort(-wrong.reshape(-1), kind="stable")[:most]
    pairs = [divmod(int(code), len(counts)) for code in order if wrong.reshape(-1)[code] > 0]
    return [(names[a], names[b], int(counts[a, b]), float(counts[a, b] / truth[a])) for a, b in pairs]


def _table_row(
    index: int, counts: np.ndarray, shares: np.ndarray, colours: np.ndarray, names: tuple[str, ...]
) -> list[Cell]:
    cells = []
    for column, name in enumerate(names):
        share, colour = shares[index, column], colours[index, column]
        percent = 100 * share
        text = f"{percent:.0f}" if percent >= 0.5 else ("·" if counts[index, column] else "")
        red, green, blue = (int(part) for part in colour)
        title = f"{names[index]} predicted as {name}: {counts[index, column]:,} px, {percent:.2f} % of {names[index]}"
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        cells.append(Cell(text, f"#{red:02x}{green:02x}{blue:02x}", dark, title))
    return cells
