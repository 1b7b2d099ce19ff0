"""``torch.compile`` of whole networks whose liquid neurons have no size yet."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

pytest.importorskip("snntorch")
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky

HIDDEN = {"init_hidden": True}
NETS = {
    "flat": (lambda: [nn.Linear(4, 8), LTCLeaky(**HIDDEN), nn.Linear(8, 3), LTCIntegrator(**HIDDEN)], (5, 4)),
    "maps": (
        lambda: [nn.Conv2d(2, 4, 3), LTCLeaky(**HIDDEN), nn.Flatten(), nn.Linear(36, 3), LTCIntegrator(**HIDDEN)],
        (5, 2, 5, 5),
    ),
    "recurrent": (
        lambda: [nn.Linear(4, 8), RLTCLeaky(all_to_all=False, V=0.5, **HIDDEN), nn.Linear(8, 3), LTCLeaky(**HIDDEN)],
        (5, 4),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_a_network_without_sizes_compiles_into_one_graph(name):
    layers, shape = NETS[name]
    net, twin = nn.Sequential(*layers()), nn.Sequential(*layers())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    x, frames, outputs = 3 * torch.randn(8, *shape), [], []
    for x_t in x:
        outputs.append(compiled(x_t))
        frames.append(counter.frame_count)
    assert frames == [1, *[2] * 7]  # the gates without size, then with; nothing for any further step
    twin.load_state_dict(net.state_dict())
    assert torch.allclose(torch.stack(outputs), torch.stack([twin(x_t) for x_t in x]), atol=1e-6)
    assert 0 < net[1].spk.mean() < 1
    sum(output.sum() for output in outputs).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters() if parameter.requires_grad)
