"""Spoken digits and commands as spikes of 700 channels of a model cochlea: SHD (20 classes) and SSC (35).

    python examples/speech.py                                # SHD, normalized, 100 steps of 14 ms
    python examples/speech.py --dataset ssc --epochs 20
    python examples/speech.py --recipe plain                 # without normalization, one time constant

The files are those of zenkelab.org/resources/spiking-heidelberg-datasets-shd, unpacked into ``SHD/`` and ``SSC/`` of
the data directory and read by tonic. Not one of the paper's tasks. The last value decides; recordings that end earlier
are followed by silence.
"""

from __future__ import annotations

from typing import Any

import tonic
import torch
from _event_files import write_speech
from _events import SHD, SSC, Framing, frame_loader
from _experiment import Experiment, run
from _options import Recipes, add_drive_options, add_recipes, drive_parts, drives_of, make_parser, parse
from models import recurrent_net
from torch import nn
from torch.utils.data import Subset

CHANNELS = 700
CLASSES = {"shd": 20, "ssc": 35}
RECIPES: Recipes = {
    "normalized": {"norm": "step", "spread": True, "window": 10, "no_auxiliary": True},
    "plain": {"window": 10},
}


def open_speech(name: str, root: str, train: bool, framing: Framing) -> Any:
    """Training or test recordings as frames ``[steps, 1, channels]`` of spike counts, silence at the end."""
    assert framing.window_ms is not None
    step = 1000 * framing.window_ms  # microseconds
    frames = tonic.transforms.ToFrame(
        (-(-CHANNELS // framing.downsample), 1, 1), time_window=step, start_time=0, end_time=step * framing.frames
    )
    pooled = tonic.transforms.Compose([_Pool(framing.downsample), frames])
    if name == "shd":
        return SHD(root, train=train, transform=pooled)
    return SSC(root, split="train" if train else "test", transform=pooled)


class _Pool:
    """Makes one of that many neighboring channels; tonic's ``Downsample`` rounds, some spikes one channel too low."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, events: Any) -> Any:
        events = events.copy()
        events["x"] //= self.count
        return events


def main() -> None:
    parser = make_parser(__doc__, epochs=30, batch_size=128, schedule="cosine")
    parser.add_argument("--dataset", choices=tuple(CLASSES), default="shd")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-ms", type=float, default=14.0, help="duration of a step")
    parser.add_argument("--pool", type=int, default=5, help="neighboring channels that are added up")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256])
    parser.add_argument("--subset", type=int, help="train on as many recordings, drawn by the seed")
    add_drive_options(parser)
    add_recipes(parser, RECIPES)
    options = parse(parser, write_speech, epochs=2, batch_size=40, hidden=[32], steps=20, step_ms=50.0)
    framing = Framing(options.steps, window_ms=options.step_ms, downsample=options.pool)
    train, test = (open_speech(options.dataset, str(options.data_dir), part, framing) for part in (True, False))
    if options.subset is not None and options.subset < len(train):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(options.seed))
        train = Subset(train, order[: options.subset].tolist())
    net = recurrent_net(
        options.neuron,
        options.library,
        -(-CHANNELS // options.pool),
        options.hidden,
        CLASSES[options.dataset],
        threshold=0.1,
        adaptation=1.8,
        **drives_of(options, options.steps),
    )
    variant = [options.dataset, f"T{options.steps}", f"n{len(train)}", "h" + "x".join(map(str, options.hidden))]
    experiment = Experiment(
        "speech",
        "-".join(variant + drive_parts(options)),
        net,
        nn.CrossEntropyLoss(),
        train=lambda generator: frame_loader(train, options.batch_size, generator=generator, flat=True),
        test=lambda: frame_loader(test, 250, flat=True),
        notes={"recordings": {"train": len(train), "test": len(test)}, "chance": 1 / CLASSES[options.dataset]},
    )
    run(experiment, options)


if __name__ == "__main__":
    main()
