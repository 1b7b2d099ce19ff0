"""What is particular to SpikingJelly 0.0.0.0.14: `.ci/matrix` runs these, with a version of 2.x they skip."""

import pytest
import torch
from nets import CE, sgd
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotStepError, ConfigurationTypeError
from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky
from fptt_plugin.spikingjelly.versions import IS_FUNCTIONAL

pytestmark = pytest.mark.skipif(IS_FUNCTIONAL, reason="SpikingJelly 2.x")
T, B, N = 6, 4, 5
X, Y = 3 * torch.rand(T, B, N), torch.tensor([0, 1, 2, 1])


def network(node, mode):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(N, N), node(), layer.Linear(N, 3), LTCIntegrator())
    functional.set_step_mode(net, mode)
    return net


@pytest.mark.parametrize(
    "node", [neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode, neuron.KLIFNode, neuron.EIFNode, LTCLeaky]
)
@pytest.mark.parametrize("window", [1, 2, T])
def test_both_modes_train_to_the_same_weights(node, window):
    ends = []
    for mode in ("s", "m"):
        net = network(node, mode)
        start = net[0].weight.detach().clone()
        result = FPTTTrainer(net, sgd(net), CE, window=window).train_sequence(X, Y)
        assert result.updates == T // window
        assert not torch.equal(net[0].weight, start)
        ends.append([parameter.detach() for parameter in net.parameters()])
    torch.testing.assert_close(*ends)


def test_a_delay_that_forgets_its_queue_is_refused():
    make = {"s": network(lambda: layer.Delay(2), "s"), "m": network(lambda: layer.Delay(2), "m")}
    with pytest.raises(CannotStepError, match=r"'1' \(Delay\) forgets its queue.*set_step_mode\(net, 's'\)"):
        FPTTTrainer(make["m"], sgd(make["m"]), CE)
    assert FPTTTrainer(make["s"], sgd(make["s"]), CE).train_sequence(X, Y).updates == T


def test_membranes_are_recorded_in_multi_step_mode():
    node = LTCLeaky(step_mode="m", store_v_seq=True, linear_features=N)
    node(X)
    assert node.v_seq.shape == X.shape
    assert torch.equal(node.v_seq[-1], node.v)
    single = LTCLeaky(linear_features=N)
    single.load_state_dict(node.state_dict())
    for x, v in zip(X, node.v_seq, strict=True):
        single(x)
        assert torch.equal(single.v, v)


def test_the_backend_of_a_lifnode_is_left_out_of_the_line_to_write():
    with pytest.raises(ConfigurationTypeError, match=r"step_mode='m' if these"):
        LTCLeaky(2.0, True, 1.0, 0.0, neuron.LIFNode().surrogate_function, True, "m", "torch")
