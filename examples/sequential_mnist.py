"""S-MNIST and PS-MNIST: one pixel a step, 784 steps, in order or permuted (paper: 97.37 and 94.77 %).

    python examples/sequential_mnist.py                                      # the paper's text: an update at each pixel
    python examples/sequential_mnist.py --recipe code                        # the authors' code
    python examples/sequential_mnist.py --recipe normalized --accelerate compile
    python examples/sequential_mnist.py --permuted --device cuda
    python examples/sequential_mnist.py --dataset digits --window 8 --batch-size 64 --hidden 128   # 64 steps, no files
    python examples/sequential_mnist.py --recipe normalized --pool 2 --subset 10000   # 196 steps

A recurrent layer of liquid neurons and a liquid leaky integrator. The authors' code differs from the paper's text: it
normalizes every drive by batch statistics of each time step, has a second layer, and another schedule. ``normalized``
takes over the normalization alone, spreads the time constants, and updates once per row of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from _data import IMAGES, images, in_order, shuffled, write_synthetic_images
from _experiment import Experiment, run
from _options import Recipes, add_drive_options, add_recipes, drive_parts, drives_of, make_parser, parse
from models import recurrent_net
from torch import Tensor, nn


def as_sequences(x: Tensor, pool: int, permutation: int | None) -> Tensor:
    """Pixels ``[N, steps]`` of images ``[N, height, width]``, averaged over squares of ``pool`` pixels."""
    pixels = nn.functional.avg_pool2d(x.unsqueeze(1), pool).flatten(1)
    if permutation is None:
        return pixels
    return pixels[:, torch.randperm(pixels.shape[1], generator=torch.Generator().manual_seed(permutation))]


def batches(x: Tensor, y: Tensor, indices: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches ``([T, B, 1], [B])``."""
    return ((x[index].t().unsqueeze(2), y[index]) for index in indices)


RECIPES: Recipes = {
    "paper": {"schedule": "steps", "milestones": [30, 80, 120], "gamma": 0.5, "epochs": 200, "hidden": [512]},
    "code": {
        "optimizer": "adamax",
        "batch_size": 512,
        "epochs": 250,
        "schedule": "steps",
        "hidden": [256, 256],
        "norm": "step",
        "norm_gamma": 0.1,
        "norm_readout": True,
        "auxiliary_mean": True,
    },
    "normalized": {
        "schedule": "cosine",
        "epochs": 10,
        "hidden": [256],
        "norm": "step",
        "spread": True,
        "window": None,  # a row of the image
        "no_auxiliary": True,
    },
}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--dataset", choices=IMAGES, default="mnist")
    parser.add_argument("--permuted", action="store_true", help="one fixed permutation of the pixels")
    parser.add_argument("--permutation-seed", type=int, default=0)
    parser.add_argument("--subset", type=int, help="train on the first images only")
    parser.add_argument("--pool", type=int, default=1, help="average squares of that many pixels: fewer steps")
    parser.add_argument("--hidden", type=int, nargs="+", default=[512])
    parser.add_argument("--threshold", type=float, default=0.1)
    parser.add_argument("--adaptation", type=float, default=1.8)
    parser.add_argument("--init-state", choices=("zeros", "random"), default="random")
    add_drive_options(parser)
    add_recipes(parser, RECIPES)
    options = parse(parser, write_synthetic_images, epochs=2, batch_size=32, hidden=[16], pool=7)
    data = images(options.dataset, options.data_dir).subset(options.subset)
    permutation = options.permutation_seed if options.permuted else None
    x_train, x_test = (as_sequences(x, options.pool, permutation) for x in (data.x_train, data.x_test))
    steps = x_train.shape[1]
    options.window = options.window or math.isqrt(steps)
    net = recurrent_net(
        options.neuron,
        options.library,
        1,
        options.hidden,
        10,
        threshold=options.threshold,
        adaptation=options.adaptation,
        init_state=options.init_state,
        **drives_of(options, steps),
    )
    experiment = Experiment(
        "sequential_mnist",
        "-".join(
            [options.dataset]
            + ["permuted"] * options.permuted
            + [f"T{steps}", f"n{len(x_train)}", "h" + "x".join(map(str, options.hidden)), *drive_parts(options)]
        ),
        net,
        nn.CrossEntropyLoss(),
        train=lambda chance: batches(x_train, data.y_train, shuffled(len(x_train), options.batch_size, chance)),
        test=lambda: batches(x_test, data.y_test, in_order(len(x_test), 500)),
        notes={"steps": steps, "train_samples": len(x_train), "test_samples": len(x_test), "chance": 0.1},
    )
    run(experiment, options)


if __name__ == "__main__":
    main()
