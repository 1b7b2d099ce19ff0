"""MNIST and Fashion-MNIST through a convolutional network of 20 steps (paper: 99.62 % and 93.58 %).

    python examples/static_images.py --device cuda
    python examples/static_images.py --dataset fashion_mnist --device cuda
    python examples/static_images.py --subset 2000 --width 0.25             # minutes on a CPU
    python examples/static_images.py --recipe code --device cuda            # the authors' code

The image is the input current of the first layer at every step, and the weights move at every step. So do the
statistics of the batch normalization, 20 times for one batch: the test sees their running mean over steps and batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from _data import images, in_order, shuffled, write_synthetic_images
from _experiment import Experiment, run
from _options import Recipes, add_recipes, make_parser, parse
from models_conv import add_conv_options, conv_name, conv_net_from
from torch import Tensor, nn


def presentations(x: Tensor, y: Tensor, indices: Iterator[Tensor], steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches ``([T, B, 1, height, width], [B])`` of images ``x [N, height, width]``, the same at every step."""
    for index in indices:
        yield x[index].unsqueeze(1).expand(steps, -1, -1, -1, -1), y[index]


def make_experiment(options: argparse.Namespace) -> Experiment:
    """The task that the options ask for."""
    data = images(options.dataset, options.data_dir).subset(options.subset)
    x_test, y_test = data.x_test[: options.test_subset], data.y_test[: options.test_subset]
    height, width = data.x_train.shape[1:]
    return Experiment(
        "static_images",
        f"{options.dataset}-n{len(data.x_train)}-{conv_name(options)}-t{options.presentations}",
        conv_net_from(options, (1, height, width), 10),
        nn.CrossEntropyLoss(),
        train=lambda generator: presentations(
            data.x_train,
            data.y_train,
            shuffled(len(data.x_train), options.batch_size, generator),
            options.presentations,
        ),
        test=lambda: presentations(x_test, y_test, in_order(len(x_test), 250), options.presentations),
        notes={"train_samples": len(data.x_train), "test_samples": len(x_test), "chance": 0.1},
    )


RECIPES: Recipes = {
    "paper": {"optimizer": "adamax", "lr": 0.001},
    "code": {"lr": 0.005, "layers": "C32-C128-MP-C256-MP-512-512", "presentations": 100, "gate_norm": True},
}


def main() -> None:
    parser = make_parser(__doc__, epochs=20, batch_size=64, schedule="cosine")
    parser.add_argument("--dataset", choices=("mnist", "fashion_mnist"), default="mnist")
    parser.add_argument("--subset", type=int, help="train on the first images only")
    parser.add_argument("--test-subset", type=int, help="test on the first images only")
    parser.add_argument("--presentations", type=int, default=20, help="time steps")
    add_conv_options(parser, "C32-MP-C128-MP-C256-MP-512")
    add_recipes(parser, RECIPES)
    options = parse(parser, write_synthetic_images, epochs=2, batch_size=16, presentations=5, width=0.125)
    run(make_experiment(options), options)


if __name__ == "__main__":
    main()
