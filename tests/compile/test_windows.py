"""Windows as graphs: what they give is what eager training gives."""

import warnings

import pytest
import snntorch as snn
import torch
from accelerated import double_net, liquid, pair, sequences, train, train_both
from nets import LIF, batch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FiringRates, SavedForBackward, spikingjelly
from fptt_plugin.compile.update import Books
from fptt_plugin.compile.window import CompiledWindow
from fptt_plugin.errors import FPTTWarning
from fptt_plugin.functional import MultiGaussian
from fptt_plugin.snntorch import LTCLeaky

pytestmark = pytest.mark.usefixtures("traced", "whole_windows")


def leaky():
    # Stock surrogates return single precision.
    fires = snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True, spike_grad=MultiGaussian())
    ends = snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none", output=True)
    return nn.Sequential(nn.Linear(3, 8), fires, nn.Linear(8, 2), ends).double()


def single_step():
    fires = spikingjelly.LTCLeaky(surrogate_function=MultiGaussian())
    return nn.Sequential(layer.Linear(3, 8), fires, layer.Linear(8, 2), spikingjelly.LTCIntegrator()).double()


def multi_step():
    net = nn.Sequential(layer.Linear(3, 8), neuron.LIFNode(v_threshold=0.3), layer.Linear(8, 2)).double()
    functional.set_step_mode(net, "m")
    return net


class Explicit(nn.Module):
    """Takes and returns its state, and has a spiking layer besides."""

    def __init__(self):
        super().__init__()
        self.into, self.fires, self.cell, self.out = nn.Linear(3, 8), LIF(), nn.LSTMCell(8, 8), nn.Linear(8, 2)

    def forward(self, x, state):
        state = self.cell(self.fires(self.into(x)), state)
        return self.out(state[0]), state


class Halves(nn.Module):
    """Its state is a slice of a larger tensor, with gaps in memory."""

    def __init__(self):
        super().__init__()
        self.mix, self.fires, self.out = nn.Linear(11, 16), LIF(), nn.Linear(8, 2)

    def forward(self, x, state=None):
        if state is None:
            state = x.new_zeros(len(x), 8)
        now, state = self.mix(torch.cat([x, state], 1)).chunk(2, 1)
        return self.out(self.fires(now)), state


BUILDERS = [double_net, liquid, leaky, single_step, multi_step, lambda: Explicit().double(), lambda: Halves().double()]


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("window", [1, 3])
def test_every_driver(build, window, graph_steps):
    trainers = pair(build, window=window)
    eager, compiled = train_both(trainers, train)
    assert len(graph_steps) >= 3
    assert sum(graph_steps) >= 3 * 3  # all but first windows and the rest of a sequence
    for one, other in zip(eager, compiled, strict=True):
        assert torch.allclose(one.output, other.output)
        assert torch.allclose(one.loss, other.loss)
        assert one.updates == other.updates


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": 0.5, "rho": 0.3, "beta": 0.2},
        {"max_grad_norm": None},
        {"max_grad_norm": 1e-3},
        {"readout": "mean"},
        {"readout": "rate"},
        {"readout": "mean", "window": 3, "loss_every": 1},
        {"loss_ramp": "constant"},
        {"loss_ramp": "linear", "auxiliary": False},
        {"loss_ramp": lambda t, steps: (t + 1) ** 2 / steps, "auxiliary": True},
        {"average_weights": "sequence"},
        {"window": 2, "loss_every": 4, "update_every": 2},
    ],
)
def test_every_option(options, graph_steps):
    train_both(pair(**options), train)
    assert graph_steps


def test_one_target_per_step(graph_steps):
    def train_stepwise(trainer):
        for x, _ in sequences():
            trainer.train_sequence(x, torch.randint(2, x.shape[:2]))

    train_both(pair(window=2, loss_every=1), train_stepwise)
    assert graph_steps


def test_batches_whose_first_dimension_is_not_time_in_memory(graph_steps):
    def train_transposed(trainer):
        for x, _ in sequences():
            by_sample = x.transpose(0, 1).contiguous()  # as a DataLoader gives it
            labels = torch.randint(2, by_sample.shape[:2])
            trainer.train_sequence(by_sample.transpose(0, 1), labels.t())
        constant = x[0].expand(7, -1, -1)  # one image at every step
        trainer.train_sequence(constant, labels.t())

    train_both(pair(window=2, loss_every=1), train_transposed)
    assert len(graph_steps) >= 4


class Normalized(nn.Module):
    """Feature maps with batch normalization and dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.fires, self.drop, self.out = (
            LTCLeaky(conv2d_channels=4, init_hidden=True),
            nn.Dropout(0.3),
            nn.Linear(64, 2),
        )
        self.ends = LIF(spikes=False)

    def forward(self, x):
        return self.ends(self.out(self.drop(self.fires(self.norm(self.conv(x))).flatten(1))))


def test_batch_statistics_and_random_numbers(graph_steps):
    def train_images(trainer):
        for _ in range(2):
            trainer.train_sequence(torch.rand(5, 6, 1, 4, 4, dtype=torch.float64), torch.arange(6) % 2)

    trainers = pair(lambda: Normalized().double())
    train_both(trainers, train_images)
    assert sum(graph_steps) == 8
    assert trainers[1].net.norm.num_batches_tracked == 10


def test_frozen_unused_and_shared_weights(graph_steps):
    def build():
        net = double_net(extra=[nn.Linear(8, 8), nn.Linear(8, 8)])
        net[1].weight = net[2].weight
        net[1].bias.requires_grad_(False)
        net.unused = None
        net[0].register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
        return net

    train_both(pair(build), train)
    assert graph_steps


def test_what_changes_between_sequences(graph_steps):
    def train_changing(trainer):
        schedule = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1, 0.5)
        train(trainer)
        schedule.step()
        train(trainer)
        trainer.net[1].threshold = 0.2
        train(trainer)
        trainer.net[0].weight.requires_grad_(False)
        trainer.net[0].weight.grad = None
        train(trainer)
        trainer.net.eval()
        trainer.train_sequence(*sequences(1, 12)[0])

    with warnings.catch_warnings():
        warnings.simplefilter("error", FPTTWarning)
        train_both(pair(), train_changing)
    assert len(graph_steps) > 12


def test_a_stream(graph_steps):
    def stream(trainer):
        trainer.reset()
        for t in range(20):
            ended = torch.tensor([t == 9, False, t == 12, False])
            x, y = batch(1, dtype=torch.float64)
            mask = torch.tensor([True, False, True, True]) if t % 5 == 4 else None
            trainer.step(x[0], None if t % 7 == 3 else y, mask, ended)

    train_both(pair(loss_every=1), stream)
    assert 8 < len(graph_steps) < 17


def test_a_checkpoint_in_mid_stream(tmp_path, graph_steps):
    def stream(trainer):
        trainer.reset()
        for t in range(12):
            x, y = batch(1, dtype=torch.float64)
            trainer.step(x[0], y)
            if t == 5:
                trainer.save(tmp_path / "t.pt")
                trainer.load(tmp_path / "t.pt")

    train_both(pair(), stream)
    assert len(graph_steps) == 11


def test_monitors_see_what_the_graph_does():
    def firing(trainer):
        with FiringRates(trainer.net) as monitor:
            train(trainer)
        return monitor.rates()

    eager, compiled = train_both(pair(), firing)
    assert eager == pytest.approx(compiled)
    assert 0 < compiled["1"] < 1


class Exp(nn.Module):
    """Overflows where its input is large."""

    def forward(self, x):
        return x.exp()


def test_counting_saved_bytes_hinders_no_graph(graph_steps):
    trainer = pair()[1]
    with warnings.catch_warnings(), SavedForBackward(trainer.net) as saved:
        warnings.simplefilter("error", FPTTWarning)
        train(trainer)
    assert graph_steps
    assert saved.peak > 0  # of the eager first steps


@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize("window", [1, 2])
def test_what_is_not_finite_stops_where_it_would(where, window):
    x, y = batch(8, dtype=torch.float64)
    y = torch.rand(8, 4, 2, dtype=torch.float64)

    def loss(output, target):
        return ((output - target) ** 2).mean() / (target.min() > 0.0)

    if where == "y":
        y[5, 0, 0] = 0.0
    trainers = pair(lambda: double_net(extra=[Exp()]), loss=loss, window=window)
    messages, first = [], (batch(5, dtype=torch.float64)[0], torch.rand(5, 4, 2, dtype=torch.float64))
    for trainer in trainers:
        trainer.train_sequence(*first)
        if where == "x":
            x[5] = 1e308
        with pytest.raises(FloatingPointError) as error:
            trainer.train_sequence(x, y)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_skipped_updates(graph_steps):
    def loss(output, target):
        return ((output - target) ** 2).mean() / (target.min() > 0.0)

    def train_skipping(trainer):
        for hole in (3, 4):
            x, _ = batch(8, dtype=torch.float64)
            y = torch.rand(8, 4, 2, dtype=torch.float64) + 0.1
            y[hole] = 0.0
            trainer.train_sequence(x, y)

    trainers = pair(loss=loss, on_nonfinite="skip")
    train_both(trainers, train_skipping)
    assert [trainer.skipped for trainer in trainers] == [2, 2]
    assert graph_steps


@pytest.mark.parametrize(("most", "stretches"), [(64, 1), (4, 2), (1, 6)])
def test_the_windows_of_a_batch_are_prepared_together(monkeypatch, most, stretches):
    prepared, tensors = [], Books.tensors
    monkeypatch.setattr(Books, "tensors", lambda self, weights: prepared.append(1) or tensors(self, weights))
    monkeypatch.setattr(CompiledWindow, "most", most)

    def train_counted(trainer):
        train(trainer, count=2)
        prepared.clear()
        return train(trainer, count=1, steps=7)

    train_both(pair(liquid, readout="mean"), train_counted)
    assert len(prepared) == stretches


class Turns(nn.Module):
    """Uses one layer at the steps of an odd number and another at the rest, so each lacks a gradient at times."""

    def __init__(self):
        super().__init__()
        self.fires, self.odd, self.even, self.steps = LIF(), nn.Linear(3, 2), nn.Linear(3, 2), 0

    def forward(self, x):
        self.steps += 1
        return (self.odd if self.steps % 2 else self.even)(self.fires(x))


def test_weights_that_take_turns_count_their_own_updates():
    trainers = pair(lambda: Turns().double(), preflight=False)
    train_both(trainers, train)
    counts = [[int(t.optimizer.state[w]["step"]) for w in t.net.parameters()] for t in trainers]
    assert counts[0] == counts[1]
    assert len(set(counts[0])) == 2
