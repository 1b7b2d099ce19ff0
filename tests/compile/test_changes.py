"""Compiled windows after what users change while they train: the strength of the regularizer, new layers, bad input."""

import pytest
import torch
from accelerated import double_net, pair, train_both
from nets import Grows, batch, copies, identical, sgd
from torch import nn

pytestmark = pytest.mark.usefixtures("traced", "whole_windows")


def train(trainer):
    trainer.train_sequence(*batch(dtype=torch.float64))


@pytest.mark.parametrize("alphas", [(0.5, 0.0, 0.2), (0.0, 0.3, 0.1)])
def test_another_alpha(graph_steps, alphas):
    def train_changing(trainer):
        for alpha in alphas:
            trainer.regularizer.alpha = alpha
            train(trainer)

    trainers = pair(alpha=alphas[0])
    train_both(trainers, train_changing)
    assert sum(graph_steps) >= 15
    regularizer, weight = trainers[1].regularizer, trainers[1].net[0].weight
    assert not torch.equal(regularizer.average_of(weight), weight)


def test_another_mode(graph_steps):
    counts = []

    def train_switching(trainer):
        for mode in (trainer.accelerate, "none", trainer.accelerate):
            trainer.accelerate = mode
            train(trainer)
            counts.append(sum(graph_steps))

    train_both(pair(), train_switching)
    eager, compiled = counts[:3], counts[3:]
    assert eager == [0, 0, 0]
    assert 0 < compiled[0] == compiled[1] < compiled[2]


def test_a_layer_that_joins_later(graph_steps):
    def train_growing(trainer):
        train(trainer)
        trainer.net.head = nn.Linear(2, 2, dtype=torch.float64)
        trainer.optimizer.add_param_group({"params": trainer.net.head.parameters()})
        before = copies(trainer.net.head.parameters())
        train(trainer)
        train(trainer)
        assert not identical(trainer.net.head.parameters(), before)

    train_both(pair(lambda: Grows(double_net())), train_growing)
    assert sum(graph_steps) >= 12


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_running_statistics_stay_finite(graph_steps, on_nonfinite):
    def train_spoiled(trainer):
        train(trainer)
        kept = copies(trainer.net[1].buffers())
        trainer.reset()
        x = torch.full((4, 3), 1e200, dtype=torch.float64) * torch.rand(4, 3, dtype=torch.float64)
        try:
            for factor in (1e-200, 1.0):  # the first step of a stream is eager
                trainer.step(factor * x, torch.arange(4) % 2)
        except FloatingPointError:
            assert on_nonfinite == "raise"
        assert all(buffer.isfinite().all() for buffer in trainer.net[1].buffers())
        assert not identical(trainer.net[1].buffers(), kept)  # by the step before it
        train(trainer)

    build = lambda: double_net(extra=[nn.BatchNorm1d(8, dtype=torch.float64)])  # noqa: E731
    train_both(pair(build, sgd, on_nonfinite=on_nonfinite), train_spoiled)
    assert sum(graph_steps) >= 8
