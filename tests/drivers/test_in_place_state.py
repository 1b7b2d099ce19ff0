"""Neurons written by hand that change their state in place: what training goes back to is what was there."""

import pytest
import torch
import torch.nn.functional as F
from nets import flat
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.state import AttributeHandler, ModelState, StateHandler, register_state_handler


class HandsOut(nn.Module):
    """Returns its membrane itself, which its next step changes."""

    def __init__(self):
        super().__init__()
        self.mem = None

    def forward(self, x):
        if self.mem is None:
            self.mem = torch.zeros_like(x)
        self.mem.mul_(0.8).add_(x)
        return self.mem


class Membrane(HandsOut):
    def forward(self, x):
        return super().forward(x).clone()


class Pair(nn.Module):
    """Two traces in a list, one of them without a gradient."""

    def __init__(self):
        super().__init__()
        self.traces = []

    def forward(self, x):
        if not self.traces:
            self.traces += [torch.zeros_like(x), torch.zeros_like(x)]
        fast, slow = self.traces
        with torch.no_grad():
            slow.lerp_(x, 0.1)
        fast.mul_(0.5).add_(x)
        return fast - slow


class Counted(nn.Module):
    """State in a buffer and in a dictionary, behind a handler of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("v", torch.zeros(()), persistent=False)
        self.more = {"n": torch.zeros(())}

    def forward(self, x):
        if self.v.shape != x.shape:
            self.v = torch.zeros_like(x)
        self.v.add_(x)
        self.more["n"].add_(1)
        return self.v / self.more["n"].item()


class CountedHandler(StateHandler):
    def get(self, module):
        return {"v": module.v, "n": module.more["n"]}

    def set(self, module, state):
        module.v, module.more["n"] = state["v"], state["n"]

    def reset(self, module):
        module.v, module.more["n"] = torch.zeros(()), torch.zeros(())


register_state_handler(Membrane, AttributeHandler(mem=None))
register_state_handler(Pair, AttributeHandler(traces=[]))
register_state_handler(Counted, CountedHandler())
NEURONS = [Membrane, Pair, Counted]


def make(neuron, loss=F.mse_loss, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), neuron(), nn.Linear(8, 2))
    return FPTTTrainer(net, torch.optim.SGD(net.parameters(), 0.01), loss, **options)


def data(steps):
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(3, 4, generator=generator), torch.rand(3, 2, generator=generator)) for _ in range(steps)]


def state(trainer):
    return [tensor.clone() for tensor in flat(ModelState(trainer.net).get())]


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_a_stream_goes_on_after_skipped_updates_as_if_they_had_not_been(neuron, variant):
    trainers = [make(neuron, on_nonfinite="skip", variant=variant) for _ in range(2)]
    for i, (x, y) in enumerate(data(12)):
        if i in (4, 5, 9):
            assert not trainers[0].step(torch.full_like(x, 3e38), y).updated
        for trainer in trainers:
            assert trainer.step(x, y).updated
    assert trainers[0].skipped == 3
    assert all(map(torch.equal, state(trainers[0]), state(trainers[1])))
    for one, other in zip(*[trainer.net.parameters() for trainer in trainers], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("failing", ["loss", "evaluation", "sequence"])
def test_after_an_error_the_state_is_as_before_the_call(neuron, failing):
    broken = []

    def loss(output, target):
        if broken:
            raise KeyError("user's loss")
        return F.mse_loss(output, target)

    trainer = make(neuron, loss)
    pairs = data(5)
    for x, y in pairs:
        trainer.step(x, y)
    before = state(trainer)
    assert any(tensor.any() for tensor in before)
    x, y = pairs[0]
    if failing == "evaluation":
        for _ in range(2):
            trainer.predict(torch.stack([x] * 3))
    else:
        broken.append(True)
        for _ in range(2):
            with pytest.raises(KeyError):
                trainer.step(x, y) if failing == "loss" else trainer.train_sequence(torch.stack([x] * 3), y)
        broken.clear()
    assert all(map(torch.equal, state(trainer), before))
    trainer.step(x, y)
    assert not all(map(torch.equal, state(trainer), before))


@pytest.mark.parametrize("neuron", NEURONS[:2])
def test_single_samples_restart(neuron):
    trainer = make(neuron)
    for x, y in data(4):
        trainer.step(x, y)
    first = torch.tensor([True, False, False])
    fresh = make(neuron)
    fresh.net.load_state_dict(trainer.net.state_dict())
    x, y = data(1)[0]
    restarted = trainer.step(x, y, new_sequence=first).output
    torch.testing.assert_close(restarted[:1], fresh.step(x[:1], y[:1]).output)


def test_a_snapshot_in_the_middle_of_a_window_keeps_its_graph():
    class Replaces(nn.Module):
        mem = None

        def forward(self, x):
            self.mem = x if self.mem is None else 0.9 * self.mem + x
            return self.mem

    register_state_handler(Replaces, AttributeHandler(mem=None))
    trainers = [make(Replaces, window=3) for _ in range(2)]
    for i, (x, y) in enumerate(data(9)):
        for trainer in trainers:
            trainer.step(x, y)
        if i % 3 == 1:  # evaluation goes back to the snapshot
            trainers[0].predict(torch.rand(2, 3, 4))
    for one, other in zip(*[trainer.net.parameters() for trainer in trainers], strict=True):
        assert torch.equal(one, other)
    assert trainers[0].updates == 3


class Replaces(HandsOut):
    def forward(self, x):
        self.mem = x if self.mem is None else 0.8 * self.mem + x
        return self.mem


register_state_handler(HandsOut, AttributeHandler(mem=None))


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("readout", ["step", "mean", "sum", "max"])
def test_a_readout_keeps_what_a_neuron_goes_on_changing(readout, window):
    def trained(last):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2), last)
        trainer = FPTTTrainer(net, torch.optim.Adam(net.parameters(), 0.05), nn.CrossEntropyLoss(), window=window,
                              readout=readout)  # fmt: skip
        x, y = 2 * torch.randn(7, 4, 3), torch.tensor([0, 1, 0, 1])
        results = [trainer.train_sequence(x, y).output for _ in range(3)]
        assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
        return [*results, trainer.predict(x), *net.parameters()]

    for one, other in zip(trained(HandsOut()), trained(Replaces()), strict=True):
        assert torch.equal(one, other)
