"""``step()``: a stream without length and end."""

import contextlib
import copy
import warnings

import pytest
import torch
from nets import adam, batch, copies, flat, identical, sgd, spikes, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import NotFiniteError
from fptt_plugin.state import AttributeHandler, ModelState, register_state_handler

CE = nn.CrossEntropyLoss()


class Delay(nn.Module):
    """Hands on what it was given a step before."""

    last = None

    def forward(self, x):
        out, self.last = self.last, x
        return torch.zeros_like(x).detach() if out is None else out


register_state_handler(Delay, AttributeHandler(last=None))


def run(trainer, steps):
    results = []
    for _ in range(steps):
        x, y = batch(1)
        results.append(trainer.step(x[0], y))
    return results


def test_a_step_without_target_predicts_only():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    before, (x, y) = copies(net.parameters()), batch(3)
    result = trainer.step(x[0])
    assert (result.loss, result.updated) == (None, False)
    assert result.output.shape == (4, 2)
    assert not result.output.requires_grad
    assert identical(net.parameters(), before)
    assert trainer.step(x[1], y).updated
    assert not identical(net.parameters(), before)
    assert (trainer.steps, trainer.updates) == (2, 1)


def test_state_goes_on_and_reset_starts_anew():
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net, 0.0), CE)
    x, y = batch(8)
    with spikes(net):
        first = [trainer.step(x_t, y).output for x_t in x]
    assert not torch.equal(trainer.step(x[0], y).output, first[0])
    trainer.reset()
    assert ModelState(net).get()["1"]["mem"] is None
    assert identical([trainer.step(x_t, y).output for x_t in x], first)


@pytest.mark.parametrize(
    ("options", "losses", "updates"),
    [
        ({}, "xxxxxxxx", "xxxxxxxx"),
        ({"window": 4}, "...x...x", "...x...x"),
        ({"window": 4, "loss_every": 2}, ".x.x.x.x", "...x...x"),
        ({"loss_every": 4}, "...x...x", "...x...x"),
        ({"update_every": 4}, "xxxxxxxx", "...x...x"),
        ({"window": 2, "update_every": 4}, ".x.x.x.x", "...x...x"),
        ({"window": 2, "loss_every": 3}, "..x..x..", "...x.x.."),
    ],
    ids=str,
)
def test_strides(options, losses, updates):
    net = spiking_net()
    results = run(FPTTTrainer(net, adam(net), CE, **options), 8)
    assert "".join("." if result.loss is None else "x" for result in results) == losses
    assert "".join("x" if result.updated else "." for result in results) == updates


def test_reset_in_mid_window_drops_what_is_pending():
    net = spiking_net()
    other = copy.deepcopy(net)
    trainers = [FPTTTrainer(n, adam(n), CE, window=2, update_every=4) for n in (net, other)]
    run(trainers[0], 3)
    for trainer in trainers:
        torch.manual_seed(1)
        trainer.reset()
        run(trainer, 8)
    assert identical(net.parameters(), other.parameters())
    assert trainers[0].updates == 2


def test_an_evaluation_in_mid_window_leaves_no_trace():
    net = spiking_net()
    other = copy.deepcopy(net)
    trainers = [FPTTTrainer(n, adam(n), CE, window=4, alpha=0.5, readout="mean") for n in (net, other)]
    for trainer, looks in zip(trainers, (True, False), strict=True):
        torch.manual_seed(1)
        run(trainer, 10)
        if looks:
            x = torch.ones(5, 4, 3)
            assert not torch.equal(trainer.predict(x), trainer.predict(x, averaged=False))
            trainer.evaluate([(x, torch.zeros(4).long())])
        run(trainer, 6)
    assert identical(net.parameters(), other.parameters())
    assert identical(flat(ModelState(net).get()), flat(ModelState(other).get()))


def test_a_rejected_step_can_be_repeated():
    net = spiking_net()
    other = copy.deepcopy(net)
    trainers = [FPTTTrainer(n, adam(n), CE, window=3) for n in (net, other)]
    for trainer, stumbles in zip(trainers, (True, False), strict=True):
        torch.manual_seed(1)
        run(trainer, 4)
        if stumbles:
            with pytest.raises(ValueError, match=r"inputs of shape \(4, 3\), x_t has \(4, 9\)"):
                trainer.step(torch.zeros(4, 9), torch.zeros(4).long())
        run(trainer, 5)
    assert identical(net.parameters(), other.parameters())


def test_an_output_that_no_weight_has_reached_yet():
    """A delay at the beginning of a sequence: nothing to learn, and nothing to complain about."""

    net = spiking_net()
    net.append(Delay())
    trainer = FPTTTrainer(net, adam(net), CE, window=2, loss_every=1)
    before = copies(net.parameters())
    with pytest.warns(UserWarning, match="nothing was learned.*frozen.*longer than the window"):
        assert trainer.train_sequence(*batch(1)).updates == 0
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        trainer.train_sequence(*batch(1))
    assert identical(net.parameters(), before)
    assert trainer.train_sequence(*batch(2)).updates == 1
    assert not identical(net.parameters(), before)


def test_what_a_result_holds_is_the_users_own():
    ends = []
    for spoil in (False, True):
        torch.manual_seed(0)
        net = spiking_net()  # ends in an integrator: its output is its membrane
        trainer = FPTTTrainer(net, adam(net), CE)
        torch.manual_seed(1)
        for result in (trainer.train_sequence(*batch()), *run(trainer, 3)):
            if spoil:
                result.output.zero_()
        ends.append(run(trainer, 1)[0].output)
    assert torch.equal(*ends)


def test_a_stream_after_a_sequence_learns_at_the_ends_of_its_windows():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE, window=4)
    trainer.train_sequence(*batch(10))
    assert [result.updated for result in run(trainer, 8)] == [False, False, False, True] * 2
    trainer.train_sequence(*batch(10))
    assert [result.loss is not None for result in run(trainer, 8)] == [False, False, False, True] * 2


def test_a_failed_sequence_leaves_the_gradients_that_a_stream_has_gathered():
    ends = []
    for fails in (False, True):
        torch.manual_seed(0)
        net = spiking_net()
        loss = Interrupted()
        trainer = FPTTTrainer(net, adam(net), loss, update_every=4)
        torch.manual_seed(1)
        run(trainer, 6)
        x, y = torch.ones(6, 4, 3), torch.zeros(4, dtype=torch.long)
        if fails:
            loss.at = loss.calls + 3
            with pytest.raises(KeyboardInterrupt):
                trainer.train_sequence(x, y)
        torch.manual_seed(2)
        assert run(trainer, 2)[-1].updated
        ends.append(copies(net.parameters()))
    assert identical(*ends)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_a_failed_sequence_leaves_the_place_to_which_a_failed_update_goes_back(on_nonfinite):
    ends = []
    for fails in (False, True):
        torch.manual_seed(0)
        net = spiking_net()
        loss = Interrupted()
        trainer = FPTTTrainer(net, adam(net), loss, update_every=4, on_nonfinite=on_nonfinite)
        torch.manual_seed(1)
        run(trainer, 4)
        place = flat(ModelState(net).get())
        run(trainer, 2)
        if fails:
            loss.at = loss.calls + 3
            with pytest.raises(KeyboardInterrupt):
                trainer.train_sequence(torch.ones(6, 4, 3), torch.zeros(4, dtype=torch.long))
        loss.infinite_at = loss.calls + 2
        with pytest.raises(NotFiniteError) if on_nonfinite == "raise" else contextlib.nullcontext():
            run(trainer, 2)
        ends.append(flat(ModelState(net).get()))
        assert identical(ends[-1], place)
    assert any(entry.any() for entry in ends[0])


class Interrupted:
    """Cross-entropy that the user interrupts at one of its calls, and that is infinite at another."""

    calls, at, infinite_at = 0, None, None

    def __call__(self, output, target):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        value = nn.functional.cross_entropy(output, target)
        return value * float("inf") if self.calls == self.infinite_at else value
