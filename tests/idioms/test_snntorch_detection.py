"""The dry runs that find the driver: right on awkward shapes, and without a trace on network, process or monitors."""

import copy
import threading

import pytest
import snntorch as snn
import torch
from idioms import snntorch_more_nets as more
from idioms import snntorch_nets as nets
from nets import adam, copies, flat, identical, sgd, spikes
from snntorch import functional as SF
from snntorch import spikegen, utils
from snntorch.functional import probe
from torch import nn

from fptt_plugin import BPTT, FPTTTrainer
from fptt_plugin.errors import ConfigurationError
from fptt_plugin.snntorch import LTCLeaky
from fptt_plugin.state import ModelState

CE = nn.CrossEntropyLoss()


def labels(batch):
    return torch.arange(batch) % 3


def lively(net):
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -0.4, 0.6)
    return net


def found(net, x, **options):
    """Trains on one batch; returns the trainer and the number of updates."""
    trainer = FPTTTrainer(net, sgd(net), CE, **options)
    batch = labels(x.shape[0 if options.get("batch_first") or x.dim() == 2 else 1])
    return trainer, trainer.train_sequence(x, batch).updates


# ---------------------------------------------------------------------- shapes


@pytest.mark.parametrize(("steps", "batch"), [(6, 4), (4, 4), (6, 1), (1, 4), (1, 1), (2, 2), (2, 4), (4, 2)])
@pytest.mark.parametrize("make", [nets.Sequence, nets.Nested, nets.LinearReadout, more.Shared, nets.Remembering])
def test_any_length_and_batch_size(make, steps, batch):
    trainer, updates = found(make(), torch.rand(steps, batch, 5))
    assert updates == steps
    assert ("driver: step" in trainer.explain()) == (make is nets.Remembering)
    for steps, batch in ((5, 3), (3, 5), (1, 2)):
        x = torch.rand(steps, batch, 5)
        assert trainer.train_sequence(x, labels(batch)).updates == steps
        assert trainer.predict(x).shape == (batch, 3)


@pytest.mark.parametrize(("steps", "batch"), [(6, 4), (4, 4), (6, 1), (1, 4), (1, 1), (2, 2)])
@pytest.mark.parametrize("make", [nets.BatchFirst, nets.Remembering])
def test_batch_first(make, steps, batch):
    trainer, updates = found(make(), torch.rand(batch, steps, 5), batch_first=True)
    assert updates == steps
    assert trainer.train_sequence(torch.rand(2, 5, 5), labels(2)).updates == 5


@pytest.mark.parametrize("batch", [1, 3, 6, 12])
def test_a_still_image_is_no_sequence(batch):
    """Also where the batch is as large as the global number of steps, 6."""

    class Net(nets.Conv):
        def forward(self, x):
            return super().forward(x.expand(nets.num_steps, *x.shape))

    net = Net()
    trainer = FPTTTrainer(net, sgd(net), CE)
    assert trainer.train_sequence(torch.rand(batch, 1, 4, 4), labels(batch)).updates == 6
    assert "6 time steps in every sequence" in trainer.explain()
    assert trainer.train_sequence(torch.rand(5, 1, 4, 4), labels(5)).updates == 6


def test_the_driver_that_the_user_names():
    x = torch.rand(6, 4, 5)
    for options in ({}, {"output_module": "lif2"}):
        trainer, updates = found(nets.Sequence(), x, driver="in-flight", **options)
        assert updates == 6
        assert "driver: in-flight (net(x) as it is; each call of 'lif2'" in trainer.explain()
    with pytest.raises(ValueError, match="each of its neurons once"):
        found(nets.Remembering(), x[0], driver="in-flight")


def test_window_longer_than_the_sequence():
    net = nets.Sequence()
    assert found(net, torch.rand(3, 4, 5), window=10)[1] == 1


# ---------------------------------------------------------------------- nothing is touched


class Everything(nn.Module):
    """Has whatever a dry run might disturb: running statistics, dropout, lazy gates, frozen weights, old-style norm."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.utils.weight_norm(nn.Linear(5, 10))
        self.norm, self.drop, self.lif1 = nn.BatchNorm1d(10), nn.Dropout(0.3), LTCLeaky()
        self.fc2, self.lif2 = nn.LazyLinear(3), nets.leaky()
        self.fc1.bias.requires_grad_(False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        mem1, mem2, record = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for x_t in x:
            spk1, mem1 = self.lif1(self.drop(self.norm(self.fc1(x_t))), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:.*Lazy modules.*")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("warm", [True, False])
def test_detection_leaves_everything_as_it_was(training, warm):
    net, x = Everything().train(training), torch.rand(6, 4, 5)
    net.norm.eval()
    if warm:
        net(x)  # the state now carries a graph, which deepcopy alone would refuse
    trainer = FPTTTrainer(net, sgd(net), CE)
    seen = []
    net.lif1.register_forward_hook(lambda *_: seen.append(1))
    net.fc1.register_forward_pre_hook(lambda *_: seen.append(2))
    net.lif2.register_full_backward_hook(lambda *_: seen.append(3))

    def look():
        lazy = nn.parameter.UninitializedParameter
        return {
            "calls": net.calls,
            "modes": [module.training for module in net.modules()],
            "frozen": [(type(p), p.requires_grad, p.grad) for p in net.parameters()],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in net.modules()],
        }, [
            *copies(p for p in net.parameters() if not isinstance(p, lazy)),
            *copies(b for b in net.buffers() if b is not None),
            torch.get_rng_state(),
        ]

    state = flat(trainer.state.get())
    facts, tensors = look()
    trainer._find_driver(x, batch_first=False)
    assert "in-flight" in trainer.explain()
    new_facts, new_tensors = look()
    assert new_facts == facts
    assert identical(new_tensors, tensors)
    assert seen == []
    assert all(new is old for new, old in zip(flat(trainer.state.get()), state, strict=True))


def test_other_networks_and_the_global_registry_are_left_alone():
    """snnTorch's reset helpers, called in a forward, reach every neuron of the process; here only this network's."""
    other, net = nets.conv_sequential(), nets.Nested()
    other(torch.rand(4, 1, 4, 4))
    mem, registry = other[2].mem, list(snn.SpikingNeuron.instances)
    trainer, _ = found(net, torch.rand(6, 4, 5))
    trainer.predict(torch.rand(6, 4, 5))
    assert snn.SpikingNeuron.instances == registry
    assert other[2].mem is mem
    utils.reset(other)  # and works as ever
    assert not other[2].mem.any()


def test_two_trainers_and_an_evaluation_copy():
    torch.manual_seed(1)
    first, x = lively(nets.Nested()), torch.rand(6, 4, 5)
    alone, second = copy.deepcopy(first), lively(nets.Nested())
    reference = FPTTTrainer(alone, sgd(alone), CE)
    for _ in range(3):
        reference.train_sequence(x, labels(4))
    trainers = [FPTTTrainer(net, sgd(net), CE) for net in (first, second)]
    for _ in range(3):
        for trainer in trainers:
            trainer.train_sequence(x, labels(4))
        with torch.no_grad():
            copy.deepcopy(first)(x)
    assert identical(first.parameters(), alone.parameters())


def test_a_network_that_cannot_be_copied():
    net = nets.Sequence()
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"Sequence cannot be copied .*lock.* driver='step'"):
        found(net, torch.rand(6, 4, 5))
    step = nets.Remembering()
    step.lock = threading.Lock()
    assert found(step, torch.rand(6, 4, 5), driver="step")[1] == 6


# ---------------------------------------------------------------------- losses, encoders and monitors of snnTorch


@pytest.mark.parametrize("loss", [SF.ce_rate_loss, SF.mse_membrane_loss])
def test_snntorch_losses_train_a_looping_network(loss):
    """With the whole sequence as window, the gradient is that of the loss on the record of all steps."""
    net = lively(nets.Static())
    plain, x, y = copy.deepcopy(net), torch.rand(4, 5), labels(4)
    trainer = BPTT(net, sgd(net), loss(), loss_every=1, max_grad_norm=None, loss_ramp="constant", auxiliary=False)
    with spikes(net):
        trainer.train_sequence(x, y)
    spk_rec, mem_rec = plain(x)
    loss()(spk_rec if loss is SF.ce_rate_loss else mem_rec, y).backward()
    for own, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(own.grad, other.grad, atol=1e-6)
        assert own.grad.abs().max() > 0
    net = lively(nets.Static())
    assert FPTTTrainer(net, sgd(net), loss()).train_sequence(x, y).updates == 6


def spiking_sequential():
    last = nets.leaky(init_hidden=True, output=True)
    return nn.Sequential(nn.Linear(5, 10), nets.leaky(init_hidden=True), nn.Linear(10, 3), last)


@pytest.mark.parametrize("make", [nets.Static, spiking_sequential])
def test_the_loss_of_spike_rates_is_decided_by_the_spike_rate(make):
    """As snnTorch pairs them: ``SF.ce_rate_loss`` step by step, ``SF.accuracy_rate`` on the record of all steps."""
    net, y = lively(make()), labels(24)
    x = torch.rand(24, 5) if make is nets.Static else torch.rand(8, 24, 5)
    trainer = FPTTTrainer(net, sgd(net), SF.ce_rate_loss())
    trainer.train_sequence(x, y)
    assert "readout: rate" in trainer.explain()
    ModelState(net).reset()
    with torch.no_grad():
        spk_rec = net(x)[0] if make is nets.Static else torch.stack([net(x_t)[0] for x_t in x])
    assert 0 < spk_rec.mean() < 1
    assert torch.allclose(trainer.predict(x, averaged=False), spk_rec.mean(0))
    assert trainer.evaluate([(x, y)], averaged=False) == pytest.approx(float(SF.accuracy_rate(spk_rec, y)))
    twin = copy.deepcopy(net)
    step = FPTTTrainer(twin, sgd(twin), SF.ce_rate_loss(), readout="step")
    assert torch.equal(step.predict(x, averaged=False), spk_rec[-1])
    assert not torch.equal(spk_rec[-1], spk_rec.mean(0))


def test_batch_first_is_refused_for_a_loop_over_the_first_axis():
    """Whatever the sizes: with as many samples as steps nothing else would show that samples are taken for steps."""
    for steps in (6, 4):
        net = nets.Sequence()
        trainer = FPTTTrainer(net, sgd(net), CE, batch_first=True)
        with pytest.raises(ConfigurationError, match="loops over its first axis") as caught:
            trainer.train_sequence(torch.rand(4, steps, 5), labels(4))
        assert "x.transpose(0, 1)" in caught.value.remedy
        trainer = FPTTTrainer(net, sgd(net), CE)
        assert trainer.train_sequence(torch.rand(4, steps, 5).transpose(0, 1), labels(4)).updates == steps


def test_learns_from_rate_code_while_monitors_look_on():
    torch.manual_seed(2)
    net, y = lively(nets.Sequence()), labels(24)
    x = spikegen.rate(0.15 + 0.7 * nn.functional.one_hot(y, 5).float(), num_steps=10)
    trainer = FPTTTrainer(net, adam(net, 0.01), SF.ce_rate_loss(), readout="mean")
    before = trainer.evaluate([(x, y)])
    monitors = [probe.OutputMonitor(net, snn.Leaky), probe.AttributeMonitor("mem", False, net, snn.Leaky)]
    trainer.fit([(x, y)] * 20, progress=False)
    assert trainer.evaluate([(x, y)]) > max(before, 0.7)
    assert len(monitors[0].records) == 2 * 10 * 21  # the evaluation, too; the dry runs of the first left no trace
    assert len(monitors[1].records) == 2 * 10 * 21
    assert len(ModelState(net).modules()) == 2
