"""A ReLU network on the spike counts of R-MNIST: what Poisson-coded images tell without their timing.

    python examples/rate_counts.py

What ``rate_mnist.py`` can hope for: layers as wide as its own see how often each pixel fired in the 20 presentations,
which are drawn again in every epoch. Ordinary backpropagation with Adam, one update per batch. Writes the same files.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from _data import IMAGES, images, in_order, shuffled, write_synthetic_images
from _experiment import Experiment
from _options import add_epoch_options, base_parser, epoch_seed, learning_rate, parse
from _results import Results
from rate_mnist import TEST_SEED, spike_batches
from torch import Tensor, nn

from fptt_plugin.fit import accuracy

Counts = Iterator[tuple[Tensor, Tensor]]


def counts(batches: Counts) -> Counts:
    """Spikes per presentation ``[B, pixels]`` and labels ``[B]``, from batches ``([T, B, pixels], [B])``."""
    for spikes, labels in batches:
        yield spikes.mean(dim=0), labels


def main() -> None:
    parser = base_parser(__doc__)
    add_epoch_options(parser)
    parser.set_defaults(lr=1e-3, schedule="cosine")
    parser.add_argument("--dataset", choices=IMAGES, default="mnist")
    parser.add_argument("--presentations", type=int, default=20, help="time steps counted")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    options = parse(parser, write_synthetic_images, epochs=2, batch_size=32, hidden=[32, 32])
    options.method, options.device = "ReLU network on spike counts", "cpu"
    data = images(options.dataset, options.data_dir)
    x_train, x_test = data.x_train.flatten(1), data.x_test.flatten(1)
    widths = [x_train.shape[1], *options.hidden]
    hidden = [layer for size in pairwise(widths) for layer in (nn.Linear(*size), nn.ReLU())]
    net = nn.Sequential(*hidden, nn.Linear(widths[-1], 10))

    def train(generator: torch.Generator) -> Counts:
        indices = shuffled(len(x_train), options.batch_size, generator)
        return counts(spike_batches(x_train, data.y_train, indices, options.presentations, generator))

    def test() -> Counts:
        indices, generator = in_order(len(x_test), 250), torch.Generator().manual_seed(TEST_SEED)
        return counts(spike_batches(x_test, data.y_test, indices, options.presentations, generator))

    task = Experiment("rate_counts", options.dataset, net, nn.CrossEntropyLoss(), train, test)
    folder = options.out or Path("runs", "rate_counts", f"{options.dataset}-s{options.seed}")
    fit(task, Results(folder, task, options), options)


def fit(task: Experiment, results: Results, options: argparse.Namespace) -> None:
    """Trains, and measures after every epoch."""
    optimizer = torch.optim.Adam(task.net.parameters())
    updates = 0
    for epoch in range(1, options.epochs + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        optimizer.param_groups[0]["lr"] = lr = learning_rate(options, epoch)
        losses, hits, size = 0.0, 0.0, 0
        for x, y in task.train(torch.Generator().manual_seed(epoch_seed(options, epoch))):
            output = task.net(x)
            loss = task.loss_fn(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            size += len(y)
            losses += len(y) * loss.item()
            hits += len(y) * accuracy(output, y).item()
        record = {"epoch": epoch, "lr": lr, "loss": losses / size, "train": hits / size, "updates": updates}
        record |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        with torch.no_grad():
            scores = [(accuracy(task.net(x), y).item(), len(y)) for x, y in task.test()]
        test = sum(score * count for score, count in scores) / sum(count for _, count in scores)
        record |= {"test": test, "test_w": test, "firing_rate": float("nan")}
        results.add(record, "finished" if epoch == options.epochs else "running")
    results.close()


if __name__ == "__main__":
    main()
