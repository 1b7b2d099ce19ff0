"""The networks of the paper's experiments, from the parts of snnTorch, SpikingJelly and torch.

Three spiking neurons that differ by one ingredient at a time: ``"ltc"`` (time constants gated by input and state),
``"alif"`` (one learned time constant per neuron, adaptive threshold: the ASRNN of the authors' earlier work) and
``"lif"`` (the same without adaptation). ``"lstm"`` is the baseline that does not spike.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NEURONS = ("ltc", "alif", "lif", "lstm")
LIBRARIES = ("snntorch", "spikingjelly")
NORMS = ("none", "step", "accumulated", "layer")
State = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Normalization:
    """What normalizes the drives of a recurrent network.

    Attributes:
        kind: ``"step"`` (batch statistics of each time step, the authors' code), ``"accumulated"`` (of all steps so
            far), ``"layer"`` (``nn.LayerNorm``) or ``"none"``.
        steps: Time steps of a sequence.
        gamma: Initial scale; the authors' code has 0.1.
        readout: Normalize the drive of the readout, too, as the authors' code.
    """

    kind: str = "none"
    steps: int = 1
    gamma: float = 1.0
    readout: bool = False

    def layer(self, library: str, features: int) -> list[nn.Module]:
        """The normalization of one drive, in a list that is empty if there is none."""
        if self.kind == "none":
            return []
        if self.kind == "layer":
            norm = nn.LayerNorm(features)
            nn.init.constant_(norm.weight, self.gamma)
            return [norm]
        return [self._per_step(library, "PerStepBatchNorm1d", features)]

    def maps(self, library: str, features: int) -> nn.Module:
        """The normalization of feature maps, which always have one: ``nn.BatchNorm2d``, or that of each time step."""
        if self.kind == "layer":
            raise ValueError("maps are normalized over the batch: choose none, step or accumulated")
        if self.kind == "none":
            return nn.BatchNorm2d(features)
        return self._per_step(library, "PerStepBatchNorm2d", features)

    def _per_step(self, library: str, kind: str, features: int) -> nn.Module:
        module = importlib.import_module(f"fptt_plugin.{library}")
        norm: nn.Module = getattr(module, kind)(
            features, self.steps, gamma=self.gamma, accumulate=self.kind == "accumulated"
        )
        return norm


NO_NORM = Normalization()
SHORTEST = 1.05  # steps: shorter than one is no time constant


def spread(longest: float) -> tuple[float, float]:
    """Decays whose time constants reach from about one step to ``longest`` steps."""
    return 1 - 1 / SHORTEST, 1 - 1 / longest


def recurrent_net(
    neuron: str,
    library: str,
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    readout: str = "spike",
    recurrent: bool = True,
    joint_init: bool = False,
    norm: Normalization = NO_NORM,
    longest: float | None = None,
    encoders: tuple[int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """A network of dense layers, each feeding back into itself, that takes one time step ``[B, inputs]``.

    Args:
        neuron: One of ``NEURONS``.
        library: One of ``LIBRARIES``; the equations are the same in both. The LSTM is torch's own.
        inputs: Input features.
        hidden: Neurons of each hidden layer.
        outputs: Output features.
        readout: ``"spike"``: a liquid leaky integrator of the last layer's weighted spikes; ``"membrane"``: the last
            layer's weighted membranes after the reset, as in the authors' code for the Adding task.
        recurrent: ``False`` leaves out the recurrent weights.
        joint_init: Draw input and recurrent weights as one ``nn.Linear`` on both, the default of torch (the authors'
            code for the Adding task). ``False``: input weights Xavier-normal, recurrent ones orthogonal, biases zero.
        norm: Normalization of the input drive and the recurrent drive of every layer.
        longest: Spread the liquid time constants, of membrane and adaptation, log-uniformly up to that many steps
            instead of starting all at two steps.
        encoders: ``(count, features)``: before all else that many dense layers without recurrence, side by side, each
            of an equal share of the inputs (the paper's network for DVS-Gesture has one for each polarity).
        **options: ``threshold``, ``adaptation`` and ``init_state`` of :class:`fptt_plugin.snntorch.LTCLeaky`.
    """
    if longest is not None and neuron != "ltc":
        raise ValueError(f"the time constants of {neuron!r} are not liquid and have a spread of their own")
    if neuron == "lstm":
        if norm.kind != "none":
            raise ValueError("an LSTM has no drive of its own to normalize here")
        return LSTM(inputs, hidden, outputs)
    if longest is not None:
        options = {**options, "beta": spread(longest), "adaptation_beta": spread(longest)}
    layers: list[nn.Module] = []
    if encoders is not None:
        count, features = encoders
        branches: list[nn.Module] = []
        for _ in range(count):
            dense = nn.Linear(inputs // count, features)
            spiking = _spiking_layer(neuron, library, features, False, norm, options)
            _initialize(dense, spiking, joint_init)
            branches.append(nn.Sequential(dense, *norm.layer(library, features), spiking))
        layers.append(SideBySide(branches))
        inputs = count * features
    for features in hidden:
        dense = nn.Linear(inputs, features)
        spiking = _spiking_layer(neuron, library, features, recurrent, norm, options)
        _initialize(dense, spiking, joint_init)
        layers += [dense, *norm.layer(library, features), spiking]
        inputs = features
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(linear.bias)
    if readout == "membrane":
        return MembraneReadout(layers, linear)
    before = norm.layer(library, outputs) if norm.readout else []
    return nn.Sequential(*layers, linear, *before, integrator(library, linear_features=outputs))


def _spiking_layer(
    neuron: str, library: str, features: int, recurrent: bool, norm: Normalization, options: dict[str, Any]
) -> nn.Module:
    feedback = next(iter(norm.layer(library, features)), None) if recurrent else None
    if neuron == "lif":
        options = {**options, "adaptation": 0.0}
    if library == "snntorch":
        from fptt_plugin.snntorch import LTCLeaky, RLTCLeaky

        options = {"linear_features": features, "init_hidden": True, **options}
        node: Any = RLTCLeaky(recurrent_norm=feedback, **options) if recurrent else LTCLeaky(**options)
        layer: nn.Module = node
    else:
        from spikingjelly.activation_based.layer import ElementWiseRecurrentContainer

        from fptt_plugin import spikingjelly as sj

        options = {"v_threshold": options["threshold"], **options}
        del options["threshold"]
        node = sj.LTCLeaky(linear_features=features, **options)
        layer = ElementWiseRecurrentContainer(node, AddRecurrent(features, feedback)) if recurrent else node
    if neuron != "ltc":
        # Spread about 20 steps (membrane) and 150 steps (adaptation), the range of the authors' earlier work.
        node.mem_gate = StaticGate(1 - _decay(20 + 5 * torch.randn(features)))
        node.adp_gate = StaticGate(_decay(150 + 10 * torch.randn(features)))
    return layer


def _decay(steps: Tensor) -> Tensor:
    return torch.exp(-1 / steps.clamp(min=2))


def integrator(library: str, **size: Any) -> nn.Module:
    """A liquid leaky integrator to read out, of that many features or maps."""
    if library == "snntorch":
        from fptt_plugin.snntorch import LTCIntegrator

        return LTCIntegrator(init_hidden=True, **size)
    from fptt_plugin import spikingjelly as sj

    return sj.LTCIntegrator(**size)


def _initialize(dense: nn.Linear, spiking: nn.Module, joint: bool) -> None:
    """Weights of one layer; its gates have drawn theirs as the authors do."""
    recurrent = [module for name, module in spiking.named_modules() if name.endswith("recurrent")]
    bound = (dense.in_features + dense.out_features) ** -0.5
    for module in (dense, *recurrent):
        assert isinstance(module, nn.Linear)
        if joint:
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.uniform_(module.bias, -bound, bound)
        else:
            (nn.init.xavier_normal_ if module is dense else nn.init.orthogonal_)(module.weight)
            nn.init.zeros_(module.bias)


class StaticGate(nn.Module):
    """A gate that sees neither input nor state: one learned time constant per neuron.

    Args:
        start: What the sigmoid of the gate is at the start, one value in (0, 1) per neuron.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.logit(start))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return self.bias.expand_as(x)


class AddRecurrent(nn.Module):
    """What SpikingJelly's ``ElementWiseRecurrentContainer`` feeds to its neuron: ``x + norm(recurrent(spikes))``."""

    def __init__(self, features: int, norm: nn.Module | None) -> None:
        super().__init__()
        self.recurrent = nn.Linear(features, features)
        self.norm = norm or nn.Identity()

    def forward(self, spikes: Tensor, x: Tensor) -> Tensor:
        drive: Tensor = x + self.norm(self.recurrent(spikes))
        return drive


class SideBySide(nn.Module):
    """Gives each branch an equal share of the inputs and puts their outputs beside each other."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        shares = x.chunk(len(self.branches), dim=1)
        return torch.cat([branch(share) for branch, share in zip(self.branches, shares, strict=True)], dim=1)


class MembraneReadout(nn.Module):
    """Reads the membranes of the last spiking layer, after their reset, instead of its spikes."""

    def __init__(self, layers: list[nn.Module], linear: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        node: Any = self.body[-1]
        node = getattr(node, "sub_module", node)  # within SpikingJelly's recurrent container
        output: Tensor = self.linear(node.mem if hasattr(node, "mem") else node.v)
        return output


class LSTM(nn.Module):
    """Layers of ``LSTMCell`` and a linear readout; the state is passed in and returned."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        sizes = [inputs, *hidden]
        self.cells = nn.ModuleList(nn.LSTMCell(size, after) for size, after in zip(sizes, hidden, strict=False))
        self.linear = nn.Linear(sizes[-1], outputs)
        for size, cell in zip(hidden, self.cells, strict=True):
            assert isinstance(cell, nn.LSTMCell)
            nn.init.ones_(cell.bias_hh[size : 2 * size])  # the forget gate: remember at the start

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        after: State = []
        for index, cell in enumerate(self.cells):
            after.append(cell(x, state[index] if state else None))
            x = after[-1][0]
        return self.linear(x), after


def parameter_count(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
