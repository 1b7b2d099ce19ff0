"""What loaders give: tuples, dictionaries, dataclasses, arrays, several inputs and targets; and what is refused."""

import copy
from collections import UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import CE, LIF, Before, adam, batch, identical, spikes, spiking_net
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import BatchError, BatchTypeError, ConfigurationTypeError
from fptt_plugin.fit import accuracy, epochs

X, Y = batch()
LENGTHS = torch.tensor([6, 3, 5, 6])
MASK = torch.arange(6).unsqueeze(1) < LENGTHS


@dataclass
class Sample:
    frames: object
    label: object
    lengths: object = None
    name: str = "a recording"


Named = namedtuple("Named", "name frames label lengths")


def make(seed=0, loss=CE, build=spiking_net, **options):
    torch.manual_seed(seed)
    net = build()
    return FPTTTrainer(net, adam(net), loss, **options)


FORMS = {
    "tuple": ((X, Y), None),
    "list": ([X, Y], None),
    "no mask": ((X, Y, None), None),
    "arrays": ((X.numpy(), Y.numpy()), None),
    "arrays of doubles and short labels": ((X.numpy().astype(np.float64), Y.numpy().astype(np.int16)), None),
    "a list of labels": ((X, Y.tolist()), None),
    "a tuple of labels": ((X, tuple(Y.tolist())), None),
    "labels that were not collated": ((X, list(Y)), None),
    "a tuple of 0-d arrays": ((X, tuple(Y.numpy())), None),
    "8-bit labels": ((X, Y.to(torch.uint8)), None),
    "nested lists": ({"frames": X.tolist(), "label": Y.tolist()}, ("frames", "label")),
    "names by a generator": ({"frames": X, "label": Y}, (name for name in ("frames", "label"))),
    "dictionary": ({"frames": X, "label": Y, "name": ["a", "b", "c", "d"]}, ("frames", "label")),
    "mapping": (UserDict(frames=X.numpy(), label=Y), ("frames", "label")),
    "function": ({"frames": X.transpose(0, 1), "label": Y}, lambda b: (b["frames"].transpose(0, 1), b["label"])),
    "dataclass": (Sample(X, Y), ("frames", "label")),
    "named tuple": (Named("a", X, Y, LENGTHS), ("frames", "label")),
    "another order": ((Y, "a", X), (2, 0)),
    "an index beside": ((X, Y, torch.arange(4)), (0, 1)),
}
PADDED = {
    "mask": ((X, Y, MASK), None),
    "lengths": ((X, Y, LENGTHS), None),
    "array of lengths": ((X, Y, LENGTHS.numpy()), None),
    "list of lengths": ((X, Y, LENGTHS.tolist()), None),
    "array of a mask": ((X, Y, MASK.numpy()), None),
    "dictionary": ({"frames": X, "label": Y, "lengths": LENGTHS}, ("frames", "label", "lengths")),
    "dataclass": (Sample(X, Y, LENGTHS), ("frames", "label", "lengths")),
    "named tuple": (Named("a", X, Y, LENGTHS), lambda sample: (sample.frames, sample.label, sample.lengths)),
}


@pytest.mark.parametrize("name", [*FORMS, *(f"padded {name}" for name in PADDED)])
def test_forms_of_a_batch(name):
    padded = name.startswith("padded ")
    given, batching = PADDED[name.removeprefix("padded ")] if padded else FORMS[name]
    trainer, other = make(), make()
    with spikes(trainer.net):
        record = trainer.fit([given] * 2, 2, val_loader=[given], batch=batching, progress=False)[-1]
    if name == "names by a generator":
        batching = ("frames", "label")
    plain = [(X, Y, MASK) if padded else (X, Y)]
    expected = other.fit(plain * 2, 2, val_loader=plain, progress=False)[-1]
    assert identical(trainer.net.parameters(), other.net.parameters())
    assert record._replace(seconds=0) == expected._replace(seconds=0)
    assert trainer.evaluate([given], batch=batching) == expected.val_score
    unpadded = make()
    unpadded.fit([(X, Y)] * 2, 2, progress=False)
    assert identical(trainer.net.parameters(), unpadded.net.parameters()) != padded


class Dictionaries(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return {"frames": X[:, i % 4], "label": Y[i % 4]}


def test_a_loader_of_dictionaries():
    trainer = make(batch_first=True)
    data = DataLoader(Dictionaries(), 4)
    record = trainer.fit(data, val_loader=data, batch=("frames", "label"), progress=False)[0]
    assert record.updates == 12
    assert record.val_score == trainer.evaluate([(X.transpose(0, 1), Y)])


@pytest.mark.parametrize(
    ("given", "batching", "words"),
    [
        (
            {"x": X, "y": Y},
            None,
            r"the loader gave a dict per batch with the entries 'x', 'y'.*pass batch=\('x', 'y'\)",
        ),
        (Sample(X, Y), None, r"a Sample per batch with the entries 'frames', 'label'.*batch=\('frames', 'label'\)"),
        (Named("a", X, Y, Y), None, r"4 parts per batch with the entries 'name'"),
        ((X,), None, r"gave 1 parts per batch, where a batch is \(x, y\) or \(x, y, mask\): pass batch="),
        (X, None, "gave a Tensor per batch"),
        ("ab", None, "gave a str per batch"),
        ((X, Y), lambda given: given[0], r"batch=\.\.\. returned a Tensor per batch.*let it return a tuple, \(x, y\)"),
        ({"x": X, "y": Y}, dict, r"returned a dict .*let it return a tuple, e\.g\. \(parts\['x'\], parts\['y'\]\)"),
        ((X, Y), lambda given: Sample(*given), r"returned a Sample .*e\.g\. \(parts\.frames, parts\.label\)"),
        ({"x": X, "y": Y}, ("x", "z"), r"names 'z', which a batch of the loader does not have: it has 'x', 'y'"),
        (Sample(X, Y), ("frames", "target"), "names 'target'.*it has 'frames', 'label', 'lengths', 'name'"),
        ((X, Y), (0, 2), "names 2, .*it has 2 parts, 0 to 1"),
        ((X, Y), ("x", "y"), "names 'x', "),
        ({"x": X, "y": Y}, ("x",), r"batch=\.\.\. names 1 parts"),
        ((X, "a"), None, "y has a str where a tensor belongs: pass tensors or arrays"),
        ((X, ["a", "b"]), None, r"y has a str where a tensor belongs, in \(str, str\)"),
        (({"frames": X, "name": "a"}, Y), None, "x has a str .*, in a dictionary with the keys 'frames', 'name'"),
        ((X, Y, "a"), None, "mask has a str where a tensor belongs"),
        ((None, Y), None, "x has a NoneType where a tensor belongs"),
        ((nn.utils.rnn.pack_sequence([X[:, 0], X[:3, 1]]), Y), None, "PackedSequence: pass what pad_packed_sequence"),
        ((Y, X), None, r"look swapped: pass \(x, y\); .* with batch=\(1, 0\)"),
        (([[0.5, 0.5], [0.5]], Y), None, "x has lists of different lengths: pad them"),
        ((X, Y, torch.arange(4)), None, r"holds the lengths.*if it is neither, leave it out, as batch=\(0, 1\)"),
    ],
)
def test_what_is_no_batch_is_one_clear_error(given, batching, words):
    trainer = make()
    before = Before(trainer)
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(BatchError, match=words) as caught:
            call([given], batch=batching)
        assert isinstance(caught.value, BatchTypeError) or "holds the lengths" in words
    assert before.differs() == []
    parts = given if isinstance(given, tuple) and not hasattr(given, "_fields") and len(given) > 1 else ()
    if batching is None and parts and "x has" in words:
        with pytest.raises(BatchTypeError, match=words):  # the same of predict
            trainer.predict(parts[0])
        assert before.differs() == []


@pytest.mark.parametrize(
    ("batching", "words"),
    [
        ("frames", "batch='frames' is one name"),
        ({"x": "frames", "y": "label"}, "is a dictionary: pass the names of input and target"),
        (3, "batch=3 is neither"),
    ],
)
def test_names_of_input_and_target_or_a_function(batching, words):
    trainer, data = make(), [{"frames": X, "label": Y}]
    before = Before(trainer)
    for call in (trainer.fit, trainer.evaluate, trainer.recalibrate):
        with pytest.raises(ConfigurationTypeError, match=words):
            call(data, batch=batching)
    with pytest.raises(ConfigurationTypeError, match=words):
        next(epochs(trainer, data, 1, batch=batching))
    assert before.differs() == []


# ---------------------------------------------------------------------- arrays elsewhere


def test_arrays_of_a_stream_and_a_prediction():
    trainer, other = make(), make()
    for x_t in X:
        one = trainer.step(x_t.numpy(), Y.tolist(), mask=[True, True, False, True])
        another = other.step(x_t, Y, mask=torch.tensor([True, True, False, True]))
        assert torch.equal(one.output, another.output)
    assert identical(trainer.net.parameters(), other.net.parameters())
    assert torch.equal(trainer.predict(X.numpy()), trainer.predict(X))
    assert torch.equal(trainer.predict(X, LENGTHS.tolist()), trainer.predict(X, LENGTHS))
    net = spiking_net(dtype=torch.float64)
    trainer = FPTTTrainer(net, adam(net), CE)
    assert trainer.train_sequence(X.numpy(), Y).output.dtype == torch.float64


# ---------------------------------------------------------------------- sample weights, several targets


def weighted(output, target):
    label, weight = target
    return (F.cross_entropy(output, label, reduction="none") * weight).mean()


def right(output, target):
    return accuracy(output, target[0])


WEIGHT = torch.tensor([0.0, 2.0, 0.5, 1.0])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 3}, {"readout": "mean", "loss_ramp": "linear"}])
def test_sample_weights(options, padded):
    def by_hand(output, target):  # labels and weights in one floating-point tensor
        return (F.cross_entropy(output, target[:, 0].long(), reduction="none") * target[:, 1]).mean()

    trainer, other = make(loss=weighted, **options), make(loss=by_hand, **options)
    mask = (LENGTHS,) if padded else ()
    record = trainer.fit([(X, (Y, WEIGHT), *mask)], 2, val_loader=[(X, (Y, WEIGHT))], metric=right, progress=False)[-1]
    packed = torch.stack([Y.float(), WEIGHT], 1)
    expected = other.fit([(X, packed, *mask)], 2, val_loader=[(X, packed)], metric=None, progress=False)[-1]
    assert identical(trainer.net.parameters(), other.net.parameters())
    assert (record.loss, record.val_loss) == (expected.loss, expected.val_loss)
    assert record.val_score == accuracy(trainer.predict(X), Y)
    plain = make(loss=lambda output, target: weighted(output, (target[0], torch.ones(len(output)))), **options)
    plain.fit([(X, (Y, WEIGHT), *mask)], 2, metric=None, progress=False)
    assert not identical(trainer.net.parameters(), plain.net.parameters())


@pytest.mark.parametrize("batching", [("x", ("label", "weight")), lambda b: (b["x"], (b["label"], b["weight"]))])
def test_sample_weights_by_name(batching):
    trainer, other = make(loss=weighted), make(loss=weighted)
    trainer.fit([{"x": X, "label": Y, "weight": WEIGHT}], batch=batching, metric=right, progress=False)
    other.train_sequence(X, (Y, WEIGHT))
    other.regularizer.load_averages()
    assert identical(trainer.net.parameters(), other.net.parameters())


def test_targets_of_every_step_and_of_a_stream():
    labels, weights = torch.randint(2, (6, 4)), torch.rand(6, 4)
    trainer, other = make(loss=weighted), make(loss=weighted)
    record = trainer.fit([(X, (labels, weights))], val_loader=[(X, (labels, weights))], metric=right, progress=False)[0]
    assert 0 <= record.val_score <= 1
    for x_t, label, weight in zip(X, labels, weights, strict=True):
        other.step(x_t, (label, weight))
    other.regularizer.load_averages()
    assert identical(trainer.net.parameters(), other.net.parameters())


def test_the_default_metric_says_what_to_do_about_several_targets():
    trainer = make(loss=weighted)
    before = Before(trainer)
    with pytest.raises(BatchError, match=r"accuracy needs .* target a tuple: pass metric"):
        trainer.fit([(X, (Y, WEIGHT))], progress=False)
    assert before.differs() == []


# ---------------------------------------------------------------------- several outputs


class Heads(nn.Module):
    """Classes, positions, and the hidden spikes for a penalty."""

    def __init__(self, form=dict, loops=False):
        super().__init__()
        self.body, self.lif, self.form, self.loops = nn.Linear(3, 8), LIF(), form, loops
        self.classes, self.place = nn.Linear(8, 2), nn.Linear(8, 4)

    def forward(self, x):
        if not self.loops:
            return self.step(x)
        every = [self.step(x_t) for x_t in x]
        if self.form is dict:
            return {name: torch.stack([one[name] for one in every]) for name in every[0]}
        return tuple(torch.stack(one) for one in zip(*every, strict=True))

    def step(self, x):
        spk = self.lif(self.body(x))
        heads = {"classes": self.classes(spk), "place": self.place(spk), "spk": spk}
        return heads if self.form is dict else tuple(heads.values())


PLACE = torch.rand(4, 2, 2)


def of_heads(output, target):
    classes, place, spk = output.values() if isinstance(output, dict) else output
    fits = F.mse_loss(place.view(-1, 2, 2), target["place"])
    return F.cross_entropy(classes, target["label"]) + fits + 3 * spk.mean()


def head_score(output, target):
    return accuracy(output["classes"] if isinstance(output, dict) else output[0], target["label"])


def everything(returned):
    return returned


@pytest.mark.parametrize("form", [dict, tuple])
@pytest.mark.parametrize("options", [{}, {"window": 3, "loss_every": 1}, {"readout": "mean"}, {"loops": True}])
def test_a_loss_that_sees_every_output(form, options):
    options = dict(options)
    torch.manual_seed(0)
    net = Heads(form, options.pop("loops", False))
    twin = copy.deepcopy(net)
    target = {"label": Y, "place": PLACE}
    trainer = FPTTTrainer(net, adam(net), of_heads, output=everything, **options)

    def by_hand(output, place):
        return of_heads((output[:, :2], output[:, 2:6], output[:, 6:]), {"label": Y, "place": place.view(-1, 2, 2)})

    def joined(returned):
        return torch.cat([*(returned.values() if form is dict else returned)], -1)

    other = FPTTTrainer(twin, adam(twin), by_hand, output=joined, **options)
    with spikes(net):
        record = trainer.fit([(X, target)] * 3, val_loader=[(X, target)], metric=head_score, progress=False)[0]
    for _ in range(3):
        result = other.train_sequence(X, PLACE.flatten(1))
    other.regularizer.load_averages()
    assert identical(net.parameters(), twin.parameters())
    decision = trainer.predict(X)
    assert isinstance(decision, form)
    parts = list(decision.values() if form is dict else decision)
    assert torch.equal(torch.cat(parts, 1), other.predict(X))
    assert record.val_score == head_score(decision, target)
    assert record.val_loss == pytest.approx(of_heads(decision, target).item())
    again = trainer.train_sequence(X, target)
    assert isinstance(again.output, form)
    assert again.loss != result.loss
    penalized = [p.clone() for p in net.parameters()]
    assert not identical(penalized, Heads(form).parameters())


def test_the_penalty_acts():
    rates = []
    for strength in (0.0, 3.0):
        torch.manual_seed(0)
        net = Heads()

        def loss(output, target, strength=strength):
            return F.cross_entropy(output["classes"], target) + strength * output["spk"].mean()

        trainer = FPTTTrainer(net, adam(net), loss, output=everything)
        record = trainer.fit(
            [(X, Y)] * 5, 3, metric=lambda output, target: accuracy(output["classes"], target), progress=False
        )[-1]
        rates.append(record.firing_rates["lif"])
    assert rates[1] < 0.7 * rates[0]


def test_a_stream_of_several_outputs():
    torch.manual_seed(0)
    net = Heads()
    trainer = FPTTTrainer(net, adam(net), of_heads, output=everything)
    result = trainer.step(X[0], {"label": Y, "place": PLACE})
    assert result.updated
    assert {name: tuple(one.shape) for name, one in result.output.items()} == {
        "classes": (4, 2), "place": (4, 4), "spk": (4, 8),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda returned: [], "must pick a tensor, or several"),
        (lambda returned: "classes", "must pick a tensor, or several.*it returned a str"),
        (None, "for a loss_fn that takes all of them, output=lambda returned: returned"),
    ],
)
def test_what_cannot_be_picked(output, words):
    net = Heads()
    with pytest.raises(ValueError, match=words):
        FPTTTrainer(net, adam(net), of_heads, output=output).train_sequence(X, Y)


def test_compiled_windows_of_several_outputs_and_targets():
    results = []
    for accelerate in ("none", "compile"):
        torch.manual_seed(0)
        net = Heads()
        trainer = FPTTTrainer(net, adam(net), of_heads, output=everything, accelerate=accelerate)
        data = [(X, {"label": Y, "place": PLACE})] * 3
        results.append(trainer.fit(data, 2, val_loader=data, metric=head_score, progress=False)[-1])
    assert "the whole window" in trainer.explain()
    assert results[1].val_loss == pytest.approx(results[0].val_loss, rel=1e-3)
