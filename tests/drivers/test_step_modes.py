"""SpikingJelly's step modes and time axes: what changes after the trainer was built, and what it learns by itself."""

import copy

import pytest
import torch
from nets import Before, Mean, adam, batch, copies, identical, sgd
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import BPTT, FPTTTrainer
from fptt_plugin.drivers import SliceDriver, StepDriver
from fptt_plugin.errors import CannotStepError
from fptt_plugin.spikingjelly import LTCIntegrator, LTCLeaky

CE = nn.CrossEntropyLoss()


def jelly(mode):
    net = nn.Sequential(
        layer.Linear(3, 8), LTCLeaky(linear_features=8), layer.Linear(8, 2), LTCIntegrator(linear_features=2)
    )
    functional.set_step_mode(net, mode)
    return net


# ---------------------------------------------------------------------- other step modes


@pytest.mark.parametrize("modes", ["sm", "ms"])
@pytest.mark.parametrize("trained", [False, True])
def test_the_driver_follows_the_step_modes(modes, trained):
    """The mode is a way to compute the same, so that the weights are those of a network that always had one."""
    net, (x, y) = jelly(modes[0]), batch()
    constant, one_mode = copy.deepcopy(net), []
    for model in (net, constant):
        trainer = FPTTTrainer(model, sgd(model), CE, window=2, loss_every=1)
        if trained:
            trainer.train_sequence(x, y)
        if model is net:
            functional.set_step_mode(net, modes[1])
        trainer.train_sequence(x, y)
        one_mode.append(trainer)
    changed, kept = one_mode
    assert type(changed._loop.driver) is (SliceDriver if modes[1] == "m" else StepDriver)
    assert type(changed._loop.driver) is not type(kept._loop.driver)
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(net.parameters(), constant.parameters(), strict=True))
    assert changed.predict(x).shape == (4, 2)


def test_the_driver_follows_within_a_stream():
    net, (x, y) = jelly("s"), batch()
    constant = copy.deepcopy(net)
    trainers = [FPTTTrainer(model, sgd(model), CE) for model in (net, constant)]
    for t, x_t in enumerate(x):
        if t == 3:
            functional.set_step_mode(net, "m")
        outputs = [trainer.step(x_t, y).output for trainer in trainers]
    assert torch.allclose(*outputs, atol=1e-6)
    assert type(trainers[0]._loop.driver) is SliceDriver


@pytest.mark.parametrize("mode", ["s", "m"])
def test_the_remedy_of_mixed_modes_works_on_the_same_trainer(mode):
    net, (x, y) = jelly("m"), batch()
    net[1].step_mode = "s"
    trainer = FPTTTrainer(net, sgd(net), CE, window=2)
    with pytest.raises(ValueError, match=r"set_step_mode\(net, 'm'\) or functional.set_step_mode\(net, 's'\)"):
        trainer.train_sequence(x, y)
    functional.set_step_mode(net, mode)
    before = copies(net.parameters())
    trainer.train_sequence(x, y)
    assert not identical(before, net.parameters())


@pytest.mark.parametrize(
    ("driver", "modes", "match"), [("step", "sm", "for time steps"), ("slice", "ms", "in 's' mode")]
)
def test_a_driver_that_the_user_named_stays(driver, modes, match):
    net, (x, y) = jelly(modes[0]), batch()
    trainer = FPTTTrainer(net, sgd(net), CE, window=2, driver=driver)
    trainer.train_sequence(x, y)
    functional.set_step_mode(net, modes[1])
    before = Before(trainer)
    for _ in range(2):
        with pytest.raises(ValueError, match=match):
            trainer.train_sequence(x, y)
    assert before.differs() == []
    functional.set_step_mode(net, modes[0])
    trainer.train_sequence(x, y)


def test_a_loop_in_forward_whose_layers_change():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = jelly("s")

        def forward(self, x):
            return torch.stack([self.body(x_t) for x_t in x])

    net, (x, y) = Loop(), batch()
    trainer = FPTTTrainer(net, sgd(net), CE)
    trainer.train_sequence(x, y)
    assert "in-flight" in trainer.explain()
    functional.set_step_mode(net, "m")
    before = Before(trainer)
    with pytest.raises(ValueError, match=r"loops over time, call functional.set_step_mode\(net, 's'\)"):
        trainer.train_sequence(x, y)
    assert before.differs() == []
    functional.set_step_mode(net, "s")
    trainer.train_sequence(x, y)


# ---------------------------------------------------------------------- networks that average over time


@pytest.mark.parametrize(("window", "loss_every"), [(3, 2), (4, 1), (None, 1)])
@pytest.mark.parametrize("preflight", [True, False])
def test_losses_within_a_window_that_is_averaged(window, loss_every, preflight):
    net, (x, y) = Mean(jelly("m")), batch(8)
    options = {"loss_every": loss_every, "preflight": preflight}
    trainer = (
        BPTT(net, sgd(net), CE, **options)
        if window is None
        else FPTTTrainer(net, adam(net), CE, window=window, **options)
    )
    weights = copies(net.parameters())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Mean averages its output.*leave loss_every out.*multiple of window"):
            trainer.train_sequence(x, y)
    assert identical(weights, net.parameters())
    FPTTTrainer(net, sgd(net), CE, window=2, loss_every=4).train_sequence(x, y)
    FPTTTrainer(net, sgd(net), CE, window=2).train_sequence(x, y)
    steps = jelly("m")
    FPTTTrainer(steps, sgd(steps), CE, window=window, loss_every=loss_every).train_sequence(x, y)


@pytest.mark.parametrize("make", [lambda: Mean(jelly("m")), lambda: jelly("m")], ids=["average", "every step"])
def test_the_first_call_shows_the_time_axis_without_a_preflight(make):
    net, (x, y) = make(), batch(8)
    trainers = []
    for preflight in (True, False):
        model = copy.deepcopy(net)
        trainers.append(FPTTTrainer(model, sgd(model), CE, window=4, preflight=preflight))
    results = [trainer.train_sequence(x, y) for trainer in trainers]
    assert torch.equal(results[0].output, results[1].output)
    assert identical(trainers[0].net.parameters(), trainers[1].net.parameters())
    assert trainers[0]._loop.driver.keeps_time == trainers[1]._loop.driver.keeps_time == (type(net) is not Mean)


def test_an_output_without_samples_is_refused_without_a_preflight():
    net = nn.Sequential(jelly("m"), nn.Flatten(0, 1))
    trainer = FPTTTrainer(net, sgd(net), CE, window=4, preflight=False)
    with pytest.raises(ValueError, match=r"shape \(30, 2\) for 5 steps of 6 samples: expected \[5, 6, ...\]"):
        trainer.train_sequence(*batch(8))


@pytest.mark.parametrize(("mode", "window"), [("s", 4), ("m", 4), ("m", 10)])
def test_firing_rates_do_not_depend_on_slices_and_batches(mode, window):
    net = nn.Sequential(layer.Linear(1, 4), neuron.IFNode(), layer.Linear(4, 2), LTCIntegrator(linear_features=2))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    functional.set_step_mode(net, mode)
    trainer = FPTTTrainer(net, sgd(net, 1e-9), CE, window=window)
    x = torch.zeros(10, 4, 1)
    x[8:] = 2.0  # every neuron fires in two of ten steps
    silent = torch.zeros(10, 12, 1), torch.zeros(12, dtype=torch.long)
    record = trainer.fit([(x, torch.zeros(4, dtype=torch.long)), silent], 1, progress=False)[0]
    assert record.firing_rates == {"1": 2 * 4 / (10 * 16)}


# ---------------------------------------------------------------------- what changes with the mode, or with the step


class ByMode(Mean):
    """Returns every step while it trains, as for a loss of each, and their mean in evaluation; or the other way."""

    def __init__(self, body, training):
        super().__init__(body)
        self.returns_steps = training

    def forward(self, x):
        return self.body(x) if self.training is self.returns_steps else super().forward(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("window", "samples"), [(1, 4), (4, 4), (3, 4), (6, 6)])
def test_an_output_with_a_time_axis_in_one_mode_alone_is_refused(training, window, samples):
    x, y = batch(samples=samples)
    net = ByMode(jelly("m"), training)
    before, trainer = copies(net.parameters()), FPTTTrainer(net, sgd(net), CE, window=window)
    with pytest.raises(CannotStepError, match=r"return the output of every step, \[T, B, \.\.\.\], in both; with"):
        trainer.train_sequence(x, y)
    assert identical(before, net.parameters())
    assert FPTTTrainer(net.body, sgd(net), CE, window=window, readout="mean").train_sequence(x, y).updates > 0


class OfEachStep(nn.Module):
    """A normalization for each time step, by its place in the input; or by the time that the layer counts."""

    def __init__(self, steps):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(3) for _ in range(steps))

    def forward(self, x):
        return torch.stack([norm(x_t) for norm, x_t in zip(self.norms, x, strict=False)])


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize("mode", ["s", "m"])
def test_layers_made_for_a_number_of_steps(window, mode):
    x, y = batch(steps=4)
    own, counting = OfEachStep(4), layer.BatchNormThroughTime1d(4, 3)
    nets = [nn.Sequential(norm, jelly(mode)) for norm in (own, counting)]
    functional.set_step_mode(nets[1], mode)
    assert FPTTTrainer(nets[1], sgd(nets[1]), CE, window=window).train_sequence(x, y).updates == (4 // (window or 4))
    trainer = FPTTTrainer(nets[0], sgd(nets[0]), CE, window=window)
    if mode == "m" and window is None:
        trainer.train_sequence(x, y)
    elif mode == "m":
        with pytest.raises(CannotStepError, match=r"slice by slice.* or pass window=None"):
            trainer.train_sequence(x, y)
