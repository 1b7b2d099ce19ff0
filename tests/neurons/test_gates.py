"""Gates: shapes, sizes given or inferred, initial bias, and lazy gates in every order of use."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch.nn.parameter import UninitializedParameter

from fptt_plugin.errors import ConfigurationError, ConfigurationTypeError
from fptt_plugin.neurons import (
    ConvGate,
    DenseGate,
    ElementwiseGate,
    GateOptions,
    LazyGate,
    infer_kind,
    make_gate,
)

# kind, shape of the input, class, number of neurons or channels
FORMS = [
    ("dense", (4,), DenseGate, 4),
    ("dense", (2, 4), DenseGate, 4),
    ("dense", (2, 3, 4), DenseGate, 4),
    ("conv", (2, 3, 5, 6), ConvGate, 3),
    ("elementwise", (4,), ElementwiseGate, 4),
    ("elementwise", (2, 4), ElementwiseGate, 4),
    ("elementwise", (2, 3, 7), ElementwiseGate, 3),
    ("elementwise", (2, 3, 5, 6), ElementwiseGate, 3),
]


def oracle(gate, x, state):
    """The gate's logit, written another way."""
    if isinstance(gate, DenseGate):
        into_x, into_state = gate.weight.chunk(2, dim=1)
        return x @ into_x.T + state @ into_state.T + gate.bias
    if isinstance(gate, ConvGate):
        return torch.nn.functional.conv2d(x + state, gate.weight, gate.bias, padding="same")
    columns = [-1 if axis == min(x.dim() - 1, 1) else 1 for axis in range(x.dim())]
    return sum(w.reshape(columns) * v for w, v in ((gate.weight[0], x), (gate.weight[1], state), (gate.bias, 1.0)))


def lazily(kind, x, **options):
    gate = make_gate(kind, None, **options)
    gate(x, x)
    return gate


@pytest.mark.parametrize("size", ["given", "inferred"])
@pytest.mark.parametrize(("kind", "shape", "form", "features"), FORMS)
def test_form_shape_and_values(kind, shape, form, features, size):
    x, state = torch.randn(2, *shape)
    gate = make_gate(kind, features if size == "given" else None, bias=torch.randn(features))
    logit = gate(x, state)
    assert type(gate) is form
    assert logit.shape == x.shape
    assert torch.allclose(logit, oracle(gate, x, state), atol=1e-6)
    assert not torch.equal(gate(x, state), gate(x, -state))
    logit.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in gate.parameters())


@pytest.mark.parametrize(("shape", "form"), [((4,), DenseGate), ((2, 4), DenseGate), ((2, 3, 5, 6), ConvGate)])
def test_auto_takes_the_papers_form(shape, form):
    assert type(lazily("auto", torch.randn(shape))) is form


@pytest.mark.parametrize("size", [5, (3, 5), np.int64(5)])
def test_kernel_size(size):
    gate = lazily("conv", torch.randn(2, 3, 8, 9), kernel_size=size)
    assert gate.weight.shape[2:] == (size if isinstance(size, tuple) else (size, size))
    assert gate(*torch.randn(2, 2, 3, 8, 9)).shape == (2, 3, 8, 9)
    assert f"kernel_size={tuple(gate.weight.shape[2:])}" in repr(gate)


@pytest.mark.parametrize(
    "beta", [0.9, torch.tensor(0.9), torch.tensor([0.5, 0.9, 0.99]), torch.tensor([0.5, 0.9, 0.99]).view(3, 1, 1)]
)
@pytest.mark.parametrize(("kind", "shape"), [("dense", (2, 3)), ("conv", (2, 3, 4, 4)), ("elementwise", (2, 3, 4, 4))])
@pytest.mark.parametrize("features", [3, None])
def test_beta_becomes_the_bias_of_the_membranes_gate_alone(beta, kind, shape, features):
    membrane, adaptation = GateOptions(beta, kind, features).build(2)
    x = torch.zeros(shape)
    start = torch.sigmoid(membrane(x, x).detach()).transpose(0, 1).flatten(1)[:, 0]  # kappa per neuron or channel
    assert torch.allclose(start, 1 - torch.as_tensor(beta).flatten().expand(3))
    assert torch.equal(adaptation(x, x), x)


def test_a_new_draw_keeps_the_initial_bias():
    gate = make_gate("dense", 3, bias=torch.tensor([1.0, 2.0, 3.0]))
    weight = gate.weight.detach().clone()
    torch.nn.init.zeros_(gate.bias)
    gate.reset_parameters()
    assert not torch.equal(gate.weight, weight)
    assert gate.bias.tolist() == [1.0, 2.0, 3.0]


def test_learn_false_freezes_also_what_has_no_size_yet():
    for learn in (True, False):
        gates = GateOptions(learn=learn).build(2)
        for gate in gates:
            gate(*torch.randn(2, 2, 3))
        assert {parameter.requires_grad for gate in gates for parameter in gate.parameters()} == {learn}


@pytest.mark.parametrize("kind", ["auto", "elementwise"])
def test_an_optimizer_built_before_the_first_batch_trains_the_same_parameters(kind):
    gate = make_gate(kind, None)
    before = list(gate.parameters())
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    x, state = torch.randn(2, 2, 4)
    gate(x, state).square().sum().backward()
    drawn = [parameter.detach().clone() for parameter in before]
    optimizer.step()
    assert all(one is other for one, other in zip(before, gate.parameters(), strict=True))
    assert all((after != was).any() for after, was in zip(before, drawn, strict=True))


def through_torch_save(gate):
    buffer = io.BytesIO()
    torch.save(gate, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, through_torch_save, lambda gate: pickle.loads(pickle.dumps(gate))])
@pytest.mark.parametrize("kind", ["auto", "dense", "conv", "elementwise"])
def test_copies_before_and_after_the_first_batch(kind, copier):
    x = torch.randn(2, 3, 4, 4) if kind == "conv" else torch.randn(2, 3)
    lazy = make_gate(kind, None, bias=torch.tensor([1.0, 2.0, 3.0]))
    twin = copier(lazy)
    assert type(twin) is LazyGate
    assert twin(x, x).shape == x.shape
    assert twin.bias.tolist() == [1.0, 2.0, 3.0]
    assert isinstance(lazy.weight, UninitializedParameter)  # the original still waits
    lazy(x, x)
    assert torch.equal(copier(lazy)(x, x), lazy(x, x))


@pytest.mark.parametrize(("kind", "shape"), [("auto", (2, 3)), ("auto", (2, 3, 4, 4)), ("elementwise", (2, 3))])
def test_state_dict_of_a_sized_gate_loads_into_one_without_size(kind, shape):
    x = torch.randn(shape)
    sized, lazy = lazily(kind, x, bias=2.0), make_gate(kind, None)
    before = list(lazy.parameters())
    lazy.load_state_dict(sized.state_dict())
    assert torch.equal(lazy(x, x), sized(x, x))
    assert type(lazy) is type(sized)
    assert all(one is other for one, other in zip(before, lazy.parameters(), strict=True))


def test_state_dict_of_a_gate_without_size_loads_before_the_first_batch():
    buffer = io.BytesIO()
    torch.save(make_gate("auto", None).state_dict(), buffer)
    buffer.seek(0)
    gate = make_gate("auto", None)
    gate.load_state_dict(torch.load(buffer, weights_only=False))
    assert gate(*torch.randn(2, 2, 3)).shape == (2, 3)


@pytest.mark.parametrize("size", [3, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_may_change_before_the_first_batch(size, dtype):
    by_name = {torch.float64: "double", torch.bfloat16: "bfloat16"}[dtype]
    for convert in (lambda gate: gate.to(dtype), lambda gate: getattr(gate, by_name)()):
        gate = convert(make_gate("dense", size))
        assert gate(*torch.randn(2, 2, 3, dtype=dtype)).dtype == gate.weight.dtype == dtype


def test_what_waits_says_so():
    assert repr(make_gate("auto", None)) == "LazyGate(kind='auto')"
    assert repr(make_gate("dense", 3)) == "DenseGate(features=3)"


@pytest.mark.parametrize("size", [(3, 5), 3])
@pytest.mark.parametrize("features", [2, None])
def test_even_kernels_are_refused(size, features):
    make_gate("conv", features, size)
    even = (size[0], 4) if isinstance(size, tuple) else 4
    with pytest.raises(ConfigurationError, match="must be odd"):
        make_gate("conv", features, even)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ConfigurationError, "'auto', 'dense', 'conv', 'elementwise'", {"gate": "spline"}),
        (ConfigurationError, "beta must lie strictly between 0 and 1", {"beta": 1.0}),
        (ConfigurationError, "beta must lie strictly", {"beta": torch.tensor([0.5, 0.0]), "linear_features": 2}),
        (ConfigurationError, "beta must lie strictly between 0 and 1", {"beta": float("nan")}),
        (ConfigurationError, "2 entries for a gate of 3", {"beta": torch.tensor([0.5, 0.6]), "linear_features": 3}),
        (ConfigurationTypeError, "not both", {"linear_features": 3, "conv2d_channels": 3, "kernel_size": 3}),
    ],
)
def test_impossible_options_are_refused(error, match, options):
    with pytest.raises(error, match=match):
        GateOptions(**options).build(2)


def test_a_bias_of_the_wrong_size_is_refused_at_every_call_of_a_lazy_gate():
    gate = make_gate("auto", None, bias=torch.zeros(2))
    for _ in range(2):  # a half-initialized gate would let the second call through
        with pytest.raises(ConfigurationError, match="2 entries for a gate of 3 neurons"):
            gate(*torch.randn(2, 5, 3))
    assert gate(*torch.randn(2, 5, 2)).shape == (5, 2)


def test_a_rank_without_default_is_refused_with_the_remedy():
    x = torch.randn(2, 3, 4)
    with pytest.raises(ConfigurationError, match=r"gate='dense'.*gate='elementwise'"):
        infer_kind(x)
    with pytest.raises(ConfigurationError, match="no default gate"):
        lazily("auto", x)


@pytest.mark.parametrize("learn", [True, False])
def test_batch_norm_on_convolutional_gates(learn):
    x, state = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    torch.manual_seed(1)
    (plain,) = GateOptions(0.9, conv2d_channels=3).build(1)
    torch.manual_seed(1)
    (gate,) = GateOptions(0.9, conv2d_channels=3, learn=learn, norm=True).build(1)
    drive = plain(x, state) - plain.bias.view(-1, 1, 1)
    expected = (drive - drive.mean((0, 2, 3), keepdim=True)) / (
        drive.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    assert torch.allclose(gate(x, state), expected + gate.bias.view(-1, 1, 1), atol=1e-5)
    assert torch.allclose(gate.bias, torch.tensor(0.1).logit())  # kappa still starts around 1 - beta
    assert {name: p.requires_grad for name, p in gate.named_parameters()} == dict.fromkeys(
        ("weight", "bias", "norm.weight"), learn
    )
    assert gate.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("gate", "features", "channels"), [("auto", None, None), ("dense", 4, None), ("conv", None, None)]
)
def test_batch_norm_needs_the_size_of_a_map(gate, features, channels):
    with pytest.raises(ConfigurationTypeError, match="conv2d_channels"):
        GateOptions(gate=gate, linear_features=features, conv2d_channels=channels, norm=True).build(2)


def test_gradients_of_each_sample_by_vmap():
    gate, pairs = DenseGate(3).double(), torch.randn(2, 5, 4, 3, dtype=torch.float64)
    weights = dict(gate.named_parameters())

    def loss(given, x, state):
        return torch.func.functional_call(gate, given, (x, state)).square().sum()

    together = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, *pairs)
    for sample, pair in enumerate(zip(*pairs, strict=True)):
        alone = torch.autograd.grad(loss(weights, *pair), weights.values())
        for name, gradient in zip(weights, alone, strict=True):
            assert torch.allclose(together[name][sample], gradient)
    doubly = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((4, 3), (4, 3))]
    assert torch.autograd.gradgradcheck(gate, doubly)
