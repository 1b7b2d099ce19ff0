"""LTCLeaky under SpikingJelly's own tools: containers, functional forms, monitors, counters, checkpointing."""

import copy

import pytest
import torch
from spikingjelly.activation_based import base, functional, layer, monitor, neuron
from torch import nn

from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky

memopt = pytest.importorskip("spikingjelly.activation_based.memopt", reason="SpikingJelly 0.0.0.0.14 has none")
from spikingjelly.activation_based.op_counter import DispatchCounterMode, NeuronStateCounter  # noqa: E402

T, B, N = 6, 3, 4


def network(**sizes):
    net = nn.Sequential(layer.Linear(N, 5), LTCLeaky(**sizes), layer.Linear(5, 2), LTCIntegrator())
    functional.set_step_mode(net, "m")
    return net


def same_gradients(a, b):
    pairs = [(left.grad, right.grad) for left, right in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(left.abs().sum() > 0 for left, _ in pairs)
    for left, right in pairs:
        torch.testing.assert_close(left, right)


def test_set_step_mode_reaches_both_neurons():
    net = network()
    x = torch.rand(T, B, N)
    multi = net(x)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    assert [net[1].step_mode, net[3].step_mode] == ["s", "s"]
    torch.testing.assert_close(multi, torch.stack([net(step) for step in x]))
    with pytest.raises(ValueError, match="step_mode"):
        functional.set_step_mode(net, "x")


CONTAINERS = {
    "linear recurrent": lambda: layer.LinearRecurrentContainer(LTCLeaky(), N, N),
    "elementwise recurrent": lambda: layer.ElementWiseRecurrentContainer(LTCLeaky(), torch.add),
    "multi-step": lambda: layer.MultiStepContainer(nn.Linear(N, N), LTCLeaky()),
    "sequence to ANN": lambda: nn.Sequential(
        layer.SeqToANNContainer(nn.Linear(N, N), nn.BatchNorm1d(N)), LTCLeaky(step_mode="m")
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_run_whole_sequences_and_slices(name):
    net = CONTAINERS[name]()
    if isinstance(net, base.MemoryModule):
        net.step_mode = "m"
    x = 3 * torch.randn(T, B, N)
    net(x)  # lazy sizes
    net.eval()
    functional.reset_net(net)
    expected = net(x)
    functional.reset_net(net)
    assert torch.equal(expected, functional.chunk_multi_step_forward(2, x, net))
    assert 0 < expected.mean() < 1
    expected.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())
    functional.reset_net(net)
    net(x[:, :1])  # another batch size


def test_recurrence_changes_the_spikes():
    x = torch.rand(T, B, N)
    node = LTCLeaky(linear_features=N)
    recurrent = layer.ElementWiseRecurrentContainer(copy.deepcopy(node), torch.add, step_mode="m")
    node.step_mode = "m"
    assert not torch.equal(node(x), recurrent(x))


@pytest.mark.parametrize("sizes", [{}, {"linear_features": 5}], ids=["lazy", "sized"])
def test_functional_forward_of_a_network_equals_its_ordinary_forward(sizes):
    net = network(**sizes)
    forward = base.to_functional_forward(net)
    x = torch.rand(T, B, N)
    (out,), states = forward((x,), tuple(base.extract_memories(net)))
    assert base.extract_memories(net) == [0.0] * 4  # the network's own state did not move
    assert torch.equal(out, net(x))
    assert all(torch.equal(a, b) for a, b in zip(states, base.extract_memories(net), strict=True))


@pytest.mark.parametrize("init_state", ["zeros", "random"])
@pytest.mark.parametrize("sizes", [{}, {"linear_features": 5}], ids=["lazy", "sized"])
def test_checkpointing_in_chunks_leaves_output_and_gradient_as_they_are(sizes, init_state):
    plain = network(**sizes, init_state=init_state)
    wrapped = copy.deepcopy(plain)
    checkpointed = memopt.checkpoint_module(wrapped, chunks=3)
    x = torch.rand(T, B, N)
    outputs = []
    for net in (plain, checkpointed):
        torch.manual_seed(1)
        outputs.append(net(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    same_gradients(plain, wrapped)


def test_optimize_memory_with_an_example_forward():
    plain = network(linear_features=5)
    optimized = memopt.optimize_memory(
        copy.deepcopy(plain), LTCLeaky, lambda net: net(torch.rand(T, B, N)), level=1, compress=False
    )
    assert type(optimized[1]) is not LTCLeaky
    x = torch.rand(T, B, N)
    for net in (plain, optimized):
        functional.reset_net(net)
        net(x).square().sum().backward()
    same_gradients(plain, optimized)


def test_monitors_see_the_spiking_node_and_not_the_readout():
    net = network()
    with (
        monitor.OutputMonitor(net, neuron.BaseNode) as spikes,
        monitor.AttributeMonitor("v", False, net, neuron.BaseNode) as membrane,
        monitor.OutputMonitor(net, LTCIntegrator) as readout,
    ):
        out = net(torch.rand(T, B, N))
    assert (spikes.monitored_layers, membrane.monitored_layers, readout.monitored_layers) == (["1"], ["1"], ["3"])
    assert spikes["1"][0].shape == (T, B, 5)
    assert set(spikes["1"][0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(membrane["1"][0], net[1].v)
    assert readout["3"][0] is out


def test_gradient_monitor():
    net = network()
    with monitor.GradOutputMonitor(net, neuron.BaseNode) as gradients:
        net(torch.rand(T, B, N)).sum().backward()
    assert gradients["1"][0].abs().sum() > 0


def test_the_state_counter_counts_the_node_and_not_the_readout():
    def count(node):
        counter = NeuronStateCounter()
        with DispatchCounterMode([counter]):
            node(torch.rand(B, N))
        return counter.get_total()

    assert count(LTCLeaky()) > 0
    assert count(LTCIntegrator()) == 0


def test_compiles_without_graph_breaks():
    node = LTCLeaky(linear_features=N, step_mode="m")
    plain = copy.deepcopy(node)
    compiled = torch.compile(node, backend="eager", fullgraph=True)
    x = torch.rand(2, T, B, N)
    for sequence in x:  # from the numbers, then from the tensors
        assert torch.equal(compiled(sequence), plain(sequence))
