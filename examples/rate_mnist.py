"""R-MNIST: images as Poisson spikes, 20 presentations of each (paper: 98.63 %).

    python examples/rate_mnist.py                          # FPTT, an update at every presentation
    python examples/rate_mnist.py --method tbptt           # alpha = 0
    python examples/rate_mnist.py --method bptt
    python examples/rate_mnist.py --dataset digits         # scikit-learn's 8x8 digits, no files needed

Two layers of 256 liquid neurons and a liquid leaky integrator. At each step a pixel fires with a probability equal to
its brightness, drawn again in every epoch; the test spikes are the same at every evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _data import IMAGES, images, in_order, shuffled, write_synthetic_images
from _experiment import Experiment, run
from _options import Recipes, add_drive_options, add_recipes, drive_parts, drives_of, make_parser, parse
from models import recurrent_net
from torch import Tensor, nn

TEST_SEED = 2**31  # far from any seed of an epoch


def spike_batches(
    x: Tensor, y: Tensor, indices: Iterator[Tensor], steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches ``([T, B, pixels], [B])`` of fresh spikes from brightness ``x [N, pixels]``."""
    for index in indices:
        yield torch.bernoulli(x[index].expand(steps, -1, -1), generator=generator), y[index]


RECIPES: Recipes = {"paper": {}, "normalized": {"norm": "step", "spread": True, "longest": 10.0}}


def main() -> None:
    parser = make_parser(__doc__, epochs=20, schedule="cosine")
    parser.add_argument("--dataset", choices=IMAGES, default="mnist")
    parser.add_argument("--subset", type=int, help="train on the first images only")
    parser.add_argument("--presentations", type=int, default=20, help="time steps")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--feedforward", action="store_true", help="no recurrent weights")
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--adaptation", type=float, default=1.8)
    add_drive_options(parser)
    add_recipes(parser, RECIPES)
    options = parse(parser, write_synthetic_images, epochs=2, batch_size=32, hidden=[32, 32])
    data = images(options.dataset, options.data_dir).subset(options.subset)
    x_train, x_test = data.x_train.flatten(1), data.x_test.flatten(1)
    net = recurrent_net(
        options.neuron,
        options.library,
        x_train.shape[1],
        options.hidden,
        10,
        recurrent=not options.feedforward,
        threshold=options.threshold,
        adaptation=options.adaptation,
        **drives_of(options, options.presentations),
    )

    def train(generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        indices = shuffled(len(x_train), options.batch_size, generator)
        return spike_batches(x_train, data.y_train, indices, options.presentations, generator)

    def test() -> Iterator[tuple[Tensor, Tensor]]:
        indices = in_order(len(x_test), 250)
        return spike_batches(
            x_test, data.y_test, indices, options.presentations, torch.Generator().manual_seed(TEST_SEED)
        )

    experiment = Experiment(
        "rate_mnist",
        "-".join(
            [options.dataset, f"n{len(x_train)}", "h" + "x".join(map(str, options.hidden))]
            + ["feedforward"] * options.feedforward
            + drive_parts(options)
        ),
        net,
        nn.CrossEntropyLoss(),
        train,
        test,
        notes={"train_samples": len(x_train), "test_samples": len(x_test), "chance": 0.1},
    )
    run(experiment, options)


if __name__ == "__main__":
    main()
