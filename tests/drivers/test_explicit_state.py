"""State that a network takes and returns: in any container, changed in place or not, and refused if out of reach."""

from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from nets import Before, adam, batch, identical
from torch import nn

from fptt_plugin import FPTTTrainer
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
    with pytest.raises(ValueError, match="Explicit returns holds an object of type Bag,.*deques and namespaces"):
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
