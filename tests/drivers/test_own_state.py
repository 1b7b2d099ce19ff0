"""State that a neuron written by hand keeps: wherever it lies, it is found, and what the error says mends it."""

import collections
import dataclasses
import re
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import snntorch as snn
import torch
from nets import LIF, batch, sgd
from spikingjelly.activation_based import neuron
from torch import nn

import fptt_plugin
from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotStepError
from fptt_plugin.snntorch import LTCLeaky
from fptt_plugin.state import AttributeHandler, ModelState, register_state_handler

CE = nn.CrossEntropyLoss()


def plain(first, size=3):
    return nn.Sequential(first, nn.Linear(size, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False))


def trainer_of(net):
    return FPTTTrainer(net, sgd(net, lr=0.0), CE, alpha=0.0)


class Own(nn.Module):
    """A membrane somewhere; ``begin()`` is what is there before the first input."""

    def __init__(self):
        super().__init__()
        self.kept = self.begin()


class InDeque(Own):
    begin = staticmethod(lambda: collections.deque(maxlen=3))

    def forward(self, x):
        self.kept.append(x)
        return sum(self.kept)


class InNamespace(Own):
    begin = staticmethod(lambda: types.SimpleNamespace(v=0.0))

    def forward(self, x):
        self.kept.v = 0.5 * self.kept.v + x
        return self.kept.v


class InArray(Own):
    begin = staticmethod(lambda: None)

    def forward(self, x):
        now = x.detach().numpy()
        self.kept = now if self.kept is None else 0.5 * self.kept + now
        return x + torch.from_numpy(self.kept)


class InDictionary(Own):
    begin = staticmethod(lambda: {"v": None, "b": 0.0})

    def forward(self, x):
        v = x if self.kept["v"] is None else 0.5 * self.kept["v"] + x
        self.kept = {"v": v, "b": 0.9 * self.kept["b"] + 0.1}
        return v - self.kept["b"]


class InTuple(Own):
    begin = staticmethod(lambda: (0.0, [0.0], (1,)))

    def forward(self, x):
        v, (b,), (one,) = self.kept
        v = 0.5 * v + x - b
        self.kept = v, [0.9 * b + 0.1 * v], (one,)
        return v


@dataclasses.dataclass
class Data:
    v: Any = 0.0


class InDataclass(Own):
    begin = Data

    def forward(self, x):
        self.kept = Data(0.5 * self.kept.v + x)
        return self.kept.v


class Pair(NamedTuple):
    v: Any
    b: Any


class InNamedTuple(Own):
    begin = staticmethod(lambda: Pair(0.0, None))

    def forward(self, x):
        self.kept = Pair(0.5 * self.kept.v + x, x)
        return self.kept.v


class InRing(nn.Module):
    """Integers index a buffer, and a flag tells the first step."""

    def __init__(self):
        super().__init__()
        self.place, self.ring, self.is_first = torch.ones((), dtype=torch.long), None, True

    def forward(self, x):
        if self.is_first:
            self.ring, self.is_first = torch.zeros(3, *x.shape), False
        out, ring = self.ring[self.place % 3], self.ring.clone()
        ring[self.place % 3] = x.detach()
        self.ring, self.place = ring, self.place + 1
        return x + out


class OfTheFirstInput(nn.Module):
    """What the very first input leaves, and no later one changes."""

    def __init__(self):
        super().__init__()
        self.base = None

    def forward(self, x):
        if self.base is None:
            self.base = x.detach()
        return x - self.base


KINDS = [
    InDeque,
    InNamespace,
    InArray,
    InDictionary,
    InTuple,
    InDataclass,
    InNamedTuple,
    InRing,
    OfTheFirstInput,
]


def remedy_of(trainer, x, y):
    with pytest.raises(CannotStepError, match=r"which reset\(\) does not reach") as error:
        trainer.train_sequence(x, y)
    (code,) = re.findall(r"fptt_plugin\.state\.register_state_handler\(.*\)(?=\. \(If)", error.value.remedy)
    return code


@pytest.mark.parametrize("kind", KINDS)
def test_the_remedy_mends_it(kind):
    x, y = batch()
    code = remedy_of(trainer_of(plain(kind())), x, y)
    exec(code, globals() | {"fptt_plugin": fptt_plugin})
    trainer = trainer_of(plain(kind()))
    first, _, again = (trainer.train_sequence(value, y).output for value in (x, 2 * x.flip(0), x))
    assert torch.equal(first, again)


# ---------------------------------------------------------------------- within a loop over time in forward()


class Loop(nn.Module):
    """Steps through time, or through a still image, itself; ``layout`` is where the time axis is."""

    def __init__(self, first, layout):
        super().__init__()
        self.net, self.layout = plain(first), layout

    def forward(self, x):
        steps = [x] * 5 if self.layout == "image" else x.unbind(1 if self.layout == "batch_first" else 0)
        for module in self.net:
            if isinstance(module, LIF):
                module.mem = None
        return torch.stack([self.net(x_t) for x_t in steps])


LAYOUTS = ["time_first", "batch_first", "image"]


def loop_of(net, layout, **options):
    """A trainer of a loop, with sequences or images ``x`` and labels."""
    x, y = batch()
    x = {"time_first": x, "batch_first": x.transpose(0, 1), "image": x[0]}[layout]
    return FPTTTrainer(net, sgd(net, lr=0.0), CE, batch_first=layout == "batch_first", **options), x, y


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_remedy_mends_it_in_a_loop(layout):
    class Past(nn.Module):
        past: Any = None

        def forward(self, x):
            self.past = x if self.past is None else 0.5 * self.past.detach() + x
            return self.past

    class Begins(Loop):
        def forward(self, x):
            self.net[0].past = None
            return super().forward(x)

    def outputs(net):
        trainer, x, y = loop_of(net, layout, alpha=0.0, window=2)
        found = [trainer.train_sequence(value, y).output for value in (x, 2 * x.flip(0), x)]
        assert "in-flight" in trainer.explain()
        return found[0], found[2]

    assert torch.equal(*outputs(Begins(Past(), layout)))
    trainer, x, y = loop_of(Loop(Past(), layout), layout)
    with pytest.raises(CannotStepError, match=r"set 'net\.0\.past' in forward\(\), before its loop, or"):
        trainer.train_sequence(x, y)
    exec(remedy_of(trainer, x, y), globals() | {"fptt_plugin": fptt_plugin, "Past": Past})
    assert torch.equal(*outputs(Loop(Past(), layout)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_loop_in_a_network_that_is_itself_registered(layout):
    class Whole(Loop):
        trace: Any = None

        def forward(self, x):
            self.trace = 1.0 if self.trace is None else self.trace + 1.0
            return super().forward(self.trace * x)

    trainer, x, y = loop_of(Whole(nn.Identity(), layout), layout)
    exec(remedy_of(trainer, x, y), globals() | {"fptt_plugin": fptt_plugin, "Whole": Whole})
    trainer, x, y = loop_of(Whole(nn.Identity(), layout), layout, alpha=0.0)
    first, again = (trainer.train_sequence(x, y).output for _ in range(2))
    assert "in-flight" in trainer.explain()
    assert torch.equal(first, again)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_does_not_show_in_a_loop_or_is_meant_to_stay_is_not_refused(layout):
    class Sums(nn.Module):
        total = 0.0

        def forward(self, x):
            self.total = self.total + x.detach()
            return x + self.total

    trainer, x, y = loop_of(Loop(Cached(), layout), layout)
    trainer.train_sequence(x, y)
    with pytest.raises(CannotStepError, match="preflight=False"):
        loop_of(Loop(Sums(), layout), layout)[0].train_sequence(x, y)
    trainer, *_ = loop_of(Loop(Sums(), layout), layout, preflight=False, alpha=0.0)
    first, again = (trainer.train_sequence(x, y).output for _ in range(2))
    assert not torch.equal(first, again)


class Helper:
    def __init__(self):
        self.v = 0.0

    def __call__(self, x):
        self.v = 0.5 * self.v + x
        return self.v


class InObject(Own):
    begin = Helper

    def forward(self, x):
        return x + self.kept(x.detach())


def test_an_object_of_unknown_contents():
    with pytest.raises(CannotStepError, match="keep what 'kept' of InObject holds in attributes of the module"):
        trainer_of(plain(InObject())).train_sequence(*batch())


class Cached(nn.Module):
    """Computes a table from the shape of its input alone, and counts nothing that its output shows."""

    def __init__(self):
        super().__init__()
        self.table, self.calls, self.seen = None, np.zeros(1), set()

    def forward(self, x):
        if self.table is None:
            self.table = torch.linspace(0, 1, x.shape[-1])
        self.calls += 1
        self.seen.add(x.shape)
        return x + self.table


def test_what_does_not_show_is_not_refused():
    trainer_of(plain(Cached())).train_sequence(*batch())


# ---------------------------------------------------------------------- subclasses of neurons that are known


def traced(base):
    class Traced(base):
        def __init__(self, **options):
            super().__init__(**options)
            self.trace = 0.0

        def forward(self, x, *state):
            self.trace = 0.8 * self.trace + x.detach()
            return super().forward(x - 0.1 * self.trace, *state)

    return Traced


class Delayed(snn.Leaky):
    last = 0.0

    def forward(self, x, mem=None):
        out = super().forward(self.last + x, mem)
        self.last = x.detach()
        return out


register_state_handler(Delayed, AttributeHandler(last=0.0))

BASES = {
    "snnTorch": (snn.Leaky, {"beta": 0.9, "init_hidden": True}),
    "LTCLeaky": (LTCLeaky, {"init_hidden": True, "linear_features": 3}),
    "SpikingJelly": (neuron.LIFNode, {"v_threshold": 0.3}),
    "a handler of the user's": (LIF, {}),
    "a subclass that adds already": (Delayed, {"beta": 0.9, "init_hidden": True}),
}


@pytest.mark.parametrize("name", BASES)
def test_a_subclass_adds_to_the_state_of_its_base(name):
    base, options = BASES[name]
    Traced, (x, y) = traced(base), batch()
    names = {entry for _, state in ModelState(nn.Sequential(base(**options))).get().items() for entry in state}

    def build():
        first = Traced(**options)
        return plain(Picked(first))

    code = remedy_of(trainer_of(build()), x, y)
    assert "trace=0.0)" in code
    exec(code, {"fptt_plugin": fptt_plugin, "Traced": Traced, "AttributeHandler": AttributeHandler})
    net = build()
    assert set(ModelState(net).get()["0.neuron"]) == names | {"trace"}
    trainer = trainer_of(net)
    first, _, again = (trainer.train_sequence(value, y).output for value in (x, 2 * x.flip(0), x))
    assert torch.equal(first, again)


class Picked(nn.Module):
    """The first of what a neuron returns."""

    def __init__(self, layer):
        super().__init__()
        self.neuron = layer

    def forward(self, x):
        returned = self.neuron(x)
        return returned[0] if isinstance(returned, tuple) else returned


def test_another_handler_takes_the_place_of_the_inherited_one():
    class Keeper:
        def get(self, module):
            return {"trace": module.trace}

        def set(self, module, state):
            module.trace = state["trace"]

        def reset(self, module):
            module.trace = 0.0

    Traced = traced(snn.Leaky)
    register_state_handler(Traced, Keeper())
    assert ModelState(nn.Sequential(Traced(beta=0.9))).get() == {"0": {"trace": 0.0}}
