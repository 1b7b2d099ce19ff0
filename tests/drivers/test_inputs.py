"""Networks with several inputs: each gets its own, in every way of driving, and a call by hand stays what it was."""

import copy
import pickle

import pytest
import torch
from nets import CE, LIF, adam, identical, spikes
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import BatchShapeError, CannotRunError

T, B = 6, 4
A, C = torch.rand(T, B, 3), torch.rand(T, B, 2, 4, 4)
Y = torch.arange(B) % 2


class Branches(nn.Module):
    """A vector and a picture at every step."""

    def __init__(self):
        super().__init__()
        self.vector, self.picture = nn.Linear(3, 8), nn.Sequential(nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(8, 8))
        self.lif, self.out = LIF(), nn.Linear(8, 2)

    def forward(self, a, c):
        return self.step(a, c)

    def step(self, a, c):
        return self.out(self.lif(self.vector(a) + self.picture(c)))


class Loops(Branches):
    def forward(self, a, c):
        return torch.stack([self.step(a_t, c_t) for a_t, c_t in zip(a, c, strict=True)])


class OneContainer(Branches):
    def forward(self, inputs):
        return self.step(inputs["a"], inputs["c"])


class Stateful(Branches):
    def __init__(self):
        super().__init__()
        self.lif = nn.ReLU()

    def forward(self, a, c, state=None):
        hidden = self.vector(a) + self.picture(c) + (0 if state is None else 0.5 * state)
        return self.out(torch.tanh(hidden)), hidden


class Jelly(nn.Module):
    def __init__(self):
        super().__init__()
        self.vector, self.other = layer.Linear(3, 8), layer.Linear(5, 8)
        self.lif, self.out = neuron.LIFNode(v_threshold=0.3), layer.Linear(8, 2)
        functional.set_step_mode(self, "m")

    def forward(self, a, c):
        return self.out(self.lif(self.vector(a) + self.other(c)))


class Packed(nn.Module):
    """The same network with one tensor for all inputs, taken apart by hand."""

    def __init__(self, net, sizes, shapes):
        super().__init__()
        self.net, self.sizes, self.shapes = net, sizes, shapes

    def forward(self, x):
        return self.net(*self.parts(x))

    def parts(self, x):
        parts = zip(x.split(self.sizes, -1), self.shapes, strict=True)
        return [part.reshape(*part.shape[:-1], *shape) for part, shape in parts]


class PackedStateful(Packed):
    def forward(self, x, state):
        return self.net(*self.parts(x), state)


D = torch.rand(T, B, 5)
CASES = {
    "step": (Branches, (A, C), {}),
    "by name": (Branches, {"c": C, "a": A}, {}),
    "in flight": (Loops, (A, C), {"window": 2}),
    "in flight, by name": (Loops, {"c": C, "a": A}, {}),
    "explicit": (Stateful, (A, C), {"driver": "explicit", "window": 3}),
    "explicit, by name": (Stateful, {"a": A, "c": C}, {"driver": "explicit"}),
    "slice": (Jelly, (A, D), {"window": 3}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_several_inputs_equal_one_that_is_taken_apart_by_hand(case):
    build, x, options = case
    torch.manual_seed(0)
    net = build()
    parts = [x["a"], x["c"]] if isinstance(x, dict) else list(x)
    shapes = [tuple(part.shape[2:]) for part in parts]
    kind = PackedStateful if "driver" in options else Packed
    twin = kind(copy.deepcopy(net), [part[0, 0].numel() for part in parts], shapes)
    trainer, other = (FPTTTrainer(n, adam(n), CE, **options) for n in (net, twin))
    packed = torch.cat([part.flatten(2) for part in parts], 2)
    before = [p.clone() for p in net.parameters()]
    for _ in range(3):
        ones, others = trainer.train_sequence(x, Y), other.train_sequence(packed, Y)
        assert torch.equal(ones.output, others.output)
    assert identical(net.parameters(), twin.parameters())
    assert all(not torch.equal(one, was) for one, was in zip(net.parameters(), before, strict=True))
    assert torch.equal(trainer.predict(x), other.predict(packed))
    assert trainer.evaluate([(x, Y)]) == other.evaluate([(packed, Y)])
    assert type(trainer._loop.driver) is type(other._loop.driver)


def test_each_input_arrives_where_it_belongs():
    seen = []
    torch.manual_seed(0)
    net = Branches()
    net.picture.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    trainer = FPTTTrainer(net, adam(net), CE)
    with spikes(net):
        trainer.train_sequence((A, C), Y)
    assert len(seen) == T
    assert all(map(torch.equal, seen, C))


def test_one_container_for_all():
    torch.manual_seed(0)
    net, twin = OneContainer(), Branches()
    twin.load_state_dict(net.state_dict())
    ones, others = FPTTTrainer(net, adam(net), CE), FPTTTrainer(twin, adam(twin), CE)
    for _ in range(2):
        ones.train_sequence({"a": A, "c": C}, Y)
        others.train_sequence((A, C), Y)
    assert identical(net.parameters(), twin.parameters())


def test_a_call_by_hand_stays_what_it_was():
    torch.manual_seed(0)
    net = Branches()
    trainer = FPTTTrainer(net, adam(net), CE)
    trainer.train_sequence((A, C), Y)
    trainer.reset()
    trained = net(A[0], C[0])
    trainer.reset()
    assert torch.equal(trained, net(c=C[0], a=A[0]))
    trainer.reset()
    assert torch.equal(trained, net(A[0], c=C[0]))
    fresh = Branches()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(trained, fresh(A[0], C[0]))
    trainer.reset()
    assert torch.equal(trained, pickle.loads(pickle.dumps(net))(A[0], C[0]))

    class Sums(nn.Module):  # two inputs of the size of the packed axis
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(2, 2), LIF()

        def forward(self, one, other):
            return self.fc(self.lif(one - other))

    net = Sums()
    trainer = FPTTTrainer(net, adam(net), CE)
    one, other = torch.rand(T, B, 2), torch.rand(T, B, 2)
    trainer.train_sequence((one, other), Y)
    trainer.reset()
    assert torch.equal(net(one[0], other[0]), net.fc((one[0] - other[0] > 0.3).float()))


def test_streams_and_batch_first():
    torch.manual_seed(0)
    nets = [Branches()]
    nets += [copy.deepcopy(nets[0]), copy.deepcopy(nets[0])]
    trainers = [FPTTTrainer(net, adam(net), CE, loss_ramp="constant", batch_first=net is nets[2]) for net in nets]
    trainers[0].train_sequence((A, C), Y)
    for a, c in zip(A, C, strict=True):
        trainers[1].step((a, c), Y)
    trainers[2].train_sequence((A.transpose(0, 1), C.transpose(0, 1).numpy()), Y)
    for net in nets[1:]:
        assert identical(nets[0].parameters(), net.parameters())


class Tokens(nn.Module):
    """Tokens beside a vector."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.lif, self.out = nn.Embedding(7, 8), nn.Linear(3, 8), LIF(), nn.Linear(8, 2)

    def forward(self, tokens, a):
        return self.out(self.lif(self.embed(tokens) + self.fc(a)))


def test_integers_beside_other_inputs():
    torch.manual_seed(0)
    net, tokens = Tokens(), torch.randint(7, (T, B))
    trainer = FPTTTrainer(net, adam(net), CE)
    before, seen = net.embed.weight.clone(), []
    net.embed.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with spikes(net):
        trainer.train_sequence((tokens, A), Y)
    assert torch.equal(torch.stack(seen), tokens)
    moved = (net.embed.weight != before).any(1)
    assert moved.tolist() == [token in tokens for token in range(7)]


class OneHot(nn.Module):
    """Integers without an embedding."""

    def __init__(self, loops=False):
        super().__init__()
        self.fc, self.lif, self.out, self.loops = nn.Linear(5, 8), LIF(), nn.Linear(8, 2), loops

    def forward(self, tokens):
        return torch.stack([self.step(one) for one in tokens]) if self.loops else self.step(tokens)

    def step(self, tokens):
        return self.out(self.lif(self.fc(nn.functional.one_hot(tokens.long(), 5).float())))


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_where_forward_takes_them(loops, dtype):
    torch.manual_seed(0)
    net, tokens = OneHot(loops), torch.randint(5, (T, B), dtype=dtype)
    trainer = FPTTTrainer(net, adam(net), CE)
    before = net.fc.weight.clone()
    with spikes(net):
        trainer.train_sequence(tokens, Y)
    assert not torch.equal(net.fc.weight, before)
    assert trainer.predict(tokens).shape == (B, 2)
    if not loops:
        assert trainer.step(tokens[0], Y).updated


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        ((A, C[:3]), BatchShapeError, "do not begin with the same axes: repeat what does not change"),
        ((A, torch.tensor(1.0)), BatchShapeError, "do not begin with the same axes"),
        ((C, A), CannotRunError, r"does not run on inputs of shapes .*forward\(a, c\) takes: a tuple in this order"),
        ({"a": A, "b": C}, CannotRunError, r"forward\(a, c\)"),
        (A, CannotRunError, r"takes a, c; if these are inputs, pass a tuple or a dictionary"),
    ],
)
def test_what_the_network_does_not_take(x, error, words):
    net = Branches()
    trainer = FPTTTrainer(net, adam(net), CE)
    before = [p.clone() for p in net.parameters()]
    for call in (lambda: trainer.train_sequence(x, Y), lambda: trainer.predict(x)):
        with pytest.raises(error, match=words):
            call()
    assert identical(net.parameters(), before)
    assert not net._forward_pre_hooks
    trainer.train_sequence((A, C), Y)


def test_time_steps_in_a_list():
    net = nn.Sequential(nn.Linear(3, 8), LIF(), nn.Linear(8, 2))
    for x in (list(A), tuple(A)):
        with pytest.raises(CannotRunError, match=r"time steps of one input, pass torch.stack\(x\)"):
            FPTTTrainer(net, adam(net), CE).train_sequence(x, Y)
        assert FPTTTrainer(net, adam(net), CE).train_sequence(torch.stack(x), Y).updates == T
    two = Branches()
    with pytest.raises(CannotRunError, match=r"pass what its forward\(a, c\) takes"):
        FPTTTrainer(two, adam(two), CE).train_sequence(list(A), Y)
