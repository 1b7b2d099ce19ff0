"""Every option of the SpikingJelly neurons does something, and impossible ones are refused."""

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from fptt_plugin.errors import ConfigurationError, ConfigurationTypeError
from fptt_plugin.functional import MultiGaussian
from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky

T, B, N = 8, 4, 5
FLAT = (T, B, N)


def test_a_spike_resets_to_rest_or_subtracts_the_threshold_it_crossed():
    x = torch.tensor([[0.0, 1.0]])
    free = LTCIntegrator(linear_features=2)
    membranes = {}
    for v_reset in (0.0, -0.3, None):
        node = LTCLeaky(v_reset=v_reset, linear_features=2)
        node.mem_gate.load_state_dict(free.mem_gate.state_dict())
        node.v = 0.05  # a number fills the shape of the next input
        assert node(x).tolist() == [[0.0, 1.0]]
        membranes[v_reset] = node.v.tolist()[0]
    free.v = 0.05
    silent, fired = free(x).tolist()[0]
    assert membranes[0.0] == [silent, 0.0]
    assert membranes[-0.3] == pytest.approx([silent, -0.3])
    assert membranes[None] == pytest.approx([silent, fired - 0.1])


@pytest.mark.parametrize(
    "changed",
    [
        {"v_threshold": 0.4},
        {"v_reset": None},
        {"v_reset": -0.5},
        {"beta": 0.9},
        {"adaptation": 0.0},
        {"gate": "elementwise"},
        {"init_state": "random"},
    ],
    ids=str,
)
def test_every_option_of_the_dynamics_changes_the_spikes(changed):
    def spikes(**options):
        torch.manual_seed(3)
        return LTCLeaky(step_mode="m", **{"linear_features": N, **options})(x)

    x = torch.rand(20, B, N)
    assert not torch.equal(spikes(), spikes(**changed))


@pytest.mark.parametrize("changed", [{"detach_reset": True}, {"surrogate_function": surrogate.ATan()}], ids=str)
def test_options_of_the_gradient_change_it_and_nothing_else(changed):
    x = torch.rand(FLAT)
    spikes, grads = [], []
    for options in ({}, changed):
        torch.manual_seed(3)
        node = LTCLeaky(step_mode="m", linear_features=N, **options)
        spikes.append(node(x))
        spikes[-1].sum().backward()
        grads.append(node.mem_gate.weight.grad)
    assert torch.equal(*spikes)
    assert not torch.allclose(*grads)


def test_learn_beta_false_freezes_the_gates_also_when_lazy():
    node = LTCLeaky(learn_beta=False)
    node(torch.rand(B, N))
    assert [parameter.requires_grad for parameter in node.parameters()] == [False] * 4
    assert not any(parameter.requires_grad for parameter in LTCIntegrator(learn_beta=False).parameters())


def test_defaults_are_the_papers():
    node = LTCLeaky()
    assert (node.v_threshold, node.v_reset, node.adaptation, node.step_mode) == (0.1, 0.0, 1.8, "s")
    assert isinstance(node.surrogate_function, MultiGaussian)
    assert torch.sigmoid(LTCLeaky(beta=0.9, linear_features=2).mem_gate.bias).tolist() == pytest.approx([0.1, 0.1])
    assert "v_threshold=0.1" in repr(node)
    assert "adaptation=1.8" in repr(node)


@pytest.mark.parametrize("make", [LTCLeaky, LTCIntegrator])
def test_tau_of_a_lifnode_sets_the_decay(make):
    node = make(tau=10.0, decay_input=True, linear_features=2)
    assert torch.equal(node.mem_gate.bias, make(beta=0.9, linear_features=2).mem_gate.bias)
    default = neuron.LIFNode().tau
    assert torch.equal(make(tau=default, linear_features=2).mem_gate.bias, make(linear_features=2).mem_gate.bias)


@pytest.mark.parametrize(
    "arguments", [(4.0,), (4.0, True), (4.0, True, 0.5, None, surrogate.ATan(), True, "m", True)], ids=len
)
def test_positional_arguments_of_a_lifnode_are_refused_with_the_line_to_write(arguments):
    """The first argument is tau there; taken for the threshold it would silence the layer."""
    with pytest.raises(ConfigurationTypeError) as caught:
        LTCLeaky(*arguments)
    line = caught.value.remedy.removeprefix("pass ").partition(" if ")[0]
    stock = neuron.LIFNode(*arguments)
    node = eval(f"LTCLeaky({line}, linear_features=2)", {"LTCLeaky": LTCLeaky, "ATan": surrogate.ATan})
    assert torch.sigmoid(-node.mem_gate.bias).tolist() == pytest.approx([1 - 1 / stock.tau] * 2)
    if len(arguments) > 2:
        for option in ("v_threshold", "v_reset", "detach_reset", "step_mode", "store_v_seq"):
            assert getattr(node, option) == getattr(stock, option)
        assert isinstance(node.surrogate_function, surrogate.ATan)


def test_an_input_that_is_not_averaged_is_refused_before_the_positions():
    for arguments, options in (((2.0, False), {}), ((), {"decay_input": False})):
        with pytest.raises(ConfigurationError, match="leave decay_input out"):
            LTCLeaky(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"v_threshold": torch.tensor(0.1)}, ConfigurationTypeError, "v_threshold must be a number"),
        ({"v_threshold": float("nan")}, ConfigurationError, "v_threshold must be finite"),
        ({"v_reset": "zero"}, ConfigurationTypeError, "v_reset must be a number"),
        ({"surrogate_function": surrogate.ATan}, ConfigurationTypeError, "surrogate_function must be callable"),
        ({"detach_reset": 1}, ConfigurationTypeError, "detach_reset must be True or False"),
        ({"store_v_seq": "torch"}, ConfigurationTypeError, "store_v_seq must be True or False"),
        ({"step_mode": "x"}, ConfigurationError, "step_mode='x' is unknown"),
        ({"adaptation": None}, ConfigurationTypeError, "adaptation must be a number"),
        ({"beta": 1.0}, ConfigurationError, "beta must lie strictly between 0 and 1"),
        ({"gate": "foo"}, ConfigurationError, "gate='foo' is unknown"),
        ({"linear_features": 3, "conv2d_channels": 3}, ConfigurationTypeError, "not both"),
        ({"conv2d_channels": 3, "kernel_size": 4}, ConfigurationError, "must be odd"),
        ({"init_state": "ones"}, ConfigurationError, "init_state='ones' is unknown"),
        ({"tau": 1.0}, ConfigurationError, "greater than 1"),
        ({"tau": "2"}, ConfigurationTypeError, "tau must be a number"),
        ({"tau": 2.0, "beta": 0.5}, ConfigurationTypeError, "pass one of them"),
    ],
    ids=str,
)
def test_impossible_options_are_refused_with_the_reason(options, error, message):
    with pytest.raises(error, match=message):
        LTCLeaky(**options)


def test_integrator_refuses_impossible_options():
    with pytest.raises(ConfigurationError, match="step_mode='x'"):
        LTCIntegrator(step_mode="x")
    with pytest.raises(ConfigurationError, match="beta"):
        LTCIntegrator(beta=0.0)


def test_a_sequence_given_in_single_step_mode_names_the_rank():
    with pytest.raises(ConfigurationError, match=r"no default gate for an input of shape \(8, 4, 5\)"):
        LTCLeaky()(torch.rand(FLAT))
