"""Hooks in dry runs: what they compute takes part, and what they write reaches nobody."""

import threading
import warnings
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


def halved(module, args, output):
    output *= 0.5


def halved_by_method(module, args, output):
    output.mul_(0.5)


def halved_by_item(module, args, output):
    output[:] = 0.5 * output


@pytest.mark.parametrize("hook", [halved, halved_by_method, halved_by_item])
def test_a_hook_that_writes_to_the_output(hook):
    class Adds(Loop):
        def forward(self, x):
            return super().forward(x).sum(0)

    net, (x, _) = Adds(), batch()
    net.register_forward_hook(hook)
    with torch.no_grad():
        assert torch.allclose(trainer_of(net).predict(x), net(x), atol=1e-6)


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


def log(output):
    GLOBAL.append(output)


class Locked:
    """Cannot be copied."""

    def __init__(self, size):
        self.lock, self.seen, self.full = threading.Lock(), [], torch.zeros(size, 1)

    def note(self, module, args, output):
        self.full[len(self.seen)] = output.detach().mean()
        self.seen.append(self.lock)

    def hooks(self):
        yield lambda module, args, output: self.note(module, args, output)
        yield self.note
        yield torch.no_grad()(lambda module, args, output: self.note(module, args, output))

    def of_functions(self):
        def full(module, args, output):
            self.note(module, args, output)

        def through_a_helper(module, args, output):
            self.note(module, args, output)
            log(output)

        yield from (full, torch.no_grad()(full), through_a_helper)


@pytest.mark.parametrize("kind", ["hooks", "of_functions"])
@pytest.mark.parametrize("place", range(3))
def test_recorders_that_cannot_be_copied_or_are_full_after_a_sequence(kind, place):
    net, (x, y), recorder = spiking_net(), batch(), Locked(12)
    for layer in (net[1], net[3]):
        layer.register_forward_hook(list(getattr(recorder, kind)())[place])
    GLOBAL.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer_of(net).train_sequence(x, y)
    assert len(recorder.seen) == 2 * len(x)
    assert len(GLOBAL) == (2 * len(x) if (kind, place) == ("of_functions", 2) else 0)


def test_a_recorder_hides_nothing():
    class Mixes(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru, self.fc, self.lif = nn.GRU(3, 6), nn.Linear(6, 2), snn.Leaky(beta=0.9, init_hidden=True)

        def forward(self, x):
            return self.lif(self.fc(self.gru(x)[0]))

    net, (x, y), full = Mixes(), batch(), []
    net.lif.register_forward_hook(lambda module, args, output: full.append(1) if len(full) < len(x) else 1 / 0)
    with pytest.raises(CannotStepError, match=r"'gru' .GRU. returns for one sample what depends on the others"):
        trainer_of(net).train_sequence(x, y)


def test_a_hook_that_counts_on_its_layer_in_a_stream():
    net, (x, y) = spiking_net(), batch()

    def count(module, args, output):
        module.count = getattr(module, "count", 0) + 1

    net[1].register_forward_hook(count)
    trainer = trainer_of(net)
    for t, x_t in enumerate(x):
        trainer.step(x_t, y, new_sequence=torch.tensor([t == 2, False, False, False]))
    assert net[1].count == len(x)


def test_noise_of_a_generator_in_a_hook_is_no_hidden_state():
    net, (x, y), generator = spiking_net(), batch(), torch.Generator()
    net[0].register_forward_hook(lambda m, args, output: output + torch.rand(output.shape, generator=generator))
    before = generator.get_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = trainer_of(net)
        trainer._find_driver(x, batch_first=False)
    assert torch.equal(generator.get_state(), before)
    trainer.train_sequence(x, y)


class Last:
    def __call__(self, module, args, output):
        self.output = output.detach()


class Doubles(nn.Module):
    def forward(self, module, args, output):
        return 2 * output


class WithHooksAsParts(nn.Module):
    """Reads in ``forward`` what a hook has kept, and has a hook among its modules."""

    def __init__(self):
        super().__init__()
        self.body, self.last, self.doubles = spiking_net(), Last(), Doubles()
        self.body[1].register_forward_hook(self.last)
        self.body[2].register_forward_hook(self.doubles)

    def forward(self, x):
        return self.body(x) + self.last.output.mean()


def test_hooks_that_are_parts_of_the_network():
    net, (x, y) = WithHooksAsParts(), batch()
    trainer = trainer_of(net)
    result = trainer.train_sequence(x, y)
    assert torch.equal(trainer.predict(x), result.output)
