"""Trains a spiking network on handwritten digits online, beside its controls, in about a minute.

    python examples/quickstart.py                           # snnTorch
    python examples/quickstart.py --library spikingjelly

One hidden layer of liquid time-constant neurons reads 20 steps of spikes; FPTT updates the weights at every step. The
same network is then trained with the regularizer off (alpha = 0, truncated BPTT) and with BPTT over all 20 steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _data import digits
from _measure import saved_bytes
from torch import nn

from fptt_plugin import BPTT, FiringRates, FPTTTrainer, TruncatedBPTT
from fptt_plugin.plot import METHOD_COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ARMS = {"FPTT": "-", "alpha = 0": "--", "BPTT": ":"}  # and their lines in the pictures


def build_net(library: str, hidden: int) -> nn.Module:
    """64 pixels, one spiking hidden layer, ten leaky integrators that hold the class scores."""
    if library == "snntorch":
        from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky

        return nn.Sequential(
            nn.Linear(64, hidden),
            LTCLeaky(beta=0.5, init_hidden=True),
            nn.Linear(hidden, 10),
            LTCIntegrator(beta=0.9, init_hidden=True),
        )
    from fptt_plugin import spikingjelly as sj

    return nn.Sequential(
        nn.Linear(64, hidden), sj.LTCLeaky(beta=0.5), nn.Linear(hidden, 10), sj.LTCIntegrator(beta=0.9)
    )


def build_trainer(arm: str, net: nn.Module, lr: float) -> FPTTTrainer:
    """All arms share network, optimizer and loss; only how gradients go through time differs."""
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    loss_fn = nn.CrossEntropyLoss()
    if arm == "FPTT":
        return FPTTTrainer(net, optimizer, loss_fn, alpha=0.1, window=1)
    if arm == "alpha = 0":
        return TruncatedBPTT(net, optimizer, loss_fn, window=1)
    return BPTT(net, optimizer, loss_fn, loss_every=1)


def run(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one arm and measures it."""
    torch.manual_seed(options.seed)
    train, test = digits(options.batch_size, options.steps, options.seed)
    net = build_net(options.library, options.hidden)
    trainer = build_trainer(arm, net, options.lr)
    print(f"\n{arm}\n{trainer.explain()}")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizer, options.epochs)
    history = trainer.fit(train, options.epochs, val_loader=test, scheduler=scheduler)
    with FiringRates(net) as firing:
        accuracy = trainer.evaluate(test)
    return {
        "arm": arm,
        "test_accuracy": accuracy,
        "curve": [record.val_score for record in history],
        "firing_rates": firing.rates(),
        "updates": trainer.updates,
        "seconds": round(sum(record.seconds for record in history), 1),
        "saved_bytes": measure_memory(arm, options, options.steps),
    }


def measure_memory(arm: str, options: argparse.Namespace, steps: int) -> int:
    """Most bytes that autograd holds at once while this arm trains on one batch of that many steps."""
    trainer = build_trainer(arm, build_net(options.library, options.hidden), options.lr)
    x = torch.rand(steps, options.batch_size, 64).round()
    return saved_bytes(trainer, x, torch.zeros(options.batch_size, dtype=torch.long))


def plot(results: list[dict[str, Any]], memory: dict[str, list[int]], lengths: list[int], path: Path) -> None:
    """Learning curves, and memory against the length of the sequence."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    draw_accuracy(left, {row["arm"]: [100 * value for value in row["curve"]] for row in results})
    draw_memory(right, memory, lengths)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def draw_accuracy(axes: Axes, curves: dict[str, list[float]]) -> None:
    """Test accuracy of each arm in percent, by epoch."""
    for arm, curve in curves.items():
        axes.plot(range(1, len(curve) + 1), curve, color=METHOD_COLORS[arm], ls=ARMS[arm], lw=2, label=arm)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Handwritten digits, 20 steps of spikes")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)


def draw_memory(axes: Axes, memory: dict[str, list[int]], lengths: list[int]) -> None:
    """What autograd saves of each arm, in bytes, against the number of steps."""
    for arm, line in ARMS.items():
        sizes = [size / 2**20 for size in memory[arm]]
        width, dot = (5, 9) if arm == "FPTT" else (2, 6)  # seen below alpha = 0, which needs as much
        style: dict[str, Any] = {"color": METHOD_COLORS[arm], "ls": line, "lw": width, "ms": dot}
        axes.loglog(lengths, sizes, marker="o", label=arm, **style)
    axes.set(xlabel="time steps T", ylabel="saved for backward (MiB)", title="Memory against sequence length")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)


def print_table(results: list[dict[str, Any]]) -> None:
    """One row per arm."""
    print(f"\n{'':10} {'test accuracy':>14} {'updates':>8} {'seconds':>8} {'saved for backward':>19}   firing rates")
    for row in results:
        rates = ", ".join(f"{name}: {100 * rate:.1f} %" for name, rate in row["firing_rates"].items())
        print(
            f"{row['arm']:10} {100 * row['test_accuracy']:12.1f} % {row['updates']:8} {row['seconds']:8.1f} "
            f"{row['saved_bytes'] / 1024:15.0f} KiB   {rates}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("snntorch", "spikingjelly"), default="snntorch")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="time steps per digit")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; more wait for each other on so small a network"
    )
    parser.add_argument("--plot", type=Path, default=Path("quickstart.png"), help="picture to write")
    parser.add_argument("--json", type=Path, help="file for every figure")
    parser.add_argument("--smoke", action="store_true", help="one epoch and short sequences: does it run?")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lengths = [10, 30, 100, 300, 1000]
    if options.smoke:
        options.epochs, lengths = 1, [10, 30]

    results = [run(arm, options) for arm in ARMS]
    memory = {arm: [measure_memory(arm, options, steps) for steps in lengths] for arm in ARMS}
    print_table(results)
    plot(results, memory, lengths, options.plot)
    print(f"\npicture: {options.plot}")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("plot", "json")}
        figures = {"settings": settings, "results": results, "memory": {"steps": lengths, "saved_bytes": memory}}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
