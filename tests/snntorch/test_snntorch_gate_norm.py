"""``gate_norm`` reaches the gates of every neuron, and changes what they do."""

import pytest
import torch

from fptt_plugin import snntorch as fptt_snn
from fptt_plugin import spikingjelly as fptt_sj

X = 2 * torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))

NEURONS = [
    lambda **options: fptt_snn.LTCLeaky(init_hidden=True, conv2d_channels=3, **options),
    lambda **options: fptt_snn.RLTCLeaky(init_hidden=True, conv2d_channels=3, kernel_size=3, **options),
    lambda **options: fptt_snn.LTCIntegrator(init_hidden=True, conv2d_channels=3, **options),
    lambda **options: fptt_sj.LTCLeaky(conv2d_channels=3, **options),
    lambda **options: fptt_sj.LTCIntegrator(conv2d_channels=3, **options),
]


@pytest.mark.parametrize("build", NEURONS)
def test_gate_norm(build):
    outputs = []
    for gate_norm in (False, True):
        torch.manual_seed(0)
        neuron = build(gate_norm=gate_norm)
        outputs.append(sum(neuron(X) for _ in range(5)))
        assert any(isinstance(module, torch.nn.BatchNorm2d) for module in neuron.modules()) is gate_norm
    outputs[1].sum().backward()
    assert neuron.mem_gate.norm.weight.grad.abs().sum() > 0
    assert outputs[1].count_nonzero() > 0
    assert not torch.equal(*outputs)
