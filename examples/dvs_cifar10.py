"""CIFAR10-DVS, ten kinds of pictures moved before an event camera: a deep convolutional network.

    python examples/dvs_cifar10.py --device cuda --cache-dir frames
    python examples/dvs_cifar10.py --device cuda --recipe code              # network and frames of the authors' code
    python examples/dvs_cifar10.py --dataset nmnist                         # the same pipeline on N-MNIST

Recordings are read and made frames by tonic, which needs the package aedat for these; nothing is downloaded. The data
set has no split: the last tenth of each class is for testing.
"""

from __future__ import annotations

from _event_files import write_recordings
from _event_task import add_event_options, event_experiment, frame_shape
from _events import EVENT_SETS
from _experiment import run
from _options import Recipes, add_recipes, make_parser, parse
from models_conv import add_conv_options, conv_name, conv_net_from

LAYERS = {
    "cifar10_dvs": "C64k7-MP-C128k7-MP-C128-MP-C256-MP-C512-MP-512",
    "nmnist": "C32-MP-C128-MP-C256-MP-512",
}
RECIPES: Recipes = {
    "paper": {"frames": 20},
    "code": {
        "frames": 100,
        "layers": "C64k7-MP-C128k7-MP-C128-MP-C256-MP-C256-MP-C512-MP-512R",
        "gate_norm": True,
    },
}


def main() -> None:
    parser = make_parser(__doc__, epochs=50, batch_size=32, schedule="cosine")
    add_event_options(parser, "cifar10_dvs", frames=20)
    add_conv_options(parser, None)
    add_recipes(parser, RECIPES)
    options = parse(parser, write_recordings, dataset="nmnist", epochs=2, frames=8, batch_size=10, width=0.125)
    options.layers = options.layers or LAYERS[options.dataset]
    options.downsample = options.downsample or 1
    net = conv_net_from(options, frame_shape(options), EVENT_SETS[options.dataset].classes)
    run(event_experiment("dvs_cifar10", conv_name(options), net, options), options)


if __name__ == "__main__":
    main()
