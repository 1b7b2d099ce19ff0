"""SpikingJelly networks as its tutorials and users write them; nothing here knows of online training."""

import torch
from spikingjelly.activation_based import functional, layer, neuron, rnn, surrogate
from torch import nn

from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky


def lif(threshold=0.3, **options):
    return neuron.LIFNode(v_threshold=threshold, surrogate_function=surrogate.ATan(), detach_reset=True, **options)


def dense(node=lif, inputs=6, hidden=8, classes=3, mode="s"):
    net = nn.Sequential(layer.Linear(inputs, hidden), node(), layer.Linear(hidden, classes), node())
    functional.set_step_mode(net, mode)
    return net


def parametric():
    return neuron.ParametricLIFNode(init_tau=2.0, v_threshold=0.3, surrogate_function=surrogate.ATan())


def liquid(mode):
    """Every spiking node swapped for ours, and a readout that integrates."""
    net = nn.Sequential(layer.Linear(6, 8), LTCLeaky(), layer.Linear(8, 3), LTCIntegrator())
    functional.set_step_mode(net, mode)
    net(torch.rand(1, 1, 6) if mode == "m" else torch.rand(1, 6))  # sizes the gates
    functional.reset_net(net)
    return net


def normalized(mode="m"):
    net = nn.Sequential(layer.Linear(6, 8, bias=False), layer.BatchNorm1d(8), lif(), layer.Linear(8, 3), lif())
    functional.set_step_mode(net, mode)
    return net


def dropout(mode="m"):
    net = nn.Sequential(layer.Linear(6, 8), lif(), layer.Dropout(0.5), layer.Linear(8, 3), lif())
    functional.set_step_mode(net, mode)
    return net


def voting():
    net = nn.Sequential(layer.Linear(6, 8), lif(), layer.Linear(8, 12), lif(), layer.VotingLayer(4))
    functional.set_step_mode(net, "m")
    return net


class Recorded(nn.Module):
    """Returns the membrane of its last node from the record that it keeps of every step, or the mean over it."""

    def __init__(self, mean=False):
        super().__init__()
        self.body = nn.Sequential(layer.Linear(6, 8), lif(), layer.Linear(8, 3), lif(store_v_seq=True))
        self.mean = mean
        functional.set_step_mode(self, "m")

    def forward(self, x):
        self.body(x)
        record = self.body[-1].v_seq
        return record.mean(0) if self.mean else record


class Looping(nn.Module):
    """Single-step layers under a loop over time in forward(); spikes are counted."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(6, 8), lif(), nn.Linear(8, 3), lif()

    def forward(self, x_seq):
        counted = 0.0
        for x in x_seq:
            counted = counted + self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return counted / len(x_seq)


class EventFrames(nn.Module):
    """Convolutions for event frames ``[T, B, 2, H, W]``, with or without the mean over time at the end."""

    def __init__(self, mean):
        super().__init__()
        self.features = nn.Sequential(
            layer.Conv2d(2, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4), lif(), layer.MaxPool2d(2)
        )
        self.classifier = nn.Sequential(layer.Flatten(), layer.Linear(4 * 4 * 4, 3), lif())
        self.mean = mean
        functional.set_step_mode(self, "m")

    def forward(self, frames):
        spikes = self.classifier(self.features(frames))
        return spikes.mean(0) if self.mean else spikes


class StillImage(EventFrames):
    """Repeats an image over time by itself; takes a sequence as it is."""

    def __init__(self, steps=4):
        super().__init__(mean=False)
        self.steps = steps

    def forward(self, image):
        return super().forward(image.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1) if image.dim() == 4 else image)


class AlwaysRepeats(StillImage):
    def forward(self, image):
        return super().forward(image.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))


def sequence_containers():
    """Ordinary PyTorch layers, made to take ``[T, B, ...]``."""
    return nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
        lif(step_mode="m"),
        layer.SeqToANNContainer(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 4, 3)),
        lif(step_mode="m"),
    )


def multi_step_containers():
    """Single-step layers, called step by step by a container."""
    return nn.Sequential(
        layer.MultiStepContainer(nn.Linear(6, 8), lif()), layer.MultiStepContainer(nn.Linear(8, 3), lif())
    )


def step_mode_containers(mode):
    net = nn.Sequential(
        layer.StepModeContainer(False, "s", nn.Linear(6, 8)),
        layer.StepModeContainer(True, "s", lif()),
        layer.StepModeContainer(False, "s", nn.Linear(8, 3)),
        layer.StepModeContainer(True, "s", lif()),
    )
    functional.set_step_mode(net, mode)
    return net


def recurrent(mode):
    net = nn.Sequential(
        layer.Linear(6, 8),
        layer.LinearRecurrentContainer(lif(), in_features=8, out_features=8),
        layer.Linear(8, 3),
        lif(),
    )
    functional.set_step_mode(net, mode)
    return net


def element_wise_recurrent(mode):
    net = nn.Sequential(
        layer.Linear(6, 8),
        layer.ElementWiseRecurrentContainer(lif(), element_wise_function=torch.add),
        layer.Linear(8, 3),
        lif(),
    )
    functional.set_step_mode(net, mode)
    return net


def synapses(mode):
    net = nn.Sequential(
        layer.Linear(6, 8), lif(), layer.SynapseFilter(tau=4.0, learnable=True), layer.Linear(8, 3), lif()
    )
    functional.set_step_mode(net, mode)
    return net


class SpikingLSTMStep(nn.Module):
    """One step of a spiking LSTM, which hands its state to the caller."""

    def __init__(self, kind=rnn.SpikingLSTM):
        super().__init__()
        self.rnn, self.fc = kind(6, 8, 1), nn.Linear(8, 3)

    def forward(self, x, state):
        spikes, state = self.rnn(x.unsqueeze(0), state)
        return self.fc(spikes[0]), state


def online_traces():
    """SpikingJelly's own online method, OTTT: nodes that hand traces on to the next layer's weights."""
    node = neuron.OTTTLIFNode(v_threshold=0.3, surrogate_function=surrogate.ATan(), detach_reset=True)
    return layer.OTTTSequential(nn.Linear(6, 8), node, nn.Linear(8, 3))


def truncated():
    node = neuron.SLTTLIFNode(v_threshold=0.3, surrogate_function=surrogate.ATan())
    return nn.Sequential(nn.Linear(6, 8), node, nn.Linear(8, 3))
