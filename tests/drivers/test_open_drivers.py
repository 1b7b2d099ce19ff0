"""Drivers of one's own: an instance or a registered name works through every check; built-in names are taken."""

import copy

import pytest
import torch
from nets import CE, adam, batch, identical, sgd, spikes, spiking_net

from fptt_plugin import FPTTTrainer
from fptt_plugin.drivers import Driver, SliceDriver, StepDriver, register_driver
from fptt_plugin.errors import CannotStepError, ConfigurationError


class Twice(Driver):
    """Calls the network several times per time step."""

    def __init__(self, calls=2):
        self.calls = calls

    def advance(self, x):
        for x_t in x:
            for _ in range(self.calls):
                output = self.select(self.net(x_t))
            yield output

    def explain(self):
        return f"driver: {self.calls} calls per step"


class Louder(StepDriver):
    """A subclass of a built-in driver."""

    def advance(self, x):
        return super().advance(2 * x)


class Pushes(Driver):
    """Runs the loop itself and hands over every step."""

    pushes = True

    def steps_and_batch(self, x):
        return x.shape[0], x.shape[1]

    def run(self, x, take):
        for x_t in x:
            take(self.select(self.net(x_t)))


def trained(net, driver, x, **options):
    trainer = FPTTTrainer(net, sgd(net), CE, driver=driver, **options)
    with spikes(net):
        trainer.train_sequence(x, batch()[1])
    return trainer


@pytest.mark.parametrize(
    "options", [{}, {"window": 3}, {"readout": "mean"}, {"preflight": False}, {"variant": "gradient"}]
)
def test_an_instance_and_a_name_are_the_same(options):
    register_driver("twice", Twice)
    net, x = spiking_net(), batch()[0]
    nets = [copy.deepcopy(net) for _ in range(4)]
    trainers = [trained(n, d, x, **options) for n, d in zip(nets, (Twice(), "twice", Twice(1), "step"), strict=True)]
    assert identical(nets[0].parameters(), nets[1].parameters())
    assert identical(nets[2].parameters(), nets[3].parameters())
    assert not identical(nets[0].parameters(), nets[2].parameters())
    assert trainers[0].explain().startswith("driver: 2 calls per step")
    assert trainers[0].predict(x).shape == (4, 2)
    trainers[0].reset()
    assert trainers[0].step(x[0], batch()[1]).output.shape == (4, 2)


def test_a_subclass_of_a_built_in_driver():
    net, x = spiking_net(), batch()[0]
    other = copy.deepcopy(net)
    trained(net, Louder(), x)
    trained(other, "step", 2 * x)
    assert identical(net.parameters(), other.parameters())


@pytest.mark.parametrize("window", [1, 4])
def test_a_driver_that_pushes(window):
    net, x = spiking_net(), batch()[0]
    other = copy.deepcopy(net)
    pushing, stepping = trained(net, Pushes(), x, window=window), trained(other, "step", x, window=window)
    assert identical(net.parameters(), other.parameters())
    assert torch.equal(pushing.predict(x), stepping.predict(x))


def test_what_a_driver_of_ones_own_mixes_is_found():
    class Mixes(Twice):
        def advance(self, x):
            return super().advance(x.mean(1, keepdim=True).expand_as(x).clone() + x)

    net = spiking_net()
    with pytest.raises(CannotStepError, match="samples of a batch"):
        trained(net, Mixes(), batch()[0])
    FPTTTrainer(net, adam(net), CE, driver=Mixes(), preflight=False).train_sequence(*batch())


@pytest.mark.parametrize("name", ["auto", "step", "slice", "explicit", "in-flight"])
def test_names_that_are_taken(name):
    with pytest.raises(ConfigurationError, match="built in"):
        register_driver(name, Twice)


def test_a_class_is_no_driver():
    net = spiking_net()
    with pytest.raises(ConfigurationError, match=r"driver=Twice is a class: pass an instance, Twice\(...\)"):
        FPTTTrainer(net, adam(net), CE, driver=Twice)
    with pytest.raises(ConfigurationError, match="driver='thrice' is unknown"):
        FPTTTrainer(net, adam(net), CE, driver="thrice")
    assert SliceDriver().combines_steps is False


def test_a_driver_that_cannot_be_built_leaves_the_optimizer_free():
    class NotReady(StepDriver):
        def bind(self, *args):
            raise RuntimeError("not ready")

    net = spiking_net()
    optimizer = adam(net)
    with pytest.raises(RuntimeError, match="not ready"):
        FPTTTrainer(net, optimizer, CE, driver=NotReady())
    assert FPTTTrainer(net, optimizer, CE).train_sequence(*batch()).updates == len(batch()[0])
