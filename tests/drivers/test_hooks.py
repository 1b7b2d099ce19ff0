"""Hooks in dry runs: what they compute takes part, and what they write reaches nobody."""

import threading
from functools import partial

import pytest
import snntorch as snn
import torch
from nets import adam, batch, sgd, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotStepError
from fptt_plugin.state import AttributeHandler, register_state_handler

CE = nn.CrossEntropyLoss()
GLOBAL = []


def trainer_of(net, **options):
    return FPTTTrainer(net, sgd(net, lr=0.0), CE, alpha=0.0, **options)


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 8), nn.Linear(8, 2)
        self.lif1, self.lif2 = snn.Leaky(beta=0.8, threshold=0.3), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1, mem2, record = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)


@pytest.mark.parametrize("last", [False, True])
def test_a_hook_on_the_network_is_part_of_what_it_returns(last):
    net, (x, _) = Loop(), batch()
    net.register_forward_hook(lambda module, args, output: output[-1] if last else output.mean(0))
    trainer = trainer_of(net)
    assert torch.allclose(trainer.predict(x), net(x), atol=1e-6)
    assert trainer._run_state.readout.mode == ("step" if last else "mean")


@pytest.mark.parametrize("driver", ["auto", "step"])
def test_a_pre_hook_that_a_network_needs_to_run(driver):
    net, (x, y) = spiking_net(inputs=4), batch(inputs=4)
    net.register_forward_pre_hook(lambda module, args: (args[0].flatten(1),))
    assert trainer_of(net, driver=driver).train_sequence(x.unflatten(2, (2, 2)), y).updates == len(x)


@pytest.mark.parametrize("driver", ["auto", "step"])
def test_a_hook_that_picks_one_of_several_outputs(driver):
    net, (x, y) = nn.Sequential(nn.Linear(3, 2), snn.Leaky(beta=0.9, init_hidden=True, output=True)), batch()
    net[1].register_forward_hook(lambda module, args, output: {"mem": output[1]})
    trainer = trainer_of(net, driver=driver, output="mem")
    assert torch.equal(trainer.predict(x), trainer.train_sequence(x, y).output)


class Inhibited(nn.Module):
    """A layer gets what hooks have kept of the spikes of the step before."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(3, 8), snn.Leaky(beta=0.8, init_hidden=True), nn.Linear(8, 2)
        self.last = None
        self.fc.register_forward_hook(self.inhibition())
        self.lif.register_forward_hook(self.keep)

    def keep(self, module, args, spikes):
        self.last = spikes.detach()

    def inhibit(self, module, args, current):
        return current if self.last is None else current - 0.9 * self.last

    def forward(self, x):
        return self.out(self.lif(self.fc(x)))


class ByMethod(Inhibited):
    def inhibition(self):
        return self.inhibit


class ByClosure(Inhibited):
    def inhibition(self):
        return lambda *args: self.inhibit(*args)


@pytest.mark.parametrize("kind", [ByMethod, ByClosure])
def test_a_state_that_hooks_keep_is_found(kind):
    x, y = batch()
    with pytest.raises(CannotStepError, match=f"register_state_handler\\({kind.__name__}, AttributeHandler.last=None"):
        trainer_of(kind()).train_sequence(3 * x, y)
    register_state_handler(kind, AttributeHandler(last=None))
    trainer = trainer_of(kind())
    trainer.train_sequence(3 * x, y)
    first = trainer.predict(3 * x)
    trainer.predict(x)
    assert torch.equal(trainer.predict(3 * x), first)


class Recorder:
    def __init__(self):
        self.seen = []

    def __call__(self, module, args, output):
        self.seen.append(output)

    method = __call__


def recorders(seen):
    """Hooks that add to a list, by the ways in which they may hold it."""
    one, other = Recorder(), Recorder()
    one.seen = other.seen = seen

    def default(module, args, output, *, kept=seen):
        kept.append(output)

    def function(kept, module, args, output):
        kept.append(output)

    yield lambda module, args, output: seen.append(output)
    yield lambda module, args, output: GLOBAL.append(output)
    yield from (default, partial(function, seen), one, other.method)


def test_no_recorder_sees_dry_runs():
    """Training, a metric's trial and the check of restarted rows included."""
    net, (x, y), seen = spiking_net(), batch(), []
    seen.append(net(x[0]))  # its graph cannot be copied as it is
    hooks = list(recorders(seen))
    for hook in hooks:
        net[1].register_forward_hook(hook)
    GLOBAL.clear()
    trainer = FPTTTrainer(net, adam(net), CE)
    trainer.train_sequence(x, y)
    assert len(GLOBAL) == len(x)
    assert len(seen) == 1 + (len(hooks) - 1) * len(x)


def test_the_trial_of_a_metric_sees_what_hooks_compute_and_no_recorder_sees_the_trial():
    class Shapes:
        def __init__(self):
            self.shapes = set()

        def reset(self):
            pass

        def update(self, output, target):
            self.shapes.add(tuple(output.shape))

        def compute(self):
            return 0.0

    net, (x, y), seen, metric = spiking_net(classes=4), batch(), [], Shapes()
    net.register_forward_hook(lambda module, args, output: output[:, :2])
    net[1].register_forward_hook(lambda module, args, output: seen.append(output))
    FPTTTrainer(net, adam(net), CE).fit([(x, y)], 1, metric=metric, progress=False)
    assert metric.shapes == {(len(y), 2)}
    assert len(seen) == len(x)


def test_a_hook_that_cannot_be_copied_is_left_out():
    net, (x, y), lock, seen = spiking_net(), batch(), threading.Lock(), []

    def locked(module, args, output):
        with lock:
            seen.append(1)

    net[1].register_forward_hook(locked)
    trainer_of(net).train_sequence(x, y)
    assert len(seen) == len(x)
