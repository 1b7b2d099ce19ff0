"""State that a network takes and returns: in any container, changed in place or not, and refused if out of reach."""

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nets import LIF, Before, adam, batch, identical, spikes
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotStepError, FPTTWarning
from fptt_plugin.tree import tensors_in


@dataclass(frozen=True)
class Membranes:
    one: torch.Tensor
    two: torch.Tensor


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


def queue(one, two):
    return deque([one, two], maxlen=2)


class Explicit(nn.Module):
    """Two leaky layers whose state is of the given kind; ``in_place`` changes what it was handed."""

    def __init__(self, kind=dict, in_place=False):
        super().__init__()
        self.kind, self.in_place = kind, in_place
        self.fc1, self.fc2 = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, state):
        one, two = (0.0, 0.0) if state is None else tensors_in(state)
        one = 0.9 * one + self.fc1(x)
        two = 0.9 * two + self.fc2(one.tanh())
        if self.in_place and state is not None:
            state["one"], state["two"] = one, two
            return two, state
        return two, self.kind(one=one, two=two)


def explicit_trainer(kind=dict, in_place=False, loss=nn.functional.cross_entropy, **options):
    torch.manual_seed(1)
    net = Explicit(kind, in_place)
    return FPTTTrainer(net, adam(net), loss, **options)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"variant": "gradient"}, {"variant": "gradient", "window": 3}])
@pytest.mark.parametrize(
    ("kind", "in_place"),
    [(dict, True), (Membranes, False), (AttributeDict, False), (queue, False), (SimpleNamespace, False)],
)
def test_an_explicit_state_of_any_kind(options, kind, in_place):
    trainers = [explicit_trainer(**options), explicit_trainer(kind, in_place, **options)]
    x, y = batch()
    for trainer in trainers:
        for _ in range(2):
            trainer.train_sequence(x, y)
    assert identical(*(trainer.net.parameters() for trainer in trainers))
    assert not any(tensor.requires_grad for tensor in tensors_in(trainers[1].state.get()))


def test_an_error_undoes_what_the_network_did_to_its_state_in_place():
    fails = False

    def loss(output, target):
        if fails:
            raise KeyError
        return nn.functional.cross_entropy(output, target)

    trainer, (x, y) = explicit_trainer(in_place=True, loss=loss), batch()
    for x_t in x[:3]:
        trainer.step(x_t, y)
    before, fails = tensors_in(trainer.state.get()), True
    with pytest.raises(KeyError):
        trainer.step(x[3], y)
    assert identical(before, tensors_in(trainer.state.get()))


class Bag:
    def __init__(self, **tensors):
        self.tensors = tensors


@pytest.mark.parametrize("kind", [Bag, lambda **tensors: {"all": Bag(**tensors)}], ids=["Bag", "in a dictionary"])
@pytest.mark.parametrize("preflight", [True, False])
def test_a_state_that_nobody_can_detach_is_refused(kind, preflight):
    trainer = explicit_trainer(kind, preflight=preflight)
    before = Before(trainer)
    with pytest.raises(ValueError, match=r"Explicit returns holds an object of type Bag,.*deques and namespaces"):
        trainer.train_sequence(*batch())
    assert before.differs() == []
    assert trainer.updates == 0


@pytest.mark.parametrize("kind", [Membranes, AttributeDict])
def test_single_samples_begin_anew_whatever_holds_their_state(kind):
    trainers = [explicit_trainer(), explicit_trainer(kind)]
    for step in range(6):
        x, y = batch(1)
        ended = torch.tensor([step == 3, False, step == 4, False])
        results = [trainer.step(x[0], y, new_sequence=ended) for trainer in trainers]
        assert torch.equal(*(result.output for result in results))
    assert identical(*(trainer.net.parameters() for trainer in trainers))
    assert isinstance(trainers[1].state.get()["the state that forward() returns"]["value"], kind)


# ---------------------------------------------------------------------- how the argument is named


class Cells(nn.Module):
    """A neuron that keeps its state, and recurrent cells that return theirs."""

    def __init__(self, cells=1):
        super().__init__()
        self.into, self.fires = nn.Linear(3, 8), LIF()
        self.cells = nn.ModuleList(nn.GRUCell(8 if k == 0 else 2, 2) for k in range(cells))

    def step(self, x, states):
        out, after = self.fires(self.into(x)), []
        for cell, state in zip(self.cells, states, strict=True):
            out = cell(out, state)
            after.append(out)
        return out, *after


class CellsOfState(Cells):
    def forward(self, x, state=None):
        return self.step(x, [state])


class CellsOfMem(Cells):
    def forward(self, x, mem=None):
        return self.step(x, [mem])


class CellsOfOther(Cells):
    def forward(self, x, other=None):
        return self.step(x, [other])


class CellsOfTwo(Cells):
    def forward(self, x, one=None, two=None):
        return self.step(x, [one, two])


class CellsOfKeyword(Cells):
    def forward(self, x, *, mem=None):
        return self.step(x, [mem])


class CellsOfTuple(Cells):
    def forward(self, x, mems=()):
        out, mem = self.step(x, [mems[0] if mems else None])
        return out, (mem,)


class CellsOfNumber(Cells):
    def forward(self, x, mem=0.0):
        return list(self.step(x, [mem if isinstance(mem, torch.Tensor) else None]))


class Masked(Cells):
    """Has an argument that is no state, and returns two things."""

    def forward(self, x, mask=None):
        out, _ = self.step(x, [None])
        return (out if mask is None else out * mask.shape[0] / 4), out


def cells_trainer(kind, *args, **options):
    torch.manual_seed(1)
    net = kind(*args)
    return FPTTTrainer(net, adam(net), nn.functional.cross_entropy, window=3, **options)


def test_a_state_that_is_called_mem():
    trainers, (x, y) = [cells_trainer(kind) for kind in (CellsOfState, CellsOfMem)], batch()
    for trainer in trainers:
        with spikes(trainer.net):
            trainer.train_sequence(x, y)
    assert identical(*(trainer.net.parameters() for trainer in trainers))


class Silent(nn.Module):
    """Returns the spikes, of which there are none, and the membrane of a neuron beside one that keeps its state."""

    def __init__(self):
        super().__init__()
        self.into, self.fires, self.out = nn.Linear(3, 8), LIF(), nn.Linear(8, 2)

    def forward(self, x, mem=None):
        mem = self.out(self.fires(self.into(x))) + (0.0 if mem is None else 0.9 * mem)
        return (mem > 1e9).float() + 0.0 * mem, mem


@pytest.mark.parametrize(("output", "place"), [(None, 1), (0, 0), (1, 1), (lambda returned: returned[0], 0)])
def test_of_a_spike_and_its_membrane_the_loss_sees_the_membrane(output, place):
    net, (x, y) = Silent(), batch()
    trainer = FPTTTrainer(net, adam(net), nn.functional.cross_entropy, output=output)
    trainer.train_sequence(x, y)
    assert "driver: explicit" in trainer.explain()
    expected, mem = trainer.predict(x, averaged=False), None
    trainer.reset()
    with torch.no_grad():
        for x_t in x:
            returned = net(x_t, mem)
            mem = returned[1]
    assert torch.equal(expected, returned[place])


@pytest.mark.parametrize(
    ("kind", "cells", "remedy"),
    [
        (CellsOfOther, 1, r"without other at every step.*pass driver='explicit'"),
        (CellsOfKeyword, 1, r"without mem at every step.*let forward\(x_t, state\) take it, None at first"),
        (CellsOfTuple, 1, r"without mems at every step.*let forward\(x_t, state\) take it, None at first"),
        (CellsOfNumber, 1, r"without mem at every step.*let forward\(x_t, state\) take it, None at first"),
        (CellsOfTwo, 2, r"without one, two at every step.*let forward\(x_t, state\) take and return them as one tuple"),
    ],
)
def test_what_may_be_a_state_is_warned_of(kind, cells, remedy):
    x, y = batch()
    with pytest.warns(FPTTWarning, match=remedy):
        cells_trainer(kind, cells, output=0).train_sequence(x, y)
    trainers = [cells_trainer(CellsOfState), cells_trainer(CellsOfOther, driver="explicit")]
    for trainer in trainers:
        trainer.train_sequence(x, y)
    assert identical(*(trainer.net.parameters() for trainer in trainers))


@pytest.mark.parametrize("default", [np.ones(3), {}, "one"])
def test_an_argument_that_is_called_state_and_has_another_default(default):
    class Constant(Cells):
        def forward(self, x, state=default):
            return self.step(x, [None])

    trainer = cells_trainer(Constant, output=0)
    trainer.train_sequence(*batch())
    assert "driver: step" in trainer.explain()


def test_an_argument_that_is_no_state():
    trainer = cells_trainer(Masked, output=0)
    trainer.train_sequence(*batch())
    assert "driver: step" in trainer.explain()


def test_a_network_of_cells_alone():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(3, 2)

        def forward(self, x, mem=None):
            mem = self.cell(x, mem)
            return mem, mem

    net = Alone()
    with pytest.raises(CannotStepError, match="if 'mem' is its state, pass driver='explicit'"):
        FPTTTrainer(net, adam(net), nn.functional.cross_entropy)
    trainer = FPTTTrainer(net, adam(net), nn.functional.cross_entropy, driver="explicit")
    assert trainer.train_sequence(*batch()).updates > 0
