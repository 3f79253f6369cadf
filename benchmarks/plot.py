"""A picture of what inference.py or scaling.py measured, from its JSON file. Needs matplotlib.

    python benchmarks/plot.py inference.json docs/inference.svg

The ending of the second file chooses the format: .svg or .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The project, from wherever the script is started.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pspnet.errors import ConfigError, DataError
from pspnet.system.atomic_files import atomic_write
from pspnet.system.exit_codes import run_guarded

# Blue and vermilion of Okabe and Ito's palette, which colour-blind readers tell apart, and greys.
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
    parser.add_argument("record", type=Path, help="what inference.py or scaling.py wrote with --output")
    parser.add_argument("picture", type=Path, help="SVG or PNG file to write")
    arguments = parser.parse_args(argv)
    if arguments.picture.suffix not in (".svg", ".png"):
        raise ConfigError(f"{arguments.picture}: expected a name that ends with .svg or .png.")
    draw(read(arguments.record), arguments.picture)
    print(f"Written: {arguments.picture}")
    return 0


def read(path: Path) -> dict[str, Any]:
    """The record in a JSON file; DataError for one that is none of those two benchmarks'."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(found, dict) or found.get("benchmark") not in _DRAW:
        raise DataError(f"{path}: expected what inference.py or scaling.py writes with --output.")
    return found


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the picture of a record. ConfigError where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("plots need matplotlib: run `pip install matplotlib`.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(_STYLE):
        figure = _DRAW[found["benchmark"]](pyplot, found)
        with atomic_write(path) as temporary:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, metadata=metadata, dpi=110, bbox_inches="tight")
        pyplot.close(figure)


def _draw_inference(pyplot: Any, found: Mapping[str, Any]) -> Any:
    """A panel for each size, a bar for each case."""
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
        panel.set_xlabel(f"ms for {_images(found['settings']['batch'])}; less is better")
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


def _draw_scaling(pyplot: Any, found: Mapping[str, Any]) -> Any:
    """A panel for each part that was measured."""
    parts = [part for part in _PANELS if part in found]
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 3.0 * rows), squeeze=False)
    for panel, part in zip(panels.flat, parts):
        _PANELS[part](panel, found[part])
    for panel in list(panels.flat)[len(parts) :]:
        panel.set_axis_off()
    figure.tight_layout()
    return figure


def _draw_size(panel: Any, points: Sequence[Mapping[str, Any]]) -> None:
    _lines(panel, [point["pixels"] / 1e3 for point in points], points)
    panel.set(title="Image size", xlabel="thousand pixels", ylabel="ms an image")
    panel.set_xlim(left=0)


def _draw_batch(panel: Any, points: Sequence[Mapping[str, Any]]) -> None:
    _lines(panel, [point["batch"] for point in points], points)
    panel.set(title="Batch, 240x240", xlabel="images in a batch", ylabel="ms an image")
    panel.set_xticks([point["batch"] for point in points])


def _draw_classes(panel: Any, points: Sequence[Mapping[str, Any]]) -> None:
    _lines(panel, [point["num_classes"] for point in points], points)
    panel.set(title="Classes, 240x240", xlabel="classes", ylabel="ms an image")
    panel.set_xlim(left=0)


def _lines(panel: Any, places: Sequence[float], points: Sequence[Mapping[str, Any]]) -> None:
    """Plain and ours with their quartiles, in milliseconds of an image."""
    for name, colour, marker in (("plain", _PLAIN, "s"), ("ours", _OURS, "o")):
        medians = [point[name]["median_ms"] / point["batch"] for point in points]
        quartiles = [[value / point["batch"] for value in point[name]["quartiles_ms"]] for point in points]
        spread = [[m - q[0] for m, q in zip(medians, quartiles)], [q[1] - m for m, q in zip(medians, quartiles)]]
        look = {"color": colour, "marker": marker, "markersize": 4, "lw": 1.5, "capsize": 2}
        panel.errorbar(places, medians, spread, label=name, **look)
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)


def _draw_workers(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [str(row["workers"]) for row in rows]
    _bars(panel, names, [row["images_per_second"] for row in rows])
    panel.set(title="Loader, 500x375 JPEG", xlabel="workers", ylabel="images/s")


def _draw_processes(panel: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [f"{row['processes']} x {row['threads']}" for row in rows]
    _bars(panel, names, [row["masks_per_second"] for row in rows])
    panel.set(title="Predictors, 240x240", xlabel="processes x threads of each", ylabel="masks/s of all")


def _bars(panel: Any, names: Sequence[str], values: Sequence[float]) -> None:
    bars = panel.bar(names, values, color=_OURS, width=0.6)
    panel.bar_label(bars, [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=2)
    panel.set_ylim(0, 1.1 * max(values))


_DRAW: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {"inference": _draw_inference, "scaling": _draw_scaling}
_PANELS: dict[str, Callable[[Any, Any], None]] = {
    "size": _draw_size,
    "batch": _draw_batch,
    "classes": _draw_classes,
    "workers": _draw_workers,
    "processes": _draw_processes,
}


if __name__ == "__main__":
    sys.exit(run_guarded(main, sys.argv[1:]))
