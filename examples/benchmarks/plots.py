"""The plots of a benchmark run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from contenders import COMPILE, CONTENDERS
from floors import FLOORS
from report import MIB, ROWS, Figures, Record, select

from fptt_plugin.plot import method_color

LINES = ("-", "--", ":", "-.", (0, (5, 1)))


def _styles() -> dict[str, dict[str, Any]]:
    """Color and line of each row: a color per method, shades and lines for ways to train by it."""
    styles: dict[str, dict[str, Any]] = {}
    seen: Counter[str | None] = Counter()
    for name in sorted(CONTENDERS, key=lambda name: name != COMPILE):  # the method's own color is for the compiled row
        label = name.replace("ours", "FPTT")
        method = method_color(label)
        shade = seen[method]
        seen[method] += 1
        other = ("0.25", "0.5")[shade % 2]
        styles[name] = {"color": method_color(label, shade) or other, "ls": LINES[shade % len(LINES)]}
    return styles | {name: {"color": "0.75", "ls": ":"} for name in FLOORS}


STYLES = _styles()


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
    """One panel below the other, readable on a telephone; lines of all panels in one legend above them."""
    heights = [0.9 + 0.2 * len(records) if panel is _bars else 2.8 for records in nets.values()]
    size = (6.4, sum(heights) + 0.5)
    figure, grid = plt.subplots(len(nets), 1, figsize=size, height_ratios=heights, layout="constrained", squeeze=False)
    for axes, (net, records) in zip(grid.flat, nets.items(), strict=True):
        panel(axes, records)
        axes.set_title(net)
        axes.grid(alpha=0.3)
    lines = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if lines:
        figure.legend(lines.values(), lines, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _bars(axes: Any, records: list[Record]) -> None:
    run = [record for record in records if "ms" in record]
    names = [record["row"] for record in run]
    values = [median(record["ms"]) for record in run]
    bars = axes.barh(names, values, color=[STYLES[name]["color"] for name in names])
    axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=2, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelsize=9)
    axes.set_xlabel("ms per update")


def _lines(axes: Any, records: list[Record], key: str, value: Any, label: str) -> None:
    """A line per row over T, both axes logarithmic; thinner and thinner, since flat ones may coincide."""
    for width, name in zip(range(len(ROWS), 0, -1), ROWS, strict=True):
        points = sorted((record["T"], value(record)) for record in records if record["row"] == name and key in record)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=1 + width / 7, **STYLES[name], label=name)
    axes.set(xscale="log", yscale="log", xlabel="time steps T", ylabel=label)
    lengths = sorted({record["T"] for record in records if key in record})
    # The label of 784 would touch that of 1000.
    axes.set_xticks([T for T in lengths if T != 784 or 1000 not in lengths], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:.0f}")


def _time(axes: Any, records: list[Record]) -> None:
    _lines(axes, records, "ms", lambda record: median(record["ms"]), "ms per step")
    axes.set_yscale("linear")
    axes.set_ylim(bottom=0)


def _saved(axes: Any, records: list[Record]) -> None:
    _lines(axes, records, "bytes", lambda record: record["bytes"] / MIB, "saved for backward (MiB)")


def _resident(axes: Any, records: list[Record]) -> None:
    _lines(axes, records, "peak", lambda record: record["peak"] / MIB, "peak of the process (MiB)")
