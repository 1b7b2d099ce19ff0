"""A loss or gradient that is not finite: the update is not applied, by an error or in silence, and nothing is lost."""

import pytest
import torch
import torch.nn.functional as F
from nets import Before, adam, batch, copies, identical, spikes, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer


class Fails:
    """Cross-entropy, except at its calls number ``when``: then loss and gradient are NaN."""

    def __init__(self, *when):
        self.when, self.calls = when, 0

    def __call__(self, output, target):
        self.calls += 1
        return F.cross_entropy(output, target) * (float("nan") if self.calls - 1 in self.when else 1.0)


def stream(trainer, steps):
    for _ in range(steps):
        x, y = batch(1)
        trainer.step(x[0], y)


@pytest.mark.parametrize("window", [1, 3])
def test_raise_stops_before_the_update(window):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), Fails(4), window=window)
    with spikes(net):
        stream(trainer, 4 * window)
    before = Before(trainer)
    stream(trainer, window - 1)
    x, y = batch(1)
    words = rf"step {5 * window}: not finite in the gradient of '0.weight'; .* nan.*not applied.*max_grad_norm.*'skip'"
    with pytest.raises(FloatingPointError, match=words):
        trainer.step(x[0], y)
    assert before.differs() == []
    assert (trainer.updates, trainer.skipped) == (4, 0)
    stream(trainer, window)  # training goes on from there
    assert trainer.updates == 5
    assert "weights" in before.differs()


@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_skip_goes_on_without_the_update(variant):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), Fails(4), on_nonfinite="skip", variant=variant)
    if variant == "gradient":
        trainer.objective.loss_fn.when = (8,)  # every update calls the loss twice
    stream(trainer, 4)
    before = Before(trainer)
    x, y = batch(1)
    result = trainer.step(x[0], y)
    assert before.differs() == []
    assert result.loss.isnan()
    assert not result.updated
    assert (trainer.steps, trainer.updates, trainer.skipped) == (5, 4, 1)
    with spikes(net):
        stream(trainer, 4)
    assert (trainer.updates, trainer.skipped) == (8, 1)
    assert all(p.isfinite().all() for p in net.parameters())


def test_sequences_skip_one_window():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), Fails(1), window=2, on_nonfinite="skip")
    assert trainer.train_sequence(*batch(8)).updates == 3
    assert trainer.skipped == 1
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_sequence_that_fails_leaves_the_state_before_it():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), Fails(8))
    trainer.train_sequence(*batch(6))
    state = copies([net[1].mem, net[3].mem])
    with pytest.raises(FloatingPointError, match="step 9"):
        trainer.train_sequence(*batch(6))
    assert identical([net[1].mem, net[3].mem], state)
    assert trainer.updates == 6 + 2


def test_a_discarded_window_does_not_spoil_the_next_update():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), Fails(0), window=1, update_every=2)
    stream(trainer, 1)
    trainer.reset()
    stream(trainer, 2)
    assert trainer.updates == 1


class Explodes(nn.Module):
    def forward(self, x):
        return x * float("inf")


def test_the_message_names_the_module():
    net = spiking_net(extra=[Explodes()])
    trainer = FPTTTrainer(net, adam(net), nn.CrossEntropyLoss())
    with pytest.raises(FloatingPointError, match=r"not finite in the state of '2' \(LIF\)"):
        trainer.train_sequence(*batch())
    assert net[2].mem is None


def test_half_precision_gradients_do_not_overflow_the_check():
    from fptt_plugin.training.finite import all_finite

    assert all_finite([torch.full((100,), 60000.0, dtype=torch.float16), torch.zeros(0), torch.tensor(1)])
    assert not all_finite([torch.zeros(2), torch.tensor([0.0, float("-inf")])])
    assert all_finite([])


def test_a_skipped_answer_leaves_no_row_in_the_class_distribution_and_no_nan_in_the_mean_loss():
    net = spiking_net(extra=[Explodes()])
    net[1].forward = lambda x: x * (float("nan") if trainer.steps == 2 else 1.0)
    trainer = FPTTTrainer(net, adam(net), nn.CrossEntropyLoss(), on_nonfinite="skip", driver="step")
    x, y = batch(8)
    net[4].spikes = False
    net[2].spikes = False  # a spike would hide the nan
    result = trainer.train_sequence(x, y)
    assert (result.updates, trainer.skipped) == (7, 1)
    assert result.loss.isfinite()
    assert trainer.objective.distribution.table.isfinite().all()
    trainer.on_nonfinite = "skip"
    history = trainer.fit([(x, y), (x, y)], progress=False)
    assert 0 < history[0].loss < 5


def test_an_epoch_without_a_finite_loss_has_none():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), lambda o, t: F.cross_entropy(o, t) * float("nan"), on_nonfinite="skip")
    assert trainer.train_sequence(*batch()).loss.isnan()
    assert torch.tensor(trainer.fit([batch()], progress=False)[0].loss).isnan()
    assert trainer.updates == 0


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_running_statistics_of_batch_normalization_stay_finite(on_nonfinite):
    net = spiking_net(extra=[nn.BatchNorm1d(8)])
    trainer = FPTTTrainer(net, adam(net), nn.CrossEntropyLoss(), on_nonfinite=on_nonfinite)
    stream(trainer, 4)
    kept = copies(net[1].buffers())
    x, y = batch(1)
    try:
        trainer.step(1e38 * x[0], y)  # finite, but its variance is not
    except FloatingPointError:
        assert on_nonfinite == "raise"
    assert identical(net[1].buffers(), kept)
    assert all(buffer.isfinite().all() for buffer in net[1].buffers())
    stream(trainer, 1)
    assert not identical(net[1].buffers(), kept)


class Explicit(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, state=None):
        mem = self.layer(x) + (0.0 if state is None else 0.8 * state)
        return mem, mem


def test_networks_with_explicit_state():
    net = Explicit()
    trainer = FPTTTrainer(net, adam(net), Fails(2))
    stream(trainer, 2)
    with pytest.raises(FloatingPointError, match=r"step 3: not finite in the gradient of 'layer.weight'"):
        stream(trainer, 1)
    net = Explicit()
    trainer = FPTTTrainer(net, adam(net), Fails(2), on_nonfinite="skip")
    stream(trainer, 5)
    assert (trainer.updates, trainer.skipped) == (4, 1)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_steps_say_where_the_stream_is(on_nonfinite):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), Fails(1), window=4, on_nonfinite=on_nonfinite)
    stream(trainer, 7)
    if on_nonfinite == "raise":
        with pytest.raises(FloatingPointError):
            stream(trainer, 1)
        assert trainer.steps == 4  # back at the last update
    else:
        stream(trainer, 1)
        assert trainer.steps == 8
        trainer.step(torch.full((4, 3), float("nan")))  # left out, and a place in the data all the same
        assert trainer.steps == 9
