"""DVS-Gesture, eleven gestures before an event camera: a shallow recurrent network, or a deep convolutional one.

    python examples/dvs_gesture.py --frames 100                             # the paper's Table 2
    python examples/dvs_gesture.py --model scnn --device cuda               # the paper's Table 4
    python examples/dvs_gesture.py --model scnn --device cuda --recipe code
    python examples/dvs_gesture.py --dataset nmnist                         # the same pipeline on N-MNIST

Recordings are read and made frames by tonic; nothing is downloaded. Frames hold equal numbers of events, as in the
authors' code, and the shallow network sees means over squares of 4 x 4 pixels: a dense layer for each polarity, and a
recurrent one for both. The weights move at every frame.
"""

from __future__ import annotations

import argparse

from _event_files import write_recordings
from _event_task import add_event_options, event_experiment, frame_shape
from _events import EVENT_SETS
from _experiment import run
from _options import Recipes, add_drive_options, add_recipes, drive_parts, drives_of, make_parser, parse
from models import recurrent_net
from models_conv import add_conv_options, conv_name, conv_net_from, scaled
from torch import nn

LAYERS = {
    "dvs_gesture": "C64k7-MP-C128k7-MP-C128-MP-C256-MP-C512-MP-512",
    "nmnist": "C32-MP-C128-MP-C256-MP-512",
}


def build_net(options: argparse.Namespace) -> nn.Module:
    """The network for frames of the chosen size."""
    shape, classes = frame_shape(options), EVENT_SETS[options.dataset].classes
    if options.model == "scnn":
        return conv_net_from(options, shape, classes)
    encoders = ENCODERS[options.dataset] if options.encoders is None else options.encoders
    inputs, hidden = shape[0] * shape[1] * shape[2], scaled(options.hidden, options.width)
    dynamics = {"threshold": 0.1, "init_state": options.init_state, **drives_of(options, options.frames)}
    return recurrent_net(
        options.neuron,
        options.library,
        inputs,
        [hidden],
        classes,
        encoders=(shape[0], scaled(encoders, options.width)) if encoders else None,
        **dynamics,
    )


ENCODERS = {"dvs_gesture": 512, "nmnist": 0}
RECIPES: Recipes = {
    "paper": {},
    "code": {"layers": "C64k7-MP-C128k7-MP-C128-MP-C256-MP-C256-MP-C512-MP-512R", "gate_norm": True},
    "normalized": {"norm": "step", "spread": True},
}


def main() -> None:
    parser = make_parser(__doc__, epochs=30, batch_size=64, schedule="cosine")
    add_event_options(parser, "dvs_gesture", frames=20)
    add_conv_options(parser, None)
    parser.add_argument("--model", choices=("srnn", "scnn"), default="srnn")
    parser.add_argument("--hidden", type=int, default=512, help="neurons of the recurrent layer of srnn")
    parser.add_argument("--encoders", type=int, help="of the dense layer before it for each polarity; 0: no such layer")
    add_drive_options(parser)
    add_recipes(parser, RECIPES)
    options = parse(
        parser, write_recordings, epochs=2, frames=8, batch_size=11, width=0.125, layers="C32-MP-C64-MP-C128-MP-256R"
    )
    options.layers = options.layers or LAYERS[options.dataset]
    if options.downsample is None:
        options.downsample = 4 if options.model == "srnn" and options.dataset == "dvs_gesture" else 1
    if options.model == "scnn" and drive_parts(options):
        parser.error("--norm and --spread are for the recurrent network, --model srnn")
    encoders = [f"e{options.encoders}"] * (options.encoders is not None)
    srnn = "-".join([f"srnn{scaled(options.hidden, options.width)}", *encoders, *drive_parts(options)])
    variant = conv_name(options) if options.model == "scnn" else srnn
    net = build_net(options)
    run(event_experiment("dvs_gesture", variant, net, options, flat=options.model == "srnn"), options)


if __name__ == "__main__":
    main()
