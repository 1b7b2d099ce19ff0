"""The plots of a benchmark run."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from contenders import CONTENDERS
from floors import FLOORS
from report import MIB, ROWS, Figures, Record, select

PALETTE = matplotlib.colormaps["tab20"]
COLOURS: dict[str, Any] = {name: PALETTE(index) for index, name in enumerate(CONTENDERS)} | dict.fromkeys(FLOORS, "0.6")


def draw(figures: Figures, out: Path) -> list[Path]:
    """Writes one picture per part that was measured; returns their paths."""
    paths = []
    for part, panel, name in (
        ("nets", _bars, "update"),
        ("time", _time, "length"),
        ("saved", _saved, "saved"),
        ("resident", _resident, "resident"),
    ):
        nets = select(figures, part)
        if nets:
            paths.append(_grid(nets, panel, out / f"{name}.png"))
    return paths


def _grid(nets: dict[str, list[Record]], panel: Any, path: Path) -> Path:
    """One panel per network, two or three in a line."""
    columns = min(len(nets), 3)
    lines = -(-len(nets) // columns)
    size = (5.2 * columns, 3.6 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in list(grid.flat)[len(nets) :]:
        axes.set_visible(False)
    for axes, (net, records) in zip(grid.flat, nets.items(), strict=False):
        panel(axes, records)
        axes.set_title(net)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _bars(axes: Any, records: list[Record]) -> None:
    run = [record for record in records if "ms" in record]
    names = [record["row"] for record in run]
    values = [median(record["ms"]) for record in run]
    bars = axes.barh(names, values, color=[COLOURS[name] for name in names])
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("ms per update")


def _lines(axes: Any, records: list[Record], key: str, value: Any, label: str) -> None:
    """A line per row over T, both axes logarithmic; thinner and thinner, since flat ones may coincide."""
    for width, name in zip(range(2 * len(ROWS), 0, -2), ROWS, strict=True):
        points = sorted((record["T"], value(record)) for record in records if record["row"] == name and key in record)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=width / 5, color=COLOURS[name], label=name)
    axes.set(xscale="log", yscale="log", xlabel="time steps T", ylabel=label)
    axes.legend(fontsize=7)


def _time(axes: Any, records: list[Record]) -> None:
    _lines(axes, records, "ms", lambda record: median(record["ms"]), "ms per step")
    axes.set_yscale("linear")
    axes.set_ylim(bottom=0)


def _saved(axes: Any, records: list[Record]) -> None:
    _lines(axes, records, "bytes", lambda record: record["bytes"] / MIB, "saved for backward (MiB)")


def _resident(axes: Any, records: list[Record]) -> None:
    _lines(axes, records, "peak", lambda record: record["peak"] / MIB, "peak of the process (MiB)")
