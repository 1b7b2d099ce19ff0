"""Every way to train that the benchmarks compare: ours, the straightforward loop, SpikingJelly's own, and BPTT.

All have cross-entropy at each step, Adam with the same learning rate, and, where the method has them, clipping at norm
1 and FPTT's defaults ``alpha=0.1, beta=0.5, rho=0``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from networks import Net
from spikingjelly.activation_based import functional, memopt, neuron
from spikingjelly.activation_based.learning import online_learning
from torch import Tensor, nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.state import ModelState

ALPHA, BETA, RHO = 0.1, 0.5, 0.0
LR = 1e-4
MAX_NORM = 1.0


class Training(NamedTuple):
    """A network, and a function that trains it on one batch of sequences ``[T, B, ...]`` with a label for each.

    Attributes:
        model: The network.
        train: The function.
        warm_up: Steps of the sequences after which everything is compiled and allocated.
    """

    model: nn.Module
    train: Callable[[Tensor, Tensor], object]
    warm_up: int = 3


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        prepare: Builds network and optimizer, on a device.
        library: For networks of that library alone.
        images: For networks on images alone.
        only: For the network of that name alone.
        over_time: Measured over the length of the sequence, too.
        unseen: Why the bytes that autograd saves cannot be counted; empty if they can.
    """

    prepare: Callable[[Net, torch.device], Training]
    library: str = ""
    images: bool = False
    only: str = ""
    over_time: bool = False
    unseen: str = ""

    def suits(self, net: Net) -> bool:
        """Whether it is for that network."""
        fits = self.library in ("", net.library) and self.only in ("", net.name)
        return fits and (not self.images or len(net.sample) == 3)


def fused_adam(model: nn.Module) -> torch.optim.Optimizer:
    """Adam in one kernel; on a GPU it counts its steps there, which a CUDA graph needs."""
    on_gpu = next(model.parameters()).is_cuda
    return torch.optim.Adam(model.parameters(), lr=LR, fused=True, capturable=on_gpu)


def ours(
    net: Net,
    device: torch.device,
    *,
    accelerate: str,
    layout: torch.memory_format = torch.preserve_format,
    **options: Any,
) -> Training:
    """``FPTTTrainer``, checks and all; ``options`` are the trainer's."""
    model = net.fresh(device).to(memory_format=layout)  # type: ignore[call-overload]
    trainer = FPTTTrainer(
        model,
        fused_adam(model),
        nn.CrossEntropyLoss(),
        alpha=ALPHA,
        beta=BETA,
        rho=RHO,
        max_grad_norm=MAX_NORM,
        loss_ramp="constant",
        auxiliary=False,
        accelerate=accelerate,
        **options,
    )
    return Training(model, trainer.train_sequence, 3 * options.get("window", 1))


def straightforward(net: Net, device: torch.device) -> Training:
    """FPTT as one writes it down first, and as published code has it: regularizer in the loss, loops over weights."""
    model = net.fresh(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    state = ModelState(model)
    weights = dict(model.named_parameters())
    averages = {name: weight.detach().clone() for name, weight in weights.items()}
    duals = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def train(x: Tensor, y: Tensor) -> None:
        state.reset()
        for x_t in x:
            loss = F.cross_entropy(model(x_t), y)
            for name, weight in weights.items():
                loss = loss + (RHO - 1) * (weight * duals[name]).sum()
                loss = loss + 0.5 * ALPHA * ((weight - averages[name]) ** 2).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            with torch.no_grad():
                for name, weight in weights.items():
                    dual, average = duals[name], averages[name]
                    dual -= ALPHA * (weight - average)
                    average.copy_((1 - BETA) * average + BETA * weight - BETA / ALPHA * dual)
            state.detach()

    return Training(model, train)


def spikingjelly_fptt(net: Net, device: torch.device) -> Training:
    """SpikingJelly's own FPTT, which evaluates each step twice."""
    model = net.fresh(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    averages = online_learning.fptt_online_training_init_w_ra(optimizer)

    def train(x: Tensor, y: Tensor) -> None:
        targets = y.expand(len(x), -1)
        online_learning.fptt_online_training(model, optimizer, x, targets, F.cross_entropy, ALPHA, averages)
        functional.reset_net(model)

    return Training(model, train)


def spikingjelly_online(net: Net, device: torch.device, *, node: type[nn.Module]) -> Training:
    """SpikingJelly's OTTT or SLTT, by the neurons, with an update at every step."""
    model = net.fresh(device, node=node)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)

    def train(x: Tensor, y: Tensor) -> None:
        samples_first = x.transpose(0, 1), y.unsqueeze(1).expand(-1, len(x))
        online_learning.ottt_online_training(model, optimizer, *samples_first, F.cross_entropy, online=True)
        functional.reset_net(model)

    return Training(model, train)


def bptt(net: Net, device: torch.device, *, forward: Callable[[nn.Module, Tensor], Tensor]) -> Training:
    """One backward pass through the whole sequence and one update."""
    model = net.fresh(device)
    if net.library == "spikingjelly":
        functional.set_step_mode(model, "m")
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    state = ModelState(model)

    def train(x: Tensor, y: Tensor) -> None:
        state.reset()
        loss = F.cross_entropy(forward(model, x).flatten(0, 1), y.repeat(len(x)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()

    return Training(model, train)


def step_by_step(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs of a network that takes one step."""
    return torch.stack([model(x_t) for x_t in x])


def whole_sequence(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs of a network that takes all steps."""
    output: Tensor = model(x)
    return output


def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    """The same, about sqrt(T) steps at a time, each part recomputed in the backward pass."""
    # The wrapper is made per call since the number of parts is its option; that takes microseconds.
    output: Tensor = memopt.checkpoint_module(model, chunks=isqrt(len(x)))(x)
    return output


def _sj(prepare: Callable[..., Training], **options: Any) -> Row:
    over_time = "forward" in options
    return Row(partial(prepare, **options) if options else prepare, library="spikingjelly", over_time=over_time)


COMPILED = "its backward pass lies inside compiled code"
EAGER, COMPILE, GRAPH = "ours, eager", "ours, compiled", "ours, CUDA graph"
CHANNELS_LAST = "ours, compiled, channels_last"
STRAIGHTFORWARD = "straightforward FPTT"

CONTENDERS: dict[str, Row] = {
    EAGER: Row(partial(ours, accelerate="none"), over_time=True),
    COMPILE: Row(partial(ours, accelerate="compile"), over_time=True, unseen=COMPILED),
    CHANNELS_LAST: Row(partial(ours, accelerate="compile", layout=torch.channels_last), images=True, unseen=COMPILED),
    GRAPH: Row(partial(ours, accelerate="cudagraph"), over_time=True, unseen=COMPILED),
    **{
        f"ours, compiled, window {steps}": Row(
            partial(ours, accelerate="compile", window=steps), only="LTC-SRNN 128", unseen=COMPILED
        )
        for steps in (8, 28)
    },
    'ours, eager, variant="gradient"': Row(
        partial(ours, accelerate="none", variant="gradient"), library="spikingjelly"
    ),
    STRAIGHTFORWARD: Row(straightforward),
    "SpikingJelly FPTT": _sj(spikingjelly_fptt),
    "SpikingJelly OTTT": _sj(spikingjelly_online, node=neuron.OTTTLIFNode),
    "SpikingJelly SLTT": _sj(spikingjelly_online, node=neuron.SLTTLIFNode),
    "snnTorch BPTT": Row(partial(bptt, forward=step_by_step), library="snntorch", over_time=True),
    "SpikingJelly BPTT": _sj(bptt, forward=whole_sequence),
    "SpikingJelly BPTT, memopt": _sj(bptt, forward=checkpointed)._replace(unseen="it is recomputed"),
}
