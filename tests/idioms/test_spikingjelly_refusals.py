"""What cannot be stepped is refused by the name of the layer, and the remedy in the message works."""

import copy
import warnings

import pytest
import spikingjelly_nets as zoo
import torch
from nets import copies, identical, sgd, spikes
from spikingjelly.activation_based import functional, layer, neuron, rnn
from spikingjelly_by_hand import CE, PLAIN, lively
from torch import nn

from fptt_plugin import BPTT, FPTTTrainer
from fptt_plugin.spikingjelly import LTCIntegrator

Y = torch.tensor([0, 1, 2, 1])
T = 6


def frames():
    return 2 * torch.rand(T, 4, 2, 8, 8)


def vectors():
    return 2 * torch.rand(T, 4, 6)


def around(*modules, mode="m", hidden=8):
    net = nn.Sequential(layer.Linear(6, hidden), *modules, layer.Linear(hidden, 3), LTCIntegrator())
    functional.set_step_mode(net, mode)
    return net


def conv(*modules):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1), *modules, zoo.lif(), layer.Flatten(), layer.Linear(256, 3), LTCIntegrator()
    )
    functional.set_step_mode(net, "m")
    return net


def train(net, x, kind=FPTTTrainer, **options):
    net(x if "m" in [getattr(m, "step_mode", None) for m in net.modules()] else x[0])  # sizes the gates
    functional.reset_net(net)
    trainer = kind(net, sgd(net), CE, **{**PLAIN, **options})
    before = copies(net.parameters())
    trainer.train_sequence(x, Y)
    assert not identical(before, net.parameters())
    return trainer


def masked(lambda_init, mode):
    return around(neuron.MaskedPSN(k=2, T=T, lambda_init=lambda_init, step_mode=mode), mode=mode)


# name -> (network that is refused, part of the remedy, network that follows it, input)
REFUSED = {
    "PSN": (lambda: around(neuron.PSN(T)), "SlidingPSN", lambda: around(neuron.SlidingPSN(2), mode="s"), vectors),
    "MaskedPSN": (lambda: masked(0.5, "m"), "lambda_init=1", lambda: masked(1.0, "s"), vectors),
    "SlidingPSN": (
        lambda: around(neuron.SlidingPSN(2)),
        "set_step_mode\\(net, 's'\\)",
        lambda: around(neuron.SlidingPSN(2), mode="s"),
        vectors,
    ),
    "GatedLIFNode": (lambda: conv(neuron.GatedLIFNode(T)), "LIFNode", lambda: conv(neuron.LIFNode()), frames),
    "NonSpikingLIFNode": (
        lambda: around(zoo.lif(), neuron.NonSpikingLIFNode(decode="last_mem")),
        "LTCIntegrator",
        lambda: around(zoo.lif(), LTCIntegrator()),
        vectors,
    ),
    "NonSpikingIFNode": (lambda: around(neuron.NonSpikingIFNode()), "LTCIntegrator", around, vectors),
    "DSRIFNode": (lambda: around(neuron.DSRIFNode()), "LIFNode", lambda: around(zoo.lif()), vectors),
    "DSRLIFNode": (lambda: around(neuron.DSRLIFNode()), "LIFNode", lambda: around(zoo.lif()), vectors),
    "ILCLIFNode": (lambda: around(neuron.ILCLIFNode(1, 8)), "LIFNode", lambda: around(zoo.lif()), vectors),
    "TemporalEffectiveBatchNorm2d": (
        lambda: conv(layer.TemporalEffectiveBatchNorm2d(T, 4)),
        "BatchNormThroughTime2d",
        lambda: conv(layer.BatchNormThroughTime2d(T, 4)),
        frames,
    ),
    "TemporalWiseAttention": (lambda: conv(layer.TemporalWiseAttention(T, 2)), "leave it out", conv, frames),
    "MultiDimensionalAttention": (
        # Its channel and spatial attention pool over time, too.
        lambda: conv(layer.MultiDimensionalAttention(T, 4, 2, 2, 3, use_temporal=False)),
        "leave it out",
        conv,
        frames,
    ),
    "DropConnectLinear": (
        lambda: around(layer.DropConnectLinear(8, 8, invariant=True)),
        "invariant=False",
        lambda: around(layer.DropConnectLinear(8, 8, invariant=False)),
        vectors,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_cannot_be_stepped(name):
    refused, remedy, allowed, x = REFUSED[name]
    net = refused()
    with pytest.raises(ValueError, match=f"'[0-9]' \\({name}\\) .*{remedy}"):
        FPTTTrainer(net, sgd(net), CE)
    train(allowed(), x())


def test_a_layer_in_single_step_mode_takes_time_steps_for_samples():
    net = lively(zoo.dense(mode="m"))
    net[1].step_mode = "s"
    with pytest.raises(ValueError, match=r"'1' in 's' mode.*set_step_mode\(net, 'm'\)"):
        train(net, vectors())
    functional.set_step_mode(net, "m")
    with spikes(net):
        assert "driver: slice" in train(net, vectors(), readout="mean").explain()


def test_a_multi_step_container_in_a_single_step_network():
    net = lively(nn.Sequential(layer.Linear(6, 8), zoo.lif(), layer.MultiStepContainer(layer.Linear(8, 3), zoo.lif())))
    with pytest.raises(ValueError, match=r"'1' in 's' mode.*set_step_mode\(net, 'm'\)") as refused:
        train(net, vectors())
    assert "set_step_mode(net, 's')" not in str(refused.value)  # the container has no such mode
    functional.set_step_mode(net, "m")
    with spikes(net):
        train(net, vectors(), readout="mean")


class Combined(nn.Module):
    """A multi-step network whose result is none of the ways to combine steps that can be trained."""

    def __init__(self, combine):
        super().__init__()
        self.body = lively(zoo.dense(mode="m"))
        self.combine = combine

    def forward(self, x):
        return self.combine(self.body(x))


@pytest.mark.parametrize(
    "combine",
    [
        lambda spikes: spikes.no_such_method(),
        lambda spikes: spikes.sum(0).sqrt(),
        lambda spikes: spikes.transpose(0, 1),
        lambda spikes: [spikes, "name"],
    ],
    ids=["error", "root", "transposed", "no output"],
)
def test_what_no_option_can_skip_does_not_offer_it(combine):
    for preflight in (True, False):
        with pytest.raises(Exception) as refused:  # noqa: PT011 - the same twice, whatever it is
            train(Combined(combine), vectors(), preflight=preflight)
        assert "preflight" not in str(refused.value)


def test_the_step_driver_on_a_multi_step_network():
    net = lively(zoo.dense(mode="m"))
    with pytest.raises(ValueError, match=r"takes the samples of a batch for time steps.*driver='auto'"):
        train(net, vectors(), driver="step")
    train(net, vectors(), readout="mean")


class Inhibition(nn.Module):
    """Every sample holds down the others: samples that mix on purpose."""

    def forward(self, x):
        return x - 0.5 * x.mean(dim=0, keepdim=True)


def test_a_network_that_mixes_samples_on_purpose():
    net = lively(zoo.dense())
    net.insert(1, Inhibition())
    with pytest.raises(ValueError, match=r"so that they mix.*preflight=False"):
        train(net, vectors())
    train(net, vectors(), readout="mean", preflight=False)


def test_the_slice_driver_on_a_single_step_network():
    net = lively(zoo.dense())
    with pytest.raises(ValueError, match=r"'1', '3' in 's' mode"):
        train(net, vectors(), driver="slice")
    functional.set_step_mode(net, "m")
    train(net, vectors(), driver="slice", readout="mean")


def test_a_mean_over_time_in_a_single_step_network():
    net = lively(zoo.EventFrames(mean=True))
    functional.set_step_mode(net, "s")
    with pytest.raises(ValueError, match=r"take .mean\(0\) over time out of forward.*set_step_mode\(net, 'm'\)"):
        train(net, frames())
    functional.set_step_mode(net, "m")
    train(net, frames())


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("mean", [False, True])
def test_a_reset_in_forward(at_end, mean):
    class Resetting(zoo.EventFrames):
        resets = True

        def forward(self, x):
            if self.resets and not at_end:
                functional.reset_net(self)
            output = super().forward(x)
            if self.resets and at_end:
                functional.reset_net(self)
            return output

    net = lively(Resetting(mean))
    with pytest.raises(ValueError, match=r"forgets between calls.*out of forward"):
        train(net, frames())
    train(net, frames(), kind=BPTT)
    net.resets = False
    train(net, frames())


def test_an_image_is_repeated_before():
    image = torch.rand(4, 2, 8, 8)
    for net in (zoo.StillImage(), zoo.AlwaysRepeats()):
        with pytest.raises(ValueError, match="unsqueeze"):
            FPTTTrainer(net, sgd(net), CE).train_sequence(image, Y[:2])
    sequence = image.unsqueeze(0).expand(5, *image.shape)
    with pytest.raises(ValueError, match=r"repeats a still image"):
        FPTTTrainer(net, sgd(net), CE).train_sequence(sequence, Y)
    train(lively(zoo.StillImage()), sequence, readout="mean")


@pytest.mark.parametrize("make", [lambda: rnn.SpikingLSTM(6, 3, 1), lambda: nn.LSTM(6, 3)], ids=["SpikingLSTM", "LSTM"])
def test_a_recurrent_layer_of_whole_sequences(make):
    class Step(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x, state):
            output, state = self.body(x.unsqueeze(0), state)
            return output[0], state

    net = make()
    with pytest.raises(ValueError, match=r"x_t.unsqueeze\(0\)"):
        FPTTTrainer(net, sgd(net), CE).train_sequence(vectors(), Y)
    step = Step(net)
    before = copies(step.parameters())
    FPTTTrainer(step, sgd(step), CE).train_sequence(vectors(), Y)
    assert not identical(before, step.parameters())


def test_a_record_of_every_step_grows():
    net = lively(zoo.dense(lambda: zoo.lif(store_v_seq=True)))
    with pytest.warns(UserWarning, match="'1' has store_v_seq=True"):
        train(net, vectors(), readout="mean")
    for module in (net[1], net[3]):
        module.store_v_seq = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net, vectors(), readout="mean")


def test_spikes_as_logits():
    net = lively(zoo.dense(mode="m"))
    with pytest.warns(UserWarning, match="readout='mean'.*LTCIntegrator"):
        trainer = train(copy.deepcopy(net), 3 * vectors())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(3 * vectors(), Y)  # once
        train(copy.deepcopy(net), 3 * vectors(), readout="mean")
        net[3] = LTCIntegrator(step_mode="m")
        train(net, 3 * vectors())


def test_a_random_network_is_not_mistaken_for_a_forgetful_one():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    net = lively(zoo.dense(mode="m"))
    train(nn.Sequential(Noisy(), *net), vectors(), readout="mean")


def test_the_first_look_leaves_network_and_random_numbers_alone():
    net = lively(zoo.dropout())
    trainer = FPTTTrainer(net, sgd(net), CE, readout="mean")
    x, modes = vectors(), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    trainer._find_driver(x, batch_first=False)
    assert torch.equal(random, torch.get_rng_state())
    assert trainer._driver_is_checked
    assert net[1].v == 0.0
    assert modes == [m.training for m in net.modules()]
