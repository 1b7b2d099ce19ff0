"""The loops that a user of SpikingJelly would write by hand, and what every idiom must show beside them."""

import copy
from contextlib import nullcontext

import torch
from nets import copies, gradients, identical, sgd, spikes
from spikingjelly.activation_based import base, functional
from torch import nn

from fptt_plugin import BPTT, DynamicRegularizer, FPTTTrainer, SavedForBackward

CE = nn.CrossEntropyLoss()
PLAIN = {"auxiliary": False, "loss_ramp": "constant", "max_grad_norm": None}


def lively(net):
    """With weights that make every layer fire sometimes."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = 1.5 / module.weight[0].numel() ** 0.5
            nn.init.uniform_(module.weight, -bound, (1 + 4 / module.weight[0].numel()) * bound)
    return net


def detach(net):
    """As ``functional.detach_net``, which fails on recurrent containers."""
    for module in net.modules():
        if isinstance(module, base.MemoryModule):
            for name, value in module._memories.items():
                if isinstance(value, torch.Tensor):
                    module._memories[name] = value.detach()


def loop(net, x, y, *, alpha, window, advance, mean=False):
    """One update per window: ``advance(net, x_window)`` gives the output that the loss sees."""
    optimizer = sgd(net)
    DynamicRegularizer(optimizer, alpha, beta=0.5)
    functional.reset_net(net)
    total, count = None, 0
    for x_window in x.split(window):
        for output in advance(net, x_window):
            # A clone, as the trainer's: it keeps what a neuron may go on changing, and the order of sums of gradients.
            total, count = output.clone() if total is None else total + output, count + 1
        optimizer.zero_grad()
        CE(total / count if mean else output, y).backward()
        optimizer.step()
        detach(net)
        total = total.detach()


def per_step(net, x):
    return (net(x_t) for x_t in x)


def per_slice(net, x):
    return list(net(x))


def averaged(net, x):
    return [net(x)]


def agrees(net, x, y, advance, *, driver, readout="mean", fires=True):
    """The trainer moves every weight exactly as the loop does, for both windows; the network spikes and learns."""
    for window, alpha in ((1, 0.1), (3, 0.1), (3, 0.0)):
        torch.manual_seed(1)
        own, plain = copy.deepcopy(net), copy.deepcopy(net)
        first = copies(own.parameters())
        modes = [getattr(module, "step_mode", None) for module in own.modules()]
        trainer = FPTTTrainer(own, sgd(own), CE, alpha=alpha, window=window, readout=readout, **PLAIN)
        torch.manual_seed(2)
        with spikes(own) if fires else nullcontext():
            result = trainer.train_sequence(x, y)
        torch.manual_seed(2)
        loop(plain, x, y, alpha=alpha, window=window, advance=advance, mean=readout == "mean")
        assert identical(own.parameters(), plain.parameters())
        assert identical(own.buffers(), plain.buffers())
        assert result.updates == -(-len(x) // window)
        assert not any(torch.equal(*pair) for pair in list(zip(own.parameters(), first, strict=True))[:2])
        assert gradients(own)[0].abs().max() > 0
        assert modes == [getattr(module, "step_mode", None) for module in own.modules()]
        assert f"driver: {driver}" in trainer.explain()


def is_flat(net, x, y, **options):
    """Bytes saved for backward do not grow with the sequence; with BPTT they do."""
    sizes = {
        kind: [_peak(kind, net, x.repeat(n, *[1] * (x.dim() - 1)), y, options) for n in (1, 4)]
        for kind in (FPTTTrainer, BPTT)
    }
    short, long = sizes[FPTTTrainer]
    assert 0 < short == long
    short, long = sizes[BPTT]
    assert long > 3 * short


def _peak(kind, net, x, y, options):
    net = copy.deepcopy(net)
    trainer = kind(net, sgd(net), CE, **PLAIN, **options)
    trainer.train_sequence(x, y)
    with SavedForBackward(net) as saved:
        trainer.train_sequence(x, y)
    return saved.peak
