"""Loops inside forward(): what it returns and no module puts out is warned of, and nothing else is."""

import warnings

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from idioms.snntorch_refused import LateReadout
from nets import adam, copies, identical
from torch import nn

from fptt_plugin import BPTT, FPTTTrainer
from fptt_plugin._probe import Probe, is_record

CE = nn.CrossEntropyLoss()


class Net(nn.Module):
    """Eight neurons and a readout of three; ``head(net, readout)`` makes a step's record, ``end`` of all of them."""

    def __init__(self, head=lambda net, out: out, end=torch.stack, **modules):
        super().__init__()
        self.fc, self.lif, self.out = nn.Linear(4, 8), snn.Leaky(beta=0.9, threshold=0.2), nn.Linear(8, 3)
        self.head, self.end = head, end
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        mem, record = self.lif.init_leaky(), []
        for x_t in x:
            spk, mem = self.lif(self.fc(x_t), mem)
            record.append(self.head(self, self.out(spk)))
        return self.end(record)


class Population(nn.Module):
    """Five neurons for each of three classes, added up within the loop; the sums may pass through a module."""

    def __init__(self, last=lambda x: x):
        super().__init__()
        self.fc, self.lif, self.last = nn.Linear(4, 15), snn.Leaky(beta=0.9), last

    def forward(self, x):
        mem, record = self.lif.init_leaky(), []
        for x_t in x:
            _, mem = self.lif(self.fc(x_t), mem)
            record.append(self.last(mem.view(-1, 3, 5).sum(2)))
        return torch.stack(record)


class Head(nn.Module):
    """A head without a module: on the spike count after the loop, or at each step within it."""

    def __init__(self, last=None):
        super().__init__()
        self.fc, self.lif, self.last = nn.Linear(4, 8), snn.Leaky(beta=0.9, threshold=0.2), last
        self.W = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        mem, count, record = self.lif.init_leaky(), 0, []
        for x_t in x:
            spk, mem = self.lif(self.fc(x_t), mem)
            count = count + spk
            if self.last:
                record.append(self.last(F.linear(spk, self.W)))
        return torch.stack(record) if self.last else F.linear(count / len(x), self.W)


class Heads(nn.Module):
    """A main and an auxiliary head in the loop, with or without neurons of their own."""

    def __init__(self, spiking=False, last=None):
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 8), snn.Leaky(beta=0.9, threshold=0.2)
        self.main, self.aux, self.last = nn.Linear(8, 3), nn.Linear(8, 5), last
        self.lif_main, self.lif_aux = (snn.Leaky(0.9), snn.Leaky(0.9)) if spiking else (None, None)

    def forward(self, x):
        mem, mem_main, mem_aux, main, aux = *3 * (torch.zeros(()),), [], []
        for x_t in x:
            spk, mem = self.lif(self.fc(x_t), mem)
            mem_main, mem_aux = self.main(spk) + 0 * mem_main, self.aux(spk) + 0 * mem_aux
            if self.lif_main:
                _, mem_main = self.lif_main(mem_main, mem_main)
                _, mem_aux = self.lif_aux(mem_aux, mem_aux)
            if self.last:
                mem_main, mem_aux = self.last((mem_main, mem_aux))
            main.append(mem_main)
            aux.append(mem_aux)
        return torch.stack(main), torch.stack(aux)


def data(steps=10, batch=6):
    return 2 * torch.rand(steps, batch, 4), torch.arange(batch) % 3


def train(net, kind=FPTTTrainer, xy=None, loss=CE, **options):
    """Trains on one batch; returns the names of the parameters that did not move."""
    before = copies(net.parameters())
    kind(net, adam(net), loss, **options).train_sequence(*(xy or data()))
    return [name for (name, p), old in zip(net.named_parameters(), before, strict=True) if torch.equal(p, old)]


def warning(net, **options):
    """The one warning that training gives."""
    with pytest.warns(UserWarning, match="and on nothing else") as caught:
        train(net, **options)
    assert len(caught) == 1
    return str(caught[0].message)


def is_quiet(net, **options):
    """Training gives no warning; returns what did not move."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return train(net, **options)


# ---------------------------------------------------------------------- what is seen


@pytest.mark.parametrize("kind", [FPTTTrainer, BPTT])
def test_a_population_code_in_the_loop(kind):
    text = warning(Population(), kind=kind)
    for word in ("'lif' returns (3, 15) at", "forward() (6, 3, 3)", "nn.Identity()", "output_module"):
        assert word in text
    assert is_quiet(Population(nn.Identity()), kind=kind) == []


def test_a_head_after_the_loop():
    text = warning(Head())
    for word in ("'lif' returns (3, 8)", "forward() (3, 3)", "'W', which forward() uses", "requires_grad_(False)"):
        assert word in text
    assert is_quiet(Head(nn.Identity())) == []


def test_a_function_of_the_readout_in_the_loop():
    text = warning(Net(head=lambda net, out: out.sigmoid()))
    assert "module 'out' returns in each time step" in text
    assert "never be trained" not in text
    assert is_quiet(Net(head=lambda net, out: net.last(out.sigmoid()), last=nn.Identity())) == []


@pytest.mark.parametrize("spiking", [False, True])
def test_two_heads(spiking):
    net = Heads(spiking)
    text = warning(net)
    assert "; 'main.weight', 'main.bias', which forward() uses" in text
    assert "stacked" not in text  # the auxiliary head is returned as the trainer sees it
    assert "'aux.weight', 'aux.bias'" in warning(Heads(), output_module="main")
    net.main.requires_grad_(False)
    assert is_quiet(net) == ["main.weight", "main.bias"]
    both = Heads(spiking, nn.Identity())
    assert is_quiet(both, output=lambda heads: torch.cat(heads, 1)) == []


def test_the_message_of_a_missing_output_names_the_module():
    for kind in (FPTTTrainer, BPTT):
        net = Heads()
        weights = copies(net.parameters())
        with pytest.raises(ValueError, match=r"output=0.*a tensor of shape \(6, 5\).*Module 'aux'") as caught:
            train(net, kind=kind, output=0)
        assert identical(net.parameters(), weights)
        assert "output_module" in str(caught.value)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_silent_network_and_a_short_sequence(steps, silent):
    x, y = data(steps)
    assert "'lif' returns (3, 15)" in warning(Population(), xy=((0 if silent else 1) * x, y))
    assert "'W'" in warning(Head(), xy=((0 if silent else 1) * x, y))


def test_a_module_that_the_user_names_may_return_something_else():
    assert is_quiet(Net(head=lambda net, out: out.softmax(1)), output_module="out") == []
    assert is_quiet(Population(), output_module="lif", output=lambda r: r[1].unflatten(1, (3, 5)).sum(2)) == []
    assert is_quiet(Population(), output=lambda r: r[1].unflatten(1, (3, 5)).sum(2)) == []  # is what forward() returns


def test_a_frozen_readout_after_the_loop():
    """Freezing it allows training, which sees the hidden spikes all the same."""
    net = LateReadout()
    net.fc_out.requires_grad_(False)
    text = warning(net, xy=(torch.rand(10, 6, 5), data()[1]))
    assert "'lif1' returns (3, 10) at each step, and forward() (3, 3)" in text
    assert "never be trained" not in text


# ---------------------------------------------------------------------- what ordinary networks return


class Ordinary(nn.Module):
    """A tutorial's network, with one way or another to return its records."""

    def __init__(self, end, dropout=0.0):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(beta=0.9, threshold=0.2)
        self.fc2, self.lif2 = nn.Linear(8, 3), snn.Leaky(beta=0.9, threshold=0.2)
        self.drop, self.end = nn.Dropout(dropout), end

    def forward(self, x):
        mem1, mem2, hidden, spikes, membranes = self.lif1.init_leaky(), self.lif2.init_leaky(), [], [], []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            spk2, mem2 = self.lif2(self.fc2(self.drop(spk1)), mem2)
            hidden.append(spk1)
            spikes.append(spk2)
            membranes.append(mem2)
        return self.end(torch.stack(hidden), torch.stack(spikes), torch.stack(membranes))


ENDS = {
    "spikes and membrane": lambda h, s, m: (s, m),
    "membrane": lambda h, s, m: m,
    "spikes": lambda h, s, m: s,
    "hidden records beside the output": lambda h, s, m: (h, s),
    "dictionary": lambda h, s, m: {"hidden": h, "readout": {"mem": m}},
    "list of steps": lambda h, s, m: list(m),
    "something opaque": lambda h, s, m: iter([m]),
    "nothing": lambda h, s, m: None,
    "spike count": lambda h, s, m: s.sum(0),
    "rate": lambda h, s, m: s.mean(0),
    "rate of a fixed number of steps": lambda h, s, m: s.sum(0) / 10,
    "last membrane": lambda h, s, m: m[-1],
    "maximum": lambda h, s, m: m.max(0).values,
    "batch first": lambda h, s, m: m.transpose(0, 1),
    "time last": lambda h, s, m: m.permute(1, 2, 0),
    "steps and samples in one": lambda h, s, m: m.flatten(0, 1),
    "running count": lambda h, s, m: s.cumsum(0),
    "running mean": lambda h, s, m: s.cumsum(0) / torch.arange(1, len(s) + 1).view(-1, 1, 1),
}


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("end", ENDS)
def test_ordinary_networks_see_no_warning(end, steps):
    assert is_quiet(Ordinary(ENDS[end]), xy=data(steps)) == []


@pytest.mark.parametrize("kind", [FPTTTrainer, BPTT])
def test_one_sample_dropout_half_precision_and_a_silent_network(kind):
    is_quiet(Ordinary(ENDS["rate"], dropout=0.5), kind=kind)
    is_quiet(Ordinary(ENDS["rate"]), kind=kind, xy=data(batch=1))
    is_quiet(Ordinary(ENDS["rate"]), kind=kind, xy=(torch.zeros(10, 6, 4), data()[1]))
    with torch.autocast("cpu", torch.bfloat16):
        is_quiet(Net(end=lambda record: torch.stack(record).mean(0)), kind=kind)


def test_an_unused_module_is_no_part_of_what_forward_returns():
    assert is_quiet(Net(unused=nn.Linear(2, 2))) == ["unused.weight", "unused.bias"]


# ---------------------------------------------------------------------- the look itself


def test_a_network_of_one_batch_size_is_looked_at_with_all_samples():
    class Fixed(Head):
        def forward(self, x):
            return super().forward(x) + torch.zeros(6, 3)

    assert "of an input (6, 6, 4)" in warning(Fixed())


def test_a_still_image_is_looked_at_with_few_samples():
    class Still(Head):
        def forward(self, x):
            return super().forward(x.expand(10, *x.shape))

    x, y = data()
    assert "of an input (3, 4)" in warning(Still(), xy=(x[0], y))


def test_the_look_takes_few_steps_and_samples():
    seen = []

    class Watched(Ordinary):
        def forward(self, x):
            if torch.is_grad_enabled():
                seen.append(tuple(x.shape))
            return super().forward(x)

    net = Watched(ENDS["membrane"])
    trainer = BPTT(net, adam(net), CE)
    trainer._find_driver(torch.rand(500, 64, 4), batch_first=False)
    assert seen == [(6, 3, 4)]


def test_records_of_outputs():
    outputs = list(torch.rand(5, 4, 3))
    stacked = torch.stack(outputs)
    for record in (stacked, stacked.double(), stacked.mean(0), stacked[-1], 0.3 * stacked.sum(0)):
        assert is_record(record, outputs)
    for other in (2 * stacked, stacked.flip(0), stacked[0], stacked.sigmoid(), stacked.sum(2), stacked.mean(0) + 1e-3):
        assert not is_record(other, outputs)
    nothing = list(torch.zeros(5, 4, 3))
    assert is_record(torch.zeros(4, 3), nothing)
    assert not is_record(torch.ones(4, 3), nothing)
    assert not is_record(torch.zeros(4, 2), nothing)


def test_parameters_behind_a_tensor():
    probe = Probe(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    hidden = probe.net[0](torch.rand(4, 2))
    assert probe.parameters_behind([hidden]) == ["0.weight", "0.bias"]
    assert probe.parameters_behind({"out": 0 * probe.net[1](hidden.detach())}) == ["1.weight", "1.bias"]
    assert probe.parameters_behind(torch.rand(2)) == []
