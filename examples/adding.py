"""The Adding task: remember two marked numbers of a long sequence and give their sum (paper Fig. 3).

    python examples/adding.py --length 100                                  # FPTT, the authors' settings
    python examples/adding.py --length 100 --method tbptt                   # alpha = 0
    python examples/adding.py --length 100 --method tbptt --eps auto        # alpha = 0, Adam's eps = alpha * lr
    python examples/adding.py --length 100 --method bptt
    python examples/adding.py --length 100 --threshold 0.1                  # a network that spikes
    python examples/adding.py --length 500 --recipe normalized              # normalized, time constants spread

Each step brings a number in [0, 1) and a mark; exactly two steps are marked. Predicting 1 gives a mean squared error of
0.167. New data are drawn in every iteration. As in the authors' code, the sequence is cut into ten windows with a loss
and an update at the end of each, the target is the same at all of them, and the loss of window p weighs p + 0.1
(p = 0 ... 9). Their script leaves out the last window; here all are trained. With its threshold of 0.5 and a readout of
the membranes the network hardly spikes; ``--readout spike`` leaves it nothing but spikes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from _experiment import Experiment, run
from _options import Recipes, add_drive_options, add_recipes, drive_parts, drives_of, make_parser, parse
from models import recurrent_net
from torch import Tensor, nn

TEST_SEED = 2**31  # far from any seed of an epoch


def adding_batch(length: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences ``[T, B, 2]`` of numbers and marks, one mark in each half, and the sums ``[B, 1]``."""
    numbers = torch.rand(length, batch_size, generator=generator)
    marks = torch.zeros(length, batch_size)
    half = length // 2
    for first, last in ((0, half), (half, length)):
        place = torch.randint(first, last, (1, batch_size), generator=generator)
        marks.scatter_(0, place, 1.0)
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=0).unsqueeze(1)


def batches(count: int, options: argparse.Namespace, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """That many fresh batches."""
    return (adding_batch(options.length, options.batch_size, generator) for _ in range(count))


def authors_ramp(t: int, steps: int | None) -> float:
    """Weight of the loss after step ``t``: 0.1 for the first tenth of the sequence, 9.1 for the last."""
    return (10 * t) // (steps or 1) + 0.1


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(output, target)


RECIPES: Recipes = {
    "paper": {},
    "normalized": {
        "norm": "step",
        "spread": True,
        "threshold": 0.1,
        "adaptation": 1.8,
        "readout": "spike",
        "schedule": "cosine",
    },
}


def main() -> None:
    parser = make_parser(__doc__, alpha=0.5, average_weights="never", window=None)
    parser.add_argument("--length", "-T", type=int, default=200, help="time steps; the default window is a tenth")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--threshold", type=float, default=0.5, help="0.1 makes the network spike")
    parser.add_argument("--adaptation", type=float, default=0.0, help="of the threshold; alif: 1.8")
    parser.add_argument("--readout", choices=("membrane", "spike"), default="membrane")
    parser.add_argument("--iterations", type=int, default=800)
    parser.add_argument("--eval-every", type=int, default=20, help="iterations between evaluations: one 'epoch'")
    parser.add_argument("--test-batches", type=int, default=8)
    parser.add_argument(
        "--ramp", choices=("authors", "linear", "constant"), default="authors", help="of the loss; bptt has one"
    )
    add_drive_options(parser)
    add_recipes(parser, RECIPES)
    options = parse(
        parser, length=20, hidden=16, threshold=0.1, batch_size=32, iterations=6, eval_every=2, test_batches=1
    )
    if options.length < 10:
        parser.error("--length must be 10 or more: the sequence is cut into ten windows")
    options.window = options.window or options.length // 10
    options.epochs = -(-options.iterations // options.eval_every)
    adaptation = options.adaptation or (1.8 if options.neuron == "alif" else 0.0)
    net = recurrent_net(
        options.neuron,
        options.library,
        2,
        [options.hidden],
        1,
        readout=options.readout,
        joint_init=True,
        threshold=options.threshold,
        adaptation=adaptation,
        **drives_of(options, options.length),
    )
    tests = list(batches(options.test_batches, options, torch.Generator().manual_seed(TEST_SEED)))
    ramp = authors_ramp if options.ramp == "authors" else options.ramp
    experiment = Experiment(
        "adding",
        "-".join([f"T{options.length}-th{options.threshold:g}-{options.readout}", *drive_parts(options)]),
        net,
        mse,
        train=lambda generator: batches(options.eval_every, options, generator),
        test=lambda: tests,
        metric=mse,
        higher_is_better=False,
        trainer={} if options.method == "bptt" else {"loss_ramp": ramp},
        notes={"chance": 1 / 6, "iterations_per_epoch": options.eval_every},
    )
    run(experiment, options)


if __name__ == "__main__":
    main()
