"""Decays at the start of training: one number, one per neuron, or time constants spread over a range."""

import math

import pytest
import torch
from torch import nn

from fptt_plugin import spikingjelly as sj
from fptt_plugin.errors import ConfigurationError, ConfigurationTypeError
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky

NEURONS = [
    lambda **options: LTCLeaky(init_hidden=True, **options),
    lambda **options: RLTCLeaky(init_hidden=True, **{"linear_features": 4000, **options}),
    lambda **options: sj.LTCLeaky(**options),
]
READOUTS = [lambda **options: LTCIntegrator(init_hidden=True, **options), lambda **options: sj.LTCIntegrator(**options)]


def tau(gate, *, decays):
    """Time constants 1 / (1 - decay), in steps."""
    value = torch.sigmoid(gate.bias.detach().double())
    return 1 / (1 - value if decays else value)


def assert_log_uniform(found, low, high):
    assert low * 0.999 <= found.min() < low * 1.05
    assert high / 1.05 < found.max() <= high * 1.001
    uniform = (found.log() - math.log(low)) / (math.log(high) - math.log(low))
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs((uniform < share).double().mean() - share) < 0.03


@pytest.mark.parametrize("build", [*NEURONS, *READOUTS])
def test_a_pair_spreads_membrane_time_constants_log_uniformly(build):
    neuron = build(linear_features=4000, beta=(0.5, 0.99))
    assert_log_uniform(tau(neuron.mem_gate, decays=False), 2, 100)


@pytest.mark.parametrize("build", NEURONS)
def test_a_pair_spreads_the_adaptations_and_leaves_the_membrane_alone(build):
    neuron = build(linear_features=4000, adaptation_beta=(0.9, 0.995))
    assert_log_uniform(tau(neuron.adp_gate, decays=True), 10, 200)
    assert (neuron.mem_gate.bias == 0).all()


@pytest.mark.parametrize("build", NEURONS)
def test_one_decay_per_neuron(build):
    decays = torch.tensor([0.3, 0.6, 0.9])
    neuron = build(linear_features=3, beta=decays, adaptation_beta=1 - decays)
    assert torch.allclose(tau(neuron.mem_gate, decays=False), (1 / (1 - decays)).double())
    assert torch.allclose(tau(neuron.adp_gate, decays=True), (1 / decays).double())


def test_tau_is_the_same_in_spikingjellys_terms():
    assert_log_uniform(tau(sj.LTCLeaky(linear_features=4000, tau=(2.0, 100)).mem_gate, decays=False), 2, 100)
    each = torch.tensor([1.5, 3.0, 20.0])
    found = tau(sj.LTCIntegrator(linear_features=3, tau=each).mem_gate, decays=False)
    assert torch.allclose(found, each.double(), rtol=1e-5)


@pytest.mark.parametrize("build", [NEURONS[0], NEURONS[2]])
def test_sizes_may_come_from_the_first_input_and_a_new_draw_differs(build):
    neuron = build(beta=(0.5, 0.99), adaptation_beta=(0.5, 0.9))
    neuron(torch.randn(2, 50))
    first = neuron.mem_gate.bias.detach().clone()
    assert len(first.unique()) > 40
    assert len(neuron.adp_gate.bias.unique()) > 40
    neuron.mem_gate.reset_parameters()
    assert not torch.equal(first, neuron.mem_gate.bias)
    maps = build(beta=(0.5, 0.99), conv2d_channels=6)
    assert len(maps.mem_gate.bias.unique()) == 6


@pytest.mark.parametrize("build", NEURONS)
def test_the_spread_changes_what_the_neuron_remembers(build):
    def kept(**options):
        torch.manual_seed(0)
        neuron = build(linear_features=4, threshold=1e6, **options) if build is not NEURONS[2] else build(
            linear_features=4, v_threshold=1e6, **options
        )  # fmt: skip
        for parameter in (p for name, p in neuron.named_parameters() if "weight" in name or "recurrent" in name):
            nn.init.zeros_(parameter)
        neuron(torch.ones(1, 4))
        for _ in range(10):
            neuron(torch.zeros(1, 4))
        return neuron.mem if hasattr(neuron, "mem") else neuron.v

    slow, fast = kept(beta=torch.full((4,), 0.99)), kept(beta=0.5)
    assert (slow > 5 * fast).all()


@pytest.mark.parametrize("name", ["beta", "adaptation_beta"])
@pytest.mark.parametrize("build", NEURONS)
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        ((0.9, 0.5), ConfigurationError, r"={value}.*\(0.5, 0.9\)"),
        ((0.0, 0.5), ConfigurationError, "strictly between 0 and 1"),
        ((0.5, 1.0), ConfigurationError, "strictly between 0 and 1"),
        ((0.1, 0.2, 0.3), ConfigurationTypeError, r"tuple of 3.*torch.tensor"),
        (torch.tensor([0.1, 0.2, 0.3]), ConfigurationError, "3 entries for a gate of 2 neurons"),
    ],
)
def test_impossible_decays_are_refused(build, name, value, error, words):
    with pytest.raises(error, match=words.replace("={value}", f"{name}=")):
        build(**{"linear_features": 2, name: value})


def test_impossible_taus_are_refused():
    for value in ((1.0, 5.0), torch.tensor([3.0, 0.5]), 1):
        with pytest.raises(ConfigurationError, match="greater than 1"):
            sj.LTCLeaky(tau=value)
    with pytest.raises(ConfigurationError, match="ends exchanged"):
        sj.LTCLeaky(tau=(5.0, 2.0))
