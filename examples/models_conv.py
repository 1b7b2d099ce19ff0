"""Convolutional networks of the paper's experiments, written as a line such as ``C32-MP-C128-MP-C256-MP-512``."""

from __future__ import annotations

import argparse
import re
from typing import Any

import torch
from models import StaticGate, recurrent_net
from torch import nn

from fptt_plugin.neurons import ConvGate, Gate

_STAGE = r"C(\d+)(?:k(\d+))?(-MP)?-"
_LINE = re.compile(rf"(?:{_STAGE})+(?:\d+-)*\d+R?")


def conv_net(
    layers: str,
    neuron: str,
    library: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    width: float = 1.0,
    gate_norm: bool = False,
    init_state: str = "zeros",
) -> nn.Module:
    """A spiking network of convolutions, dense layers and a liquid readout, that takes one step ``[B, C, H, W]``.

    ``C32`` is a 3x3 convolution to 32 channels (``C32k7``: 7x7), batch-normalized, and its neurons; with ``MP`` behind
    it the drive is max-pooled before it reaches the neurons, as in the authors' code. ``512`` is a dense layer; an
    ``R`` at the end lets the dense layers feed back into themselves.

    Args:
        layers: The network without its readout.
        neuron: ``"ltc"``, ``"alif"`` (a learned time constant per channel or neuron) or ``"lif"`` (that without
            adaptation).
        library: ``"snntorch"`` or ``"spikingjelly"``.
        shape: Channels, height and width of the input.
        classes: Outputs.
        width: Factor on the number of channels and neurons.
        gate_norm: Batch-normalize the gates of the maps, as the authors' code; only ``"ltc"`` has such gates.
        init_state: ``"zeros"`` or ``"random"``, see :class:`fptt_plugin.snntorch.LTCLeaky`.

    Raises:
        ValueError: If the line cannot be read, or there is no such network.
    """
    dynamics = map_dynamics(neuron, init_state=init_state)
    if not _LINE.fullmatch(layers):
        raise ValueError(f"layers={layers!r}: expected C<channels>, with -MP or without, then sizes, as C32-MP-C64-512")
    channels, height, length = shape
    stages: list[nn.Module] = []
    for maps, kernel, pool in re.findall(_STAGE, layers):
        features, kernel_size = scaled(maps, width), int(kernel or 3)
        stages += [convolution(channels, features, kernel_size), nn.BatchNorm2d(features)]
        if pool:
            stages.append(nn.MaxPool2d(2))
            height, length = height // 2, length // 2
        stages.append(map_neuron(library, features, kernel_size, {**dynamics, "gate_norm": gate_norm}))
        channels = features
    if not height * length:
        raise ValueError(f"layers={layers!r} pools a map of {shape[1]} x {shape[2]} away: take one MP out")
    dense = re.sub(_STAGE, "", layers)
    hidden = [scaled(size, width) for size in dense.rstrip("R").split("-")]
    dynamics |= {"recurrent": dense.endswith("R"), "threshold": 0.1}
    tail = recurrent_net("ltc", library, channels * height * length, hidden, classes, **dynamics)
    net = nn.Sequential(*stages, nn.Flatten(), *tail.children())
    if neuron != "ltc":
        make_static(net)
    return net


def add_conv_options(parser: argparse.ArgumentParser, layers: str | None) -> None:
    """Options of :func:`conv_net`."""
    parser.add_argument("--layers", default=layers, help="the network without its readout, such as C32-MP-C64k5-MP-256")
    add_map_options(parser)


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """Options of every network of maps."""
    add = parser.add_argument
    add("--width", type=float, default=1.0, help="factor on the number of channels and neurons")
    add("--gate-norm", action="store_true", help="batch-normalize the gates of maps, as the authors' code")
    add("--init-state", choices=("zeros", "random"), default="zeros")


def conv_net_from(options: argparse.Namespace, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network that the options ask for."""
    return conv_net(
        options.layers,
        options.neuron,
        options.library,
        shape,
        classes,
        width=options.width,
        gate_norm=options.gate_norm,
        init_state=options.init_state,
    )


def conv_name(options: argparse.Namespace) -> str:
    """What tells networks of :func:`conv_net_from` apart, short enough for a folder."""
    return "-".join([options.layers, *map_parts(options)])


def map_parts(options: argparse.Namespace) -> list[str]:
    """What the options of :func:`add_map_options` add to a name."""
    parts = [f"x{options.width:g}"] * (options.width != 1)
    return parts + ["gate-norm"] * options.gate_norm + ["random-init"] * (options.init_state == "random")


def scaled(size: str | int, width: float) -> int:
    """A layer's size at a width, at least one."""
    return max(round(int(size) * width), 1)


def convolution(channels: int, features: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size of a map, or divides it by the stride; batch normalization is to follow."""
    conv = nn.Conv2d(channels, features, kernel_size, stride, kernel_size // 2, bias=False)  # the norm has a shift
    nn.init.xavier_uniform_(conv.weight)
    return conv


def map_dynamics(neuron: str, **options: Any) -> dict[str, Any]:
    """Options of :func:`map_neuron` for one of ``models.NEURONS``.

    Raises:
        ValueError: If the neuron has no maps.
    """
    if neuron == "lstm":
        raise ValueError("neuron='lstm' has no maps: choose ltc, alif or lif")
    return {**options, "adaptation": 0.0 if neuron == "lif" else 1.8}


def map_neuron(library: str, features: int, kernel_size: int, options: dict[str, Any]) -> nn.Module:
    """Liquid neurons of maps, with a convolution as their gates."""
    if library == "snntorch":
        from fptt_plugin.snntorch import LTCLeaky

        neuron: nn.Module = LTCLeaky(conv2d_channels=features, kernel_size=kernel_size, init_hidden=True, **options)
        return neuron
    from fptt_plugin import spikingjelly as sj

    return sj.LTCLeaky(conv2d_channels=features, kernel_size=kernel_size, **options)


def make_static(net: nn.Module) -> None:
    """Puts one learned time constant per channel or neuron in place of each gate of the spiking layers.

    They start at one half per step, as the gates do: several layers of the long time constants that suit one recurrent
    layer stay silent for the whole of a short sequence.
    """
    for node in net.modules():
        if isinstance(getattr(node, "adp_gate", None), Gate):
            for name in ("mem_gate", "adp_gate"):
                gate = getattr(node, name)
                shape = (-1, 1, 1) if isinstance(gate, ConvGate) else (-1,)
                setattr(node, name, StaticGate(torch.full_like(gate.bias, 0.5).view(shape)))
