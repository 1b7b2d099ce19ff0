"""The life of the recurrent state: under snnTorch's own helpers, which know the membrane alone, and by assignment."""

import pytest
import torch
from torch import nn

snn = pytest.importorskip("snntorch")
utils = pytest.importorskip("snntorch.utils")
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky  # noqa: E402
from fptt_plugin.state import ModelState  # noqa: E402

N = 5
FORMS = [LTCLeaky, RLTCLeaky, LTCIntegrator]
SPIKING = FORMS[:2]
BASE = {LTCLeaky: snn.Leaky, RLTCLeaky: snn.RLeaky, LTCIntegrator: snn.Leaky}


def build(form, **options):
    return form(linear_features=N, init_hidden=True, **options)


def sequence(steps=6, batch=4):
    return 2 * torch.randn(steps, batch, N)


def run(lif, x):
    """Advances the neuron; returns what it gave, stacked over time."""
    return torch.stack([lif(x_t) for x_t in x])


def warm(lif):
    """Leaves a neuron in the middle of a sequence, every state away from zero."""
    out = run(lif, sequence())
    if not isinstance(lif, LTCIntegrator):
        assert 0 < out.mean() < 1
        assert lif.b.abs().max() > 0
        assert lif.spk.max() > 0
    assert lif.mem.abs().max() > 0
    return lif


RESETS = {
    "utils.reset": lambda lif: utils.reset(nn.Sequential(lif)),
    "reset_hidden": lambda lif: BASE[type(lif)].reset_hidden(),
    "reset_mem": lambda lif: lif.reset_mem(),
    "init alias": lambda lif: getattr(lif, "init_rleaky" if type(lif) is RLTCLeaky else "init_leaky")(),
}


@pytest.mark.parametrize("way", RESETS)
@pytest.mark.parametrize("form", FORMS)
def test_every_way_of_snntorch_restarts_the_whole_state(form, way):
    lif, x = build(form), sequence()
    fresh = run(lif, x)
    warm(lif)
    carried = run(lif, x)
    RESETS[way](lif)
    assert torch.equal(run(lif, x), fresh)
    assert not torch.equal(carried, fresh)


@pytest.mark.parametrize("way", RESETS)
def test_a_reset_also_holds_where_the_caller_passes_the_membrane(way):
    lif, x = LTCLeaky(linear_features=N), sequence()

    def explicit():
        mem, spikes = torch.zeros(4, N), []
        for x_t in x:
            spk, mem = lif(x_t, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    fresh, carried = explicit(), explicit()
    RESETS[way](lif)
    assert torch.equal(explicit(), fresh)
    assert not torch.equal(carried, fresh)  # zeros for the membrane alone do not restart spikes and adaptation


@pytest.mark.parametrize("form", FORMS)
def test_reset_mem_returns_the_stored_state(form):
    lif = warm(build(form))
    returned = lif.reset_mem()
    spk, mem = returned if form is RLTCLeaky else (None, returned)
    assert mem is lif.mem
    assert spk is None or spk is lif.spk
    assert mem.shape == (4, N)
    assert not mem.any()
    mem.fill_(0.5)  # callers may write an initial membrane; the other states have memory of their own
    assert not any(getattr(lif, name).any() for name in lif.states[1:])


@pytest.mark.parametrize("form", FORMS)
def test_detach_hidden_allows_a_second_backward(form):
    lif, x = build(form), sequence(8)
    spikes = run(lif, x[:4])
    spikes.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        run(lif, x[4:]).sum().backward()

    lif.zero_grad()
    utils.reset(nn.Sequential(lif))
    run(lif, x[:4]).sum().backward()
    held = [getattr(lif, name) for name in lif.states]
    BASE[form].detach_hidden()
    assert not any(getattr(lif, name).requires_grad for name in lif.states)
    assert all(getattr(lif, name) is value for name, value in zip(lif.states, held, strict=True))  # the values stay
    continued = run(lif, x[4:])
    continued.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in lif.parameters())
    utils.reset(nn.Sequential(lif))
    assert torch.equal(run(lif, x)[4:], continued)  # detaching kept the values


@pytest.mark.parametrize("cut", ["nothing", "detach_hidden", "every state"])
@pytest.mark.parametrize("form", SPIKING)
def test_a_membrane_that_the_caller_detaches_is_detached_alone(form, cut):
    """A loop that passes the membrane has to cut the other states, too; forgotten, that is an error of torch."""

    def train():
        states = dict(zip(("spk", "mem"), lif.reset_mem(), strict=True)) if form is RLTCLeaky else {}
        for x_t in sequence():  # one backward per step
            spk, mem = lif(x_t, **states)
            (spk + mem).sum().backward()
            states = {"mem": mem.detach()}
            if form is RLTCLeaky:
                states["spk"] = spk.detach()
            if cut == "detach_hidden":
                BASE[form].detach_hidden()
            elif cut == "every state":
                states = {"mem": mem.detach(), "spk": spk.detach(), "b": lif.b.detach()}

    lif = form(linear_features=N)
    if cut == "nothing":
        with pytest.raises(RuntimeError, match="second time"):
            train()
    else:
        train()
        assert lif.b.abs().max() > 0


@pytest.mark.parametrize("name", ["mem", "spk", "b"])
@pytest.mark.parametrize("form", SPIKING)
@pytest.mark.parametrize("init_state", ["zeros", "random"])
def test_assigning_a_state_changes_that_state_alone(form, name, init_state):
    lif = warm(build(form, init_state=init_state))
    before = {state: getattr(lif, state) for state in lif.states}
    for value in (before[name].clamp(-100, 100), torch.zeros_like(before[name])):
        setattr(lif, name, value)
        ModelState(lif).get()  # looks only
        after = {state: getattr(lif, state) for state in lif.states}
        assert all(after[state] is before[state] for state in lif.states if state != name)
        assert after[name] is value
    expected = form(linear_features=N)
    expected.load_state_dict(lif.state_dict())
    x = sequence(1)[0]
    spk, _ = expected(x, **{**before, name: value})
    assert torch.equal(lif(x), spk)
    assert torch.equal(lif.b, expected.b)


def test_a_clamp_between_the_steps_that_changes_no_value_changes_nothing():
    lif, x = build(LTCLeaky), sequence(20)
    expected = run(lif, x)
    lif.reset_mem()
    spikes = []
    for x_t in x:
        spikes.append(lif(x_t))
        lif.mem = lif.mem.clamp(-100, 100)
    assert torch.equal(torch.stack(spikes), expected)
    assert 0 < expected.mean() < 1


def test_the_entries_for_the_other_states_go_with_the_list():
    """snnTorch's ``SpikingNeuron.init()`` forgets every neuron of the process."""
    before = snn.SpikingNeuron.instances
    try:
        snn.SpikingNeuron.init()
        lif, plain = build(LTCLeaky), snn.Leaky(0.9, init_hidden=True)
        entries = snn.SpikingNeuron.instances
        assert [isinstance(entry, snn.Leaky) for entry in entries] == [True] * 4
        assert {entry.mem is plain.mem for entry in entries} == {True, False}
        warm(lif)
        assert all(entry.reset_mechanism == "zero" for entry in entries[:3])  # all else is the neuron's
        assert {id(entry.mem) for entry in entries[:3]} == {id(lif.mem), id(lif.spk), id(lif.b)}
    finally:
        snn.SpikingNeuron.instances = before


def test_a_given_state_keeps_its_gradient_beside_a_detached_membrane():
    """A learned initial adaptation, for instance."""
    lif, x = LTCLeaky(linear_features=N), sequence(2)
    lif(x[0])
    b = torch.full((4, N), 0.1, requires_grad=True)
    spk, _ = lif(x[1], lif.mem.detach(), b=b)
    spk.sum().backward()
    assert 0 < spk.mean() < 1
    assert b.grad.abs().max() > 0


@pytest.mark.parametrize("form", SPIKING)
def test_passing_the_state_equals_keeping_it(form):
    kept, x = build(form, output=True), sequence()
    passed = form(linear_features=N)
    passed.load_state_dict(kept.state_dict())
    states = list(passed.reset_mem()) if form is RLTCLeaky else [passed.reset_mem()]
    for x_t in x:
        spk, mem = passed(x_t, *states)
        states = [spk, mem] if form is RLTCLeaky else [mem]
        assert all(map(torch.equal, (spk, mem), kept(x_t)))
    assert torch.equal(passed.b, kept.b)
    assert 0 < spk.mean() < 1


@pytest.mark.parametrize("name", ["mem", "spk", "b"])
@pytest.mark.parametrize("form", SPIKING)
def test_every_state_can_be_passed_and_matters(form, name):
    lif, x = form(linear_features=N), sequence(3)
    lif(x[0])
    before = {"mem": lif.mem, "spk": lif.spk, "b": lif.b}
    outcomes = []
    for value in (before[name], before[name] + 1):
        lif(x[1], **{**before, name: value})
        outcomes.append(torch.cat([lif.mem, lif.b]))
    assert torch.equal(outcomes[0], torch.cat([lif(x[1], **before)[1], lif.b]))
    assert not torch.equal(*outcomes)


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_batch_size_starts_over(form):
    lif, x = build(form), sequence(batch=3)
    fresh = run(lif, x)
    warm(lif)
    assert torch.equal(run(lif, x), fresh)


def test_a_membrane_of_another_shape_is_replaced_as_in_leaky():
    lif, x = LTCLeaky(linear_features=N), sequence(1)[0]
    expected = lif(x)[1]
    lif.reset_mem()
    assert torch.equal(lif(x, torch.ones(1))[1], expected)


@pytest.mark.parametrize("way", RESETS)
def test_random_initial_state_is_drawn_anew(way):
    lif, x = LTCLeaky(linear_features=N, init_hidden=True, init_state="random"), torch.zeros(4, N)
    nn.init.constant_(lif.mem_gate.bias, -50.0)  # closed, so that the membrane shows where it started
    starts = []
    for _ in range(2):
        RESETS[way](lif)
        lif(x)
        starts.append(lif.mem)
    assert not torch.equal(*starts)
    lif.reset_mem()
    assert 0 <= lif.mem.min() < lif.mem.max() < 1
    assert lif.b.unique().tolist() == pytest.approx([0.1])
    assert not lif.spk.any()


def test_carries_over_without_reset_whether_hidden_or_not():
    x = sequence(1)[0] / 8
    for init_hidden in (True, False):
        lif = LTCLeaky(linear_features=N, init_hidden=init_hidden, output=True)
        assert not torch.equal(lif(x)[1], lif(x)[1])


def test_inference_then_training():
    lif, x = build(LTCLeaky), sequence()
    with torch.no_grad():
        run(lif, x)
    utils.reset(nn.Sequential(lif))
    run(lif, x).sum().backward()
    assert lif.mem_gate.weight.grad.abs().max() > 0
