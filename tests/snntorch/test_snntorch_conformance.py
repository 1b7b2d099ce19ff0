"""The liquid neurons in place of snnTorch's: equations, return types, options, and what ``snn.Leaky`` promises."""

import pytest
import torch
from torch import nn

from fptt_plugin.functional import ltc_step, membrane_step
from fptt_plugin.functional.ltc import initial_state

snn = pytest.importorskip("snntorch")
quant = pytest.importorskip("snntorch.functional.quant")
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky  # noqa: E402

N = 5
SPIKING = [LTCLeaky, RLTCLeaky]


def sequence(steps=10, shape=(4, N)):
    return 1.5 * torch.randn(steps, *shape)


def unroll(lif, x):
    """Spikes and membranes over time, the state kept by the neuron."""
    lif.reset_mem()
    return [torch.stack(out) for out in zip(*(lif(x_t) for x_t in x), strict=True)]


@pytest.mark.parametrize("form", SPIKING)
def test_equals_the_pure_function(form):
    lif, x = form(beta=0.7, linear_features=N), sequence()
    state = initial_state(torch.zeros(4, N))
    for x_t in x:
        spk, mem = lif(x_t)
        drive = x_t + lif.recurrent(state.s) if form is RLTCLeaky else x_t
        gates = lif.mem_gate(drive, state.u), lif.adp_gate(drive, state.b)
        expected, state = ltc_step(drive, state, *gates)
        assert all(map(torch.equal, (spk, mem, lif.spk, lif.b), (expected, state.u, state.s, state.b)))
    assert 0 < unroll(lif, x)[0].mean() < 1


def test_integrator_equals_the_membrane_without_spike():
    readout, x, u = LTCIntegrator(beta=0.9, linear_features=N), sequence(), torch.zeros(4, N)
    for x_t in x:
        u = membrane_step(x_t, u, readout.mem_gate(x_t, u))
        assert torch.equal(readout(x_t), u)
    assert u.min() < 0 < u.max()
    assert [name for name, _ in readout.named_parameters()] == ["mem_gate.weight", "mem_gate.bias"]
    assert not any("adp_gate" in name for name in readout.state_dict())


@pytest.mark.parametrize("form", SPIKING)
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("init_hidden", [False, True])
def test_return_type_follows_init_hidden_and_output(form, init_hidden, output):
    x = sequence(1)[0]
    mine = form(linear_features=N, init_hidden=init_hidden, output=output)(x)
    theirs = snn.Leaky(beta=0.5, init_hidden=init_hidden, output=output)(x)
    assert type(mine) is type(theirs)
    assert [out.shape for out in mine] == [out.shape for out in theirs]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (1,)),
        ({}, (N,)),
        ({}, (3, N)),
        ({"linear_features": N}, (2, 3, N)),
        ({}, (2, 3, 6, 5)),
        ({"conv2d_channels": 3, "kernel_size": 5}, (2, 3, 6, 5)),
        ({"conv2d_channels": 3}, (3, 6, 5)),
        ({"gate": "elementwise"}, (2, 3, 7)),
        ({"gate": "elementwise", "linear_features": N}, (N,)),
    ],
    ids=str,
)
def test_any_shape_batched_or_not(options, shape):
    lif, readout = LTCLeaky(**options), LTCIntegrator(**options)
    mem = lif.init_leaky()  # empty before the first input, and accepted as its state
    for x_t in sequence(3, shape):
        spk, mem = lif(x_t, mem)
        assert spk.shape == mem.shape == readout(x_t).shape == shape


@pytest.mark.parametrize("options", [{"conv2d_channels": 3, "kernel_size": 3}, {"all_to_all": False, "V": 0.5}])
def test_recurrence_on_maps_and_one_to_one(options):
    lif = RLTCLeaky(**options)
    x = sequence(6, (2, 3, 6, 6))
    spk, mem = lif.init_rleaky()
    for x_t in x:
        spk, mem = lif(x_t, spk, mem)
    with_feedback = mem
    for parameter in lif.recurrent.parameters():
        nn.init.zeros_(parameter)
    assert 0 < spk.mean() < 1
    assert not torch.equal(unroll(lif, x)[1][-1], with_feedback)


@pytest.mark.parametrize("form", SPIKING)
def test_reset_mechanism_value_and_setter(form):
    """snnTorch's setter changes the number alone; here the dynamics follow."""
    lif, x, seen = form(linear_features=N), sequence(), []
    assert lif.reset_mechanism_val == 1
    for value, mechanism in enumerate(("subtract", "zero", "none")):
        fresh = form(linear_features=N, reset_mechanism=mechanism)
        assert fresh.reset_mechanism_val == value
        lif.reset_mechanism = mechanism
        assert lif.reset_mechanism_val == value
        fresh.load_state_dict(lif.state_dict())
        spikes, membranes = unroll(lif, x)
        assert torch.equal(unroll(fresh, x)[1], membranes)
        assert 0 < spikes.mean() < 1
        seen.append(membranes)
    assert not any(torch.equal(seen[i], seen[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    with pytest.raises(ValueError, match="reset_mechanism"):
        lif.reset_mechanism = "hard"


@pytest.mark.parametrize("form", SPIKING)
@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.95},
        {"threshold": 0.5},
        {"threshold": torch.linspace(0.1, 0.6, N)},
        {"inhibition": True},
        {"state_quant": quant.state_quant(num_bits=3, lower_limit=0.2)},
        {"reset_mechanism": "none"},
        {"reset_delay": True},
        {"adaptation": 0.0},
        {"init_state": "random"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_option_changes_the_dynamics(form, options):
    x, plain, turned = sequence(), form(linear_features=N), form(linear_features=N, **options)
    weights = {name: value for name, value in plain.named_parameters() if "beta" not in options or "bias" not in name}
    turned.load_state_dict(weights, strict=False)
    spikes, membranes = unroll(plain, x)
    other_spikes, other_membranes = unroll(turned, x)
    assert 0 < spikes.mean() < 1
    assert 0 < other_spikes.mean() < 1
    assert not torch.equal(membranes, other_membranes)


def test_quantized_integrator():
    readout = LTCIntegrator(linear_features=N, state_quant=quant.state_quant(num_bits=2, lower_limit=0.5))
    assert len(torch.stack([readout(x_t) for x_t in sequence()]).unique()) <= 4


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature")
def test_inhibition_lets_one_neuron_of_a_row_fire():
    spikes, _ = unroll(LTCLeaky(linear_features=N, inhibition=True), sequence())
    assert spikes.sum(-1).unique().tolist() == [0, 1]


@pytest.mark.parametrize("form", [*SPIKING, LTCIntegrator])
@pytest.mark.parametrize("learn", [True, False])
def test_learn_beta_trains_or_freezes_the_gates(form, learn):
    lif = form(linear_features=N, learn_beta=learn)
    assert {parameter.requires_grad for name, parameter in lif.named_parameters() if "gate" in name} == {learn}


def test_learn_threshold():
    lif, x = LTCLeaky(threshold=0.2, linear_features=N, learn_threshold=True), sequence()
    spikes, _ = unroll(lif, x)
    spikes.sum().backward()
    assert 0 < spikes.mean() < 1
    assert lif.threshold.item() == pytest.approx(0.2)
    assert lif.threshold.grad != 0
    assert not LTCLeaky(linear_features=N).threshold.requires_grad


@pytest.mark.parametrize("learn", [True, False])
def test_graded_spikes(learn):
    factor = torch.linspace(0.5, 2.5, N)
    plain = LTCLeaky(linear_features=N)
    graded = LTCLeaky(linear_features=N, graded_spikes_factor=factor, learn_graded_spikes_factor=learn)
    graded.load_state_dict(dict(plain.named_parameters()), strict=False)
    x = sequence()
    (spikes, membranes), (graded_spikes, graded_membranes) = unroll(plain, x), unroll(graded, x)
    assert 0 < spikes.mean() < 1
    assert torch.equal(graded_spikes, spikes * factor)
    assert torch.equal(graded_membranes, membranes)  # the factor stays outside the neuron
    assert graded.graded_spikes_factor.requires_grad is learn
    graded_spikes.sum().backward()
    assert (graded.graded_spikes_factor.grad is not None) is learn
    assert not learn or graded.graded_spikes_factor.grad.abs().max() > 0


def test_the_users_surrogate_or_none():
    x = sequence().requires_grad_()
    gradients = []
    for surrogate in (None, snn.surrogate.atan(), snn.surrogate.fast_sigmoid()):
        torch.manual_seed(1)
        spikes, _ = unroll(LTCLeaky(linear_features=N, spike_grad=surrogate), x)
        gradients.append(torch.autograd.grad(spikes.sum(), x)[0])
        assert 0 < spikes.mean() < 1
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert not torch.allclose(gradients[0], gradients[1])
    assert not torch.allclose(gradients[1], gradients[2])
    spikes, membranes = unroll(LTCLeaky(linear_features=N, surrogate_disable=True, reset_mechanism="none"), x)
    assert 0 < spikes.mean() < 1
    assert not spikes.requires_grad
    assert membranes.requires_grad


@pytest.mark.parametrize("threshold", [1, 0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_numbers_of_any_kind_give_the_weights_precision(threshold):
    """Python integers and float64 scalars, as numpy gives them, must not widen the state."""
    lif = LTCLeaky(threshold=threshold, linear_features=N, learn_threshold=True, graded_spikes_factor=2)
    spk, mem = lif(sequence(1)[0])
    assert spk.dtype == mem.dtype == lif.threshold.dtype == torch.float32


@pytest.mark.parametrize(
    ("form", "options", "error", "match"),
    [
        (LTCLeaky, {"reset_mechanism": "hard"}, ValueError, "'zero', 'subtract', 'none'"),
        (LTCLeaky, {"init_state": "ones"}, ValueError, "'zeros', 'random'"),
        (LTCLeaky, {"beta": 1.0}, ValueError, "strictly between 0 and 1"),
        (LTCLeaky, {"gate": "spline"}, ValueError, "'auto', 'dense'"),
        (LTCLeaky, {"conv2d_channels": 2, "kernel_size": 4}, ValueError, "must be odd"),
        (LTCLeaky, {"linear_features": 2, "conv2d_channels": 2}, TypeError, "not both"),
        (LTCLeaky, {"linear_features": 3, "beta": torch.tensor([0.5, 0.6])}, ValueError, "2 entries"),
        (LTCLeaky, {"adaptation": None}, TypeError, None),
        (RLTCLeaky, {}, TypeError, "linear_features"),
        (RLTCLeaky, {"conv2d_channels": 2}, TypeError, "kernel_size"),
        (RLTCLeaky, {"all_to_all": False, "linear_features": 2}, TypeError, "all_to_all"),
        (RLTCLeaky, {"linear_features": 2, "reset_mechanism": "hard"}, ValueError, "'zero'"),
        (RLTCLeaky, {"linear_features": 2, "init_state": "ones"}, ValueError, "'zeros'"),
        (RLTCLeaky, {"linear_features": 2, "adaptation": "much"}, ValueError, None),
        (LTCIntegrator, {"beta": 0.0}, ValueError, "strictly between 0 and 1"),
    ],
)
def test_a_refused_neuron_leaves_nothing_in_the_global_list(form, options, error, match):
    """snnTorch's class methods walk that list and fail on a half-built neuron, in every network of the process."""
    before = list(map(id, snn.SpikingNeuron.instances))
    with pytest.raises(error, match=match):
        form(**options)
    assert list(map(id, snn.SpikingNeuron.instances)) == before


@pytest.mark.parametrize("form", [*SPIKING, LTCIntegrator])
def test_a_state_with_init_hidden_is_refused_and_changes_nothing(form):
    lif, x = form(linear_features=N, init_hidden=True), sequence(1)[0]
    lif(x)
    before = lif.mem
    with pytest.raises(TypeError, match="init_hidden"):
        lif(x, torch.zeros(4, N))
    assert lif.mem is before


def test_reading_beta_raises():
    with pytest.raises(NotImplementedError, match=r"no constant beta.*mem_gate"):
        _ = LTCLeaky(linear_features=N).beta


def test_export_to_nir_refuses():
    pytest.importorskip("nir")
    export = pytest.importorskip("snntorch.export_nir")
    net = nn.Sequential(nn.Linear(3, N), LTCLeaky(linear_features=N, init_hidden=True, output=True))
    with pytest.raises(NotImplementedError, match="NIR"):
        export.export_to_nir(net, torch.randn(1, 3))
