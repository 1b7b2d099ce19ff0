"""Pictures of the experiments' results."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from _result_files import Row, curve


class Panel(NamedTuple):
    """One set of axes.

    Attributes:
        table: Whose rows.
        x: ``"epoch"``, ``"iterations"``, ``"cpu_seconds"`` or ``"memory"``.
        title: Of the panel.
    """

    table: str
    x: str
    title: str


PICTURES = {
    "adding": [Panel("adding-0.1", "iterations", "Adding, T = 100, threshold 0.1")],
    "ecg": [Panel("ecg", "epoch", "QT-database ECG"), Panel("ecg", "cpu_seconds", "the same against time")],
    "nmnist": [Panel("nmnist", "epoch", "N-MNIST, 1 000 recordings")],
    "window": [
        Panel("window-sweep", "cpu_seconds", "Sequential digits, T = 64"),
        Panel("window-sweep", "memory", "accuracy and memory"),
    ],
    "rmnist": [Panel("rmnist", "epoch", "R-MNIST"), Panel("rmnist", "cpu_seconds", "the same against time")],
}
AXES = {"epoch": "epoch", "iterations": "iterations", "cpu_seconds": "CPU seconds of training"}


def draw(tables: dict[str, list[Row]], images: Path) -> None:
    """Draws every picture for whose panels there are runs, as ``results_NAME.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images.mkdir(parents=True, exist_ok=True)
    for name, planned in PICTURES.items():
        panels = [panel for panel in planned if tables[panel.table]]
        if not panels:
            continue
        figure, places = plt.subplots(
            1, len(panels), figsize=(5.2 * len(panels), 4), layout="constrained", squeeze=False
        )
        for axes, panel in zip(places[0], panels, strict=True):
            found = [row for row in tables[panel.table] if "cpu_seconds" in row.runs[0]["records"][0]]
            (_memory if panel.x == "memory" else _curves)(axes, found, panel.x)
            axes.set_title(panel.title)
            axes.grid(alpha=0.3)
        figure.savefig(images / f"results_{name}.png", dpi=100, metadata={"Software": None})
        plt.close(figure)


def _curves(axes: Any, found: list[Row], x: str) -> None:
    """Mean score over the seeds, each seed in a thin line; errors on a logarithmic scale."""
    run = found[0].runs[0]
    for row in found:
        shared = min(len(run["records"]) for run in row.runs)
        positions = [_positions(run, x)[:shared] for run in row.runs]
        scores = [[record["test"] for record in run["records"]][:shared] for run in row.runs]
        if shared == 1:  # not trained in epochs: a floor
            axes.axhline(mean(values[0] for values in scores), color="grey", linestyle="--", label=row.arm)
            continue
        across = [mean(values) for values in zip(*positions, strict=True)]
        (line,) = axes.plot(across, [mean(values) for values in zip(*scores, strict=True)], label=row.label)
        for values in scores if len(scores) > 1 else []:
            axes.plot(across, values, color=line.get_color(), alpha=0.3, linewidth=0.7)
    if not run["higher_is_better"]:
        axes.axhline(run["chance"], color="grey", linestyle=":", label="always 1")
        axes.set_yscale("log")
    if x == "epoch":
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=AXES[x], ylabel="mean squared error" if run["metric"] == "mse" else "test accuracy")
    axes.legend(fontsize=8)


def _positions(run: dict[str, Any], x: str) -> list[float]:
    if x == "cpu_seconds":
        return curve(run, x)
    return [record["epoch"] * run.get("iterations_per_epoch", 1) for record in run["records"]]


def _memory(axes: Any, found: list[Row], x: str) -> None:
    for row in found:
        megabytes = row.runs[0]["saved_for_backward_bytes"] / 2**20
        axes.errorbar(
            megabytes,
            mean(row.scores()),
            [[mean(row.scores()) - min(row.scores())], [max(row.scores()) - mean(row.scores())]],
            fmt="o",
            capsize=3,
            label=row.label,
        )
    axes.set(xscale="log", xlabel="saved for backward, MiB", ylabel="test accuracy")
    axes.legend(fontsize=8)
