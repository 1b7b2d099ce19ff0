"""The multi-Gaussian surrogate: its values, its edges, and its use as either library's surrogate."""

import copy
import math
import pickle

import pytest
import torch

from fptt_plugin.functional import MultiGaussian, heaviside, multi_gaussian

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(v, mean, std):
    return math.exp(-((v - mean) ** 2) / (2 * std**2)) / math.sqrt(2 * math.pi * std**2)


def oracle(v, sigma=0.3, scale=6.0, height=0.15, gamma=0.5):
    lobes = normal(v, sigma, scale * sigma) + normal(v, -sigma, scale * sigma)
    return gamma * ((1 + height) * normal(v, 0, sigma) - height * lobes)


@pytest.mark.parametrize("shape", [{}, {"sigma": 0.5}, {"scale": 3.0}, {"height": 0.4}, {"gamma": 1.0}], ids=str)
def test_gradient_is_the_sum_of_three_normal_densities(shape):
    v = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(MultiGaussian(**shape)(v).sum(), v)
    assert gradient.tolist() == pytest.approx([oracle(entry, **shape) for entry in v.tolist()], abs=1e-12)
    assert gradient.min() < 0 < gradient.max()  # the side lobes are negative
    assert bool(shape) is not torch.allclose(gradient, multi_gaussian(v.detach()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strict_threshold_and_dtype(dtype):
    v = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    spikes = MultiGaussian()(v)
    spikes.sum().backward()
    assert spikes.tolist() == heaviside(v).tolist() == [0, 0, 1]
    assert spikes.dtype == v.grad.dtype == heaviside(v).dtype == dtype
    assert v.grad.tolist() == pytest.approx([oracle(entry) for entry in v.tolist()], abs=0.01)
    assert v.grad[1] > 0.7


def test_copies_keep_the_shape():
    surrogate = MultiGaussian(sigma=0.2, scale=4.0, height=0.3, gamma=0.7)
    for twin in (pickle.loads(pickle.dumps(surrogate)), copy.deepcopy(surrogate)):
        assert repr(twin) == repr(surrogate) == "MultiGaussian(sigma=0.2, scale=4.0, height=0.3, gamma=0.7)"


@pytest.mark.parametrize("width", ["sigma", "scale"])
def test_a_width_must_be_positive(width):
    with pytest.raises(ValueError, match="must be > 0"):
        MultiGaussian(**{width: 0.0})


def test_compiles_without_a_graph_break():
    explanation = torch._dynamo.explain(MultiGaussian())(torch.randn(4, requires_grad=True))
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)


def test_as_spike_grad_of_snntorch():
    pytest.importorskip("snntorch.utils")  # a folder of that name beside this one is no proof of the library
    import snntorch as snn

    x = torch.randn(8, 16, requires_grad=True)
    spikes, _ = snn.Leaky(beta=0.9, spike_grad=MultiGaussian())(2 * x)
    spikes.sum().backward()
    assert 0 < spikes.mean() < 1
    assert torch.allclose(x.grad, 2 * multi_gaussian(2 * x.detach() - 1), atol=1e-6)


def test_as_surrogate_function_of_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    node = copy.deepcopy(neuron.LIFNode(surrogate_function=MultiGaussian(), v_reset=None))
    x = torch.randn(8, 16, requires_grad=True)
    spikes = node(4 * x)
    spikes.sum().backward()
    assert 0 < spikes.mean() < 1
    assert torch.allclose(x.grad, 2 * multi_gaussian(2 * x.detach() - 1), atol=1e-6)  # tau = 2 halves the input


def test_vmap_and_derivatives_within_it():
    spike, v = MultiGaussian(), torch.randn(3, 5, dtype=torch.float64)
    first = torch.func.grad(lambda u: spike(u).sum())
    second = torch.func.grad(lambda u: first(u).sum())
    assert torch.equal(torch.vmap(spike)(v), heaviside(v))
    assert torch.allclose(torch.vmap(first)(v), multi_gaussian(v))
    leaf = v.clone().requires_grad_()
    assert torch.allclose(torch.vmap(second)(v), torch.autograd.grad(multi_gaussian(leaf).sum(), leaf)[0])
