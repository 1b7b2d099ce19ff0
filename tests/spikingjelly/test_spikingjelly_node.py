"""LTCLeaky and LTCIntegrator as SpikingJelly nodes: step modes, memories, precision, copies."""

import copy
import io
import pickle

import pytest
import torch
from spikingjelly.activation_based import base, functional, neuron, surrogate

from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky

T, B, N = 8, 4, 5
FLAT, MAP = (T, B, N), (T, 2, 3, 6, 6)


def run(node, x_seq):
    """Outputs of a node for a whole sequence, whatever its step mode."""
    return node(x_seq) if node.step_mode == "m" else torch.stack([node(x) for x in x_seq])


def twins(**options):
    """The same node in single-step and in multi-step mode."""
    single = LTCLeaky(step_mode="s", **options)
    multi = copy.deepcopy(single)
    multi.step_mode = "m"
    return single, multi


def assert_same_memories(a, b):
    for (name, left), right in zip(a.named_memories(), b.memories(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("v_reset", [0.0, -0.1, None])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (FLAT, {"linear_features": N}),
        (FLAT, {"linear_features": N, "gate": "elementwise"}),
        (MAP, {"conv2d_channels": 3, "kernel_size": 5}),
        (FLAT, {"linear_features": N, "surrogate_function": surrogate.ATan(), "detach_reset": True}),
    ],
)
def test_single_step_multi_step_and_slices_agree_bit_by_bit(shape, options, v_reset):
    single, multi = twins(v_reset=v_reset, **options)
    sliced, stepwise = copy.deepcopy(multi), copy.deepcopy(multi)
    x = torch.rand(shape)
    expected = run(single, x)
    assert 0 < expected.mean() < 1
    for node, found in [
        (multi, multi(x)),
        (sliced, torch.cat([sliced(x[:3]), sliced(x[3:4]), sliced(x[4:])])),
        (stepwise, torch.cat([stepwise(x[t : t + 1]) for t in range(T)])),
    ]:
        assert torch.equal(expected, found)
        assert_same_memories(single, node)


def test_gradients_agree_between_step_modes():
    single, multi = twins(linear_features=N)
    x = torch.rand(FLAT)
    grads = []
    for node in (single, multi):
        spikes = run(node, x)
        assert spikes.sum() > 0
        spikes.sum().backward()
        grads.append([parameter.grad for parameter in node.parameters()])
        assert all(grad.abs().sum() > 0 for grad in grads[-1])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_integrator_modes_agree_and_it_never_spikes():
    single = LTCIntegrator(linear_features=N)
    multi = copy.deepcopy(single)
    multi.step_mode = "m"
    x = torch.rand(FLAT)
    expected = run(single, x)
    assert torch.equal(expected, torch.cat([multi(x[:3]), multi(x[3:])]))
    assert torch.equal(expected[-1], multi.v)
    assert ((expected > 0) & (expected < 1)).all()
    expected.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in single.parameters())


def test_memories_are_numbers_until_the_first_input_and_after_a_reset():
    node = LTCLeaky(v_reset=-0.2)
    start = dict(node.named_memories())
    assert start == {"v": -0.2, "b": 0.0, "spike": 0.0}
    first = node(torch.rand(B, N))
    assert [tuple(memory.shape) for memory in node.memories()] == [(B, N)] * 3
    assert torch.equal(first, node.spike)
    functional.reset_net(node)
    assert dict(node.named_memories()) == start
    node(torch.rand(2, N))  # so the batch size is forgotten, too


@pytest.mark.parametrize("init_state", ["zeros", "random"])
def test_a_changed_batch_size_starts_every_memory_anew(init_state):
    node = LTCLeaky(init_state=init_state, v_reset=-0.2)
    for _ in range(3):
        node(torch.rand(B, N))
    x = torch.rand(2, N)
    v, b, spike = node.materialize_states((x,), tuple(node.memories()), "s")
    assert v.shape == b.shape == spike.shape == x.shape
    if init_state == "zeros":
        assert (v == -0.2).all()
        assert not b.any()
    else:
        assert ((v >= 0) & (v < 1)).all()
        assert v.unique().numel() > 1
        assert (b == 0.1).all()
    assert not spike.any()
    node(x)


def test_random_state_is_drawn_once_per_sequence():
    node = LTCLeaky(init_state="random", linear_features=N)
    x = torch.zeros(B, N)
    node(x)
    (v, *_) = node.materialize_states((x,), tuple(node.memories()), "s")
    assert v is node.v
    before = node.v
    functional.reset_net(node)
    node(x)
    assert not torch.equal(before, node.v)


def test_materialize_states_and_the_functional_step_are_pure():
    node = LTCLeaky(step_mode="m", linear_features=N)
    states = tuple(node.memories())
    x = torch.rand(FLAT)
    (spikes,), updated = node.functional_forward((x,), states)
    assert tuple(node.memories()) == states == (0.0, 0.0, 0.0)
    assert torch.equal(spikes, node(x))
    assert all(torch.equal(a, b) for a, b in zip(updated, node.memories(), strict=True))


def test_the_gradient_reaches_an_initial_state():
    node = LTCLeaky(linear_features=N)
    states = [torch.rand(B, N, requires_grad=True) for _ in range(3)]
    (spikes,), (v, _, _) = node.functional_forward((torch.rand(B, N),), tuple(states))
    (spikes + v).sum().backward()
    assert spikes.sum() > 0
    assert all(state.grad.abs().sum() > 0 for state in states)


@pytest.mark.parametrize("make", [LTCLeaky, LTCIntegrator])
def test_detach_cuts_the_past_but_not_the_output(make):
    node = make(linear_features=N)
    early = torch.rand(B, N, requires_grad=True)
    late = torch.rand(B, N, requires_grad=True)
    node(early)
    functional.detach_net(node)
    assert not any(memory.requires_grad for memory in node.memories())
    out = node(late)
    functional.detach_net(node)
    out.sum().backward()  # after the second detachment: what was returned keeps its graph
    assert early.grad is None
    assert late.grad.abs().sum() > 0


def test_store_v_seq_records_the_membrane_in_either_mode():
    single, multi = twins(linear_features=N, store_v_seq=True)
    x = torch.rand(FLAT)
    run(single, x)
    multi(x)
    assert multi.v_seq.shape == FLAT
    assert torch.equal(single.v_seq, multi.v_seq)
    assert torch.equal(multi.v_seq[-1], multi.v)
    functional.detach_net(multi)
    assert not multi.v_seq.requires_grad
    functional.reset_net(multi)
    assert multi.v_seq is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_everything_follows_the_dtype(dtype, mode):
    node = LTCLeaky(step_mode=mode, linear_features=N).to(dtype)
    out = run(node, torch.rand(FLAT, dtype=dtype))
    assert {out.dtype, *(memory.dtype for memory in node.memories())} == {dtype}
    assert out.sum() > 0


@pytest.mark.parametrize("make", [LTCLeaky, LTCIntegrator])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_the_state_stays_precise_under_autocast(make, mode):
    net = torch.nn.Sequential(torch.nn.Linear(N, N), make(step_mode=mode))
    x = torch.rand(FLAT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(x) if mode == "m" else torch.stack([net(step) for step in x])
    assert {memory.dtype for memory in net[1].memories()} == {torch.float32}
    out.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_copies_pickles_and_state_dicts():
    node = LTCLeaky(step_mode="m", linear_features=N)
    x = torch.rand(FLAT)
    with torch.no_grad():
        node(x)
    stream = io.BytesIO()
    torch.save(node, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(node),
        pickle.loads(pickle.dumps(node)),
        torch.load(stream, weights_only=False),
    ]
    expected = node(x)
    for other in copies:
        assert torch.equal(expected, other(x))
    assert not [key for key in node.state_dict() if "gate" not in key]
    loaded = LTCLeaky(step_mode="m")  # sizes come with the checkpoint
    loaded.load_state_dict(node.state_dict())
    functional.reset_net(node)
    assert torch.equal(node(x), loaded(x))


def test_which_base_class():
    assert issubclass(LTCLeaky, neuron.BaseNode)
    assert not issubclass(LTCIntegrator, neuron.BaseNode)  # its output is no spike train
    assert issubclass(LTCIntegrator, base.MemoryModule)
