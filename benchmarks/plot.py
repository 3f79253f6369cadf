"""Bar chart of the figures of inference.py, from its JSON file. Needs matplotlib.

    python benchmarks/plot.py inference.json docs/inference.svg

The suffix of the second file selects the format: .svg or .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The project, when the script is started from another folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.errors import ConfigError, DataError
from pspnet.system.atomic_files import atomic_write
from pspnet.system.exit_codes import run_guarded

# Blue and vermilion of the colour-blind safe palette of Okabe and Ito, and greys.
_OURS, _PLAIN, _OTHER, _INK = "#0072b2", "#d55e00", "#9aa5ad", "#3a4248"
_OTHERS = ("torchvision", "smp-", "gluoncv")
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK, "axes.labelcolor": _INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlesize": 10, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "pspnet", "text.color": _INK,
    "xtick.color": _INK, "ytick.color": _INK,
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("record", type=Path, help="JSON file that inference.py wrote with --output")
    parser.add_argument("picture", type=Path, help="SVG or PNG file to write")
    arguments = parser.parse_args(argv)
    if arguments.picture.suffix not in (".svg", ".png"):
        raise ConfigError(f"{arguments.picture}: expected a name that ends with .svg or .png.")
    draw(read(arguments.record), arguments.picture)
    print(f"Written: {arguments.picture}")
    return 0


def read(path: Path) -> dict[str, Any]:
    """Read a record; DataError for a file that inference.py did not write."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(found, dict) or found.get("benchmark") != "inference":
        raise DataError(f"{path}: expected a JSON file that inference.py writes with --output.")
    return found


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a record. ConfigError if matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("plots need matplotlib: run `pip install matplotlib`.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE):
        figure = _draw_inference(pyplot, found)
        with atomic_write(path) as temporary:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, metadata=metadata, dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def _draw_inference(pyplot: Any, found: Mapping[str, Any]) -> Any:
    """One panel per size, one bar per case."""
    sizes = found["sizes"]
    count = max(len(cases) for cases in sizes.values())
    figure, panels = pyplot.subplots(
        1, len(sizes), figsize=(1.2 + 4.2 * len(sizes), 0.9 + 0.3 * count), sharey=True, squeeze=False
    )
    for panel, (size, cases) in zip(panels[0], sizes.items()):
        names = list(cases)
        medians = [cases[name]["median_ms"] for name in names]
        lower, upper = zip(*(cases[name]["quartiles_ms"] for name in names))
        spread = [[m - low for m, low in zip(medians, lower)], [high - m for m, high in zip(medians, upper)]]
        colours = [_colour(name) for name in names]
        panel.barh(names, medians, xerr=spread, color=colours, height=0.7, error_kw={"ecolor": _INK, "lw": 1})
        for row, name in enumerate(names):
            panel.annotate(
                _bar_text(cases[name]), (upper[row], row), xytext=(4, 0), textcoords="offset points", va="center"
            )
        panel.set_title(f"{size} pixels")
        panel.set_xlabel(f"ms for {_images(found['settings']['batch'])}; lower is better")
        panel.set_xlim(0, 1.3 * max(upper))
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    return figure


def _images(batch: int) -> str:
    return "an image" if batch == 1 else f"{batch} images"


def _colour(name: str) -> str:
    return _PLAIN if name.startswith("plain") else _OTHER if name.startswith(_OTHERS) else _OURS


def _bar_text(case: Mapping[str, Any]) -> str:
    gain = "" if case["gain"] is None else f" ({case['gain'][1]:.2f}x)"
    return f"{case['median_ms']:.0f}{gain}"


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
