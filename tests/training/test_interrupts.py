"""Ctrl-C at any moment: weights, averages, optimizer and counters belong together, and training goes on."""

import copy
import os
import random
import signal
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from nets import copies, identical
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.interrupts import Uninterrupted
from fptt_plugin.state import AttributeHandler, register_state_handler


class Membrane(nn.Module):
    mem = None

    def forward(self, x):
        self.mem = x if self.mem is None else 0.8 * self.mem + x
        return self.mem


register_state_handler(Membrane, AttributeHandler(mem=None))


@pytest.fixture(autouse=True)
def _interrupts_arrive():
    """Python leaves SIGINT alone where it was started with it ignored, as a background job of a script is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make(**options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), Membrane(), nn.Linear(8, 2), Membrane())
    loss_fn = options.pop("loss_fn", F.mse_loss)
    return FPTTTrainer(net, torch.optim.Adam(net.parameters(), 1e-2), loss_fn, **options)


def data(steps=10):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(steps, 3, 4, generator=generator), torch.rand(3, 2, generator=generator)


def negative_error(output, target):
    return -F.mse_loss(output, target)


def interrupted(work, after):
    """Run until a SIGINT, that many seconds later; whether it came in time."""

    def send(number, frame):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, send), signal.getsignal(signal.SIGINT)
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        try:
            work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGALRM, before[0])
        assert signal.getsignal(signal.SIGINT) is before[1]
    return False


def check_consistent(trainer):
    net, optimizer, regularizer = trainer.net, trainer.optimizer, trainer.regularizer
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {trainer.updates}
    assert regularizer.updates == trainer.updates
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    regularizer.check_ready()  # the weights are as their last update left them


def everything(trainer):
    parameters, regularizer = list(trainer.net.parameters()), trainer.regularizer
    averages = [*map(regularizer.average_of, parameters), *map(regularizer.dual_of, parameters)]
    return copies([*parameters, *averages, *[layer.mem for layer in trainer.net[1::2] if layer.mem is not None]])


def interrupt_streams(variant, window, count, seed):
    """A stream goes on as one that was never interrupted: each step either has not begun or is complete."""
    draw, hits = random.Random(seed), 0
    x, y = data()
    stream, twin = make(variant=variant, window=window), make(variant=variant, window=window)
    for trainer in (stream, twin):
        for _ in range(2 * window):
            trainer.step(x[trainer.steps % len(x)], y)

    def run():
        while True:
            stream.step(x[stream.steps % len(x)], y)

    while hits < count or stream.updates <= count:
        after = draw.uniform(0.001, 0.02) * (1 + hits / count)  # on a busy machine a step may take that long
        assert interrupted(run, after)
        hits += 1
        check_consistent(stream)
    while twin.steps < stream.steps:
        twin.step(x[twin.steps % len(x)], y)
    assert (twin.steps, twin.updates) == (stream.steps, stream.updates)
    assert twin.updates > count  # the interrupts came while it trained
    assert identical(everything(twin), everything(stream))


def interrupt_fits(variant, count, seed):
    draw, hits, x, y = random.Random(seed), 0, *data()
    for _ in range(count):
        trainer = make(variant=variant, window=2)
        trainer.train_sequence(x, y)

        def work(trainer=trainer):
            trainer.fit([(x, y)] * 2, 100, val_loader=[(x, y)], metric=negative_error, progress=False)

        hits += interrupted(work, draw.uniform(0.001, 0.05))
        check_consistent(trainer)
        assert trainer.can_save
        # From here on it is a trainer like any other: one that takes over its state trains alike.
        other = make(variant=variant, window=2)
        other.net.load_state_dict(trainer.net.state_dict())
        other.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
        other.load_state_dict(copy.deepcopy(trainer.state_dict()))
        for one in (trainer, other):
            one.train_sequence(x, y)
        assert identical(everything(trainer), everything(other))
    assert hits == count


@pytest.mark.parametrize("variant", ["dual", "gradient"])
@pytest.mark.parametrize("window", [1, 3])
def test_interrupted_streams(variant, window):
    interrupt_streams(variant, window, count=8, seed=window)


@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_interrupted_fits(variant):
    interrupt_fits(variant, count=15, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_many_interrupts(variant):
    interrupt_fits(variant, count=150, seed=1)
    interrupt_streams(variant, window=2, count=150, seed=2)


@pytest.mark.parametrize("call", ["step", "train_sequence", "fit"])
@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_an_interrupt_within_the_update_comes_after_it(call, variant):
    trainer, armed, (x, y) = make(variant=variant), [], data()
    trainer.optimizer.register_step_post_hook(lambda *_: armed and signal.raise_signal(signal.SIGINT))
    calls = {
        "step": lambda: trainer.step(x[0], y),
        "train_sequence": lambda: trainer.train_sequence(x, y),
        "fit": lambda: trainer.fit([(x, y)], metric=negative_error, progress=False),
    }
    calls[call]()
    before = trainer.updates
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        calls[call]()
    armed.clear()
    assert trainer.updates == before + 1
    check_consistent(trainer)
    calls[call]()
    check_consistent(trainer)


@pytest.mark.parametrize("call", ["step", "train_sequence"])
def test_an_error_in_the_second_gradient_is_over_with_its_call(call):
    fail = []

    def loss(output, target):
        if fail and fail.pop():
            raise MemoryError("in the replay")
        return F.mse_loss(output, target)

    trainer, (x, y) = make(variant="gradient", loss_fn=loss), data()
    train = {"step": lambda: trainer.step(x[0], y), "train_sequence": lambda: trainer.train_sequence(x, y)}[call]
    train()
    before = trainer.updates
    fail += [True, False]  # the second call of the loss is the replay's
    with pytest.raises(MemoryError):
        train()
    assert trainer.updates == before + 1
    check_consistent(trainer)
    train()
    check_consistent(trainer)


# ---------------------------------------------------------------------- the context by itself


def test_handlers_of_the_user_run_once_and_come_back():
    seen = []

    def handler(number, frame):
        seen.append(number)

    before = [signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGUSR1)]
    try:
        with Uninterrupted():
            with Uninterrupted():
                for _ in range(3):
                    signal.raise_signal(signal.SIGUSR1)
                signal.raise_signal(signal.SIGINT)
            assert seen == []
        assert sorted(seen) == sorted([signal.SIGINT, signal.SIGUSR1])
        assert signal.getsignal(signal.SIGINT) is handler
        signal.raise_signal(signal.SIGINT)
        assert len(seen) == 3
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def signal_and_fail():
    with Uninterrupted():
        signal.raise_signal(signal.SIGINT)
        raise KeyError


def test_an_error_within_and_an_ignored_signal():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyError):
            signal_and_fail()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt) as caught:
        signal_and_fail()
    assert isinstance(caught.value.__context__, KeyError)


def test_other_threads_train_as_ever_and_hold_nothing():
    trainer, results, handler = make(), [], signal.getsignal(signal.SIGINT)
    x, y = data(40)

    def train():
        results.append(trainer.train_sequence(x, y))

    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        assert signal.getsignal(signal.SIGINT) is handler
        time.sleep(0.001)
    assert results[0].updates == 40
