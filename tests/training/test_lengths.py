"""Sequences of different lengths: every sample is trained, decided and scored at its own last step."""

import copy
import re
import warnings
from functools import partial

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from nets import CE, Mean, adam, batch, copies, identical, sgd, spikes, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import BPTT, DynamicRegularizer, FPTTTrainer
from fptt_plugin import spikingjelly as fptt_sj
from fptt_plugin.errors import BatchError, BatchTypeError, ConfigurationError, FPTTWarning
from fptt_plugin.functional import ClassDistribution, divergence
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.state import ModelState

LENGTHS = torch.tensor([6, 2, 4, 6])


def jelly():
    net = nn.Sequential(
        layer.Linear(3, 8),
        neuron.LIFNode(v_threshold=0.3),
        layer.Linear(8, 2),
        fptt_sj.LTCIntegrator(linear_features=2),
    )
    functional.set_step_mode(net, "m")
    nn.init.uniform_(net[0].weight, -0.3, 0.8)
    return net


class Tutorial(nn.Module):
    def __init__(self, end=torch.stack):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(3, 8), snn.Leaky(beta=0.9, threshold=0.2)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(beta=0.9, threshold=0.2)
        self.end = end

    def forward(self, x):
        mem1, mem2, record = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return self.end(record)


def liquid():
    return nn.Sequential(
        nn.Linear(3, 8),
        LTCLeaky(init_hidden=True, linear_features=8),
        nn.Linear(8, 2),
        LTCIntegrator(init_hidden=True, linear_features=2),
    )


NETS = {"step": spiking_net, "liquid": liquid, "slice": jelly, "in-flight": Tutorial}


def padded(lengths=LENGTHS, padding=5.0):
    x, y = batch(steps=6, samples=len(lengths))
    for sample, length in enumerate(lengths):
        x[length:, sample] = padding
    return x, y, lengths


def mask_of(lengths, steps=6):
    return torch.arange(steps).unsqueeze(1) < lengths


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
@pytest.mark.parametrize("readout", ["step", "mean"])
@pytest.mark.parametrize("window", [1, 4, None])
def test_padded_and_single_sequences_are_decided_alike(build, readout, window):
    x, y, lengths = padded()
    net = build()
    kind, options = (BPTT, {}) if window is None else (FPTTTrainer, {"window": window})
    trainer = kind(net, adam(net), CE, readout=readout, **options)
    single = torch.cat([trainer.predict(x[:n, i : i + 1]) for i, n in enumerate(lengths.tolist())])
    assert torch.allclose(trainer.predict(x, lengths), single, atol=1e-6)
    assert torch.equal(trainer.predict(x, mask_of(lengths)), trainer.predict(x, lengths))
    assert not torch.allclose(trainer.predict(x), single, atol=1e-3)
    right = (single.argmax(1) == y).float().mean().item()
    assert trainer.evaluate([(x, y, lengths)]) == pytest.approx(right)


@pytest.mark.parametrize("build", NETS.values(), ids=NETS)
@pytest.mark.parametrize(
    "options", [{}, {"window": 3}, {"window": 4, "readout": "mean"}, {"window": 2, "loss_every": 1}]
)
def test_nothing_is_trained_on_the_padding(build, options):
    results = []
    for padding in (0.0, 7.0):
        torch.manual_seed(1)
        net = build()
        trainer = FPTTTrainer(net, sgd(net), CE, **options)
        with spikes(net):
            results.append(trainer.train_sequence(*padded(padding=padding)))
        results.append([parameter.clone() for parameter in net.parameters()])
    assert torch.equal(results[0].output, results[2].output)
    assert torch.equal(results[0].loss, results[2].loss)
    assert identical(results[1], results[3])


def by_hand(net, x, y, lengths, window, auxiliary, loss_every=None):
    """One update per window; the loss of a step is the mean over the samples that are due, each with its own ramp."""
    optimizer, state, table = sgd(net), ModelState(net), ClassDistribution()
    DynamicRegularizer(optimizer, 0.1, max_grad_norm=1.0)
    decision, losses, every = [None] * len(y), [], loss_every or window
    state.reset()
    for t, x_t in enumerate(x):
        out = net(x_t)
        due = [i for i, n in enumerate(lengths) if t < n and (t + 1 == n or (t + 1) % every == 0 or t + 1 == len(x))]
        terms = []
        for n in sorted({lengths[i] for i in due}):
            rows = [i for i in due if lengths[i] == n]
            ramp = (t + 1) / n
            loss = ramp * CE(out[rows], y[rows])
            if auxiliary and ramp < 1:
                row = table.row(t, out[rows])
                loss = loss + (1 - ramp) * divergence(out[rows], row[y[rows]])
                table.loss_of_row(row, out[rows], y[rows])
            terms.append(len(rows) * loss)
        if due:
            losses.append(torch.stack(terms).sum() / len(due))
        for i, n in enumerate(lengths):
            if t + 1 == n:
                decision[i] = out[i].detach()
        if (t + 1) % window == 0 or t + 1 == len(x):
            if losses:
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
            state.detach()
            losses = []
    return torch.stack(decision)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize(("window", "loss_every"), [(1, None), (3, None), (4, None), (4, 2), (2, 1)])
@pytest.mark.parametrize("lengths", [[6, 2, 4, 6], [1, 2, 3, 4], [5, 5, 5, 5], [6, 1, 1, 1]])
def test_ramp_auxiliary_term_and_decision_end_with_each_sample(lengths, window, loss_every, auxiliary):
    net = spiking_net(dtype=torch.float64)
    x, y, _ = padded(lengths)
    x, plain = x.double(), copy.deepcopy(net)
    trainer = FPTTTrainer(net, sgd(net), CE, window=window, loss_every=loss_every, auxiliary=auxiliary)
    with spikes(net):
        result = trainer.train_sequence(x, y, torch.tensor(lengths))
    decision = by_hand(plain, x, y, lengths, window, auxiliary, loss_every)
    assert torch.allclose(result.output, decision, atol=1e-12)
    assert all(torch.allclose(*pair, atol=1e-12) for pair in zip(net.parameters(), plain.parameters(), strict=True))
    assert any(parameter.grad.abs().max() > 0 for parameter in net.parameters())


WEIGHT = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
NONE = WEIGHT * torch.tensor([1.0, 0.0, 1.0])  # a class without weight
# For each loss, that of single samples, and what the sum of these is divided by.
LOSSES = {
    "sum": (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none"), None),
    "weights": (nn.CrossEntropyLoss(WEIGHT), nn.CrossEntropyLoss(WEIGHT, reduction="none"), WEIGHT),
    "a class without weight": (nn.CrossEntropyLoss(NONE), nn.CrossEntropyLoss(NONE, reduction="none"), NONE),
    "smoothing": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, ignore_index=2),
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2, ignore_index=2, reduction="none"),
        WEIGHT,
    ),
    "partial": (
        partial(F.cross_entropy, weight=WEIGHT),
        partial(F.cross_entropy, weight=WEIGHT, reduction="none"),
        WEIGHT,
    ),
    "partial sum": (partial(F.cross_entropy, reduction="sum"), nn.CrossEntropyLoss(reduction="none"), None),
    "log-probabilities": (
        nn.NLLLoss(WEIGHT, ignore_index=0),
        nn.NLLLoss(WEIGHT, ignore_index=0, reduction="none"),
        WEIGHT,
    ),
    "mean": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none"), torch.ones(3)),
    "smoothing alone": (
        nn.CrossEntropyLoss(label_smoothing=0.2),
        nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none"),
        torch.ones(3),
    ),
}


@pytest.mark.parametrize("auxiliary", [None, False])
@pytest.mark.parametrize("ramp", ["linear", "constant", lambda t, steps: 0.1 + (t / steps) ** 2])
@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_step_is_that_of_all_its_samples(name, ramp, auxiliary):
    """Also where it is no mean over samples, and is formed for those of each length."""
    loss_fn, single, weight = LOSSES[name]
    net, lengths = spiking_net(classes=3, dtype=torch.float64), [6, 2, 4, 6, 3, 2]
    x, y, _ = padded(lengths)
    x, y = x.double(), torch.tensor([0, 1, 2, 1, 0, 1])
    plain, table = copy.deepcopy(net), ClassDistribution()
    trainer = FPTTTrainer(net, sgd(net), loss_fn, alpha=0, loss_ramp=ramp, auxiliary=auxiliary)
    losses, optimizer, state = [], sgd(plain), ModelState(plain)
    for t, x_t in enumerate(x):
        out = plain(x_t)
        ignored = getattr(loss_fn, "ignore_index", -100)
        rows = torch.tensor([t < n and int(label) != ignored for n, label in zip(lengths, y, strict=True)])
        r = {"constant": lambda t, n: 1.0, "linear": lambda t, n: (t + 1) / n}.get(ramp, ramp)
        factors = torch.tensor([r(t, n) for n in lengths], dtype=torch.float64)
        total = 1.0 if weight is None else weight[y[rows]].sum()
        loss = (factors[rows] * single(out[rows], y[rows])).sum() / total
        for n in sorted({n for n, counts in zip(lengths, rows, strict=True) if counts and r(t, n) != 1}):
            own = rows & (torch.tensor(lengths) == n)
            if auxiliary is None:
                row = table.row(t, out[own])
                loss = loss + own.sum() / rows.sum() * (1 - r(t, n)) * divergence(out[own], row[y[own]])
                table.loss_of_row(row, out[own], y[own])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        state.detach()
        losses.append(loss.detach())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = trainer.train_sequence(x, y, torch.tensor(lengths))
    assert torch.allclose(result.loss, torch.stack(losses).mean(), atol=1e-7)
    assert all(torch.allclose(*pair, atol=1e-7) for pair in zip(net.parameters(), plain.parameters(), strict=True))


class Upright(nn.Module):
    """Class scores for each of two places of an output, ``[B, C, 2]``."""

    def __init__(self):
        super().__init__()
        self.body = spiking_net(classes=6)

    def forward(self, x):
        return self.body(x).unflatten(1, (3, 2))


def test_labels_of_places_that_are_ignored():
    x, _, lengths = padded()
    y = torch.tensor([[0, -100], [-100, -100], [2, 1], [1, 0]])
    losses = []
    for loss_fn in (nn.CrossEntropyLoss(), lambda output, target: F.cross_entropy(output, target)):
        torch.manual_seed(1)
        net = Upright()
        losses.append(FPTTTrainer(net, sgd(net), loss_fn, targets="sequence").train_sequence(x, y, lengths).loss)
    assert torch.allclose(*losses)


OWN = {
    "mean": (lambda output, y: F.cross_entropy(output, y), False),
    "several terms": (lambda output, y: CE(output, y) + 0.1 * output.square().mean() + 3, False),
    "sum": (lambda output, y: F.cross_entropy(output, y, reduction="sum"), True),
    "weights": (lambda output, y: F.cross_entropy(output, y, torch.tensor([1.0, 5.0])), True),
    "root": (lambda output, y: CE(output, y).sqrt() * 3, True),
}


@pytest.mark.parametrize("name", OWN)
def test_a_function_of_the_users_that_is_no_mean_is_said_once(name):
    loss_fn, says = OWN[name]
    x, y, lengths = padded()
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), loss_fn, loss_ramp="linear")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train_sequence(x, y, lengths)
        trainer.train_sequence(x, y, lengths)
    texts = [str(entry.message) for entry in caught]
    assert len(texts) == says
    assert all("is no mean over samples" in text and "loss_ramp='constant'" in text for text in texts)


@pytest.mark.parametrize("name", OWN)
def test_with_a_constant_ramp_any_function_sees_all_samples(name):
    (x, y, lengths), loss_fn, seen = padded(), OWN[name][0], []

    def noting(output, target):
        seen.append((len(target), loss_fn(output, target)))
        return seen[-1][1]

    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), noting, loss_ramp="constant")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = trainer.train_sequence(x, y, lengths)
    assert [count for count, _ in seen] == [4, 4, 3, 3, 2, 2]
    assert torch.allclose(result.loss, torch.stack([value for _, value in seen]).mean())


def test_batch_first_masks_labels_to_ignore_and_unlabeled_samples():
    x, y, lengths = padded()
    net = spiking_net()
    other, third = copy.deepcopy(net), copy.deepcopy(net)
    one = FPTTTrainer(net, adam(net), CE).train_sequence(x, y, lengths)
    two = FPTTTrainer(other, adam(other), CE, batch_first=True).train_sequence(
        x.transpose(0, 1), y, mask_of(lengths).t()
    )
    assert torch.equal(one.output, two.output)
    assert identical(net.parameters(), other.parameters())
    mask = mask_of(lengths)
    mask[:, 1] = False  # a sample without any label
    result = FPTTTrainer(third, adam(third), CE).train_sequence(x, y, mask)
    assert result.output.shape == (4, 2)
    trainer = FPTTTrainer(third, adam(third), CE)
    rows = [0, 2, 3]
    assert trainer.evaluate([(x, y, mask)]) == pytest.approx(trainer.evaluate([(x[:, rows], y[rows], lengths[rows])]))


def test_fit_scores_every_sample():
    x, y, lengths = padded()
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net, lr=0.0), CE)
    record = trainer.fit([(x, y, lengths)], val_loader=[(x, y, lengths)], progress=False)[0]
    right = (trainer.predict(x, lengths).argmax(1) == y).float().mean().item()
    assert record.train_score == pytest.approx(right)
    assert record.val_score == pytest.approx(right)


def trained(mask, options=None, steps=6):
    """Weights after training on the same padded sequences with that mask."""
    torch.manual_seed(1)
    net = spiking_net()
    x, y, _ = padded([1, 2, 4, 6])
    x = x[:steps].transpose(0, 1) if options else x[:steps]
    FPTTTrainer(net, sgd(net), CE, **(options or {})).train_sequence(x, y, mask)
    return list(net.parameters())


def remedies(mask, options=None, error=BatchError):
    """What a refused mask may mean, by the words of the message, and the mask that it says to pass."""
    with pytest.raises(error) as caught:
        trained(mask, options)
    found = re.findall(
        r"if it (says which samples count|holds lengths), pass (?:the boolean mask )?([^;]*)", str(caught.value)
    )
    return {meaning: eval(code, {"torch": torch, "mask": mask}) for meaning, code in found}, str(caught.value)


@pytest.mark.parametrize("options", [None, {"batch_first": True}])
@pytest.mark.parametrize(
    ("values", "meanings"),
    [
        ([6, 7, 1, 2], {"holds lengths": [6, 6, 1, 2]}),
        ([0, 6, 6, 3], {"holds lengths": [0, 6, 6, 3]}),
        ([1, 1, 1, 1], {"holds lengths": [1, 1, 1, 1], "says which samples count": [6, 6, 6, 6]}),
        ([1, 0, 0, 1], {"holds lengths": [1, 0, 0, 1], "says which samples count": [6, 0, 0, 6]}),
        ([6.0, 3.0, 2.0, 5.0], {"holds lengths": [6, 3, 2, 5]}),
        ([1.0, 1.0, 1.0, 1.0], {"holds lengths": [1, 1, 1, 1], "says which samples count": [6, 6, 6, 6]}),
        ([1.0, 0.0, 0.0, 1.0], {"says which samples count": [6, 0, 0, 6]}),
        ([0.3, 0.7, 1.0, 0.1], {}),
        ([6.0, 7.0, 1.0, 2.0], {}),
        ([float("nan"), 1.0, 1.0, 1.0], {}),
    ],
)
def test_a_mask_that_means_something_else_is_refused_with_what_to_pass_for_each_meaning(values, meanings, options):
    mask = torch.tensor(values)
    error = BatchTypeError if mask.is_floating_point() else BatchError
    found, message = remedies(mask, options, error)
    assert found.keys() == meanings.keys()
    assert ("holds weights" in message) == mask.is_floating_point()
    for meaning, lengths in meanings.items():
        expected = torch.arange(6).unsqueeze(1) < torch.tensor(lengths)
        assert identical(trained(found[meaning], options), trained(expected.t() if options else expected, options))


def test_sequences_of_one_step_have_no_padding():
    assert identical(trained(torch.ones(4, dtype=torch.int64), steps=1), trained(None, steps=1))


@pytest.mark.parametrize(
    ("mask", "remedy"),
    [
        (torch.ones(6, 4), r"mask.bool\(\)$"),
        (torch.eye(6)[:, :4].long(), r"mask.bool\(\)$"),
        (torch.full((6, 4), 0.5), "mask > 0; if it holds weights"),
        (torch.full((6, 4), 2), "mask > 0; if it holds weights"),
        (torch.ones(4, dtype=torch.complex64), r"mask.bool\(\)$"),
        ([0.5, 2.0, 4.0, 6.0], "holds weights"),
    ],
)
def test_masks_of_another_type(mask, remedy):
    x, y, _ = padded()
    net = spiking_net()
    with pytest.raises(BatchTypeError, match=f"mask must be a boolean tensor.*{remedy}"):
        FPTTTrainer(net, adam(net), CE).train_sequence(x, y, mask)


@pytest.mark.parametrize("name", ["mask", "new_sequence"])
def test_rows_of_a_stream_by_their_numbers(name):
    net = spiking_net()
    with pytest.raises(BatchTypeError, match=rf"{name} > 0") as caught:
        FPTTTrainer(net, adam(net), CE).step(
            torch.rand(4, 3), torch.arange(4) % 2, **{name: torch.tensor([0, 3, 1, 2])}
        )
    assert ("holds weights" in str(caught.value)) == (name == "mask")


def test_a_network_that_averages_a_window_cannot_see_its_samples_end():
    net = Mean(jelly())
    x, y, lengths = padded()
    trainer = FPTTTrainer(net, adam(net), CE, window=4)
    before = [parameter.clone() for parameter in net.parameters()]
    for call in (trainer.train_sequence, lambda x, y, mask: trainer.predict(x, mask)):
        with pytest.raises(ConfigurationError, match="window=1"):
            call(x, y, lengths)
    assert identical(net.parameters(), before)
    net = Mean(jelly())
    trainer = FPTTTrainer(net, adam(net), CE, window=1)
    single = torch.cat(
        [net(x[:n, i : i + 1]) for i, n in enumerate(lengths.tolist()) if functional.reset_net(net) is None]
    )
    assert torch.allclose(trainer.predict(x, lengths), single, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_labels_of_eight_bits_are_labels(count):
    """As many samples as classes, above all: 8-bit integers index as a mask."""
    weights = []
    for kind in (torch.int64, torch.uint8):
        torch.manual_seed(0)
        net = spiking_net(classes=3)
        x, y = torch.rand(6, count, 3), torch.arange(count) % 3
        trainer = FPTTTrainer(net, sgd(net), CE)
        trainer.train_sequence(x, y.to(kind))
        weights.append([*copies(net.parameters()), trainer.objective.distribution.table])
    assert identical(*weights)


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(8), lambda: nn.BatchNorm1d(8, affine=False)])
def test_batch_statistics_of_padding_are_said(norm):
    x, y, lengths = padded()
    net = spiking_net(extra=[norm()])
    trainer = FPTTTrainer(net, sgd(net), CE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(x, y)  # of one length
    net[1].eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(x, y, lengths)
    net[1].train()
    with pytest.warns(FPTTWarning, match=r"averages over the padding of shorter sequences, too, in 1:"):
        trainer.train_sequence(x, y, lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(x, y, lengths)  # once


@pytest.mark.parametrize("tracks", [None, False, True])
def test_normalization_of_each_sample_by_itself_is_no_matter_unless_it_tracks(tracks):
    x, y, lengths = padded()
    norm = nn.LayerNorm(8)
    if tracks is not None:
        instances = nn.InstanceNorm1d(2, track_running_stats=tracks)
        norm = nn.Sequential(nn.Unflatten(1, (2, 4)), instances, nn.Flatten())
    net = spiking_net(extra=[norm])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        FPTTTrainer(net, sgd(net), CE).train_sequence(x, y, lengths)
    assert ["in 1.1: use a normalization of each sample" in str(warning.message) for warning in said] == [True] * (
        tracks is True
    )
