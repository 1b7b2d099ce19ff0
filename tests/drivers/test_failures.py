"""A network that does not run, or mixes what it must keep apart: the message names the layer, and its remedy works."""

import re

import pytest
import snntorch as snn
import torch
from nets import CE, adam, copies, identical
from spikingjelly.activation_based import encoding, functional, layer, neuron, rnn, surrogate
from torch import nn
from torch.nn.parameter import is_lazy

import fptt_plugin
from fptt_plugin import FPTTTrainer
from fptt_plugin import spikingjelly as liquid
from fptt_plugin.errors import CannotRunError, CannotStepError
from fptt_plugin.state import AttributeHandler, register_state_handler

T, B, F = 6, 4, 5
X, Y = 2 * torch.rand(T, B, F, generator=torch.Generator().manual_seed(0)), torch.arange(B) % 3
IMAGES = 2 * torch.rand(T, B, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def lif():
    return neuron.LIFNode(v_threshold=0.3, surrogate_function=surrogate.ATan())


def multi_step(*modules):
    net = nn.Sequential(*modules)
    functional.set_step_mode(net, "m")
    return net


def refusal(net, x=X, kind=CannotStepError, **options):
    """Trains; this is refused before anything changes. Returns the error."""
    sized = [tensor for tensor in net.state_dict().values() if not is_lazy(tensor)]
    before = copies(sized)
    with pytest.raises(kind) as caught:  # noqa: PT012 - at construction or at the first batch
        trainer = FPTTTrainer(net, adam(net), CE, **options)
        trainer.train_sequence(x, Y.repeat(x.shape[1] // B))
    assert identical(before, sized)
    return caught.value


def trains(net, x=X, **options):
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):  # more excitation than inhibition: it fires
                nn.init.uniform_(module.weight, -0.2, 0.6)
    before = copies(net.parameters())
    FPTTTrainer(net, adam(net), CE, **{"readout": "mean", **options}).train_sequence(x, Y)
    assert not identical(before, net.parameters())


# ---------------------------------------------------------------------- the layer that raised

SIZES = {
    "Linear in 's' mode": (lambda n: nn.Sequential(nn.Linear(n, 3), snn.Leaky(0.9, init_hidden=True)), X, 5),
    "Linear in 'm' mode": (lambda n: multi_step(layer.Linear(5, 8), lif(), layer.Linear(n, 3), lif()), X, 8),
    "Conv2d": (lambda n: multi_step(layer.Conv2d(n, 3, 6), lif(), layer.Flatten()), IMAGES, 2),
    "BatchNorm1d": (
        lambda n: nn.Sequential(nn.Linear(F, 8), nn.BatchNorm1d(n), lif(), nn.Linear(8, 3), lif()),
        X,
        8,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_layer_of_another_size_is_named(name):
    build, x, size = SIZES[name]
    error = refusal(build(7), x, CannotRunError)
    assert re.search(r"in '\d' \((Linear|Conv2d|BatchNorm1d)\)", error.reason), error
    assert re.search(r"'\d' is built with (in_features|in_channels|num_features)=7", error.remedy), error
    assert "time axis" not in error.remedy
    trains(build(size), x)


PLAIN = {
    "BatchNorm1d": (nn.BatchNorm1d(F), layer.BatchNorm1d(F), X),
    "BatchNorm1d of as many features as samples": (nn.BatchNorm1d(B), layer.BatchNorm1d(B), X[..., :B]),
    "BatchNorm1d of three": (nn.BatchNorm1d(3), layer.BatchNorm1d(3), X[..., :3]),
    "Conv2d": (nn.Conv2d(2, 2, 3), layer.Conv2d(2, 2, 3), IMAGES),
    "MaxPool2d": (nn.MaxPool2d(2), layer.MaxPool2d(2), IMAGES),
    "Flatten": (nn.Flatten(), layer.Flatten(), IMAGES),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_layer_of_torch_in_multi_step_mode(name):
    plain, twin, x = PLAIN[name]

    def build(module):
        return multi_step(module, lif(), layer.Flatten(), layer.Linear(width, 3), lif())

    twin.step_mode = "m"
    width = twin(x).flatten(2).shape[-1]
    error = refusal(build(plain), x, CannotRunError)
    assert f"'0' is a torch.nn.{type(plain).__name__}" in error.remedy
    assert f"layer.{type(twin).__name__} with step_mode='m'" in error.remedy
    trains(build(twin), x)
    if name != "Flatten":  # which the container undoes
        trains(build(layer.SeqToANNContainer(plain)), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_spikes_of_another_type_than_the_weights(dtype):
    def build(**options):
        hidden = snn.Leaky(0.8, threshold=0.4, init_hidden=True, **options)
        out = snn.Leaky(0.8, threshold=0.4, init_hidden=True, output=True, **options)
        return nn.Sequential(nn.Linear(F, 8), hidden, nn.Linear(8, 3), out).to(dtype)

    assert f"x.to({dtype})" in refusal(build(), X, CannotRunError).remedy
    error = refusal(build(), X.to(dtype), CannotRunError)
    assert "in '2' (Linear)" in error.reason
    assert "spike_grad=fptt_plugin.functional.MultiGaussian()" in error.remedy
    trains(build(spike_grad=fptt_plugin.functional.MultiGaussian()), X.to(dtype))


# ---------------------------------------------------------------------- state that nobody resets


class HardReset(nn.Module):
    """Leaves no trace in neurons that fire at every step."""

    def __init__(self):
        super().__init__()
        self.v, self.spike = 0.0, surrogate.ATan()

    def forward(self, x):
        self.v = 0.5 * self.v + x
        spikes = self.spike(self.v - 0.3)
        self.v = self.v * (1 - spikes.detach())
        return spikes


class Tensors(nn.Module):
    """Begins with zeros of its size."""

    def __init__(self):
        super().__init__()
        self.u, self.w, self.spike = torch.zeros(8), torch.full((8,), 0.25), surrogate.ATan()

    def forward(self, x):
        self.w = 0.9 * self.w + 0.05 * x
        self.u = 0.5 * self.u + x + self.w
        spikes = self.spike(self.u - 0.3)
        self.u = self.u - 0.3 * spikes
        return spikes


class History(nn.Module):
    """Sees the last inputs."""

    def __init__(self):
        super().__init__()
        self.past, self.spike = [], surrogate.ATan()

    def forward(self, x):
        self.past = [*self.past[-2:], x]
        return self.spike(sum(self.past) / 2 - 0.3)


def around(kind, lazy=False):
    front = nn.LazyLinear(8) if lazy else nn.Linear(F, 8)
    return nn.Sequential(front, kind(), nn.Linear(8, 3), lif())


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("kind", [HardReset, Tensors, History])
def test_the_handler_in_the_message_works_as_printed(kind, lazy):
    """Whatever the weights: the state is found where the network fires seldom, often or always."""
    own = type(kind.__name__, (kind,), {})  # handlers are by class: each case has its own
    for seed in range(6):
        torch.manual_seed(seed)
        x = X if seed % 3 else X.repeat(1, 4, 1)  # more samples than a dry run takes
        remedy = refusal(around(own, lazy), x, driver=["auto", "step"][seed % 2], readout="mean").remedy
        code = re.search(r"fptt_plugin\.state\.(register_state_handler\(.*\)\))", remedy)[1]
    namespace = {own.__name__: own, "torch": torch, **vars(fptt_plugin.state)}
    exec(code, namespace)
    trains(around(own))


def test_a_handler_that_lacks_an_attribute_is_completed():
    own = type("Tensors", (Tensors,), {})
    register_state_handler(own, AttributeHandler(u=torch.zeros(8)))
    remedy = refusal(around(own), readout="mean").remedy
    assert "AttributeHandler(u=torch.zeros((8,)), w=torch.full((8,), 0.25))" in remedy


def test_state_that_an_input_has_left_is_not_taken_for_the_initial_one():
    net = around(HardReset)
    net(X[0])
    functional.reset_net(net[3])
    assert "AttributeHandler(v=...)" in refusal(net, readout="mean").remedy


@pytest.mark.parametrize("driver", ["auto", "step"])
@pytest.mark.parametrize("kind", [HardReset, Tensors])
def test_a_handler_with_other_values_than_the_neuron_takes(kind, driver):
    own = type(kind.__name__, (kind,), {})
    names = [name for name in ("v", "u", "w") if hasattr(kind(), name)]
    register_state_handler(own, AttributeHandler(**dict.fromkeys(names)))
    error = refusal(around(own), kind=CannotRunError, driver=driver, readout="mean")
    assert f"in '1' ({kind.__name__})" in error.reason
    code = re.search(r"fptt_plugin\.state\.(register_state_handler\(.*\)\))", error.remedy)[1]
    exec(code, {own.__name__: own, "torch": torch, **vars(fptt_plugin.state)})
    trains(around(own), driver=driver)


# ---------------------------------------------------------------------- layers with an own idea of time


class Recurrent(nn.Module):
    """As in the tutorials on sequences: the last output of a recurrent layer that runs over all steps."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.fc = kind(F, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        y, _ = self.cell(x)
        return self.fc(y[-1])


class RecurrentStep(Recurrent):
    """What the message says."""

    def forward(self, x_t, state):
        y, state = self.cell(x_t.unsqueeze(0), state)
        return self.fc(y[0]), state


@pytest.mark.parametrize("kind", [rnn.SpikingLSTM, rnn.SpikingGRU, nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_that_runs_over_the_sequence(kind):
    error = refusal(Recurrent(kind))
    assert f"'cell' ({kind.__name__})" in str(error)
    assert "y, state = self.cell(x_t.unsqueeze(0), state)" in str(error)
    net = RecurrentStep(kind)
    trainer = FPTTTrainer(net, adam(net), CE, readout="mean")
    before = copies(net.fc.parameters())
    assert trainer.train_sequence(X, Y).updates == T
    assert not identical(before, net.fc.parameters())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [rnn.SpikingLSTM, rnn.SpikingGRU, nn.GRU])
def test_such_a_layer_by_itself_takes_samples_for_time_steps(kind, seed):
    torch.manual_seed(seed)  # some of them never fire
    assert "x_t.unsqueeze(0)" in refusal(kind(F, 3, 1)).remedy


@pytest.mark.parametrize("mode", ["s", "m"])
def test_a_periodic_encoder(mode):
    pattern = torch.rand(5, B, F).round()
    net = nn.Sequential(encoding.PeriodicEncoder(pattern), layer.Linear(F, 3), lif())
    functional.set_step_mode(net, mode)
    assert "pass the pattern as the input" in str(refusal(net))
    trains(net[1:], pattern.repeat(2, 1, 1))


# ---------------------------------------------------------------------- samples that mix


class Softmax(nn.Module):
    def forward(self, x):
        return x.softmax(0) * len(x)


class Centered(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


@pytest.mark.parametrize("kind", [Softmax, Centered])
@pytest.mark.parametrize("place", [1, 3])
def test_the_layer_that_mixes_samples_is_named(kind, place):
    def build(kind):
        net = nn.Sequential(layer.Linear(F, 8), lif(), layer.Linear(8, 3), lif())
        net.insert(place, kind())
        return net

    error = refusal(build(kind), readout="mean")
    assert (error.layer, error.layer_type) == (str(place), kind.__name__)
    trains(build(kind), preflight=False)
    trains(build(nn.Identity))


class CenteredSequence(nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


def lazy_gates(mode):
    return liquid.LTCLeaky(step_mode=mode), layer.Linear(8, 3, step_mode=mode)


def lazy_linear(mode):
    return lif(), nn.LazyLinear(3)


def lazy_convolution(mode):
    return nn.Unflatten(1, (2, 4)), nn.LazyConv1d(2, 1), nn.Flatten(), lif(), nn.LazyLinear(3)


@pytest.mark.parametrize(
    ("build", "mode"), [(lazy_gates, "s"), (lazy_gates, "m"), (lazy_linear, "s"), (lazy_convolution, "s")]
)
def test_weights_that_are_drawn_at_the_first_input_do_not_look_like_mixed_samples(build, mode):
    """The preflight compares two copies, each of which would draw its own."""
    net = nn.Sequential(layer.Linear(F, 8, step_mode=mode), *build(mode))
    assert FPTTTrainer(net, adam(net), CE, readout="mean").train_sequence(X, Y).updates > 0
    mixing = nn.Sequential(layer.Linear(F, 8, step_mode=mode), *build(mode))
    mixing.insert(1, Centered() if mode == "s" else CenteredSequence())
    assert refusal(mixing).layer_type.startswith("Centered")


class Loop(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def forward(self, x):
        return torch.stack([self.step(x_t) for x_t in x])


@pytest.mark.parametrize("loops", [False, True])
def test_lazy_normalization_takes_its_size_first(loops):
    layers = nn.Sequential(nn.LazyLinear(8), lif(), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    net = Loop(layers) if loops else layers
    trainer = FPTTTrainer(net, adam(net), CE)
    with pytest.raises(CannotStepError, match=r"lazy normalizations their size first: with torch.no_grad\(\): net\(x"):
        trainer.train_sequence(X, Y)
    with torch.no_grad():
        net(X if loops else X[0])
    assert trainer.train_sequence(X, Y).updates > 0
