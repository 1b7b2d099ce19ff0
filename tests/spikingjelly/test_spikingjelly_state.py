"""ModelState on SpikingJelly's own modules and on ours: get, set, reset, detach."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky
from fptt_plugin.state import ModelState

T, B, N = 6, 3, 4

MODULES = {
    "LTCLeaky": lambda: LTCLeaky(linear_features=N),
    "LTCLeaky v_seq": lambda: LTCLeaky(linear_features=N, store_v_seq=True),
    "LTCIntegrator": lambda: LTCIntegrator(linear_features=N),
    "LIFNode": lambda: neuron.LIFNode(v_threshold=0.3),
    "LIFNode v_seq": lambda: neuron.LIFNode(v_threshold=0.3, store_v_seq=True),
    "ParametricLIFNode": lambda: neuron.ParametricLIFNode(v_threshold=0.3),
    "SynapseFilter": lambda: layer.SynapseFilter(tau=2.0, learnable=True),
    "Delay": lambda: layer.Delay(2),
    "Dropout": lambda: layer.Dropout(0.5),
    "BatchNormThroughTime": lambda: layer.BatchNormThroughTime1d(2 * T, N),
    "LinearRecurrent LTC": lambda: layer.LinearRecurrentContainer(LTCLeaky(linear_features=N), N, N),
    "LinearRecurrent LIF": lambda: layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.3), N, N),
    "ElementWise LTC": lambda: layer.ElementWiseRecurrentContainer(LTCLeaky(linear_features=N), torch.add),
    "ElementWise LIF": lambda: layer.ElementWiseRecurrentContainer(neuron.LIFNode(v_threshold=0.3), torch.add),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


def network(make):
    net = nn.Sequential(nn.Linear(N, N), make())
    return net, ModelState(net)


def run(net, x_seq):
    return torch.stack([net(x) for x in x_seq])


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for child in children for tensor in tensors(child)]


@every_module
def test_a_saved_state_continues_the_sequence_as_often_as_one_likes(make):
    net, state = network(make)
    x = torch.rand(T, B, N)
    with torch.no_grad():
        run(net, x)
        saved = state.get()
        values = [tensor.clone() for tensor in tensors(saved)]
        later = torch.rand(T, B, N)
        expected = run(net, later)
        for spoil in (lambda: None, lambda: functional.reset_net(net), state.reset):
            spoil()
            state.set(saved)
            assert torch.equal(expected, run(net, later))
    assert all(torch.equal(a, b) for a, b in zip(values, tensors(saved), strict=True))


@every_module
def test_reset_is_the_librarys_reset(make):
    net, state = network(make)
    start = state.get()
    x = torch.rand(T, B, N)
    with torch.no_grad():
        run(net, x)
        moved = state.get()
        state.reset()
        assert state.get() == start  # numbers, None and empty lists
        run(net, x[:2])
        state.set(moved)
        functional.reset_net(net)
        assert state.get() == start


@every_module
def test_detach_cuts_the_past_and_leaves_the_output_alone(make):
    net, state = network(make)
    early, late = (torch.rand(3, B, N, requires_grad=True) for _ in range(2))
    run(net, early)
    state.detach()
    assert not any(tensor.requires_grad for tensor in tensors(state.get()))
    out = run(net, late)
    state.detach()
    assert not any(tensor.requires_grad for tensor in tensors(state.get()))
    out.sum().backward()
    assert early.grad is None
    assert late.grad.abs().sum() > 0


@every_module
def test_truncated_training_loop(make):
    net, state = network(make)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    for window in torch.rand(3, 3, B, N):  # longer than the delay, so that it lets a gradient through
        out = run(net, window)
        optimizer.zero_grad()
        (out - 0.5).square().sum().backward()
        optimizer.step()
        state.detach()
    assert not torch.equal(before[0], net[0].weight)


def test_the_librarys_own_detach_net_works_on_our_node_in_recurrent_containers():
    x = 3 * torch.randn(T, B, N)
    containers = (
        lambda node: layer.LinearRecurrentContainer(node, N, N),
        lambda node: layer.ElementWiseRecurrentContainer(node, torch.add),
    )
    for contain in containers:
        net = nn.Sequential(nn.Linear(N, N), contain(LTCLeaky()))
        count = 0.0
        for step in x:
            out = net(step)
            out.sum().backward()
            functional.detach_net(net)
            count += out.sum().item()
        assert count > 0
        assert all(parameter.grad.abs().sum() > 0 for parameter in net[1].sub_module.mem_gate.parameters())
        stock = nn.Sequential(nn.Linear(N, N), contain(neuron.LIFNode()))
        stock(x[0])
        with pytest.raises(RuntimeError, match="detach views"):  # why ModelState detaches out of place
            functional.detach_net(stock)


def test_only_stateful_modules_are_found_by_name():
    net = nn.Sequential(layer.Linear(N, N), layer.LinearRecurrentContainer(LTCLeaky(), N, N), LTCIntegrator())
    assert [name for name, _ in ModelState(net).modules()] == ["1", "1.sub_module", "2"]
    assert list(ModelState(net).get()["1.sub_module"]) == ["v", "b", "spike"]


def test_multi_step_networks_and_slices():
    net = nn.Sequential(layer.Linear(N, N), LTCLeaky(store_v_seq=True), layer.Delay(1), LTCIntegrator())
    functional.set_step_mode(net, "m")
    state = ModelState(net)
    x = torch.rand(T, B, N)
    expected = net(x)
    state.reset()
    parts = []
    for part in x.split(2):
        parts.append(net(part))
        state.detach()
        assert not any(tensor.requires_grad for tensor in tensors(state.get()))
    assert torch.equal(expected, torch.cat(parts))
    parts[-1].sum().backward()


def test_two_networks_do_not_touch_each_other():
    (one, state), (other, other_state) = network(MODULES["LTCLeaky"]), network(MODULES["LTCLeaky"])
    x = torch.rand(T, B, N)
    run(one, x)
    run(other, x)
    before = other_state.get()
    state.detach()
    state.reset()
    after = other_state.get()
    assert all(a is b for a, b in zip(tensors(before), tensors(after), strict=True))
    assert tensors(after)[0].requires_grad
    with pytest.raises(ValueError, match="another network"):
        state.set({"7": {}})


@pytest.mark.parametrize("make", [LTCLeaky, neuron.LIFNode])
def test_recorded_membranes_are_part_of_the_state(make):
    node = make(store_v_seq=True)
    state = ModelState(node)
    run(node, torch.rand(3, B, N, requires_grad=True))
    saved = state.get()
    assert node.v_seq.requires_grad
    state.detach()
    assert not node.v_seq.requires_grad  # else it would keep the graph of every step
    run(node, torch.rand(2, B, N))
    assert len(node.v_seq) == 5
    state.set(saved)
    assert len(node.v_seq) == 3
    state.reset()
    assert node.v_seq is None


def test_a_tensor_reset_value_does_not_overwrite_a_saved_state():
    net, state = network(MODULES["LIFNode"])
    net[1].set_reset_value("v", torch.full((B, N), 0.1))
    with torch.no_grad():
        net(torch.rand(B, N))
        saved = state.get()
        before = saved["1"]["v"].clone()
        state.reset()
        assert torch.equal(net[1].v, torch.full((B, N), 0.1))
    assert torch.equal(before, saved["1"]["v"])
