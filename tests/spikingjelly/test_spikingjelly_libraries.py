"""One neuron, three homes: the pure function, snnTorch and SpikingJelly; and what happens without SpikingJelly."""

import importlib
import subprocess
import sys

import pytest
import torch

import fptt_plugin.spikingjelly as sj
from fptt_plugin.functional import LTCState, ltc_step, membrane_step

T = 20
INPUTS = {
    "dense": ((T, 4, 6), {"linear_features": 6}),
    "conv": ((T, 2, 3, 5, 5), {"conv2d_channels": 3, "kernel_size": 3}),
    "elementwise": ((T, 4, 6), {"linear_features": 6, "gate": "elementwise"}),
}
every_gate = pytest.mark.parametrize(("shape", "sizes"), INPUTS.values(), ids=INPUTS.keys())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture
def snn():
    pytest.importorskip("snntorch")
    return importlib.import_module("fptt_plugin.snntorch")


def gradients(module, out):
    out.sum().backward()
    found = [parameter.grad for parameter in module.parameters()]
    assert all(grad.abs().sum() > 0 for grad in found)
    return found


@every_dtype
@every_gate
@pytest.mark.parametrize("reset", ["zero", "subtract"])
def test_same_weights_and_input_give_the_same_spikes_membrane_and_gradient(snn, shape, sizes, dtype, reset):
    # 1/8 is exact in float32, in which snnTorch creates its threshold; 0.1 differs by 1.5e-9 once in float64.
    threshold = 0.125
    ours = sj.LTCLeaky(v_threshold=threshold, v_reset=None if reset == "subtract" else 0.0, beta=0.8, **sizes)
    ours.to(dtype)
    theirs = snn.LTCLeaky(0.8, threshold, reset_mechanism=reset, **sizes).to(dtype)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x_seq = torch.rand(shape, dtype=dtype)
    mem = theirs.reset_mem()
    zeros = torch.zeros_like(x_seq[0])
    pure = LTCState(zeros, zeros, zeros)
    outputs = []
    for x in x_seq:
        spikes = ours(x)
        spk, mem = theirs(x, mem)
        gates = ours.mem_gate(x, pure.u), ours.adp_gate(x, pure.b)
        s, pure = ltc_step(x, pure, *gates, threshold=threshold, adaptation=1.8, reset=reset)
        outputs.append((spikes, spk))
        assert torch.equal(spikes, spk)
        assert torch.equal(spikes, s)
        assert torch.equal(ours.v, mem)
        assert torch.equal(ours.v, pure.u)
        assert torch.equal(ours.b, theirs.b)
        assert ours.v.dtype == dtype
    a, b = (torch.stack(spikes) for spikes in zip(*outputs, strict=True))
    assert 0.01 < a.mean() < 0.99
    for left, right in zip(gradients(ours, a), gradients(theirs, b), strict=True):
        torch.testing.assert_close(left, right)


@every_dtype
@every_gate
def test_both_integrators_agree(snn, shape, sizes, dtype):
    ours = sj.LTCIntegrator(beta=0.8, **sizes).to(dtype)
    theirs = snn.LTCIntegrator(beta=0.8, init_hidden=True, **sizes).to(dtype)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x_seq = torch.rand(shape, dtype=dtype)
    u = torch.zeros_like(x_seq[0])
    for x in x_seq:
        u = membrane_step(x, u, ours.mem_gate(x, u))
        a, b = ours(x), theirs(x)
        assert torch.equal(a, b)
        assert torch.equal(a, u)
    for left, right in zip(gradients(ours, a), gradients(theirs, b), strict=True):
        torch.testing.assert_close(left, right)


def test_a_checkpoint_of_one_librarys_neuron_loads_into_the_others(snn):
    keys = {key for key in snn.LTCLeaky(linear_features=3).state_dict() if "gate" in key}
    assert keys == set(sj.LTCLeaky(linear_features=3).state_dict())


WITHOUT = """
import sys
sys.modules["spikingjelly"] = None
import fptt_plugin
import fptt_plugin.spikingjelly
"""
OLD = """
from importlib import metadata
metadata.version = lambda name: "0.0.0.0.12"
import fptt_plugin.spikingjelly
"""
LIGHT = """
import sys, fptt_plugin.spikingjelly
print([name for name in sys.modules if name.startswith(("spikingjelly.datasets", "torchvision", "snntorch"))])
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (WITHOUT, "needs SpikingJelly: pip install 'spikingjelly>=0.0.0.0.14'"),
        (OLD, "needs spikingjelly 0.0.0.0.14 or later, found 0.0.0.0.12: pip install 'spikingjelly>=0.0.0.0.14'"),
    ],
    ids=["missing", "old"],
)
def test_a_missing_or_old_library_names_what_to_install(code, message):
    assert f"ImportError: fptt_plugin.spikingjelly {message}" in python(code).stderr


def test_the_import_pulls_in_neither_datasets_nor_the_other_library():
    done = python(LIGHT)
    assert done.stdout.strip() == "[]", done.stderr
