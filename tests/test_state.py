"""One model's recurrent state: read, written, reset and cut from its graph, and no other model's."""

import copy
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fptt_plugin.state import AttributeHandler, ModelState, register_state_handler
from fptt_plugin.tree import map_tensors, tensors_in

snn = pytest.importorskip("snntorch")
utils = pytest.importorskip("snntorch.utils")
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky  # noqa: E402

N = 5
NEURONS = {
    "Leaky": lambda: snn.Leaky(beta=0.9, init_hidden=True),
    "RLeaky": lambda: snn.RLeaky(beta=0.9, linear_features=N, init_hidden=True),
    "Synaptic": lambda: snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True),
    "RSynaptic": lambda: snn.RSynaptic(alpha=0.8, beta=0.9, linear_features=N, init_hidden=True),
    "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True),
    "Lapicque": lambda: snn.Lapicque(beta=0.9, init_hidden=True),
    "LTCLeaky": lambda: LTCLeaky(init_hidden=True),
    "RLTCLeaky": lambda: RLTCLeaky(linear_features=N, init_hidden=True),
    "LTCIntegrator": lambda: LTCIntegrator(init_hidden=True),
}
STATES = {
    "Leaky": {"mem"},
    "RLeaky": {"spk", "mem"},
    "Synaptic": {"syn", "mem"},
    "RSynaptic": {"spk", "syn", "mem"},
    "Alpha": {"syn_exc", "syn_inh", "mem"},
    "Lapicque": {"mem"},
    "LTCLeaky": {"mem", "spk", "b"},
    "RLTCLeaky": {"mem", "spk", "b"},
    "LTCIntegrator": {"mem"},
}
every_neuron = pytest.mark.parametrize("name", NEURONS)


def build(name):
    return nn.Sequential(nn.Linear(3, N), NEURONS[name]())


def sequence(steps=6):
    return 5 * torch.randn(steps, 4, 3)


def run(net, x):
    return torch.stack([net(x_t) for x_t in x])


def tensors(state):
    return [value for fields in state.values() for value in fields.values()]


@every_neuron
def test_get_names_every_state(name):
    net = build(name)
    state = ModelState(net)
    run(net, sequence())
    assert [module_name for module_name, _ in state.modules()] == list(state.get()) == ["1"]
    assert set(state.get()["1"]) == STATES[name]
    assert all(value.shape == (4, N) for value in tensors(state.get()))


@every_neuron
def test_set_goes_back_to_an_earlier_moment(name):
    net, x = build(name), sequence()
    state = ModelState(net)
    run(net, x[:3])
    moment = state.get()
    kept = [value.clone() for value in tensors(moment)]
    expected = run(net, x[3:])
    assert all(map(torch.equal, tensors(moment), kept))  # references are enough: states are replaced, not written
    moved_on = run(net, x[3:])
    state.set(moment)
    assert torch.equal(run(net, x[3:]), expected)
    assert not torch.equal(moved_on, expected)
    assert 0 < expected.mean() < 1 or name == "LTCIntegrator"


@every_neuron
def test_reset_is_the_state_before_the_first_input(name):
    net, x = build(name), sequence()
    state = ModelState(net)
    fresh, carried = run(net, x), run(net, x)
    state.reset()
    assert all(value.shape == (0,) for value in tensors(state.get()))
    assert torch.equal(run(net, x), fresh)
    assert not torch.equal(carried, fresh)
    state.reset()
    assert net(x[0][:2]).shape == (2, N)  # any batch size may follow


@every_neuron
def test_detach_is_out_of_place(name):
    net, x = build(name), sequence()
    state = ModelState(net)
    expected = run(net, x)[3:]
    state.reset()
    run(net, x[:3])
    held = tensors(state.get())
    with_graph = [tensor for tensor in held if tensor.requires_grad]
    state.detach()
    assert with_graph
    assert all(tensor.grad_fn is not None for tensor in with_graph)  # whoever holds them keeps their graph
    assert not any(value.requires_grad for value in tensors(state.get()))
    sum(tensor.sum() for tensor in with_graph).backward()
    out = run(net, x[3:])
    out.sum().backward()  # and the next steps do not reach into it
    assert torch.equal(out, expected)
    assert net[0].weight.grad.abs().max() > 0


@every_neuron
def test_looking_and_detaching_what_has_no_graph_write_nothing(name):
    net = build(name)
    state = ModelState(net)
    with torch.no_grad():
        run(net, sequence())
    held = tensors(state.get())
    state.detach()
    assert held
    assert all(one is two for one, two in zip(held, tensors(state.get()), strict=True))


@every_neuron
@pytest.mark.parametrize("action", ["reset", "detach"])
def test_only_this_model_is_touched(name, action):
    """snnTorch's class methods walk every neuron of the process."""
    net, other = build(name), build(name)
    run(net, sequence())
    run(other, sequence())
    before = tensors(ModelState(other).get())
    getattr(ModelState(net), action)()
    after = tensors(ModelState(other).get())
    assert all(one is two for one, two in zip(before, after, strict=True))
    assert any(tensor.requires_grad for tensor in after)


@pytest.mark.parametrize("action", [ModelState.get, ModelState.detach, lambda state: state.set(state.get())])
@pytest.mark.parametrize("name", ["LTCLeaky", "RLTCLeaky"])
def test_a_reset_from_outside_is_not_lost_between_the_steps(name, action):
    """``utils.reset`` knows the membrane alone; the rest follows, also if the state is read or detached first."""
    net, x = build(name), sequence()
    state = ModelState(net)
    fresh, carried = run(net, x), run(net, x)
    utils.reset(net)
    action(state)
    assert torch.equal(run(net, x), fresh)
    assert not torch.equal(carried, fresh)


def test_state_of_nested_and_shared_modules_is_listed_once():
    lif = NEURONS["LTCLeaky"]()
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, N), lif), "b": nn.Sequential(lif, NEURONS["Leaky"]())})
    assert [name for name, _ in ModelState(net).modules()] == ["a.1", "b.1"]
    assert ModelState(nn.Linear(3, 3)).modules() == []


def test_the_state_of_another_network_is_refused_and_changes_nothing():
    net, other = build("LTCLeaky"), nn.Sequential(NEURONS["LTCLeaky"](), nn.Linear(N, N), NEURONS["Leaky"]())
    run(net, sequence())
    before = tensors(ModelState(net).get())
    with pytest.raises(ValueError, match="belongs to another network"):
        ModelState(net).set(ModelState(other).get())
    assert all(one is two for one, two in zip(before, tensors(ModelState(net).get()), strict=True))


class Tally(nn.Module):
    """A stateful module of no library: it adds up its input."""

    total = None
    steps = 0

    def forward(self, x):
        self.total = x if self.total is None else self.total + x
        self.steps += 1
        return self.total


class LoudTally(Tally):
    pass


def test_a_module_of_ones_own_joins_with_its_subclasses():
    net = nn.Sequential(nn.Linear(3, N), LoudTally())
    assert ModelState(net).modules() == []
    register_state_handler(Tally, AttributeHandler(total=None, steps=0))
    state = ModelState(net)
    out = run(net, sequence(3))
    assert state.get()["1"] == {"total": net[1].total, "steps": 3}
    state.detach()
    assert net[1].total.grad_fn is None
    assert torch.equal(net[1].total, out[-1])
    moment = state.get()
    run(net, sequence(2))
    state.set(moment)
    assert (net[1].total, net[1].steps) == (moment["1"]["total"], 3)
    state.reset()
    assert (net[1].total, net[1].steps) == (None, 0)


def test_the_nearest_registered_class_decides():
    class Special(Tally):
        extra = 1

    register_state_handler(Tally, AttributeHandler(total=None, steps=0))
    register_state_handler(Special, AttributeHandler(extra=1))
    state = ModelState(nn.ModuleList([Special(), Tally()])).get()
    assert [sorted(fields) for fields in state.values()] == [["extra"], ["steps", "total"]]


def with_buffers(neuron):
    """A subclass's neuron with a constant and with state that its first input sizes, beside the library's."""
    base = type(neuron)

    class Own(base):
        def forward(self, x, *args):
            self.trace = x if not self.trace.numel() else 0.5 * self.trace + x
            return super().forward(self.trace.index_fill(1, self.silent, -1.0), *args)

    neuron.__class__ = Own
    neuron.register_buffer("silent", torch.tensor([0, 2]), persistent=False)
    neuron.register_buffer("trace", torch.zeros(0), persistent=False)
    return neuron


@every_neuron
def test_a_constant_buffer_of_a_subclass_stays_and_its_own_state_is_reset(name):
    net, x = nn.Sequential(nn.Linear(3, N), with_buffers(NEURONS[name]())), sequence()
    state = ModelState(net)
    fresh = run(net, x)
    assert set(state.get()["1"]) == STATES[name] | {"trace"}
    state.detach()
    assert not any(value.requires_grad for value in tensors(state.get()))
    twin = copy.deepcopy(net)  # as the dry runs copy a network that has run
    for each, of in ((state, net), (ModelState(twin), twin)):
        each.reset()
        assert of[1].trace.shape == (0,)
        assert of[1].silent.tolist() == [0, 2]
        assert torch.equal(run(of, x), fresh)


def test_state_of_a_subclass_is_known_where_the_network_has_run_before():
    net = nn.Sequential(nn.Linear(3, N), with_buffers(snn.Leaky(beta=0.9, init_hidden=True)))
    net(sequence()[0])
    state = ModelState(net)
    assert set(state.get()["1"]) == {"mem", "trace"}
    state.reset()
    assert net[1].trace.shape == (0,)


def test_a_constant_stays_where_the_network_has_run_before():
    net = nn.Sequential(nn.Linear(3, N), snn.Leaky(beta=0.9, init_hidden=True))
    net[1].register_buffer("mask", torch.ones(4, N), persistent=False)  # the shape of its state
    run(net, sequence())
    state = ModelState(net)
    state.reset()
    assert net[1].mem.shape == (0,)
    assert torch.equal(net[1].mask, torch.ones(4, N))
    assert set(state.get()["1"]) == {"mem"}


class Pair(NamedTuple):
    first: torch.Tensor
    second: object


def test_map_tensors_keeps_the_containers():
    one = torch.ones(2)
    value = {"a": [one, None, 3], "b": (one, "text"), "c": Pair(one, [one])}
    mapped = map_tensors(lambda tensor: tensor + 1, value)
    assert [type(mapped[key]) for key in mapped] == [list, tuple, Pair]
    assert mapped["a"][1:] == [None, 3]
    assert mapped["b"][1] == "text"
    assert all((t == 2).all() for t in (mapped["a"][0], mapped["b"][0], mapped["c"].first, mapped["c"].second[0]))
    assert (one == 1).all()


@dataclass(frozen=True)
class Membranes:
    one: torch.Tensor
    two: torch.Tensor
    count: int = field(default=7, init=False)


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


def test_map_tensors_keeps_dataclasses_and_dictionaries_of_other_kinds():
    one = torch.ones(2)
    for value in (Membranes(one, one), AttributeDict(one=one, two=one), OrderedDict(one=one, two=one)):
        mapped = map_tensors(lambda tensor: tensor + 1, value)
        assert type(mapped) is type(value)
        assert [tensor.tolist() for tensor in tensors_in(mapped)] == [[2, 2], [2, 2]]
    assert map_tensors(torch.clone, Membranes(one, one)).count == 7
    assert map_tensors(torch.clone, defaultdict(list, one=one))["new"] == []
    assert map_tensors(torch.clone, Membranes) is Membranes
    assert (one == 1).all()


class Delay(nn.Module):
    """A delay line of two steps, whose list is changed in place."""

    def __init__(self):
        super().__init__()
        self.queue = []

    def forward(self, x):
        self.queue.append(x)
        return self.queue.pop(0) if len(self.queue) > 2 else torch.zeros_like(x)


def test_a_list_of_state_belongs_to_one_module_and_one_sequence():
    register_state_handler(Delay, AttributeHandler(queue=[]))
    net = nn.Sequential(Delay(), Delay())
    state = ModelState(net)
    for _ in range(2):
        state.reset()
        assert [module.queue for module in net] == [[], []]
        outputs = [net(torch.full((1,), float(t))).item() for t in range(1, 4)]
        moment = state.get()
        for _ in range(2):
            state.set(moment)
            assert outputs + [net(torch.full((1,), float(t))).item() for t in range(4, 8)] == [0, 0, 0, 0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(snn, "DeltaLeaky"), reason="not in this snnTorch")
def test_a_neuron_whose_state_is_none_before_the_first_input():
    class Spikes(nn.Module):
        def __init__(self):
            super().__init__()
            self.delta = snn.DeltaLeaky(beta=0.9, delta_threshold=1.0, init_hidden=True)

        def forward(self, x):
            return self.delta(x)[0]

    net, x = nn.Sequential(nn.Linear(3, N), Spikes()), sequence()
    state = ModelState(net)
    fresh, carried = run(net, x), run(net, x)
    assert state.get()["1.delta"].keys() == {"mem", "mem_prev"}
    state.reset()
    assert torch.equal(run(net, x), fresh)
    assert not torch.equal(carried, fresh)
    assert 0 < fresh.mean() < 1
