"""Draws the pictures of the site that are no output of a notebook.

    python examples/site_pictures.py            # all of them, into docs/images
    python examples/site_pictures.py --only unrolled_fptt neuron

``quickstart`` with its two panels and the thumbnails of the gallery are made from the measured figures in
``docs/performance`` and ``docs/results`` and nothing else; the others are diagrams. What the site shows side by side
are two files, so that a narrow screen shows one below the other.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import results_page
from _result_files import load
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from quickstart import ARMS, draw_accuracy, draw_memory

from fptt_plugin.plot import METHOD_COLORS, method_color

DOCS = Path(__file__).parents[1] / "docs"
MIB = 2**20
FORWARD, BACKWARD, UPDATE = "#555555", METHOD_COLORS["BPTT"], METHOD_COLORS["FPTT"]


# ---------------------------------------------------------------------- the pictures of README and landing page


def quickstart() -> plt.Figure:
    """Accuracy over the epochs, and memory over the length of the sequence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    _accuracy(left)
    _memory(right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _alone(draw: Callable[[plt.Axes], None]) -> Callable[[], plt.Figure]:
    """One panel of ``quickstart``, with a legend of its own."""

    def picture() -> plt.Figure:
        figure, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
        draw(axes)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return figure

    return picture


def _accuracy(axes: plt.Axes) -> None:
    draw_accuracy(axes, _quickstart_curves())
    axes.set_ylim(70, 100)


def _memory(axes: plt.Axes) -> None:
    memory = _quickstart_runs()[0]["memory"]
    draw_memory(axes, memory["saved_bytes"], memory["steps"])


def _quickstart_runs() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((DOCS / "performance").glob("quickstart_seed*.json"))]


def _quickstart_curves() -> dict[str, list[float]]:
    """Test accuracy of each method in percent, by epoch, mean of the seeds."""
    curves = {}
    for index, arm in enumerate(ARMS):
        seeds = [run["results"][index]["curve"] for run in _quickstart_runs()]
        curves[arm] = [100 * mean(scores) for scores in zip(*seeds, strict=True)]
    return curves


# ---------------------------------------------------------------------- diagrams


def _box(axes: plt.Axes, x: float, y: float, text: str, width: float = 0.9, height: float = 0.7, **style: Any) -> None:
    options = {"facecolor": "white", "edgecolor": FORWARD, "linewidth": 1.4, **style}
    axes.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02", **options))
    axes.text(x, y, text, ha="center", va="center", fontsize=11)


def _arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str, **style: Any) -> None:
    options = {"arrowstyle": "-|>", "mutation_scale": 12, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0, **style}
    axes.add_patch(FancyArrowPatch(start, end, color=color, **options))


def _unrolled(title: str, draw: Callable[[plt.Axes], None]) -> Callable[[], plt.Figure]:
    """What a method computes for a sequence of four steps (after the paper's Fig. 1)."""

    def picture() -> plt.Figure:
        figure, axes = plt.subplots(figsize=(5.6, 4.9), layout="constrained")
        axes.set(xlim=(0.1, 7.9), ylim=(-1.75, 4.6), aspect="equal")
        axes.axis("off")
        axes.text(3.85, 4.3, title, ha="center", fontsize=13, fontweight="bold")
        draw(axes)
        entries = ((FORWARD, "-", "forward"), (BACKWARD, "--", "backward"), (UPDATE, "-", "weight update"))
        handles = [plt.Line2D([], [], color=color, ls=line, lw=2, label=label) for color, line, label in entries]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
        return figure

    return picture


def _step(axes: plt.Axes, x: float, t: int, weights: str) -> None:
    _box(axes, x, 1, f"net\n{weights}", 1.05, 0.95)
    _arrow(axes, (x, -0.05), (x, 0.5), FORWARD)
    axes.text(x, -0.1, f"$x_{t}$", ha="center", va="top", fontsize=12)


def _bptt(axes: plt.Axes) -> None:
    places = [1, 2.9, 4.8, 6.7]
    for t, x in enumerate(places, 1):
        _step(axes, x, t, "$W$")
    for x, following in pairwise(places):
        _arrow(axes, (x + 0.55, 1.15), (following - 0.55, 1.15), FORWARD)
        _arrow(axes, (following - 0.55, 0.8), (x + 0.55, 0.8), BACKWARD, ls="--")
    _box(axes, places[-1], 2.9, r"$\ell$", 0.8, 0.6)
    _arrow(axes, (places[-1] - 0.12, 1.5), (places[-1] - 0.12, 2.58), FORWARD)
    _arrow(axes, (places[-1] + 0.12, 2.58), (places[-1] + 0.12, 1.5), BACKWARD, ls="--")
    axes.plot([places[0], places[-1]], [-0.95, -0.95], color=UPDATE, lw=1.6)
    _arrow(axes, (places[0], -0.95), (places[0] - 0.5, -0.95), UPDATE)
    axes.text(3.85, -1.1, r"at the end  $W \leftarrow W - \eta\,\nabla\ell$", ha="center", va="top", fontsize=12)
    axes.text(0.5, 2.9, "all steps are kept\nfor the backward pass:\nmemory grows with T", fontsize=11, va="center")


def _fptt(axes: plt.Axes) -> None:
    places = [1, 2.9, 4.8, 6.7]
    for t, x in enumerate(places, 1):
        _step(axes, x, t, f"$W_{t}$")
        _box(axes, x, 2.55, rf"$\ell_{t}$", 0.7, 0.55)
        _arrow(axes, (x - 0.12, 1.5), (x - 0.12, 2.25), FORWARD)
        _arrow(axes, (x + 0.12, 2.25), (x + 0.12, 1.5), BACKWARD, ls="--")
    for x, following in pairwise(places):
        _arrow(axes, (x + 0.55, 1), (following - 0.55, 1), FORWARD)
        middle = (x + following) / 2
        axes.plot([middle - 0.1, middle + 0.02], [0.78, 1.22], color="black", lw=1.6)
        axes.plot([middle - 0.02, middle + 0.1], [0.78, 1.22], color="black", lw=1.6)
        bend = {"connectionstyle": "arc3,rad=-0.55"}
        _arrow(axes, (x + 0.4, 2.7), (following - 0.5, 1.4), UPDATE, **bend)
    axes.text(3.85, 3.65, "only the window at hand is kept: memory does not depend on T", ha="center", fontsize=11)
    axes.text(1.95, 0.55, "state\ndetached", ha="center", va="top", fontsize=9)
    axes.text(
        3.85,
        -0.75,
        r"at every step  $W_{t+1} = W_t - \eta\,(\nabla\ell_t + \alpha(W_t - \bar W_t) - \lambda_t)$"
        "\n"
        r"$\bar W$: running average of the weights,  $\lambda$: its correction",
        ha="center",
        va="top",
        fontsize=11,
    )


def neuron() -> plt.Figure:
    """The liquid time-constant spiking neuron (after the paper's Fig. 2)."""
    figure, axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    axes.set(xlim=(-0.6, 10.6), ylim=(-0.4, 4.5), aspect="equal")
    axes.axis("off")
    gate = {"facecolor": "#dcecf6", "edgecolor": UPDATE}
    axes.text(-0.1, 1.5, "$x$", fontsize=14, ha="center", va="center")
    axes.text(-0.1, 1.05, "input", fontsize=9, ha="center", va="top")
    _box(axes, 3.6, 1.5, "membrane\n" r"$u \leftarrow u + \kappa\,(x - u)$", 2.7, 1)
    _box(axes, 7.3, 1.5, "spike\n" r"$s = H(u - \theta)$", 2, 1)
    _box(axes, 2.2, 3.6, r"gate  $\kappa = \sigma(G_{mem}(x, u))$", 3.5, 0.7, **gate)
    _box(axes, 7.6, 3.6, "threshold\n" r"$\theta = 0.1 + 1.8\,b$", 2.1, 0.9)
    _box(axes, 7.6, 0.05, r"adaptation  $b \leftarrow \rho\,b + (1 - \rho)\,s$", 3.9, 0.65)
    _box(axes, 2.6, 0.05, r"gate  $\rho = \sigma(G_{adp}(x, b))$", 3.5, 0.7, **gate)
    _arrow(axes, (0.15, 1.5), (2.2, 1.5), FORWARD)
    _arrow(axes, (0.5, 1.5), (0.9, 3.22), FORWARD, ls=":")
    _arrow(axes, (0.5, 1.5), (1.2, 0.43), FORWARD, ls=":")
    _arrow(axes, (3.3, 2.02), (2.5, 3.22), FORWARD, ls=":", connectionstyle="arc3,rad=-0.2")
    _arrow(axes, (2.0, 3.22), (2.8, 2.02), UPDATE, connectionstyle="arc3,rad=-0.2")
    _arrow(axes, (4.97, 1.5), (6.28, 1.5), FORWARD)
    axes.text(5.6, 1.58, "$u$", fontsize=12, ha="center", va="bottom")
    _arrow(axes, (7.5, 3.13), (7.4, 2.03), FORWARD)
    axes.text(7.55, 2.6, r"$\theta$", fontsize=12, va="center")
    _arrow(axes, (8.32, 1.5), (10, 1.5), FORWARD)
    axes.text(10.2, 1.5, "$s$", fontsize=14, ha="left", va="center")
    _arrow(axes, (9.0, 1.5), (8.9, 0.4), FORWARD)
    _arrow(axes, (9.56, 0.05), (8.68, 3.6), FORWARD, connectionstyle="arc3,rad=0.45")
    axes.text(9.75, 2.9, "$b$", fontsize=12, va="center")
    _arrow(axes, (5.62, -0.12), (4.37, -0.12), FORWARD, ls=":", connectionstyle="arc3,rad=-0.25")
    _arrow(axes, (4.37, 0.05), (5.62, 0.05), UPDATE)
    axes.text(5.0, 0.15, r"$\rho$", fontsize=12, ha="center", va="bottom")
    _arrow(axes, (6.7, 2.02), (4.4, 2.02), BACKWARD, ls="--", connectionstyle="arc3,rad=0.35")
    axes.text(5.5, 2.62, "reset to rest", fontsize=10, ha="center", va="bottom")
    return figure


# ---------------------------------------------------------------------- thumbnails of the gallery


def _thumbnail(x: str, y: str) -> tuple[plt.Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(3.2, 2), layout="constrained")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.set_xlabel(x, fontsize=7)
    axes.set_ylabel(y, fontsize=7)
    return figure, axes


def _curves(table: str, only: tuple[str, ...] = (), score: str = "accuracy (%)") -> Callable[[], plt.Figure]:
    """Score over the epochs of the best run of each method in a table of the results, mean over its seeds."""

    def draw() -> plt.Figure:
        figure, axes = _thumbnail("epoch", score)
        rows = results_page.table_rows(results_page.TABLES[table], load(DOCS / "results"))
        chosen: dict[str, Any] = {}
        for row in rows:
            method = next((name for name, color in METHOD_COLORS.items() if color == method_color(row.arm)), None)
            if method is None or (only and not set(only) & set(row.values)):
                continue
            better = max if row.runs[0]["higher_is_better"] else min
            best = chosen.setdefault(method, row)
            if better(mean(row.scores()), mean(best.scores())) == mean(row.scores()):
                chosen[method] = row
        for method in METHOD_COLORS:
            if method in chosen:
                runs = chosen[method].runs
                scores = [[record["test"] for record in run["records"]] for run in runs]
                shared = min(map(len, scores))
                values = [mean(values) for values in zip(*(curve[:shared] for curve in scores), strict=True)]
                if runs[0]["higher_is_better"]:
                    values = [100 * value for value in values]
                axes.plot(range(1, shared + 1), values, color=METHOD_COLORS[method], lw=1.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if not rows[0].runs[0]["higher_is_better"]:
            axes.set_yscale("log")
        return figure

    return draw


def _beta_rule() -> plt.Figure:
    figure, axes = _thumbnail("initial beta", "accuracy (%)")
    cells = json.loads((DOCS / "performance" / "beta_rule.json").read_text())["cells"]
    for steps, gray in zip((5, 10, 20, 50), ("0.75", "0.55", "0.35", "0.1"), strict=True):
        found = [cell for cell in cells if cell["presentation"] == "constant" and cell["steps"] == steps]
        found = [cell for cell in found if cell["neuron"] == "LTCLeaky"]
        scores = [100 * mean(cell["test_accuracy"]) for cell in found]
        axes.plot([cell["beta"] for cell in found], scores, color=gray, lw=1.8, label=f"T = {steps}")
    axes.legend(fontsize=6, loc="lower left")
    return figure


def _benchmarks() -> plt.Figure:
    figure, axes = _thumbnail("time steps", "MiB for backward")
    records = json.loads((DOCS / "performance" / "benchmarks.json").read_text())["records"]
    part = [record for record in records if record["part"] == "saved" and record["net"] == "LTC-SRNN 128"]
    for row, method in (("snnTorch BPTT", "BPTT"), ("ours, eager", "FPTT")):
        points = sorted(
            (record["T"], record["bytes"] / MIB) for record in part if record["row"] == row and "bytes" in record
        )
        axes.loglog(*zip(*points, strict=True), color=METHOD_COLORS[method], marker="o", ms=3, lw=1.8)
    return figure


def _small_quickstart() -> plt.Figure:
    figure, axes = _thumbnail("epoch", "accuracy (%)")
    for arm, curve in _quickstart_curves().items():
        axes.plot(range(1, len(curve) + 1), curve, color=METHOD_COLORS[arm], lw=1.8)
    axes.set_ylim(70, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _text(*lines: str) -> Callable[[], plt.Figure]:
    """A few lines of code, for the examples that have nothing to draw."""

    def draw() -> plt.Figure:
        figure, axes = plt.subplots(figsize=(3.2, 2))
        axes.axis("off")
        for i, line in enumerate(lines):
            color = UPDATE if any(word in line for word in ("step()", "fit", "LTCLeaky")) else FORWARD
            axes.text(0, 0.85 - 0.19 * i, line, family="monospace", fontsize=9, color=color, transform=axes.transAxes)
        return figure

    return draw


def _pixels(frames: int) -> Callable[[], plt.Figure]:
    """Digits as the input of a network: as they are, or as spikes of several steps."""

    def draw() -> plt.Figure:
        import numpy as np
        from sklearn.datasets import load_digits

        rng = np.random.default_rng(0)
        images = load_digits().images[:8] / 16
        figure, grid = plt.subplots(2, 4, figsize=(3.2, 2))
        for axes, image in zip(grid.flat, images, strict=True):
            shown = rng.random(image.shape) < 0.7 * image if frames > 1 else image
            axes.imshow(shown, cmap="Blues", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        figure.subplots_adjust(0.02, 0.02, 0.98, 0.98, 0.05, 0.05)
        return figure

    return draw


def _channels() -> plt.Figure:
    """Spikes of channels that sweep up and down, as a spoken word does in a model of the cochlea."""
    import numpy as np

    rng = np.random.default_rng(0)
    figure, axes = _thumbnail("time step", "channel")
    steps = rng.uniform(0, 100, 900)
    bands = rng.choice([150, 350, 520], 900)
    axes.scatter(steps, bands + 80 * np.sin(steps / 14 + bands) + rng.normal(0, 18, 900), s=2, marker="|", color="0.3")
    return figure


LOOP = (
    "for x_t in x:",
    "  loss = loss_fn(net(x_t), y)",
    "  {}backward(loss)",
    "  optimizer.step()",
    "  state.detach()",
)
NETWORK = ("{0}Linear(64, 128),", "LTCLeaky({1}),", "{0}Linear(128, 10),", "LTCIntegrator({2})")
THUMBNAILS: dict[str, Callable[[], plt.Figure]] = {
    "first_snntorch": _text(*(line.format("nn.", "beta=0.5", "beta=0.8") for line in NETWORK)),
    "first_spikingjelly": _text(
        *(line.format("layer.", "tau=2.0", "tau=5.0") for line in NETWORK), 'set_step_mode(net, "m")'
    ),
    "quickstart": _small_quickstart,
    "beta_rule": _beta_rule,
    "benchmarks": _benchmarks,
    "adding": _curves("adding-0.1", score="error"),
    "rate_mnist": _curves("rmnist", ("epochs 20",)),
    "sequential_mnist": _curves("window-long"),
    "ecg_stream": _curves("ecg"),
    "dvs_gesture": _curves("nmnist"),
    "detection": _curves("detection", score="mean average precision (%)"),
    "speech": _channels,
    "static_images": _pixels(1),
    "dvs_cifar10": _pixels(8),
    "complete_run": _text(
        "trainer.fit(", "  train, epochs, val_loader=test,", "  callbacks=[...], scheduler=...,", "  checkpoint=...)"
    ),
    "lightning_loop": _text(
        "def training_step(self, batch, i):", "  ...", "  self.manual_backward(loss)", "  optimizer.step()"
    ),
    "torchrun_loop": _text(
        "torchrun --nproc-per-node 2", "  torchrun_loop.py", "", "model = DDP(net)", "trainer.fit(loader)"
    ),
    "fabric_loop": _text(*(line.format("fabric.") for line in LOOP)),
    "accelerate_loop": _text(
        "model, optimizer, loader =", "  accelerator.prepare(...)", "trainer = FPTTTrainer(...)", "trainer.fit(loader)"
    ),
}
PICTURES = {
    "quickstart": quickstart,
    "quickstart_accuracy": _alone(_accuracy),
    "quickstart_memory": _alone(_memory),
    "unrolled_bptt": _unrolled("BPTT: one update per sequence", _bptt),
    "unrolled_fptt": _unrolled("FPTT, window = 1: one update per step", _fptt),
    "neuron": neuron,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*PICTURES, "gallery"), default=(*PICTURES, "gallery"))
    parser.add_argument("--out", type=Path, default=DOCS / "images")
    options = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "fptt_plugin"  # the same picture is the same file
    (options.out / "gallery").mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if name == "gallery":
            for example, draw in THUMBNAILS.items():
                _save(draw(), options.out / "gallery" / f"{example}.png")
        else:
            _save(PICTURES[name](), options.out / f"{name}.{'png' if name == 'quickstart' else 'svg'}")


def _save(figure: plt.Figure, path: Path) -> None:
    metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
    figure.savefig(path, dpi=130, metadata=metadata)
    plt.close(figure)


if __name__ == "__main__":
    main()
