"""Tiny random networks of both libraries, called in every way in which a user's network may be called in time."""

from __future__ import annotations

from typing import NamedTuple

import snntorch as snn
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from fptt_plugin import snntorch as fptt_snn
from fptt_plugin import spikingjelly as fptt_sj
from fptt_plugin.functional import MultiGaussian

INPUTS, HIDDEN, CLASSES, SIDE = 3, 5, 3, 3  # SIDE: of the maps of convolutional networks

TORCH_NEURONS = ("snn.Leaky", "snn.Synaptic", "snn.RLeaky", "snn.LTCLeaky", "snn.RLTCLeaky")
JELLY_NEURONS = ("sj.LIFNode", "sj.ParametricLIFNode", "sj.IFNode", "sj.LTCLeaky")
RECURRENT = ("snn.RLeaky", "snn.RLTCLeaky")
BODIES = ("dense", "conv", "norm", "dropout")
COMBINED = ("mean", "sum", "scaled", "max")  # over time, by the network itself


class Kind(NamedTuple):
    """What network to build.

    Attributes:
        driver: How it is called: ``"step"``, ``"slice"``, ``"in-flight"`` or ``"explicit"``.
        neuron: Of its hidden layer.
        body: ``"dense"``, ``"conv"``, or dense with batch normalization or dropout.
        sees: ``"spikes"`` or ``"membrane"`` of the last layer; ``"both"`` returns both.
        end: ``"steps"``, ``"last"`` or one of ``COMBINED``.
    """

    driver: str
    neuron: str
    body: str
    sees: str
    end: str

    @property
    def combines_slices(self) -> bool:
        return self.driver == "slice" and self.end in COMBINED


def build(kind: Kind, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    explicit = ExplicitNet if kind.driver == "explicit" else TorchNet
    net = (explicit if kind.neuron in TORCH_NEURONS else JellyNet)(kind)
    with torch.no_grad():
        for name in ("front", "head"):  # more excitation than inhibition: the network fires
            nn.init.uniform_(getattr(net, name).weight, -0.2, 0.9 if name == "front" else 0.5)
    return net


def end_of(kind: Kind, record: list[Tensor]) -> Tensor:
    """What a network returns of the outputs of its steps."""
    if kind.end == "steps":
        return torch.stack(record)
    if kind.end == "last":
        return record[-1]
    if kind.end == "max":
        return torch.stack(record).amax(0)
    total = sum(record[1:], record[0])
    return {"mean": total / len(record), "sum": total, "scaled": 0.5 * total}[kind.end]


class TorchNet(nn.Module):
    """snnTorch: neurons that keep their state (``"step"``), or get it as an argument."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        conv = kind.body == "conv"
        self.front = nn.Conv2d(2, HIDDEN, 2) if conv else nn.Linear(INPUTS, HIDDEN, bias=kind.body != "norm")
        self.norm = nn.BatchNorm1d(HIDDEN) if kind.body == "norm" else nn.Identity()
        if kind.body == "norm":
            nn.init.constant_(self.norm.bias, 0.5)
        hidden = {"init_hidden": kind.driver == "step", "spike_grad": MultiGaussian()}  # keeps double precision
        size = {"conv2d_channels": HIDDEN} if conv else {"linear_features": HIDDEN}
        self.lif = {
            "snn.Leaky": lambda: snn.Leaky(0.8, threshold=0.6, **hidden),
            "snn.Synaptic": lambda: snn.Synaptic(0.5, 0.8, threshold=0.8, **hidden),
            "snn.RLeaky": lambda: snn.RLeaky(0.8, linear_features=HIDDEN, threshold=0.6, **hidden),
            "snn.LTCLeaky": lambda: fptt_snn.LTCLeaky(0.5, threshold=0.2, **size, **hidden),
            "snn.RLTCLeaky": lambda: fptt_snn.RLTCLeaky(0.5, threshold=0.2, **size, **hidden),
        }[kind.neuron]()
        self.drop = nn.Dropout(0.3) if kind.body == "dropout" else nn.Identity()
        self.head = nn.Linear(HIDDEN * (SIDE - 1) ** 2 if conv else HIDDEN, CLASSES)
        self.out = snn.Leaky(0.8, threshold=0.7, output=True, **hidden)

    def step(self, x_t: Tensor, state):
        """One time step, given what the last one returned as ``state``; ``None`` at the start."""
        keep = self.kind.driver == "step"
        (hidden, last) = state or [None if keep else _tuple(neuron.reset_mem()) for neuron in (self.lif, self.out)]
        drive = self.norm(self.front(x_t))
        if keep:
            spk, (out, mem) = self.lif(drive), (None, None)
            out, mem = self.out(self.head(self.drop(spk).flatten(1)))
        else:
            returned = self.lif(drive, *hidden)
            spk, hidden = returned[0], returned if self.kind.neuron in RECURRENT else returned[1:]
            out, mem = self.out(self.head(self.drop(spk).flatten(1)), *last)
        return {"spikes": out, "membrane": mem, "both": (out, mem)}[self.kind.sees], (hidden, (mem,))

    def forward(self, x: Tensor):
        if self.kind.driver == "step":
            return self.step(x, None)[0]
        record, state = [], None
        for x_t in x:
            output, state = self.step(x_t, state)
            record.append(output)
        if self.kind.sees == "both":
            return tuple(end_of(self.kind, list(outputs)) for outputs in zip(*record, strict=True))
        return end_of(self.kind, record)


class ExplicitNet(TorchNet):
    """The same, with the state as argument and result."""

    def forward(self, x_t: Tensor, state):
        return self.step(x_t, state)


class JellyNet(nn.Module):
    """SpikingJelly in 's' or 'm' mode; ends in spikes, or in the membranes of an integrator."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        conv = kind.body == "conv"
        self.front = layer.Conv2d(2, HIDDEN, 2) if conv else layer.Linear(INPUTS, HIDDEN, bias=kind.body != "norm")
        self.norm = layer.BatchNorm1d(HIDDEN) if kind.body == "norm" else nn.Identity()
        if kind.body == "norm":
            nn.init.constant_(self.norm.bias, 0.5)
        size = {"conv2d_channels": HIDDEN} if conv else {"linear_features": HIDDEN}
        atan = {"surrogate_function": surrogate.ATan()}
        self.lif = {
            "sj.LIFNode": lambda: neuron.LIFNode(v_threshold=0.4, detach_reset=True, **atan),
            "sj.ParametricLIFNode": lambda: neuron.ParametricLIFNode(v_threshold=0.4, **atan),
            "sj.IFNode": lambda: neuron.IFNode(v_threshold=0.9, v_reset=None, **atan),
            "sj.LTCLeaky": lambda: fptt_sj.LTCLeaky(v_threshold=0.2, **size),
        }[kind.neuron]()
        self.drop = layer.Dropout(0.3) if kind.body == "dropout" else nn.Identity()
        self.flat = layer.Flatten()
        self.head = layer.Linear(HIDDEN * (SIDE - 1) ** 2 if conv else HIDDEN, CLASSES)
        spiking = kind.sees == "spikes"
        self.out = (
            neuron.LIFNode(v_threshold=0.4, **atan) if spiking else fptt_sj.LTCIntegrator(linear_features=CLASSES)
        )
        functional.set_step_mode(self, "m" if kind.driver == "slice" else "s")

    def step(self, x: Tensor, state=None):
        return self.out(self.head(self.flat(self.drop(self.lif(self.norm(self.front(x))))))), state

    def forward(self, x: Tensor) -> Tensor:
        if self.kind.driver == "in-flight":
            return end_of(self.kind, [self.step(x_t)[0] for x_t in x])
        output = self.step(x)[0]
        return end_of(self.kind, list(output)) if self.kind.combines_slices else output


def _tuple(state):
    return state if isinstance(state, tuple) else (state,)
