"""SpikingJelly networks as they are: the trainer does what the loop written by hand does, bit for bit."""

import copy

import pytest
import spikingjelly_nets as zoo
import torch
from nets import identical, sgd, spikes
from spikingjelly.activation_based import encoding, functional, monitor, neuron, rnn
from spikingjelly_by_hand import CE, PLAIN, agrees, averaged, is_flat, lively, loop, per_slice, per_step
from torch import nn

from fptt_plugin import BPTT, FiringRates, FPTTTrainer, TruncatedBPTT
from fptt_plugin.state import ModelState

pytestmark = pytest.mark.filterwarnings("ignore:the loss sees spikes")
Y = torch.tensor([0, 1, 2, 1])
VECTORS, FRAMES = (6,), (2, 8, 8)


def sequence(shape=VECTORS, steps=7, samples=4):
    return 2 * torch.rand(steps, samples, *shape)


SINGLE = {
    "LIF": zoo.dense,
    "ParametricLIF": lambda: zoo.dense(zoo.parametric),
    "LinearRecurrentContainer": lambda: zoo.recurrent("s"),
    "ElementWiseRecurrentContainer": lambda: zoo.element_wise_recurrent("s"),
    "SynapseFilter": lambda: zoo.synapses("s"),
    "StepModeContainer": lambda: zoo.step_mode_containers("s"),
    "BatchNorm": lambda: zoo.normalized("s"),
    "Dropout": lambda: zoo.dropout("s"),
    "liquid": lambda: zoo.liquid("s"),
    "SLTT": zoo.truncated,
    "OTTT": zoo.online_traces,
}
MULTI = {
    "LIF": (lambda: zoo.dense(mode="m"), VECTORS),
    "ParametricLIF": (lambda: zoo.dense(zoo.parametric, mode="m"), VECTORS),
    "LinearRecurrentContainer": (lambda: zoo.recurrent("m"), VECTORS),
    "ElementWiseRecurrentContainer": (lambda: zoo.element_wise_recurrent("m"), VECTORS),
    "SynapseFilter": (lambda: zoo.synapses("m"), VECTORS),
    "SeqToANNContainer": (zoo.sequence_containers, FRAMES),
    "MultiStepContainer": (zoo.multi_step_containers, VECTORS),
    "StepModeContainer": (lambda: zoo.step_mode_containers("m"), VECTORS),
    "BatchNorm": (zoo.normalized, VECTORS),
    "Dropout": (zoo.dropout, VECTORS),
    "VotingLayer": (zoo.voting, VECTORS),
    "conv": (lambda: zoo.EventFrames(mean=False), FRAMES),
    "still image": (zoo.StillImage, FRAMES),
    "liquid": (lambda: zoo.liquid("m"), VECTORS),
    "v_seq": (zoo.Recorded, VECTORS),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_step_networks_follow_the_loop_over_time(name):
    net = lively(SINGLE[name]())
    agrees(net, sequence(), Y, per_step, driver="step", fires=name != "OTTT")  # whose node returns a list
    if name not in ("SLTT", "OTTT"):  # these cut the graph themselves, and BPTT is flat, too
        is_flat(net, sequence(), Y)


@pytest.mark.parametrize("name", MULTI)
def test_multi_step_networks_follow_the_loop_over_slices(name):
    make, shape = MULTI[name]
    net = lively(make())
    agrees(net, sequence(shape), Y, per_slice, driver="slice")
    is_flat(net, sequence(shape), Y)


def test_a_mean_over_time_in_forward_is_the_mean_over_the_slice():
    net = lively(zoo.EventFrames(mean=True))
    agrees(net, sequence(FRAMES), Y, averaged, driver="slice", readout="step")
    is_flat(net, sequence(FRAMES), Y)


def test_a_mean_over_the_recorded_membrane_is_the_mean_over_the_slice():
    agrees(lively(zoo.Recorded(mean=True)), sequence(), Y, averaged, driver="slice", readout="step")


@pytest.mark.parametrize("name", [name for name in SINGLE if name in MULTI])
def test_both_step_modes_are_one_at_window_1(name):
    torch.manual_seed(3)
    single, multi = lively(SINGLE[name]()), MULTI[name][0]()
    multi.load_state_dict(single.state_dict())
    x = sequence()
    for net in (single, multi):
        torch.manual_seed(4)
        with spikes(net):
            FPTTTrainer(net, sgd(net), CE, readout="mean", **PLAIN).train_sequence(x, Y)
    for one, other in zip(single.parameters(), multi.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_still_image_under_an_encoder_is_a_sequence_of_its_spikes():
    net, encoder, image = lively(zoo.dense()), encoding.PoissonEncoder(), torch.rand(4, 6)
    x = torch.stack([encoder(image) for _ in range(7)])
    agrees(net, x, Y, per_step, driver="step")


def test_a_loop_over_time_in_forward_is_trained_in_flight():
    net = lively(zoo.Looping())
    plain = copy.deepcopy(net)
    x = sequence(steps=7)
    trainer = FPTTTrainer(net, sgd(net), CE, readout="mean", **PLAIN)
    with spikes(net):
        trainer.train_sequence(x, Y)
    body = nn.Sequential(plain.fc1, plain.lif1, plain.fc2, plain.lif2)
    loop(body, x, Y, alpha=0.1, window=1, advance=per_step, mean=True)
    assert "driver: in-flight" in trainer.explain()
    assert identical(net.parameters(), plain.parameters())
    is_flat(net, x, Y)


@pytest.mark.parametrize("kind", [rnn.SpikingLSTM, rnn.SpikingGRU, rnn.SpikingVanillaRNN])
def test_a_spiking_lstm_passes_its_state(kind):
    net = zoo.SpikingLSTMStep(kind)
    plain, x = copy.deepcopy(net), sequence()
    trainer = TruncatedBPTT(net, sgd(net), CE, **PLAIN)
    trainer.train_sequence(x, Y)
    optimizer, state = sgd(plain), None
    for x_t in x:
        output, state = plain(x_t, state)
        optimizer.zero_grad()
        CE(output, Y).backward()
        optimizer.step()
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
    assert "driver: explicit" in trainer.explain()
    assert identical(net.parameters(), plain.parameters())


@pytest.mark.parametrize("window", [1, 4])
def test_slices_keep_time_and_batch_apart_when_all_sizes_are_equal(window):
    """With 4 steps, 4 samples and 4 classes the shape of one output says nothing."""
    x, y = 2 * torch.rand(8, 4, 2, 8, 8), torch.arange(4)
    for mean in (True, False):
        net = zoo.EventFrames(mean)
        net.classifier[1] = type(net.classifier[1])(64, 4, step_mode="m")
        plain = copy.deepcopy(net)
        TruncatedBPTT(net, sgd(net), CE, window=window, readout="mean", **PLAIN).train_sequence(x, y)
        loop(plain, x, y, alpha=0.0, window=window, advance=averaged if mean else per_slice, mean=True)
        assert identical(net.parameters(), plain.parameters())


def test_the_whole_sequence_needs_no_slices():
    net = zoo.EventFrames(mean=True)
    plain, x = copy.deepcopy(net), sequence(FRAMES)
    BPTT(net, sgd(net), CE, **PLAIN).train_sequence(x, Y)
    loop(plain, x, Y, alpha=0.0, window=7, advance=averaged)
    assert identical(net.parameters(), plain.parameters())


def test_monitors_see_every_step_of_training():
    net = zoo.dense()
    with monitor.OutputMonitor(net, neuron.LIFNode) as spiking:
        FPTTTrainer(net, sgd(net), CE, readout="mean", **PLAIN).train_sequence(sequence(), Y)
        assert {name: len(spiking[name]) for name in ("1", "3")} == {"1": 7, "3": 7}
    assert 0 < torch.stack(spiking["1"]).mean() < 1


def test_a_reset_by_the_user_between_sequences_changes_nothing():
    x, ends = sequence(), []
    net = zoo.recurrent("m")
    for reset in (False, True):
        copied = copy.deepcopy(net)
        trainer = FPTTTrainer(copied, sgd(copied), CE, readout="mean")
        for _ in range(3):
            trainer.train_sequence(x, Y)
            if reset:
                functional.reset_net(copied)
        ends.append(copied)
    assert identical(*(copied.parameters() for copied in ends))


NODES = [
    *("IFNode", "LIFNode", "ParametricLIFNode", "QIFNode", "EIFNode", "IzhikevichNode", "KLIFNode", "CUBALIFNode"),
    *("ComplementaryLIFNode", "HalfThresholdIFNode", "ILIFNode", "RAFNode", "SimpleIFNode", "SLTTLIFNode"),
    *("TernaryIFNode", "TernaryLIFNode", "ActivationAwareIFNode"),
]


@pytest.mark.parametrize("name", NODES)
def test_every_node_with_defaults_is_reset_detached_and_put_back(name):
    node = getattr(neuron, name)()
    net = nn.Sequential(nn.Linear(6, 8), node)
    state, x = ModelState(net), 3 * sequence(steps=4)
    initial = state.get()
    outputs = []
    for x_t in x:
        outputs.append(net(x_t))
        state.detach()
        assert not any(v.requires_grad for v in state.get()["1"].values() if isinstance(v, torch.Tensor))
    assert any(isinstance(v, torch.Tensor) for v in state.get()["1"].values())
    if name != "RAFNode":  # its spikes carry no gradient
        outputs[-1].sum().backward()
    middle = state.get()
    after = net(x[0])
    state.set(middle)
    assert torch.equal(net(x[0]), after)
    state.reset()
    assert {key: float(v) for key, v in state.get()["1"].items()} == {k: float(v) for k, v in initial["1"].items()}
    assert torch.equal(net(x[0]), outputs[0])


def test_rates_of_every_layer_are_seen():
    net = zoo.EventFrames(mean=True)
    with FiringRates(net) as firing:
        FPTTTrainer(net, sgd(net), CE).train_sequence(sequence(FRAMES), Y)
    assert list(firing.rates()) == ["features.2", "classifier.2"]
