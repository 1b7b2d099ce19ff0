"""Pictures of the experiments' results."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from _result_files import Row, at_best_rate, curve

from fptt_plugin.plot import method_color

LINES = ("-", "--", "-.", ":")
WIDTH = 6.4  # inches: letters of 10 points have 8 pixels on a telephone, and 14 on the page


class Panel(NamedTuple):
    """One set of axes.

    Attributes:
        table: Whose rows.
        x: ``"epoch"``, ``"iterations"``, ``"cpu_seconds"``, ``"memory"`` or ``"steps"``.
        title: Of the panel.
        only: The rows with one of these values.
        best_rate: Of each arm the best learning rate only.
        above: Where the axis of the scores begins.
    """

    table: str
    x: str
    title: str
    only: tuple[str, ...] = ()
    best_rate: bool = False
    above: float | None = None


PICTURES = {
    "adding": [
        Panel("adding-0.1", "iterations", "Adding, T = 100, threshold 0.1"),
    ],
    "adding_threshold": [
        Panel("adding-0.5", "iterations", "Adding, T = 100, threshold 0.5"),
    ],
    "adding_neurons": [
        Panel("adding-neurons", "iterations", "Adding, T = 100, threshold 0.1: other neurons, FPTT", ("length 100",)),
    ],
    "adding_long": [
        Panel("adding-long", "iterations", f"Adding, T = {length}, threshold 0.1", (f"length {length}",))
        for length in (200, 500, 1000)
    ],
    "window": [
        Panel("window", "cpu_seconds", "Sequential digits, T = 64", best_rate=True),
        Panel("window", "memory", "Sequential digits, T = 64: accuracy and memory", best_rate=True),
    ],
    "window_long": [
        Panel("window-long", "cpu_seconds", "S-MNIST at half size, T = 196", best_rate=True),
        Panel("window-long", "memory", "S-MNIST at half size: accuracy and memory", best_rate=True),
    ],
    "rmnist": [
        Panel("rmnist", "epoch", "R-MNIST, four epochs", ("epochs 4",), above=0.9),
        Panel("rmnist", "epoch", "R-MNIST, 20 and 50 epochs", ("epochs 20", "epochs 50"), above=0.9),
        Panel("rmnist", "epoch", "R-MNIST, 10 000 images, the learning rate ends at 0", ("epochs 40",), above=0.9),
    ],
    "smnist": [
        Panel("smnist", "epoch", "S-MNIST, T = 784"),
    ],
    "psmnist": [
        Panel("psmnist-half", "epoch", "PS-MNIST at half size, T = 196"),
    ],
    "ecg": [
        Panel("ecg", "epoch", "QT-database ECG"),
        Panel("ecg", "cpu_seconds", "QT-database ECG, against time"),
    ],
    "lengths": [Panel("lengths", "steps", "QT-database ECG in pieces", best_rate=True)],
    "nmnist": [Panel("nmnist", "epoch", "N-MNIST, 1 000 recordings")],
    "detection": [
        Panel("detection", "epoch", "Blood cells"),
        Panel("detection", "cpu_seconds", "Blood cells, against time"),
    ],
}
METRICS = {"accuracy": "test accuracy (%)", "mse": "mean squared error", "mAP50": "mAP at overlap 0.5 (%)"}
AXES = {"epoch": "epoch", "iterations": "iterations", "cpu_seconds": "CPU seconds of training"}


def draw(tables: dict[str, list[Row]], images: Path) -> None:
    """Draws every picture for whose panels there are runs, as ``results_NAME.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images.mkdir(parents=True, exist_ok=True)
    for name, planned in PICTURES.items():
        panels = {panel: found for panel in planned if (found := _shown(tables[panel.table], panel))}
        if not panels:
            continue
        # One below the other, the legend below each: on a telephone they are small, but whole, and no curve is hidden.
        legends = [_legend_of(found) for found in panels.values()]
        heights = [3.4 + 0.2 * rows for _, rows in legends]
        figure = plt.figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        places = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False).flat
        for place, (columns, _), (panel, found) in zip(places, legends, panels.items(), strict=True):
            axes = place.subplots()
            {"memory": _memory, "steps": _lengths}.get(panel.x, _curves)(axes, found, panel.x)
            axes.set_title(panel.title)
            axes.set_ylim(bottom=panel.above and 100 * panel.above)
            axes.grid(alpha=0.3)
            place.legend(fontsize=9, loc="outside lower center", ncols=columns, frameon=False)
        figure.savefig(images / f"results_{name}.png", dpi=120, metadata={"Software": None})
        plt.close(figure)


def _shown(found: list[Row], panel: Panel) -> list[Row]:
    """The rows of a panel."""
    if panel.best_rate:
        found = at_best_rate(found)
    return [row for row in found if not panel.only or set(panel.only) & set(row.values)]


def _labels(found: list[Row]) -> list[str]:
    """What tells the rows of a panel apart."""
    shared = set.intersection(*(set(row.values) for row in found))
    return [", ".join((row.arm, *(value for value in row.values if value not in shared))) for row in found]


def _legend_of(found: list[Row]) -> tuple[int, int]:
    """Columns and rows of a legend that is no wider than the picture."""
    columns = 2 if max(map(len, _labels(found))) <= 42 else 1
    return columns, -(-len(found) // columns)


def _styles(arms: list[str]) -> Iterator[dict[str, Any]]:
    """The color of each arm's method; the further arms of a method have another shade and style."""
    seen: dict[str | None, Iterator[int]] = {}
    for arm in arms:
        shade = next(seen.setdefault(method_color(arm), count()))
        yield {"color": method_color(arm, shade) or "gray", "linestyle": LINES[shade % len(LINES)]}


def _curves(axes: Any, found: list[Row], x: str) -> None:
    """Mean score over the seeds, each seed in a thin line; errors on a logarithmic scale."""
    run = found[0].runs[0]
    for row, label, style in zip(found, _labels(found), _styles([row.arm for row in found]), strict=True):
        shared = min(len(run["records"]) for run in row.runs)
        positions = [_positions(run, x)[:shared] for run in row.runs]
        # Epochs without a test are left out.
        scores = [[record["test"] for record in run["records"]][:shared] for run in row.runs]
        shown = [i for i in range(shared) if all(values[i] is not None for values in scores)]
        positions, scores = ([[values[i] for i in shown] for values in each] for each in (positions, scores))
        scores = [[_shown_as(score, run) for score in values] for values in scores]
        if shared == 1:  # not trained in epochs: a floor
            axes.axhline(mean(values[0] for values in scores), color="gray", linestyle="--", label=label)
            continue
        across = [mean(values) for values in zip(*positions, strict=True)]
        axes.plot(across, [mean(values) for values in zip(*scores, strict=True)], label=label, **style)
        for values in scores if len(scores) > 1 else []:
            axes.plot(across, values, alpha=0.3, linewidth=0.7, **style)
    if not run["higher_is_better"]:
        axes.axhline(run["chance"], color="gray", linestyle=":", label="always 1")
        axes.set_yscale("log")
    if x == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=AXES[x], ylabel=METRICS[run["metric"]])


def _positions(run: dict[str, Any], x: str) -> list[float]:
    if x == "cpu_seconds":
        return curve(run, x)
    return [record["epoch"] * run.get("iterations_per_epoch", 1) for record in run["records"]]


def _memory(axes: Any, found: list[Row], x: str) -> None:
    for row, label, style in zip(found, _labels(found), _styles([row.arm for row in found]), strict=True):
        megabytes = row.runs[0]["saved_for_backward_bytes"] / 2**20
        color = style["color"]
        axes.errorbar(megabytes, mean(_scores(row)), _spread([row]), fmt="o", capsize=3, color=color, label=label)
    axes.set(xscale="log", xlabel="saved for backward (MiB)", ylabel=METRICS["accuracy"])
    axes.xaxis.set_major_formatter("{x:g}")


def _lengths(axes: Any, found: list[Row], x: str) -> None:
    """Score over the length of the sequence, a line for each arm."""
    arms: dict[str, list[Row]] = {}
    for row in sorted(found, key=lambda row: row.runs[0][x]):
        arms.setdefault(row.arm, []).append(row)
    for (arm, members), style in zip(arms.items(), _styles(list(arms)), strict=True):
        lengths, scores = [row.runs[0][x] for row in members], [mean(_scores(row)) for row in members]
        axes.errorbar(lengths, scores, _spread(members), marker="o", capsize=3, label=arm, **style)
    axes.set(xscale="log", xlabel="time steps of a sequence", ylabel=METRICS["accuracy"])
    axes.xaxis.set_major_formatter("{x:g}")


def _shown_as(score: float, run: dict[str, Any]) -> float:
    """In percent, as in the tables, unless it is an error."""
    return 100 * score if run["higher_is_better"] else score


def _scores(row: Row) -> list[float]:
    return [_shown_as(score, row.runs[0]) for score in row.scores()]


def _spread(found: list[Row]) -> list[list[float]]:
    """Distance from the mean to the smallest and to the largest score of each row."""
    scores = [_scores(row) for row in found]
    return [[mean(values) - min(values) for values in scores], [max(values) - mean(values) for values in scores]]
