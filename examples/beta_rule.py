"""How the neurons' initial ``beta`` goes with the number of time steps: a grid on handwritten digits.

    python examples/beta_rule.py                      # about ten minutes on one core
    python examples/beta_rule.py --presentations constant --steps 10 20 --layers 2 --betas 0.5 0.7 0.8 0.9 0.95
    python examples/beta_rule.py --presentations rates --steps 10 20 --betas 0.5

A digit is shown as a constant current for T steps, as spikes with a probability of the brightness (``rates``, on
demand), row by row (T = 8) or pixel by pixel (T = 64). ``beta`` is set in
the hidden ``LTCLeaky`` layers and in the readout, as if one number were written everywhere. Beside them stands
``snn.Leaky(beta=0.9)``, with a readout of 0.9. Each cell has the test accuracy after the last epoch, and the spikes per
neuron and step of the last hidden layer in the first epoch, as means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import snntorch as snn
import torch
from _data import Split, images
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky

STOCK = 0.9  # what snnTorch's tutorials use
BETAS = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98]
STEPS = [5, 10, 20, 50]
FEATURES = {"constant": 64, "rows": 8, "pixels": 1, "rates": 64}
PRESENTATIONS = ["constant", "rows", "pixels"]


def present(x: Tensor, presentation: str, steps: int) -> Tensor:
    """Return digits ``[B, 8, 8]`` as a sequence ``[T, B, features]``."""
    if presentation == "constant":
        return x.flatten(1).expand(steps, -1, -1)
    if presentation == "rates":
        return torch.bernoulli(x.flatten(1).expand(steps, -1, -1))
    return x.view(len(x), -1, FEATURES[presentation]).transpose(0, 1)


def build_net(neuron: str, beta: float, features: int, options: argparse.Namespace) -> nn.Sequential:
    """Return hidden layers of the neuron, and ten leaky integrators that hold the class scores."""
    layers: list[nn.Module] = []
    for _ in range(options.layers):
        layers += [nn.Linear(features, options.hidden)]
        layers += [LTCLeaky(beta, init_hidden=True) if neuron == "LTCLeaky" else snn.Leaky(beta, init_hidden=True)]
        features = options.hidden
    return nn.Sequential(*layers, nn.Linear(features, 10), LTCIntegrator(options.readout or beta, init_hidden=True))


def train(
    neuron: str, beta: float, task: tuple[str, int], seed: int, data: Split, options: argparse.Namespace
) -> tuple[float, float]:
    """Train one network; return its test accuracy and the firing rate of its last hidden layer in the first epoch."""
    presentation, steps = task
    torch.manual_seed(seed)
    net = build_net(neuron, beta, FEATURES[presentation], options)
    trainer = FPTTTrainer(net, torch.optim.Adam(net.parameters(), lr=options.lr, fused=True), nn.CrossEntropyLoss())

    def encode(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = zip(*samples, strict=True)
        return present(torch.stack(x), presentation, steps), torch.stack(y)

    batches = DataLoader(
        TensorDataset(data.x_train, data.y_train), options.batch_size, shuffle=True, drop_last=True, collate_fn=encode
    )
    test = DataLoader(TensorDataset(data.x_test, data.y_test), 450, collate_fn=encode)
    with warnings.catch_warnings():
        # The table shows where layers are silent.
        warnings.filterwarnings("ignore", message=".*(fired in less than|had a gradient of zero)")
        history = trainer.fit(batches, options.epochs, progress=False)
    return trainer.evaluate(test), list(history[0].firing_rates.values())[-1]


def grid(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the cells of the table, row by row."""
    data = images("digits", Path())
    cells = [("LTCLeaky", beta) for beta in options.betas] + [("snn.Leaky", STOCK)]
    lengths = {"constant": options.steps, "rates": options.steps, "rows": [8], "pixels": [64]}
    for presentation in options.presentations:
        for steps in lengths[presentation]:
            for neuron, beta in cells:
                found = [train(neuron, beta, (presentation, steps), seed, data, options) for seed in options.seeds]
                accuracies, rates = zip(*found, strict=True)
                yield {
                    "presentation": presentation,
                    "steps": steps,
                    "neuron": neuron,
                    "beta": beta,
                    "test_accuracy": [round(value, 4) for value in accuracies],
                    "firing_rate": [round(value, 5) for value in rates],
                }


def table(cells: list[dict[str, Any]], figure: str) -> str:
    """Return means over the seeds in percent as Markdown: a row per task, a column per ``beta``."""
    rows: dict[str, list[str]] = {}
    heads: list[str] = []
    for cell in cells:
        head = f"{cell['beta']}" if cell["neuron"] == "LTCLeaky" else f"`{cell['neuron']}({cell['beta']})`"
        heads += [head] * (head not in heads)
        rows.setdefault(f"{cell['presentation']}, T = {cell['steps']}", []).append(f"{100 * mean(cell[figure]):.1f}")
    lines = [["", *heads], ["---"] + ["--:"] * len(heads), *([name, *row] for name, row in rows.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--presentations", nargs="+", choices=tuple(FEATURES), default=PRESENTATIONS)
    add("--steps", type=int, nargs="+", default=STEPS, help="of a constant current and of rates")
    add("--betas", type=float, nargs="+", default=BETAS)
    add("--readout", type=float, help="beta of the readout; default: that of the hidden layers")
    add("--layers", type=int, default=1, help="hidden layers")
    add("--hidden", type=int, default=64)
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=3e-3)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--json", type=Path, help="file for every figure")
    add("--smoke", action="store_true", help="one epoch, few cells: does it run?")
    options = parser.parse_args()
    if options.smoke:
        options.presentations, options.steps = ["constant", "rows"], [5]
        options.betas, options.seeds, options.epochs = [0.5, 0.98], [0], 1
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # adaptation that decays without spikes: a CPU is slow below 1e-38

    cells = []
    for cell in grid(options):
        cells.append(cell)
        print(
            f"{cell['presentation']}, T = {cell['steps']}, {cell['neuron']}({cell['beta']}): "
            f"test accuracy {mean(cell['test_accuracy']):.1%}, firing rate {mean(cell['firing_rate']):.1%}",
            flush=True,
        )
    print(f"\nTest accuracy (%)\n\n{table(cells, 'test_accuracy')}")
    print(f"\nFiring rate in the first epoch (%)\n\n{table(cells, 'firing_rate')}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        options.json.write_text(json.dumps({"settings": settings, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
