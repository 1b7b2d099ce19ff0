"""Memory does not depend on the length of the sequence, and nothing of a sequence outlives it."""

import gc
import weakref

import pytest
import torch
from nets import LIF, adam, spikes, spiking_net
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from fptt_plugin import BPTT, FPTTTrainer

CE = nn.CrossEntropyLoss()


class Meter:
    """Most bytes of saved tensors alive at any one time, each counted as long as autograd holds on to it."""

    class Box:
        pass

    def __init__(self):
        self.now = self.peak = self.count = 0

    def pack(self, tensor):
        box = Meter.Box()
        box.tensor, size = tensor, tensor.numel() * tensor.element_size()
        self.now, self.count = self.now + size, self.count + 1
        self.peak = max(self.peak, self.now)
        weakref.finalize(box, self.free, size)
        return box

    def free(self, size):
        self.now -= size

    def measure(self, run):
        with saved_tensors_hooks(self.pack, lambda box: box.tensor):
            run()
        return self.peak


def peak(kind, steps, **options):
    """Peak of one sequence, after a first that brings moments, averages and class distribution to life."""
    net = spiking_net()
    trainer = kind(net, adam(net), CE, **options)
    y = torch.arange(4) % 2
    trainer.train_sequence(torch.rand(10, 4, 3), y)
    x = torch.rand(steps, 4, 3)
    with spikes(net):
        return Meter().measure(lambda: trainer.train_sequence(x, y))


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 5}, {"variant": "gradient"}, {"readout": "mean"}, {"window": 1, "update_every": 10}],
    ids=str,
)
def test_bytes_saved_for_backward_are_equal_at_any_length(options):
    short, long = (peak(FPTTTrainer, steps, **options) for steps in (10, 100))
    assert short == long > 0


def test_bytes_saved_for_backward_are_equal_at_length_1000():
    assert peak(FPTTTrainer, 1000) == peak(FPTTTrainer, 10)


def test_the_meter_sees_bptt_grow():
    short, long = peak(BPTT, 10), peak(BPTT, 100)
    assert 9 * short < long < 11 * short
    assert peak(FPTTTrainer, 100) < short


def test_a_stream_is_as_flat():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    y = torch.arange(4) % 2

    def run(steps):
        for _ in range(steps):
            trainer.step(torch.rand(4, 3), y)

    run(5)
    assert Meter().measure(lambda: run(10)) == Meter().measure(lambda: run(100)) > 0


class Watched(LIF):
    """Keeps weak references to everything that passes through it."""

    def __init__(self, watch, **options):
        super().__init__(**options)
        self.watch = watch

    def forward(self, x):
        out = super().forward(x)
        self.watch += [weakref.ref(tensor) for tensor in (x, out, self.mem)]
        return out


@pytest.mark.parametrize("how", ["sequence", "stream", "evaluate", "predict", "skip"])
@pytest.mark.parametrize("options", [{}, {"window": 4}, {"variant": "gradient", "window": 2}], ids=str)
def test_nothing_of_a_sequence_outlives_it(how, options):
    watch = []
    net = nn.Sequential(nn.Linear(3, 8), Watched(watch), nn.Linear(8, 2), Watched(watch, spikes=False))

    def loss_fn(output, target):
        return CE(output, target) * (float("nan") if how == "skip" else 1.0)

    trainer = FPTTTrainer(net, adam(net), loss_fn, on_nonfinite="skip", **options)
    x, y = torch.rand(12, 4, 3), torch.arange(4) % 2
    inputs = [weakref.ref(x)]
    if how == "stream":
        for x_t in x:
            step = x_t.clone()
            inputs.append(weakref.ref(step))
            trainer.step(step, y)
        del x_t, step
    elif how == "evaluate":
        trainer.evaluate([(x, y)])
    elif how == "predict":
        trainer.predict(x)
    else:
        trainer.train_sequence(x, y)
    del x
    gc.collect()
    assert all(reference() is None for reference in inputs)
    alive = {id(reference()): reference() for reference in watch if reference() is not None}
    assert len(watch) >= 6 * 12
    # The present state of two neurons, and the one to go back to if the next update fails; no graph behind any.
    assert len(alive) <= 4
    assert not any(tensor.requires_grad for tensor in alive.values())
