"""What the experiments on event-camera recordings share: options, and the task that follows from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import tonic
import torch
from _events import EVENT_SETS, SPLITS, Framing, frame_loader, open_recordings
from _experiment import Experiment
from torch import nn
from torch.utils.data import Subset


def add_event_options(parser: argparse.ArgumentParser, dataset: str, frames: int) -> None:
    """Data set and frames; the defaults are those of the task."""
    add = parser.add_argument
    add("--dataset", choices=(dataset, "nmnist"), default=dataset)
    add("--frames", type=int, default=frames, help="frames per recording: the time steps")
    add("--split", choices=SPLITS, default="count", help="frames of as many events each, or as long each")
    add("--window-ms", type=float, help="frames of that duration instead, from the first event on")
    add("--downsample", type=int, help="side of the squares of pixels that become one")
    add("--subset", type=int, help="use as many recordings, drawn by the seed")
    add("--cache-dir", type=Path, help="keep frames there, so that the events are read once")


def framing_of(options: argparse.Namespace) -> Framing:
    """How recordings become frames."""
    return Framing(options.frames, options.split, options.window_ms, options.downsample)


def frame_shape(options: argparse.Namespace) -> tuple[int, int, int]:
    """Polarities, height and width of a frame."""
    width, height, polarities = framing_of(options).size(EVENT_SETS[options.dataset].dataset.sensor_size)
    return polarities, height, width


def recordings(train: bool, options: argparse.Namespace) -> Any:
    """Training or test recordings as frames, from tonic's cache and a subset if asked for."""
    framing = framing_of(options)
    found = open_recordings(options.dataset, options.data_dir, train, framing)
    if options.cache_dir is not None:
        settings = "-".join(str(value) for value in (options.dataset, "train" if train else "test", *framing))
        found = tonic.DiskCachedDataset(found, cache_path=str(options.cache_dir / settings))
    if options.subset is not None and options.subset < len(found):
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(options.seed))
        found = Subset(found, order[: options.subset].tolist())
    return found


def event_experiment(
    task: str, variant: str, net: nn.Module, options: argparse.Namespace, *, flat: bool = False
) -> Experiment:
    """The task. A pixel of a frame is the mean number of events over the square that was made one.

    Args:
        task: Name of the experiment.
        variant: Of its network.
        net: The network.
        options: Command line.
        flat: The network takes rows of pixels.
    """
    train, test = recordings(True, options), recordings(False, options)
    scale = options.downsample**-2
    frames = f"{options.window_ms:g}ms" if options.window_ms else options.split
    parts = [options.dataset, variant, f"f{options.frames}", frames, f"d{options.downsample}"]
    parts += [f"n{options.subset}"] if options.subset else []
    return Experiment(
        task,
        "-".join(parts),
        net,
        nn.CrossEntropyLoss(),
        train=lambda generator: frame_loader(train, options.batch_size, scale, generator, flat=flat),
        test=lambda: frame_loader(test, options.batch_size, scale, flat=flat),
        notes={"recordings": {"train": len(train), "test": len(test)}},
    )
