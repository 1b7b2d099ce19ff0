"""Networks that loop over time: what forward() returns is trained, scored and predicted, or they are refused."""

import copy
import warnings

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from idioms.snntorch_refused import LateReadout
from nets import adam, batch, copies, identical, sgd, spikes
from torch import nn

from fptt_plugin import BPTT, DynamicRegularizer, FPTTTrainer
from fptt_plugin.drivers.returned import identify
from fptt_plugin.errors import CannotStepError, FPTTWarning, OutputError
from fptt_plugin.state import ModelState

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


def trained(net, kind=FPTTTrainer, xy=None, **options):
    """A trainer after one batch, without a warning; and the names of the parameters that did not move."""
    before = copies(net.parameters())
    trainer = kind(net, adam(net), CE, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(*(xy or data()))
    still = [name for (name, p), old in zip(net.named_parameters(), before, strict=True) if torch.equal(p, old)]
    return trainer, still


def refused(net, kind=FPTTTrainer, xy=None, **options):
    """The message with which training is refused, before anything has changed."""
    before = copies(net.state_dict().values())
    with pytest.raises(CannotStepError, match="not the stack, last value, mean, sum or maximum") as caught:
        kind(net, adam(net), CE, **options).train_sequence(*(xy or data()))
    assert identical(net.state_dict().values(), before)
    assert "nn.Identity()" in caught.value.remedy
    assert "output_module" in caught.value.remedy
    return str(caught.value)


# ---------------------------------------------------------------------- what no module returns is refused


@pytest.mark.parametrize("kind", [FPTTTrainer, BPTT])
def test_a_population_code_in_the_loop(kind):
    assert "Population returns (10, 3, 3) for an input (10, 3, 4)" in refused(Population(), kind=kind)
    assert trained(Population(nn.Identity()), kind=kind)[1] == []


def test_a_head_after_the_loop():
    assert "Head returns (3, 3)" in refused(Head())
    assert trained(Head(nn.Identity()))[1] == []


def test_a_function_of_the_readout_in_the_loop():
    refused(Net(head=lambda net, out: out.sigmoid()))
    assert trained(Net(head=lambda net, out: net.last(out.sigmoid()), last=nn.Identity()))[1] == []


@pytest.mark.parametrize(
    "end",
    [
        lambda record: torch.stack(record).softmax(-1),
        lambda record: torch.stack(record).mean(0).log_softmax(-1),
        lambda record: torch.stack(record).flip(0),
        lambda record: torch.stack(record).std(0),
        lambda record: torch.stack(record)[:, :, :2],
    ],
)
def test_functions_of_the_record(end):
    refused(Net(end=end))


def test_a_frozen_readout_after_the_loop():
    net = LateReadout()
    net.fc_out.requires_grad_(False)
    refused(net, xy=(torch.rand(10, 6, 5), data()[1]))


def test_a_network_of_one_batch_size_is_looked_at_with_all_samples():
    class Fixed(Head):
        def forward(self, x):
            return super().forward(x) + torch.zeros(6, 3)

    assert "for an input (10, 6, 4)" in refused(Fixed())


def test_a_still_image_is_looked_at_with_few_samples():
    class Still(Head):
        def forward(self, x):
            return super().forward(x.expand(10, *x.shape))

    x, y = data()
    assert "for an input (3, 4)" in refused(Still(), xy=(x[0], y))


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_silent_network_and_a_short_sequence(steps, silent):
    x, y = data(steps)
    refused(Population(), xy=((0 if silent else 1) * x, y))
    refused(Head(), xy=((0 if silent else 1) * x, y))


# ---------------------------------------------------------------------- several outputs


def test_several_outputs_and_none_chosen():
    for net in (
        Heads(),
        Heads(spiking=True),
        Ordinary(lambda h, s, m: (h, s)),
        Ordinary(lambda h, s, m: {"a": h, "b": m}),
    ):
        weights = copies(net.parameters())
        with pytest.raises(OutputError, match=r"no single output.*output=0"):
            FPTTTrainer(net, adam(net), CE).train_sequence(*data())
        assert identical(net.parameters(), weights)


@pytest.mark.parametrize("spiking", [False, True])
def test_a_chosen_output_is_the_one_that_is_trained(spiking):
    trainer, still = trained(Heads(spiking), output=0)
    assert [name for name in still if "lif" not in name] == ["aux.weight", "aux.bias"]
    assert trainer.predict(data()[0]).shape == (6, 3)
    both = Heads(spiking, nn.Identity())
    assert trained(both, output=lambda heads: torch.cat(heads, 1))[1] == []
    trainer, _ = trained(Ordinary(lambda h, s, m: {"hidden": h, "out": {"mem": m}}), output=lambda r: r["out"]["mem"])
    assert trainer._loop.driver.step.chosen[:2] == ("lif2", 1)


def test_a_module_that_the_user_names_may_return_something_else():
    assert trained(Net(head=lambda net, out: out.softmax(1)), output_module="out")[1] == []
    unflattened = {"output": lambda r: r[1].unflatten(1, (3, 5)).sum(2)}
    assert trained(Population(), output_module="lif", **unflattened)[1] == []


@pytest.mark.parametrize("output", [0, "mem"])
@pytest.mark.parametrize(
    "end",
    [
        lambda h, s, m: m,  # an index or a name of what is one tensor
        lambda h, s, m: (m.softmax(-1), s),
        lambda h, s, m: {"mem": m.median(0).values},
    ],
    ids=["one tensor", "a tuple", "a dictionary"],
)
def test_an_output_that_forward_does_not_have_is_said(end, output):
    net = Ordinary(end)
    trainer = FPTTTrainer(net, adam(net), CE, output=output)
    x, _ = data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FPTTWarning)
        try:
            predicted = trainer.predict(x)
        except OutputError:  # the module has no such output either
            return
    with torch.no_grad(), trainer.evaluation():
        own = net(x)
    picked = own if isinstance(own, torch.Tensor) else own.get("mem") if isinstance(own, dict) else own[0]
    said = [warning for warning in caught if "predict(x) is not what forward(x) returns" in str(warning.message)]
    assert said or torch.allclose(predicted, picked[-1])


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


SPIKES, MEMBRANE = 0, 1
# What forward() returns; whether spikes or membranes are trained; the readout; the decision that follows from it.
ENDS = {
    "spikes and membrane": (lambda h, s, m: (s, m), MEMBRANE, "step", lambda own: own[1][-1]),
    "membrane": (lambda h, s, m: m, MEMBRANE, "step", lambda own: own[-1]),
    "spikes": (lambda h, s, m: s, SPIKES, "step", lambda own: own[-1]),
    "list of steps": (lambda h, s, m: list(m), MEMBRANE, "step", lambda own: own[-1]),
    "spike count": (lambda h, s, m: s.sum(0), SPIKES, "sum", lambda own: own),
    "rate": (lambda h, s, m: s.mean(0), SPIKES, "mean", lambda own: own),
    "rate of a fixed number of steps": (lambda h, s, m: s.sum(0) / 20, SPIKES, "sum", lambda own: own),
    "mean membrane": (lambda h, s, m: m.mean(0), MEMBRANE, "mean", lambda own: own),
    "last membrane": (lambda h, s, m: m[-1], MEMBRANE, "step", lambda own: own),
    "maximum": (lambda h, s, m: m.max(0).values, MEMBRANE, "max", lambda own: own),
    "batch first": (lambda h, s, m: m.transpose(0, 1), MEMBRANE, "step", lambda own: own[:, -1]),
    "time last": (lambda h, s, m: m.permute(1, 2, 0), MEMBRANE, "step", lambda own: own[..., -1]),
    "steps and samples in one": (lambda h, s, m: m.flatten(0, 1), MEMBRANE, "step", lambda own: own[-6:]),
    "running count": (lambda h, s, m: s.cumsum(0), SPIKES, "sum", lambda own: own[-1]),
}


@pytest.mark.filterwarnings("ignore:the loss sees spikes")
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("end", ENDS)
def test_what_forward_returns_is_trained_and_predicted(end, steps):
    make, place, readout, decision = ENDS[end]
    net, (x, y) = Ordinary(make), data(steps)
    trainer = FPTTTrainer(net, adam(net), CE)
    trainer.train_sequence(x, y)
    driver = trainer._loop.driver
    assert (*driver.step.chosen[:2], driver.readout) == ("lif2", place, readout)
    assert f"readout: {readout}" in trainer.explain()
    assert torch.allclose(trainer.predict(x, averaged=False), decision(net(x)), atol=1e-6)
    right = (decision(net(x)).argmax(1) == y).float().mean().item()
    assert trainer.evaluate([(x, y)], averaged=False) == pytest.approx(right)


@pytest.mark.parametrize("end", ["spikes", "spike count", "rate", "mean membrane", "membrane", "maximum"])
@pytest.mark.parametrize("window", [1, 3])
def test_training_is_that_of_the_loop_by_hand(end, window):
    make, place, readout, _ = ENDS[end]
    net, (x, y) = Ordinary(make), data()
    plain = copy.deepcopy(net)
    options = {"window": window, "loss_ramp": "constant", "auxiliary": False, "max_grad_norm": None}
    trainer = FPTTTrainer(net, sgd(net), CE, readout="mean" if end == "spikes" else None, **options)
    with spikes(net):
        trainer.train_sequence(x, y)

    optimizer, state, total = sgd(plain), ModelState(plain), None
    DynamicRegularizer(optimizer)
    mem1, mem2 = plain.lif1.init_leaky(), plain.lif2.init_leaky()
    for t, x_t in enumerate(x):
        spk1, mem1 = plain.lif1(plain.fc1(x_t), mem1)
        spk2, mem2 = plain.lif2(plain.fc2(plain.drop(spk1)), mem2)
        out = (spk2, mem2)[place]
        if readout == "max":
            total = out if total is None else torch.maximum(total, out)
        elif readout != "step" or end == "spikes":
            total = out if total is None else total + out
        if (t + 1) % window == 0 or t + 1 == len(x):
            seen = total / (t + 1) if readout == "mean" or end == "spikes" else out if readout == "step" else total
            optimizer.zero_grad()
            CE(seen, y).backward()
            optimizer.step()
            mem1, mem2, total = mem1.detach(), mem2.detach(), None if total is None else total.detach()
            state.detach()
    assert plain.fc1.weight.grad.abs().max() > 0
    assert identical(net.parameters(), plain.parameters())


@pytest.mark.parametrize("end", [lambda h, s, m: iter([m]), lambda h, s, m: None])
def test_a_network_that_returns_no_tensor_is_trained_on_its_last_module(end):
    trainer, still = trained(Ordinary(end))
    assert still == []
    assert trainer._loop.driver.output_module == "lif2"


@pytest.mark.filterwarnings("ignore:the loss sees spikes")
@pytest.mark.parametrize("kind", [FPTTTrainer, BPTT])
def test_one_sample_dropout_half_precision_and_a_silent_network(kind):
    rate = ENDS["rate"][0]
    trained(Ordinary(rate, dropout=0.5), kind=kind)
    trained(Ordinary(rate), kind=kind, xy=data(batch=1))
    trainer, _ = trained(Ordinary(rate), kind=kind, xy=(torch.zeros(10, 6, 4), data()[1]))
    assert trainer._loop.driver.readout == "mean"
    with torch.autocast("cpu", torch.bfloat16):
        trained(Net(end=lambda record: torch.stack(record).mean(0)), kind=kind)


def never_fires(end):
    net = Ordinary(end)
    net.lif1.threshold = net.lif2.threshold = torch.tensor(1e9)
    nn.init.zeros_(net.fc2.bias)
    return net


@pytest.mark.parametrize("end", ENDS)
def test_a_network_that_never_fires_shows_what_it_returns(end):
    """Its spikes and membranes are zero at every step, whatever the input."""
    make, place, readout, _ = ENDS[end]
    net = never_fires(make)
    trainer = FPTTTrainer(net, adam(net), CE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.predict(data()[0])
    driver = trainer._loop.driver
    assert (*driver.step.chosen[:2], driver.readout) == ("lif2", place, readout)


def test_a_guess_is_said_unless_the_user_knows():
    x, _ = data()
    for options, warned in (({}, True), ({"readout": "mean"}, False), ({"readout": "step"}, False)):
        net = never_fires(lambda h, s, m: s.tanh().mean(0))  # what no module returns
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            FPTTTrainer(net, adam(net), CE, **options).predict(x)
        assert [str(warning.message).partition("readout=")[2][:6] for warning in caught] == ["'mean'"] * warned


class Deep(nn.Module):
    """Dropout at the end of the loop's body, where evaluation returns the same tensor as the layer before."""

    def __init__(self, end="record"):
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(3, 16), nn.Linear(16, 2)])
        self.lif = nn.ModuleList([snn.Leaky(beta=0.8, threshold=0.4) for _ in range(2)])
        self.dropout, self.end = nn.Dropout(0.5), end

    def forward(self, x):
        mem, record = [lif.reset_mem() for lif in self.lif], []
        for x_t in x:
            for i, fc in enumerate(self.fc):
                spk, mem[i] = self.lif[i](fc(x_t), mem[i])
                x_t = self.dropout(spk)
            record.append(mem[-1] if self.end == "mode" else spk)
        record = torch.stack(record)
        return record if self.training or self.end == "record" else record.mean(0)


@pytest.mark.parametrize("first", ["train", "predict", "evaluate"])
@pytest.mark.parametrize("training", [True, False])
def test_what_a_network_returns_does_not_depend_on_what_comes_first(first, training):
    net, (x, y) = Deep().train(training), batch()
    trainer = FPTTTrainer(net, sgd(net), CE)
    if first == "evaluate":
        trainer.evaluate([(x, y)])
    elif first == "predict":
        trainer.predict(x)
    else:
        trainer.train_sequence(x, y)
    assert "the output is tensor 0 of 'lif.1'" in trainer.explain()
    assert net.training is training


@pytest.mark.parametrize("first", ["train", "predict"])
def test_a_loop_that_combines_its_steps_by_the_mode_is_warned_of(first):
    net, (x, y) = Deep("mode"), batch()
    trainer = FPTTTrainer(net, sgd(net, lr=0.0), CE)
    with pytest.warns(FPTTWarning, match="Pass readout='mean' to use that in both"):
        trainer.predict(x) if first == "predict" else trainer.train_sequence(x, y)
    assert trainer._run_state.readout.mode == "step"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = FPTTTrainer(net, sgd(net, lr=0.0), CE, readout="mean")
        assert torch.allclose(trainer.predict(x), net.eval()(x))


def test_a_single_sample_that_batch_normalization_does_not_train_on_is_predicted():
    class Normalized(Deep):
        def __init__(self):
            super().__init__()
            self.fc[0] = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16))

    net, (x, _) = Normalized().eval(), batch(samples=1)
    trainer = FPTTTrainer(net, sgd(net), CE)
    assert torch.equal(trainer.predict(x), net(x)[-1])


def test_identify_takes_nothing_for_something():
    series = [torch.rand(4, 3) for _ in range(5)]
    stacked, records = torch.stack(series), {"out": [[tensor] for tensor in series]}
    for result, readout in ((stacked, "step"), (stacked.mean(0), "mean"), (0.3 * stacked.sum(0), "sum")):
        assert [found.readout for found in identify(result, records)] == [readout]
    assert identify(0.3 * stacked.sum(0), records)[0].factor == pytest.approx(0.3)
    for other in (2 * stacked, stacked.flip(0), stacked[0], stacked.sigmoid(), stacked.sum(2), stacked.mean(0) + 1e-3):
        assert identify(other, records) == []


@pytest.mark.parametrize("factor", [0.5, 0.25, 3.0])
def test_a_scaled_count_is_not_taken_for_a_maximum(factor):
    """Where every neuron fires 1 / factor times or never, the two are the same on that input."""

    class Count(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(3, 2), snn.Leaky(beta=0.5, threshold=1.0)

        def forward(self, x):
            mem, record = self.lif.init_leaky(), []
            for x_t in x:
                spk, mem = self.lif(self.fc(x_t), mem)
                record.append(spk)
            return factor * torch.stack(record).sum(0)

    net = Count()
    nn.init.constant_(net.fc.weight, 0.5)
    nn.init.zeros_(net.fc.bias)
    x = torch.zeros(6, 4, 3)
    x[1 : 1 + round(1 / factor), :3] = 1.0
    x[:, 3] = 1.0
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.0), nn.MSELoss())
    assert torch.allclose(trainer.predict(x, averaged=False), net(x), atol=1e-6)
    assert (trainer._loop.driver.readout, trainer._loop.driver.factor) == ("sum", pytest.approx(factor))


# ---------------------------------------------------------------------- an output made of the whole record

MADE = {
    "spike count": (lambda r: r[0].sum(0), "sum"),
    "rate": (lambda r: r[0].mean(0), "mean"),
    "rate of a count": (lambda r: r[0].sum(0) / len(r[0]), "mean"),
    "last membrane": (lambda r: r[1][-1], "step"),
    "maximum": (lambda r: r[1].max(0).values, "max"),
    "batch first": (lambda r: r[1].transpose(0, 1), "step"),
    "record of a list": (lambda r: torch.stack(r[2]), "step"),
    "count of a list": (lambda r: sum(r[2]), "sum"),
    "copy": (lambda r: r[1].clone(), "step"),
}


@pytest.mark.parametrize("batch", [1, 3, 6])  # 3: as many samples as classes
@pytest.mark.parametrize("made", MADE)
def test_an_output_made_of_the_whole_record_is_trained_and_predicted(made, batch):
    pick, readout = MADE[made]
    net, (x, y) = Ordinary(lambda h, s, m: (s, m, list(m))), data(batch=batch)
    own = Ordinary(lambda h, s, m: pick((s, m, list(m))))
    own.load_state_dict(net.state_dict())
    trainer, still = trained(net, xy=(x, y), output=pick)
    assert trainer._loop.driver.readout == readout
    reference, _ = trained(own, xy=(x, y))
    assert still == []
    assert identical(net.parameters(), own.parameters())
    assert torch.equal(trainer.predict(x), reference.predict(x))


def test_a_container_of_one_tensor_is_what_the_loss_gets():
    def loss(out, y):
        return CE(out["mem"], y)

    for pick in (lambda r: r, lambda r: {"mem": r["mem"]}):
        net = Ordinary(lambda h, s, m: {"mem": m})
        trainer = FPTTTrainer(net, adam(net), loss, output=pick)
        trainer.train_sequence(*data())
        assert trainer.predict(data()[0])["mem"].shape == (6, 3)


@pytest.mark.parametrize("kind", [FPTTTrainer, BPTT])
@pytest.mark.parametrize(
    "pick", [lambda r: torch.stack(r[1]).softmax(2), lambda r: torch.stack(r[0][3:]).mean(0), lambda r: r["mem"]]
)
def test_a_function_that_fits_neither_record_nor_step_is_said(pick, kind):
    net = Ordinary(lambda h, s, m: (list(s), list(m)))
    before = copies(net.parameters())
    with (
        pytest.warns(FPTTWarning, match="output does not pick"),
        pytest.raises(OutputError, match=r"output=\.\.\. raised TypeError.*'lif2' returned that"),
    ):
        kind(net, adam(net), CE, output=pick).train_sequence(*data())
    assert identical(net.parameters(), before)


# ---------------------------------------------------------------------- what the first batch may not show

HIDDEN = {
    "a bound on the count": lambda h, s, m: s.sum(0).clamp(max=8),
    "a bound on the mean membrane": lambda h, s, m: m.mean(0).clamp(-1, 1),
    "a bound on every membrane": lambda h, s, m: m.clamp(-2, 2),
    "a minimum": lambda h, s, m: torch.minimum(m[-1], torch.tensor(3.0)),
    "a saturation": lambda h, s, m: torch.where(m[-1].abs() < 4, m[-1], m[-1].tanh()),
}


@pytest.mark.parametrize("end", HIDDEN)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_that_the_first_batch_does_not_reach(end, seed):
    torch.manual_seed(seed)
    net, (x, y) = Ordinary(HIDDEN[end]), data(8)
    with pytest.raises(CannotStepError, match="which is not the stack, last value, mean, sum or maximum"):
        FPTTTrainer(net, adam(net), CE).train_sequence(0.1 * x, y)


@pytest.mark.parametrize("steps", [4, 7, 8, 15, 16])
def test_a_divisor_that_is_the_number_of_steps_of_some_run(steps):
    net, (x, y) = Ordinary(lambda h, s, m: s.sum(0) / 8), data(steps)
    trainer = FPTTTrainer(net, adam(net), CE)
    trainer.train_sequence(x, y)
    for length in (3, 8, 16):
        other, _ = data(length)
        assert torch.allclose(trainer.predict(other, averaged=False), net(other), atol=1e-6)


class Lists(Ordinary):
    """Returns lists of the outputs of all steps, of spikes and of membranes."""

    def __init__(self):
        super().__init__(lambda h, s, m: (list(s), list(m)))


@pytest.mark.parametrize(
    ("output", "place"),
    [(None, 1), (0, 0), (1, 1), (lambda r: r[0], 0), (lambda r: torch.stack(r[1]), 1), (lambda r: r[1][-1], 1)],
)
@pytest.mark.filterwarnings("ignore:the loss sees spikes")
def test_lists_of_steps(output, place):
    net, (x, y) = Lists(), data(9)
    trainer = FPTTTrainer(net, adam(net), CE, output=output)
    trainer.train_sequence(x, y)
    assert torch.allclose(trainer.predict(x, averaged=False), net(x)[place][-1], atol=1e-6)
