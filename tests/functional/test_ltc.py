"""The neuron's equations against a loop over scalars, finite differences, and every option turned."""

import math

import numpy as np
import pytest
import torch

from fptt_plugin.functional import LTCState, ltc_step, membrane_step, multi_gaussian
from fptt_plugin.functional.ltc import initial_state

SHAPE = (3, 5)


def sigmoid(value):
    return 1.0 / (1.0 + math.exp(-value))


def scalar_neuron(x, u, s, b, mem_gate, adp_gate, threshold=0.1, adaptation=1.8):
    """Eq. 8-9 for one neuron with the paper's reset to zero, in plain floats."""
    b = sigmoid(adp_gate) * b + (1 - sigmoid(adp_gate)) * s
    theta = threshold + adaptation * b
    u = u + sigmoid(mem_gate) * (x - u)
    s = 1.0 if u > theta else 0.0
    return (0.0 if s else u), s, b


def smooth(v):
    """Differentiable stand-in for the spike, so that finite differences exist."""
    return torch.sigmoid(4 * v)


def drive(steps=12, dtype=torch.float64):
    """Input and gate logits of a sequence that makes some neurons fire and some not."""
    return 2 * torch.randn(steps, *SHAPE, dtype=dtype), torch.randn(2, steps, *SHAPE, dtype=dtype)


def unroll(x, gates, **options):
    """Runs the sequence; returns spikes and states of every step."""
    state, spikes, states = initial_state(torch.zeros_like(x[0])), [], []
    for x_t, mem_gate, adp_gate in zip(x, *gates, strict=True):
        spk, state = ltc_step(x_t, state, mem_gate, adp_gate, **options)
        spikes.append(spk)
        states.append(state)
    return torch.stack(spikes), LTCState(*(torch.stack(field) for field in zip(*states, strict=True)))


def test_equals_a_loop_over_scalars():
    x, gates = drive()
    spikes, states = unroll(x, gates)
    for neuron in np.ndindex(SHAPE):
        u = s = b = 0.0
        for t in range(len(x)):
            at = (t, *neuron)
            u, s, b = scalar_neuron(x[at].item(), u, s, b, gates[0][at].item(), gates[1][at].item())
            assert (states.u[at].item(), states.b[at].item()) == pytest.approx((u, b), abs=1e-12)
            assert spikes[at].item() == states.s[at].item() == s
    assert 0 < spikes.mean() < 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reset": "subtract"},
        {"reset": "none"},
        {"reset_delay": False, "detach_reset": False, "u_rest": -0.3},
        {"adaptation": 0.5, "threshold": torch.linspace(0.1, 0.5, 5, dtype=torch.float64)},
    ],
    ids=str,
)
def test_gradient_is_that_of_finite_differences(options):
    x, gates = drive(steps=3)
    inputs = [tensor.clone().requires_grad_() for tensor in (x, *gates)]

    def run(x, mem_gate, adp_gate):
        spikes, states = unroll(x, (mem_gate, adp_gate), spike_fn=smooth, **options)
        return spikes, *states

    assert torch.autograd.gradcheck(run, inputs)
    gradients = torch.autograd.grad(sum(out.sum() for out in run(*inputs)), inputs)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("reset", ["zero", "subtract", "none"])
def test_gradient_reaches_input_and_gates_through_real_spikes(reset):
    x, gates = drive()
    inputs = [tensor.clone().requires_grad_() for tensor in (x, *gates)]
    spikes, _ = unroll(inputs[0], inputs[1:], reset=reset)
    gradients = torch.autograd.grad(spikes[-1].sum(), inputs)
    assert 0 < spikes.mean() < 1
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.8},
        {"adaptation": 0.0},
        {"u_rest": 0.05},
        {"reset": "subtract"},
        {"reset": "none"},
        {"reset_delay": True},
        {"quantize": lambda u: (4 * u).round() / 4},
        {"inhibition": True},
        {"spike_fn": smooth},
    ],
    ids=lambda options: next(iter(options)),
)
def test_option_changes_the_dynamics(options):
    x, gates = drive()
    spikes, states = unroll(x, gates)
    other_spikes, other_states = unroll(x, gates, **options)
    assert 0 < spikes.mean() < 1
    assert 0 < other_spikes.mean() < 1
    assert not torch.equal(states.u, other_states.u)


@pytest.mark.parametrize(("reset", "after"), [("zero", -0.3), ("subtract", 0.05), ("none", 0.6)])
def test_membrane_after_a_spike(reset, after):
    """u = x / 2 = 0.6 crosses theta = 0.1 + 1.8 * 0.25 = 0.55; a second neuron stays below, at 0.1."""
    x = torch.tensor([[1.2, 0.2]], dtype=torch.float64)
    zeros, b = torch.zeros_like(x), torch.full_like(x, 0.5)
    spikes, state = ltc_step(x, LTCState(zeros, zeros, b), zeros, zeros, reset=reset, u_rest=-0.3)
    assert spikes.tolist() == [[1.0, 0.0]]
    assert state.u[0].tolist() == pytest.approx([after, 0.1])


@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_delayed_reset_acts_at_the_start_of_the_next_step(reset):
    x, gates = drive(steps=1)
    zeros = torch.zeros_like(x[0])
    adapted = LTCState(zeros, zeros, zeros + 0.2)  # so that the threshold to subtract is not the resting one
    options = {"reset": reset, "u_rest": 0.2}
    spikes, now = ltc_step(x[0], adapted, *gates[:, 0], **options)
    late_spikes, late = ltc_step(x[0], adapted, *gates[:, 0], reset_delay=True, **options)
    assert 0 < spikes.mean() < 1
    assert torch.equal(late_spikes, spikes)
    assert not torch.equal(late.u, now.u)
    # A closed gate lets nothing in: the next step shows the membrane after its reset.
    closed = torch.full_like(zeros, -1e3)
    _, later = ltc_step(zeros, late, closed, zeros, reset_delay=True, **options)
    assert torch.allclose(later.u, now.u)


def test_delayed_reset_is_detached_and_detach_reset_cuts_the_same_path():
    """u = x / 2 fires and becomes (1 - s) u: du/dx is (1 - s) / 2 - u ds/dx, where cutting drops the last term."""
    x, zeros = torch.ones(1, 1, dtype=torch.float64, requires_grad=True), torch.zeros(1, 1, dtype=torch.float64)

    def slope(**options):
        spikes, state = ltc_step(x, initial_state(zeros), zeros, zeros, **options)
        assert spikes.item() == 1
        return torch.autograd.grad(state.u, x)[0].item()

    assert slope() == pytest.approx(-0.5 * 0.5 * multi_gaussian(torch.tensor(0.4)).item())
    assert slope(detach_reset=True) == 0
    assert slope(reset_delay=True) == 0.5  # not yet reset
    s = torch.ones_like(zeros).requires_grad_()
    _, state = ltc_step(x, LTCState(zeros + 0.5, s, zeros), zeros, zeros, reset_delay=True)
    assert torch.autograd.grad(state.u, s, allow_unused=True)[0] is None


def test_inhibition_lets_the_neuron_farthest_above_its_threshold_fire():
    x = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.1]])
    zeros = torch.zeros_like(x)
    for threshold, winner in ((0.1, [0, 1, 0]), (torch.tensor([0.1, 1.4, 0.1]), [0, 0, 1])):
        spikes, state = ltc_step(x, initial_state(zeros), zeros, zeros, threshold=threshold, inhibition=True)
        assert spikes.tolist() == [winner, [0, 0, 0]]
        assert torch.equal(state.s, spikes)


def test_state_keeps_its_precision_when_the_surrogate_does_not():
    x = torch.ones(SHAPE, dtype=torch.bfloat16)
    zeros = torch.zeros_like(x)
    spikes, state = ltc_step(x, initial_state(zeros), zeros, zeros, spike_fn=lambda v: (v > 0).float())
    assert {spikes.dtype, state.u.dtype, state.s.dtype, state.b.dtype} == {torch.bfloat16}


def test_unknown_reset_is_refused_with_the_choices():
    zeros = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="'zero', 'subtract', 'none'"):
        ltc_step(zeros, initial_state(zeros), zeros, zeros, reset="hard")


def test_membrane_step_moves_from_the_old_value_to_the_input_as_the_gate_opens():
    u, x = torch.tensor([0.2]), torch.tensor([1.0])
    closed, half, opened = (membrane_step(x, u, torch.tensor([gate])).item() for gate in (-50.0, 0.0, 50.0))
    assert (closed, half, opened) == pytest.approx((0.2, 0.6, 1.0))


@pytest.mark.parametrize("kind", ["zeros", "random"])
def test_initial_state_shares_no_memory(kind):
    state = initial_state(torch.zeros(SHAPE), kind)
    assert len({field.data_ptr() for field in state}) == 3
    assert torch.equal(state.b, torch.full(SHAPE, 0.0 if kind == "zeros" else 0.1))
    assert bool(state.u.unique().numel() > 1) is (kind == "random")
