"""Networks that are silent at first, as untrained ones often are, are looked at with an input that wakes them."""

import itertools
import warnings

import pytest
import torch
from nets import CE, adam, copies, identical, sgd
from spikingjelly.activation_based import encoding, functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotStepError
from fptt_plugin.state import AttributeHandler, register_state_handler

X, Y = torch.rand(6, 4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2


class Leak(nn.Module):
    """A custom neuron whose state a reset does not reach; silent below its threshold, and then without a trace."""

    trace = None

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        spikes = (x > self.threshold).to(x.dtype)
        self.trace = spikes if self.trace is None else 0.9 * self.trace + spikes
        return self.trace + 0.0 * x


class Known(Leak):
    pass


register_state_handler(Known, AttributeHandler(trace=None))


class AcrossTime(nn.Module):
    """Weighs each step by the whole sequence: nothing to see while it gets zeros."""

    def forward(self, x):
        return x * x.abs().mean(0, keepdim=True) if x.any() else x


def silent(*extra, threshold=5.0, mode="m"):
    net = nn.Sequential(
        layer.Linear(3, 8),
        neuron.LIFNode(v_threshold=threshold),
        *extra,
        layer.Linear(8, 2),
        neuron.LIFNode(v_threshold=0.3),
    )
    functional.set_step_mode(net, mode)
    for linear in (net[0], net[-2]):
        nn.init.uniform_(linear.weight, -0.3, 0.6)
    return net


def fires(net):
    functional.reset_net(net)
    with torch.no_grad():
        found = net[1](net[0](X)).any()
    functional.reset_net(net)
    return bool(found)


@pytest.mark.parametrize("threshold", [3.0, 5.0, 20.0])
def test_custom_state_that_is_silent_at_first(threshold):
    """Found when the network is made to spike; once it has a handler, it trains."""
    for kind, refused in ((Leak, True), (Known, False)):
        net = nn.Sequential(nn.Linear(3, 8), kind(threshold), nn.Linear(8, 2), neuron.LIFNode(v_threshold=0.3))
        assert not (net[0](X) > threshold).any()
        weights = copies(net.parameters())
        trainer = FPTTTrainer(net, sgd(net), CE, readout="mean")
        if not refused:
            trainer.train_sequence(X, Y)
            continue
        with pytest.raises(CannotStepError, match=r"'1.trace'.*AttributeHandler\(trace=None\)"):
            trainer.train_sequence(X, Y)
        assert identical(net.parameters(), weights)


@pytest.mark.parametrize("threshold", [3.0, 10.0])
def test_a_layer_that_looks_across_time_behind_a_silent_layer(threshold):
    net = silent(AcrossTime(), threshold=threshold)
    assert not fires(net)
    with pytest.raises(CannotStepError, match="slice by slice"):
        FPTTTrainer(net, adam(net), CE, readout="mean").train_sequence(X, Y)
    net = silent(threshold=threshold)
    FPTTTrainer(net, adam(net), CE, readout="mean").train_sequence(X, Y)


class Combines(nn.Module):
    def __init__(self, body, kind):
        super().__init__()
        self.body, self.kind = body, kind

    def forward(self, x):
        output = self.body(x)
        if self.kind == "step":
            return output[-1]
        if self.kind.startswith("sum /"):
            return output.sum(0) / int(self.kind[-1])
        return getattr(output, self.kind)(0)


@pytest.mark.parametrize("threshold", [0.3, 5.0])
@pytest.mark.parametrize(
    ("kind", "encoder"),
    # Five are the steps of the trial: behind an encoder, a division by five then is taken for a mean, with a warning.
    [("sum / 5", False), *itertools.product(["mean", "sum", "step", "sum / 8"], [False, True])],
)
def test_how_a_silent_or_a_random_network_combines_its_steps(kind, encoder, threshold):
    """Its values do not tell, or are others at every call; an encoder also makes large inputs into spikes."""
    for preflight in (True, False):
        torch.manual_seed(0)
        body = silent(threshold=threshold)
        net = Combines(nn.Sequential(encoding.PoissonEncoder(), body) if encoder else body, kind)
        functional.set_step_mode(net, "m")
        trainer = FPTTTrainer(net, adam(net), CE, window=2, preflight=preflight)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trainer.predict(X)
        assert f"readout: {kind.split()[0]}" in trainer.explain()
        if not encoder:  # else the windows draw other numbers
            functional.reset_net(net)
            torch.testing.assert_close(trainer.predict(X), net(X).detach())
        else:
            net.body[1][-1].v_threshold = -1.0  # fires at every step
            expected = {"mean": 1, "sum": 6, "step": 1, "sum / 8": 6 / 8}[kind]
            torch.testing.assert_close(trainer.predict(X), torch.full((4, 2), float(expected)))


def test_a_factor_of_the_number_of_steps_is_refused():
    """No window knows how many steps the sequence has."""

    class Function(Combines):
        def forward(self, x):
            return self.body(x).sum(0) / len(x) ** 0.5

    net = Function(silent(threshold=0.3), "")
    with pytest.raises(CannotStepError, match="not the last, mean, sum or maximum"):
        FPTTTrainer(net, adam(net), CE, window=2).predict(X)


def test_a_random_network_without_a_module_at_its_end_says_what_is_assumed():
    class Function(Combines):
        def forward(self, x):
            return self.body(x).sum(2, keepdim=True).sqrt().mean(0)

    for options, warned in (({}, True), ({"readout": "mean"}, False)):
        net = Function(nn.Sequential(encoding.PoissonEncoder(), silent(threshold=0.1)), "mean")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer = FPTTTrainer(net, adam(net), CE, window=2, **options)
            trainer.predict(X)
        assert ["readout='mean' is assumed" in str(warning.message) for warning in caught] == [True] * warned
        assert "readout: mean" in trainer.explain()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_last_step_without_spikes_is_still_the_last_step(window, bias):
    """Its zeros are not those of a silent network: the steps before it spike."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(layer.Linear(3, 8, bias=bias), neuron.IFNode(v_threshold=0.3))
            functional.set_step_mode(self, "m")

        def forward(self, x):
            return self.body(x)[-1]

    torch.manual_seed(0)
    net, x = Last(), torch.cat([3 * X[:4], torch.zeros_like(X[:1])])  # in the fifth step nothing drives the neurons
    if bias:
        nn.init.constant_(net.body[0].bias, -0.1)
    with torch.no_grad():
        assert net.body[:1](x[:4]).max() > 0.3
        assert not net(x).any()
    trainer = FPTTTrainer(net, adam(net), CE, window=window)
    trainer.train_sequence(x, Y)
    assert "readout: step" in trainer.explain()
    functional.reset_net(net)
    torch.testing.assert_close(trainer.predict(x, averaged=False), net(x))


@pytest.mark.parametrize("use_temporal", [True, False])
@pytest.mark.parametrize("threshold", [0.3, 50.0])
def test_attention_over_time_is_refused_by_type(use_temporal, threshold):
    attention = layer.MultiDimensionalAttention(6, 8, 2, 2, 3, use_temporal=use_temporal)
    net = silent(attention, threshold=threshold)
    with pytest.raises(CannotStepError, match=r"MultiDimensionalAttention.*leave it out"):
        FPTTTrainer(net, adam(net), CE)
