"""``torch.compile`` of whole networks whose liquid neurons have no size yet."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky

NETS = {
    "flat": (lambda: [layer.Linear(4, 8), LTCLeaky(), layer.Linear(8, 3), LTCIntegrator()], (5, 4)),
    "maps": (
        lambda: [layer.Conv2d(2, 4, 3), LTCLeaky(), layer.Flatten(), layer.Linear(36, 3), LTCIntegrator()],
        (5, 2, 5, 5),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", NETS)
def test_a_network_without_sizes_compiles_into_one_graph(name, mode):
    layers, shape = NETS[name]
    net, twin = nn.Sequential(*layers()), nn.Sequential(*layers())
    functional.set_step_mode(net, mode)
    functional.set_step_mode(twin, mode)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    x, frames, outputs = 3 * torch.randn(8, *((3,) if mode == "m" else ()), *shape), [], []
    for x_t in x:
        outputs.append(compiled(x_t))
        frames.append(counter.frame_count)
    assert frames == [1, *[2] * 7]  # the gates without size, then with; nothing for any further call
    twin.load_state_dict(net.state_dict())
    assert torch.allclose(torch.stack(outputs), torch.stack([twin(x_t) for x_t in x]), atol=1e-6)
    assert 0 < net[1].spike.mean() < 1
    sum(output.sum() for output in outputs).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())
