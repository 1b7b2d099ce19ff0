"""The networks that the benchmarks train, and the sizes they are measured with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import snntorch as snn
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn

from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky

CLASSES = 10


@dataclass(frozen=True)
class Net:
    """A network that takes one time step, and how it is measured.

    Attributes:
        name: Shown in table and plots.
        library: Whose neurons it has, ``"snntorch"`` or ``"spikingjelly"``.
        build: Makes a new one; for SpikingJelly, takes the class of the neurons.
        sample: Shape of one sample at one time step.
        batch: Samples per batch.
        steps: Length of the sequences on which the time per update is measured.
        lengths: Lengths of the sequences on which the time per step is measured.
        saved: Lengths at which the bytes saved for backward are counted.
        resident: Lengths at which a process's peak memory is measured.
        seconds: Time to spend on the time per update; each length of ``lengths`` takes a quarter.
    """

    name: str
    library: str
    build: Callable[..., nn.Module]
    sample: tuple[int, ...]
    batch: int
    steps: int
    lengths: tuple[int, ...] = ()
    saved: tuple[int, ...] = ()
    resident: tuple[int, ...] = ()
    seconds: float = 20.0

    def fresh(self, device: torch.device, **options: object) -> nn.Module:
        """A new network; the same weights every time."""
        torch.manual_seed(0)
        return self.build(**options).to(device)

    def data(self, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Random sequences ``[T, B, ...]`` and a label for each."""
        chance = torch.Generator().manual_seed(1)
        x = torch.rand(steps, self.batch, *self.sample, generator=chance)
        return x.to(device), torch.randint(CLASSES, (self.batch,), generator=chance).to(device)


def ltc_srnn(hidden: int, inputs: int = 10) -> nn.Module:
    """One recurrent layer of liquid neurons, liquid integrators as class scores."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        RLTCLeaky(linear_features=hidden, init_hidden=True),
        nn.Linear(hidden, CLASSES),
        LTCIntegrator(linear_features=CLASSES, init_hidden=True),
    )


def ltc_scnn(channels: tuple[int, ...], hidden: int) -> nn.Module:
    """The paper's convolutional network for 28 x 28 images, gates convolutional too; pooling before the neurons."""
    layers: list[nn.Module] = []
    before = 1
    for after in channels:
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.MaxPool2d(2)]
        layers += [LTCLeaky(conv2d_channels=after, init_hidden=True)]
        before = after
    size = 28 // 2 ** len(channels)
    layers += [nn.Flatten(), nn.Linear(before * size**2, hidden), LTCLeaky(linear_features=hidden, init_hidden=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, CLASSES), LTCIntegrator(linear_features=CLASSES, init_hidden=True))


def leaky(hidden: int, inputs: int = 10) -> nn.Module:
    """Two dense layers of snnTorch's own neuron."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(hidden, hidden),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(hidden, CLASSES),
    )


def lif(hidden: int, node: Callable[..., nn.Module] = neuron.LIFNode, inputs: int = 10) -> nn.Module:
    """Two dense layers of SpikingJelly's own neuron, or of its variant for another way to train."""
    # The options that OTTTLIFNode and SLTTLIFNode have by default: all three compute the same spikes.
    make = partial(node, tau=2.0, decay_input=False, v_threshold=0.5, v_reset=None, detach_reset=True)
    container = layer.OTTTSequential if node is neuron.OTTTLIFNode else nn.Sequential
    layers = [layer.Linear(inputs, hidden), make(), layer.Linear(hidden, hidden), make()]
    net: nn.Module = container(*layers, layer.Linear(hidden, CLASSES))
    return net


def networks(mode: str) -> list[Net]:
    """The networks of a run: ``"full"``, ``"quick"`` (nothing that takes minutes) or ``"smoke"`` (toys)."""
    if mode == "smoke":
        return _toys()
    return [_shorter(net) for net in _paper() if net.name != "LTC-SRNN 2048"] if mode == "quick" else _paper()


def _paper() -> list[Net]:
    srnn = Net("LTC-SRNN 128", "snntorch", partial(ltc_srnn, 128), sample=(10,), batch=128, steps=50)
    image = Net("LTC-SCNN", "snntorch", partial(ltc_scnn, (32, 128, 256), 512), (1, 28, 28), batch=16, steps=10)
    dense = replace(srnn, lengths=(10, 100, 784), saved=(10, 100, 784))
    return [
        replace(srnn, lengths=(10, 100, 784, 1000, 10000), saved=(10, 100, 1000), resident=(10, 1000, 10000)),
        replace(dense, name="LTC-SRNN 512", build=partial(ltc_srnn, 512), steps=20, seconds=40),
        replace(srnn, name="LTC-SRNN 2048", build=partial(ltc_srnn, 2048), steps=10, saved=(10, 20), seconds=40),
        replace(image, saved=(5, 20), seconds=40),
        replace(dense, name="Leaky 512", build=partial(leaky, 512)),
        replace(dense, name="LIFNode 512", library="spikingjelly", build=partial(lif, 512), resident=(10, 1000)),
    ]


def _shorter(net: Net) -> Net:
    def short(lengths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(steps for steps in lengths if steps <= 100)

    resident = (10, 100) if net.resident else ()
    return replace(net, lengths=short(net.lengths), saved=short(net.saved), resident=resident, seconds=net.seconds / 4)


def _toys() -> list[Net]:
    srnn = Net("LTC-SRNN 16", "snntorch", partial(ltc_srnn, 16), (10,), batch=4, steps=3, seconds=0.1)
    return [
        replace(srnn, lengths=(2, 6), saved=(2, 6), resident=(6,)),
        replace(srnn, name="LTC-SCNN", build=partial(ltc_scnn, (4, 8, 8), 16), sample=(1, 28, 28), saved=(2, 6)),
        replace(srnn, name="Leaky 16", build=partial(leaky, 16), lengths=(2, 6), saved=(2, 6)),
        replace(srnn, name="LIFNode 16", library="spikingjelly", build=partial(lif, 16), lengths=(2, 6), saved=(2, 6)),
    ]
