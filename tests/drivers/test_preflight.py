"""The look at the first batch: what it finds in networks that work, and in those that do not forget."""

import importlib
import threading
import warnings
import weakref
from typing import ClassVar

import numpy as np
import pytest
import snntorch as snn
import torch
from nets import LIF, Before, batch, copies, identical, sgd
from spikingjelly.activation_based import encoding, functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotRunError, FPTTWarning
from fptt_plugin.spikingjelly import LTCIntegrator
from fptt_plugin.state import AttributeHandler, register_state_handler

CE = nn.CrossEntropyLoss()


def trainer_of(net, **options):
    return FPTTTrainer(net, sgd(net), CE, **options)


def train(net, **options):
    trainer = trainer_of(net, **options)
    before = copies(net.parameters())
    trainer.train_sequence(*batch())
    assert not identical(before, net.parameters())
    return trainer


def refused(net, match, **options):
    trainer = trainer_of(net, **options)
    before = Before(trainer)
    with pytest.raises(ValueError, match=match):
        trainer.train_sequence(*batch())
    assert before.differs() == []


# ---------------------------------------------------------------------- random networks


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("end", [neuron.LIFNode, LTCIntegrator])
@pytest.mark.parametrize("rate", [1.0, 0.02])
def test_random_spikes_are_not_mistaken_for_mixed_samples(mode, end, rate):
    """A silent output is the same every time, and the states behind it are not; rare spikes may miss an excerpt."""
    for seed in range(5):
        torch.manual_seed(seed)
        body = [layer.Linear(3, 12), neuron.LIFNode(), layer.Linear(12, 3), end()]
        net = nn.Sequential(encoding.PoissonEncoder(), *body)
        functional.set_step_mode(net, mode)
        x, y = batch()
        trainer_of(net, window=2, readout="mean").train_sequence(rate * x, y)


class Draws:
    def __init__(self, generator):
        self.generator = generator

    def random(self, *args, **kwargs):
        return self.generator.random(*args, **kwargs)


class Noise(nn.Module):
    """Numbers that torch does not draw, and a record of them."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator
        self.last = None

    def forward(self, x):
        self.last = torch.from_numpy(self.generator.random(tuple(x.shape), dtype=np.float32))
        return x + self.last


@pytest.mark.filterwarnings("error:.*gives something else")
@pytest.mark.parametrize("wrapped", [False, True])
def test_random_numbers_from_elsewhere_are_no_memory(wrapped):
    generator = np.random.default_rng(0)
    noise = Noise(Draws(generator) if wrapped else generator)
    train(nn.Sequential(noise, nn.Linear(3, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False)))


class OwnNoise(nn.Module):
    """Numbers of a generator of torch's that nobody else has."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator()

    def forward(self, x):
        return x + torch.rand(x.shape, generator=self.generator)


@pytest.mark.filterwarnings("error:.*gives something else")
def test_random_numbers_of_a_generator_of_torch():
    train(nn.Sequential(OwnNoise(), nn.Linear(3, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False)))


class Closure(nn.Module):
    """Keeps a trace where no reset reaches it, and no attribute shows it."""

    def __init__(self):
        super().__init__()
        trace = torch.zeros(3)

        def add(x):
            nonlocal trace
            trace = 0.5 * trace + x.detach().mean(0)
            return x + trace

        self.add = add

    def forward(self, x):
        return self.add(x)


def test_state_that_no_attribute_shows_is_warned_of():
    with pytest.warns(FPTTWarning, match="keeps a state in a closure or a global variable, no reset reaches it"):
        train(nn.Sequential(Closure(), nn.Linear(3, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False)))


class ClosureOfSamples(nn.Module):
    """The same for each sample."""

    def __init__(self):
        super().__init__()
        trace = None

        def add(x):
            nonlocal trace
            trace = x if trace is None else 0.5 * trace.detach() + x
            return trace

        self.add = add

    def forward(self, x):
        return self.add(x) if x.dim() == 2 else torch.stack([self.add(x_t) for x_t in x])


@pytest.mark.parametrize("mode", ["s", "m"])
def test_state_of_other_samples_that_no_attribute_shows_is_refused(mode):
    """The dry run on a few samples has left it."""
    net = nn.Sequential(layer.Linear(3, 8), ClosureOfSamples(), neuron.LIFNode(), layer.Linear(8, 2))
    functional.set_step_mode(net, mode)
    trainer, x, y = trainer_of(net, window=2), torch.rand(6, 7, 3), torch.zeros(7, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it gives something else each time
        with pytest.raises(CannotRunError, match=r"on no other number of them\. If it keeps a state in a closure"):
            trainer.train_sequence(x, y)


@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_lazy_layers_of_two_copies_draw_the_same_weights(library, dropout):
    neurons = importlib.import_module(f"fptt_plugin.{library}")
    state = {"init_hidden": True} if library == "snntorch" else {}
    for seed in range(3):
        torch.manual_seed(seed)
        hidden, end = neurons.LTCLeaky(**state), neurons.LTCIntegrator(**state)
        net = nn.Sequential(nn.LazyLinear(8), hidden, nn.Dropout(dropout), nn.LazyLinear(2), end)
        assert trainer_of(net, window=2).train_sequence(*batch()).updates == 3


# ---------------------------------------------------------------------- what it costs


class Watched(nn.Linear):
    """Counts the places in memory where its weights are; with a ``decay``, its weights change with every call."""

    places: ClassVar[dict[int, weakref.ref]] = {}
    most = 0
    decay = 1.0

    def forward(self, x):
        Watched.places[id(self.weight)] = weakref.ref(self.weight)
        living = [found for place in Watched.places.values() if (found := place()) is not None]
        Watched.most = max(Watched.most, len({weight.data_ptr() for weight in living}))
        if self.decay != 1.0:
            self.weight.data.mul_(self.decay)
        return super().forward(x)


class Loops(nn.Sequential):
    def forward(self, x):
        return torch.stack([super(Loops, self).forward(x_t) for x_t in x]).mean(0)


@pytest.mark.parametrize("mode", ["s", "m", "mean", "loop"])
def test_one_copy_of_the_weights_lives_at_a_time(mode):
    layers = [Watched(3, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False)]
    net = Loops(*layers) if mode == "loop" else nn.Sequential(*layers)
    if mode in ("m", "mean"):
        net = nn.Sequential(Watched(3, 8), neuron.LIFNode(), layer.Linear(8, 2), LTCIntegrator())
        functional.set_step_mode(net, "m")
    if mode == "mean":
        net = nn.Sequential(net, Mean())
    Watched.places, Watched.most = {}, 0
    trainer_of(net, window=2).prepare(*batch())
    assert Watched.most == 1  # beside the network's own, which has not been called


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(0)


@pytest.mark.filterwarnings("ignore:.*gives something else")
def test_weights_that_a_network_changes_itself_are_changed_on_copies_alone():
    net = nn.Sequential(Watched(3, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False))
    net[0].decay = 0.5
    before = copies(net.parameters())
    trainer_of(net).prepare(*batch())
    assert identical(before, net.parameters())


# ---------------------------------------------------------------------- state that no reset reaches


class Streaming(nn.Module):
    """The membranes are the network's own attributes, as in many snnTorch examples."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(3, 8), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(beta=0.9)
        self.mem1 = self.mem2 = None

    def forward(self, x):
        spk, self.mem1 = self.lif1(self.fc1(3 * x), self.mem1)
        _, self.mem2 = self.lif2(self.fc2(spk), self.mem2)
        return self.mem2


class Named(Streaming):
    pass


def test_membranes_in_the_networks_own_attributes():
    remedy = r"init_hidden=True.*register_state_handler\(Streaming, AttributeHandler\(mem1=None, mem2=None\)\)"
    for options in ({}, {"driver": "step"}):
        refused(Streaming(), f"'mem1', 'mem2', which reset.*{remedy}.*preflight=False", **options)
    register_state_handler(Named, AttributeHandler(mem1=None, mem2=None))
    trainer = train(Named())
    x, _ = batch()
    assert torch.equal(trainer.predict(x), trainer.predict(x))


class Trace(nn.Module):
    """Adds a trace of its input in one of the ways to keep one."""

    def __init__(self, way):
        super().__init__()
        self.way, self.total, self.count, self.seen = way, None, 0, []
        self.register_buffer("trace", torch.zeros(3))

    def forward(self, x):
        now = x.detach().mean(0)
        if self.way == "none at first":
            self.total = now if self.total is None else self.total + now
            return x + self.total
        if self.way == "a number":
            self.count += 1
            return x + self.count
        if self.way == "a list":
            self.seen.append(now)
            return x + len(self.seen)
        if self.way == "absent at first":
            self.late = getattr(self, "late", 0.0) + now
            return x + self.late
        self.trace.mul_(0.9).add_(now)  # a buffer, in place
        return x + self.trace


def plain(*first):
    return nn.Sequential(*first, nn.Linear(3, 8), LIF(), nn.Linear(8, 2), LIF(spikes=False))


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("none at first", "0.total"),
        ("a number", "0.count"),
        ("a list", "0.seen"),
        ("absent at first", "0.late"),
        ("a buffer", "0.trace"),
    ],
)
def test_every_way_to_keep_a_memory(way, name):
    refused(plain(Trace(way)), rf"left in '{name}', which reset\(\) does not reach.*register_state_handler\(Trace")
    train(plain(Trace(way)), preflight=False)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_memory_beside_the_neurons_of_spikingjelly(mode):
    body = [layer.Linear(3, 8), neuron.LIFNode(), layer.Linear(8, 2), LTCIntegrator(linear_features=2)]
    net = nn.Sequential(Trace("a number"), *body)
    functional.set_step_mode(net, mode)
    refused(net, "left in '0.count'", window=2)


def test_a_memory_beside_an_explicit_state():
    class Explicit(nn.Module):
        def __init__(self):
            super().__init__()
            self.trace, self.fc = Trace("a number"), nn.Linear(3, 2)

        def forward(self, x, state):
            state = self.fc(self.trace(x)) + (0 if state is None else 0.5 * state)
            return state, state

    refused(Explicit(), "left in 'trace.count'")


class Record(nn.Module):
    """Looks at everything and changes nothing."""

    def __init__(self):
        super().__init__()
        self.calls, self.last, self.all, self.lock = 0, None, [], None

    def forward(self, x):
        self.calls, self.last = self.calls + 1, x
        self.all.append(x.detach())
        return x


def test_a_record_is_no_memory():
    net = plain(Record())
    train(net)
    assert net[0].calls == 6


def test_a_network_that_cannot_be_copied_is_not_looked_at():
    net = plain(Record())
    net[0].lock = threading.Lock()
    train(net, driver="step")


def test_other_networks_stay_as_they_are():
    """snnTorch's own reset reaches every neuron in the process."""

    class Resetting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(3, 2), snn.Leaky(beta=0.9, init_hidden=True)

        def forward(self, x):
            snn.Leaky.reset_hidden()
            return self.lif(self.fc(x))

    other, (x, _) = snn.Leaky(beta=0.9, init_hidden=True), batch()
    other(x[0])
    trainer_of(Resetting(), driver="step")._find_driver(x, batch_first=False)
    assert torch.equal(other.mem, x[0])


# ---------------------------------------------------------------------- small effects, and spikes that rounding flips


class Looks(nn.Module):
    """Adds a little of the mean over an axis."""

    def __init__(self, axis, share):
        super().__init__()
        self.axis, self.share = axis, share

    def forward(self, x):
        return x + self.share * x.mean(self.axis, keepdim=True)


def multi_step(*last):
    body = [layer.Linear(3, 12), neuron.LIFNode(v_threshold=0.4), layer.Linear(12, 2), neuron.LIFNode(v_threshold=0.2)]
    net = nn.Sequential(*body, *last)
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("share", [0.1, 0.01])
@pytest.mark.parametrize(
    ("axis", "what"), [(0, "does not compute slice by slice"), (1, "what depends on the others in the batch")]
)
def test_a_small_part_of_other_steps_and_samples(axis, what, share):
    refused(multi_step(Looks(axis, share)), what, window=2)


class Rounds(nn.Module):
    """Rounding differs between one step and several, and between one sample and several, as of matrix products."""

    def forward(self, x):
        return x * (1 + 3e-6 * len(x.flatten(0, -2))) if x.dtype == torch.float32 else x


def test_spikes_that_rounding_flips_are_no_difference():
    flips = 0
    for seed in range(5):
        torch.manual_seed(seed)
        body = [layer.Linear(3, 500), neuron.IFNode(v_threshold=0.01), layer.Linear(500, 2), LTCIntegrator()]
        net = nn.Sequential(Rounds(), *body)
        functional.set_step_mode(net, "m")
        x, y = batch()
        with torch.no_grad():
            whole, parts = net(x), (functional.reset_net(net), torch.cat([net(x_t) for x_t in x.split(1)]))[1]
        functional.reset_net(net)
        flips += not torch.allclose(whole, parts, rtol=1e-4, atol=1e-5)
        trainer_of(net, window=2).train_sequence(x, y)
    assert flips


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.layers, self.end = multi_step(), end

    def forward(self, x):
        return self.end(self.layers(x))


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("bound", [5, 8])
def test_a_bound_that_few_steps_do_not_reach(bound, window):
    refused(Ends(lambda out: out.sum(0).clamp(max=bound)), "which is not the last, mean, sum or maximum", window=window)
    train(Ends(lambda out: out.sum(0) / bound), window=window)
