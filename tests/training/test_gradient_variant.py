"""``variant="gradient"``: the second gradient sees the same state, statistics and dropout mask as the first."""

import copy

import pytest
import torch
from nets import LIF, batch, distance, identical, sgd, spikes, spiking_net
from torch import nn
from twin import Twin

from fptt_plugin import FPTTTrainer
from fptt_plugin.functional import ClassDistribution

CE = nn.CrossEntropyLoss()
PLAIN = {"auxiliary": False, "loss_ramp": "constant", "max_grad_norm": None, "average_weights": "never"}


class Spy(nn.Module):
    """Notes what passes through it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return x


@pytest.mark.parametrize("window", [1, 3])
def test_equals_a_loop_written_by_hand(window):
    net = spiking_net(dtype=torch.float64)
    plain, (x, y) = copy.deepcopy(net), batch(8, dtype=torch.float64)
    twin = Twin(plain.parameters(), lambda g: torch.optim.SGD(g[0], lr=0.1), alpha=0.3, variant="gradient")
    neurons = [module for module in plain if isinstance(module, LIF)]
    for x_window in x.split(window):
        begin = [neuron.mem for neuron in neurons]

        def loss_from(weights, begin=begin, x_window=x_window):
            for neuron, mem in zip(neurons, begin, strict=True):
                neuron.mem = mem
            with torch.no_grad():
                for parameter, W in zip(plain.parameters(), weights, strict=True):
                    parameter.copy_(W)
            return [plain(x_t) for x_t in x_window][-1]

        def gradient(weights, loss_from=loss_from):
            return torch.autograd.grad(CE(loss_from(weights), y), list(plain.parameters()))

        first = gradient(twin.W)
        after = [neuron.mem.detach() for neuron in neurons]
        twin.step(first, second=gradient)
        for neuron, mem in zip(neurons, after, strict=True):
            neuron.mem = mem
    trainer = FPTTTrainer(net, sgd(net), CE, alpha=0.3, variant="gradient", window=window, **PLAIN)
    with spikes(net):
        trainer.train_sequence(x, y)
    assert distance(net.parameters(), twin.W) < 1e-12
    assert distance(map(trainer.regularizer.average_of, net.parameters()), twin.W_bar) < 1e-12
    assert distance(map(trainer.regularizer.dual_of, net.parameters()), twin.lam) < 1e-12
    assert max(lam.abs().max() for lam in twin.lam) > 1e-2


@pytest.mark.parametrize("window", [1, 2])
def test_batch_statistics_move_once_per_step(window):
    norm = nn.BatchNorm1d(8)
    net = spiking_net(extra=[norm])
    with torch.no_grad():
        norm.bias.fill_(0.3)
    plain, (x, y) = copy.deepcopy(net), batch(6)
    trainer = FPTTTrainer(net, sgd(net, 1e-9), CE, alpha=0.3, variant="gradient", window=window, **PLAIN)
    with spikes(net):
        trainer.train_sequence(x, y)
    for x_t in x:
        plain(x_t)
    assert norm.num_batches_tracked == 6
    assert torch.allclose(norm.running_mean, plain[1].running_mean, atol=1e-6)
    assert norm.running_mean.abs().max() > 1e-2
    assert norm.running_mean is dict(norm.named_buffers())["running_mean"]


def test_both_passes_see_the_same_dropout_mask_and_state():
    spies = Spy(), Spy()
    net = spiking_net(extra=[spies[0], nn.Dropout(0.5), spies[1]])
    x, y = batch(4)
    ends = []
    for variant in ("gradient", "dual"):
        torch.manual_seed(1)
        optimizer = sgd(net, 0.0)
        FPTTTrainer(net, optimizer, CE, alpha=0.3, variant=variant, window=2, **PLAIN).train_sequence(x, y)
        ends.append([net[-3].mem, net[-1].mem, torch.get_rng_state()])
    assert identical(*ends)  # replaying used up no random numbers, and put the state back
    before, after = spies[0].seen, spies[1].seen
    assert len(after) == 8 + 4
    for i in (0, 1, 4, 5):  # windows of two steps, each run twice
        assert torch.equal(before[i], before[i + 2])
        assert torch.equal(after[i], after[i + 2])
        assert 0 < (after[i] == 0).float().mean() < 1
    assert not torch.equal(after[0] == 0, after[1] == 0)


def test_streams_too():
    x, y = torch.rand(6, 4, 3), torch.randint(2, (6, 4))
    net = spiking_net()
    other = copy.deepcopy(net)
    trainers = [FPTTTrainer(n, sgd(n), CE, alpha=0.3, variant="gradient", window=2) for n in (net, other)]
    trainers[0].train_sequence(x, y)
    for pair in zip(x, y, strict=True):
        trainers[1].step(*pair)
    assert identical(net.parameters(), other.parameters())
    assert trainers[1].updates == 3


@pytest.mark.parametrize("window", [1, 3])
def test_the_second_gradient_reads_the_same_class_distribution(window):
    class Noting(ClassDistribution):
        def __init__(self):
            super().__init__()
            self.read = {True: [], False: []}

        def loss_of_row(self, row, logits, label, *, update=True):
            self.read[update].append(row[label].clone())
            return super().loss_of_row(row, logits, label, update=update)

    net, noting = spiking_net(), Noting()
    trainer = FPTTTrainer(net, sgd(net), CE, variant="gradient", window=window, loss_every=1, auxiliary=noting)
    for _ in range(3):
        trainer.train_sequence(*batch(6))
    first, second = noting.read.values()
    assert len(first) == len(second) == 3 * 5  # the last step's ramp is 1: no auxiliary term
    assert identical(first, second)
    assert not identical(first[:5], first[-5:])  # the table does move


@pytest.mark.parametrize("window", [1, 3])
def test_random_numbers_drawn_between_the_steps_of_a_stream(window):
    spy = Spy()
    net = spiking_net(extra=[nn.Dropout(0.5), spy])
    trainer = FPTTTrainer(net, sgd(net), CE, alpha=0.3, variant="gradient", window=window)
    for _ in range(4 * window):
        x, y = batch(1)  # draws
        trainer.step(x[0], y)
    assert len(spy.seen) == 8 * window  # each step, and again at the new weights
    for i in range(0, len(spy.seen), 2 * window):
        first, second = spy.seen[i : i + window], spy.seen[i + window : i + 2 * window]
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one == 0, other == 0)
            assert 0 < (one == 0).sum() < one.numel()
