"""Copies, files, precisions, devices and the compiler: what happens to a neuron outside its forward."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

snn = pytest.importorskip("snntorch")
utils = pytest.importorskip("snntorch.utils")
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky  # noqa: E402

N = 5
FORMS = [LTCLeaky, RLTCLeaky, LTCIntegrator]


def build(form, **options):
    return form(linear_features=N, init_hidden=True, **options)


def sequence(steps=5, dtype=torch.float32):
    return 2 * torch.randn(steps, 4, N, dtype=dtype)


def run(lif, x):
    return torch.stack([lif(x_t) for x_t in x])


def through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIERS = [copy.deepcopy, through_torch_save, lambda module: pickle.loads(pickle.dumps(module))]


@pytest.mark.parametrize("copier", COPIERS, ids=["deepcopy", "torch.save", "pickle"])
@pytest.mark.parametrize("form", FORMS)
def test_a_copy_goes_on_from_the_state_on_its_own(form, copier):
    lif, x = build(form), sequence()
    with torch.no_grad():
        out = run(lif, x)
    twin = copier(lif)
    expected = run(lif, x)  # moves the original, not the copy
    assert torch.equal(run(twin, x), expected)
    twin.reset_mem()
    assert torch.equal(run(twin, x), out)
    assert not torch.equal(out, expected)


@pytest.mark.parametrize("copier", COPIERS, ids=["deepcopy", "torch.save", "pickle"])
def test_a_reset_from_outside_survives_the_copy(copier):
    lif, x = build(LTCLeaky), sequence()
    with torch.no_grad():
        fresh = run(lif, x)
    utils.reset(nn.Sequential(lif))
    assert torch.equal(run(copier(lif), x), fresh)


@pytest.mark.parametrize("copier", COPIERS, ids=["deepcopy", "torch.save", "pickle"])
def test_a_neuron_without_size_is_copied_before_its_first_batch(copier):
    twin = copier(nn.Sequential(nn.Linear(3, N), LTCLeaky(beta=0.9, init_hidden=True)))
    spikes = run(twin, 4 * torch.randn(6, 8, 3))
    assert 0 < spikes.mean() < 1
    assert torch.allclose(torch.sigmoid(twin[1].mem_gate.bias), torch.tensor(0.1))


@pytest.mark.parametrize("form", FORMS)
def test_state_dict_round_trip_without_recurrent_state(form):
    lif, x = build(form), sequence()
    out = run(lif, x)
    assert not {"mem", "spk", "b"} & set(lif.state_dict())
    twin = build(form)
    twin.load_state_dict(lif.state_dict())
    assert torch.equal(run(twin, x), out)


def test_a_loaded_reset_mechanism_is_the_one_that_runs():
    x, lif = sequence(), build(LTCLeaky, reset_mechanism="subtract")
    twin = build(LTCLeaky)
    twin.load_state_dict(lif.state_dict())
    assert (twin.reset_mechanism, twin.reset_mechanism_val.item()) == ("subtract", 0)
    assert torch.equal(run(twin, x), run(lif, x))
    assert torch.equal(twin.mem, lif.mem)
    twin.load_state_dict(dict(lif.named_parameters()), strict=False)  # weights alone leave it as it is
    assert twin.reset_mechanism == "subtract"


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_of_a_whole_network(dtype, sized):
    """snnTorch's own spikes are float32 always; a next layer of another precision refuses them."""
    convert = {torch.float64: nn.Module.double, torch.bfloat16: nn.Module.bfloat16}[dtype]
    size = {"linear_features": N} if sized else {}
    lif = LTCLeaky(init_hidden=True, **size)
    net = convert(nn.Sequential(nn.Linear(3, N), lif, nn.Linear(N, 2), LTCIntegrator(init_hidden=True)))
    out = run(net, 6 * torch.randn(5, 8, 3, dtype=dtype))
    out.sum().backward()
    assert {out.dtype, lif.mem.dtype, lif.spk.dtype, lif.b.dtype} == {dtype}
    assert 0 < lif.spk.mean() < 1
    assert net[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("form", FORMS)
def test_precision_changed_in_mid_sequence_keeps_the_state(form):
    lif, x = build(form), sequence()
    expected, mem = run(lif, x)[-1], lif.mem
    lif.reset_mem()
    run(lif, x[:3])
    lif.double()
    out = run(lif, x[3:].double())
    assert lif.mem.dtype == torch.float64
    assert torch.allclose(out[-1].float(), expected)
    assert torch.allclose(lif.mem.float(), mem, atol=1e-6)


@pytest.mark.parametrize("gate", ["dense", "elementwise", "conv"])
def test_autocast_keeps_the_state_in_float32(gate):
    """Under autocast the input is bfloat16, whose 8 bits lose a slow membrane's increments."""
    conv = gate == "conv"
    layer, shape = (nn.Conv2d(3, N, 3), (4, 3, 6, 6)) if conv else (nn.Linear(3, N), (4, 3))
    lif = LTCLeaky(init_hidden=True, gate=gate)
    net = nn.Sequential(layer, lif)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = run(net, 3 * torch.randn(5, *shape))
        assert layer(torch.randn(shape)).dtype == torch.bfloat16
    spikes.sum().backward()
    assert {spikes.dtype, lif.mem.dtype, lif.spk.dtype, lif.b.dtype} == {torch.float32}
    assert 0 < spikes.mean() < 1
    assert layer.weight.grad.abs().max() > 0


@pytest.mark.parametrize("form", FORMS)
def test_to_a_device_takes_the_state_along(form):
    lif = build(form)
    run(lif, sequence())
    lif.to("meta")
    assert {tensor.device.type for tensor in (*lif.parameters(), *lif.buffers())} == {"meta"}
    assert lif(torch.zeros(4, N, device="meta")).device.type == "meta"


def test_sequential_of_hidden_state_neurons():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), LTCLeaky(init_hidden=True), nn.Flatten(), nn.Linear(36, 8),
        RLTCLeaky(linear_features=8, init_hidden=True), nn.Linear(8, 3), LTCLeaky(init_hidden=True, output=True),
    )  # fmt: skip
    outputs = [net(4 * torch.randn(5, 2, 8, 8)) for _ in range(4)]
    spikes, membranes = (torch.stack(out) for out in zip(*outputs, strict=True))
    assert spikes.shape == membranes.shape == (4, 5, 3)
    assert 0 < spikes.mean() < 1
    (spikes + membranes).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (LTCLeaky, {}),
        (LTCLeaky, {"init_hidden": True}),
        (LTCLeaky, {"surrogate_disable": True}),
        (LTCLeaky, {"reset_mechanism": "subtract", "reset_delay": True}),
        (RLTCLeaky, {}),
        (LTCIntegrator, {}),
    ],
)
def test_no_graph_breaks(form, options):
    explanation = torch._dynamo.explain(form(linear_features=N, **options))(torch.rand(N))
    assert explanation.graph_break_count == 0


@pytest.mark.parametrize("form", FORMS)
def test_compiled_neuron_does_not_recompile_every_step(form):
    """Past its limit torch falls back to eager in silence; an empty state, a stored one and slack make four graphs."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    lif, x = build(form), sequence(12)
    expected = run(lif, x)
    lif.reset_mem()
    strict = "fail_on_recompile_limit_hit"  # torch 2.6 has no such option
    with torch._dynamo.config.patch({strict: True} if hasattr(torch._dynamo.config, strict) else {}):
        compiled = torch.compile(lif, backend=counter)
        assert torch.allclose(run(compiled, x), expected)
    assert 1 <= counter.frame_count <= 4
