"""Metrics of ``fit`` and ``evaluate``: means over samples, objects that count themselves, several by name."""

import functools
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import snntorch as snn
import torch
from nets import CE, Before, adam, batch, spikes, spiking_net
from snntorch import functional as SF
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import BatchError, ConfigurationError, OutputError
from fptt_plugin.fit import EpochMetric, accuracy
from fptt_plugin.fit.loop import Decisions
from fptt_plugin.training import Batch


class MacroF1:
    """By torchmetrics' protocol."""

    def __init__(self, classes=2):
        self.classes, self.calls, self.places = classes, [], []
        self.reset()

    def to(self, device):
        self.places.append(device)
        return self

    def reset(self):
        self.calls.append("reset")
        self.hits = torch.zeros(self.classes)
        self.found, self.wanted = self.hits.clone(), self.hits.clone()

    def update(self, output, target):
        self.calls.append(len(target))
        guess = output.argmax(1)
        for one in range(self.classes):
            self.hits[one] += ((guess == one) & (target == one)).sum()
            self.found[one] += (guess == one).sum()
            self.wanted[one] += (target == one).sum()

    def compute(self):
        return (2 * self.hits / (self.found + self.wanted).clamp(min=1)).mean()


class Collection:
    """Several numbers by name, as torchmetrics' MetricCollection gives them."""

    def __init__(self):
        self.total = self.count = 0

    def update(self, output, target):
        self.total, self.count = self.total + accuracy(output, target) * len(target), self.count + len(target)

    def compute(self):
        return {"right": self.total / self.count, "wrong": 1 - self.total / self.count}

    def reset(self):
        self.total = self.count = 0


def uneven(count=40, classes=3):
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(count, generator=generator) ** 2 * classes).long()
    x = torch.rand(6, count, 3, generator=generator) * (0.5 + y.view(1, -1, 1))
    return x, y


def make(classes=3, **options):
    torch.manual_seed(1)
    net = spiking_net(classes=classes)
    return FPTTTrainer(net, adam(net), CE, **options)


def pieces(x, y, size):
    return [(x[:, i : i + size], y[i : i + size]) for i in range(0, len(y), size)]


@pytest.mark.parametrize("size", [40, 16, 7, 1])
def test_a_metric_that_is_no_mean_does_not_depend_on_the_batches(size):
    x, y = uneven()
    trainer = make()
    trainer.fit(pieces(x, y, 10), 3, progress=False)
    metric = MacroF1(3)
    metric.update(trainer.predict(x), y)
    with spikes(trainer.net):
        found = trainer.evaluate(pieces(x, y, size), metric=MacroF1(3))
    assert found == pytest.approx(metric.compute().item())
    assert 0 < found < 1
    if size == 7:  # what a mean over batches would give is something else

        def of_a_batch(output, target):
            metric.reset()
            metric.update(output, target)
            return metric.compute()

        assert trainer.evaluate(pieces(x, y, size), metric=of_a_batch) != pytest.approx(found, abs=0.01)


def test_what_fit_does_with_such_a_metric():
    x, y = uneven()
    trainer, metric = make(alpha=0), MacroF1(3)
    record = trainer.fit(pieces(x, y, 16), val_loader=pieces(x, y, 30), metric=metric, progress=False)[0]
    # A trial on the first batch, then the training data, then the validation data.
    assert [call for call in metric.calls if call != "reset"] == [16, 16, 16, 8, 30, 10]
    assert record.val_score == pytest.approx(trainer.evaluate(pieces(x, y, 5), metric=MacroF1(3)))
    assert record.train_scores == {"macro_f1": record.train_score}
    assert torch.device("cpu") in metric.places


def test_several_metrics_by_name():
    x, y = uneven()
    trainer = make()
    metrics = {"f1": MacroF1(3), "accuracy": accuracy, "loss of all": CE, "two": Collection()}
    record = trainer.fit(pieces(x, y, 16), val_loader=pieces(x, y, 16), metric=metrics, progress=False)[0]
    names = ["f1", "accuracy", "loss of all", "two/right", "two/wrong"]
    assert list(record.train_scores) == list(record.val_scores) == names
    assert record.val_score == record.val_scores["f1"]
    assert record.val_scores["accuracy"] == pytest.approx(trainer.evaluate(pieces(x, y, 16)))
    assert record.val_scores["accuracy"] == pytest.approx(record.val_scores["two/right"])
    assert record.val_scores["loss of all"] == pytest.approx(record.val_loss)
    assert trainer.evaluate(pieces(x, y, 16), metric=metrics) == pytest.approx(record.val_scores)
    assert list(trainer.evaluate(pieces(x, y, 16), metric=Collection())) == ["right", "wrong"]


def top(k, output, target):
    return (output.topk(k, 1).indices == target[:, None]).any(1).float().mean()


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (lambda o, t: float(accuracy(o, t)), "metric"),
        (lambda o, t: np.float64(accuracy(o, t)), "metric"),
        (lambda o, t: accuracy(o, t).double(), "metric"),
        (functools.partial(top, 1), "top"),
        (lambda o, t: {"top1": top(1, o, t), "top3": top(3, o, t)}, "top1"),
    ],
)
def test_functions_are_averaged_over_samples(metric, name):
    x, y = uneven()
    trainer = make()
    whole = trainer.evaluate([(x, y)])
    record = trainer.fit(pieces(x, y, 30), val_loader=pieces(x, y, 30), metric=metric, progress=False)[0]
    found = trainer.evaluate(pieces(x, y, 30))
    assert record.val_score == pytest.approx(found)
    assert next(iter(record.val_scores)) == name
    assert record.val_scores.get("top3", 1.0) == 1.0
    assert 0 < whole < 1


def test_the_accuracy_of_snntorch():
    x, y = uneven()
    net = nn.Sequential(
        nn.Linear(3, 16), snn.Leaky(0.9, init_hidden=True, threshold=0.3), nn.Linear(16, 3),
        snn.Leaky(0.9, init_hidden=True, threshold=0.3),
    )  # fmt: skip
    trainer = FPTTTrainer(net, adam(net), SF.ce_rate_loss(), readout="mean")
    with spikes(net):
        record = trainer.fit(pieces(x, y, 16), 2, val_loader=pieces(x, y, 16), metric=SF.accuracy_rate, progress=False)[
            -1
        ]
    record_of_spikes = [trainer.net(x_t) for x_t in x] if trainer.reset() is None else []
    assert record.val_score == pytest.approx(SF.accuracy_rate(torch.stack(record_of_spikes), y))
    assert record.val_score == pytest.approx(trainer.evaluate(pieces(x, y, 7)))
    assert record.val_score > 0.4
    with pytest.raises(ConfigurationError, match="accuracy_temporal needs the record of the whole sequence"):
        trainer.evaluate([(x, y)], metric=SF.accuracy_temporal)


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (3, ConfigurationError, "metric 'int' is 3: pass metric"),
        (MacroF1, ConfigurationError, "MacroF1.*objects? with update"),
        ({"a": accuracy, "b": None}, ConfigurationError, "metric 'b' is None"),
        ([accuracy], ConfigurationError, "metric 'list'"),
        (lambda o, t: (accuracy(o, t), 1.0), OutputError, r"'metric' must give one number, .* it gave a tuple"),
        (lambda o, t: (o.argmax(1) == t).float(), OutputError, r"it gave a tensor of shape \(4,\): average.*\.mean"),
        (lambda o, t: {"a": o}, OutputError, "'metric/a' must give one number"),
        (lambda o, t: None, OutputError, "it gave a NoneType"),
    ],
)
def test_what_is_no_metric(metric, error, words):
    trainer = make(2)
    before = Before(trainer)
    with pytest.raises(error, match=words):
        trainer.evaluate([batch()], metric=metric)
    assert before.differs() == []
    with pytest.raises(error, match=words):
        trainer.fit([batch()], metric=metric, progress=False)
    if error is ConfigurationError:
        assert before.differs() == []


def test_a_metric_may_leave_out_a_number():
    """Recall of a class that a batch does not have: the mean is over the batches that have it."""
    seen = []

    def recalls(output, target):
        seen.append((target == 1).any().item())
        return {"all": 0.25, **({"ones": 0.75} if seen[-1] else {})}

    x, y = torch.rand(6, 9, 3), torch.tensor([0, 0, 0, 1, 0, 1, 0, 0, 0])
    assert make(2).evaluate(pieces(x, y, 3), metric=recalls) == {"all": 0.25, "ones": 0.75}
    assert seen == [False, True, False]


def test_metrics_that_get_in_each_others_way():
    trainer, shared = make(2), MacroF1()
    with pytest.raises(ConfigurationError, match="two metrics are one object"):
        trainer.fit([batch()], metric={"a": shared, "b": shared}, progress=False)
    assert trainer.updates == 0
    with pytest.raises(OutputError, match="two metrics give 'a/b'"):
        trainer.evaluate([batch()], metric={"a": lambda o, t: {"b": 1.0}, "a/b": lambda o, t: 2.0})


def macro_f1(output, target):
    counting = MacroF1(3)
    counting.update(output, target)
    return counting.compute()


@pytest.mark.parametrize("size", [40, 16, 7, 1])
def test_a_function_of_a_whole_pass(size):
    x, y = uneven()
    trainer, counting = make(), MacroF1(3)
    metrics = {"whole": EpochMetric(macro_f1), "counting": counting, "mean": macro_f1}
    record = trainer.fit(pieces(x, y, size), val_loader=pieces(x, y, size), metric=metrics, progress=False)[0]
    for scores in (record.train_scores, record.val_scores):
        assert scores["whole"] == scores["counting"]
        assert (scores["mean"] == pytest.approx(scores["whole"])) == (size == 40)
    assert trainer.evaluate(pieces(x, y, size), metric=EpochMetric(macro_f1)) == record.val_score
    assert make().fit([(x, y)], metric=EpochMetric(macro_f1), progress=False)[0].train_scores.keys() == {"macro_f1"}


def test_a_function_of_a_whole_pass_with_several_outputs_and_targets():
    seen, output = [], {"a": torch.arange(3.0), "b": torch.ones(3, 2, requires_grad=True)}
    metric = EpochMetric(lambda *given: seen.append(given) or {"n": float(len(given[1][0]))})
    for _ in range(2):
        metric.update(output, (torch.zeros(3), torch.ones(3, 1)))
    output["a"].zero_()  # it has copies
    assert metric.compute() == {"n": 6.0}
    found, (label, weight) = seen[0]
    assert found["a"].tolist() == [0, 1, 2, 0, 1, 2]
    assert not found["b"].requires_grad
    assert (found["b"].shape, label.shape, weight.shape) == ((6, 2), (6,), (6, 1))
    with pytest.raises(ConfigurationError, match="EpochMetric is of <class"):
        EpochMetric(MacroF1)


def test_a_metric_of_another_kind_of_output_shows_before_the_first_update():
    class Wrong(MacroF1):
        def update(self, output, target):
            raise ValueError("wrong shape")

    trainer = make(2)
    before = Before(trainer)
    with pytest.raises(ValueError, match="wrong shape"):
        trainer.fit([batch()], metric={"a": Wrong()}, progress=False)
    assert before.differs() == []


def test_without_a_metric_there_is_the_loss():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), nn.MSELoss())
    x, y = torch.rand(6, 4, 3), torch.rand(4, 2)
    record = trainer.fit([(x, y)], val_loader=[(x, y)], metric=None, progress=False)[0]
    assert record.train_scores == {}
    assert record.train_score != record.train_score
    expected = nn.functional.mse_loss(trainer.predict(x), y).item()
    assert record.val_loss == pytest.approx(expected) == trainer.evaluate([(x, y)], metric=None)


# ---------------------------------------------------------------------- the decision's own loss


WEIGHT = torch.tensor([1.0, 2.0, 7.0])
WHOLE = {
    "mean": CE,
    "weights": nn.CrossEntropyLoss(label_smoothing=0.1, weight=WEIGHT),
    "ignored": nn.CrossEntropyLoss(WEIGHT, ignore_index=1),
    "partial": functools.partial(nn.functional.cross_entropy, weight=WEIGHT, ignore_index=2),
    "log-probabilities": nn.NLLLoss(WEIGHT),
    "sum": nn.CrossEntropyLoss(WEIGHT, reduction="sum"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_loss_of_the_decisions_beside_that_of_training(name):
    """It is that of all samples at once, however they are cut into batches."""
    x, y = uneven()
    torch.manual_seed(1)
    net, loss = spiking_net(classes=3), WHOLE[name]
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.0), loss)
    record = trainer.fit(pieces(x, y, 15), val_loader=pieces(x, y, 15), progress=False)[0]
    expected = loss(trainer.predict(x), y).item()
    assert record.decision_loss == pytest.approx(expected, rel=1e-5)
    assert record.val_loss == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate(pieces(x, y, 4), metric=None) == pytest.approx(expected, rel=1e-5)
    assert record.loss != pytest.approx(expected, rel=0.01)  # with its ramp and its auxiliary term, at every step


def test_the_loss_of_sequences_of_different_lengths_is_that_of_all_at_once():
    x, y = uneven()
    lengths = torch.arange(len(y)) % len(x) + 1
    net, loss = spiking_net(classes=3), WHOLE["ignored"]
    trainer = FPTTTrainer(net, adam(net), loss)
    batches = [(x[:, i : i + 7], y[i : i + 7], lengths[i : i + 7]) for i in range(0, len(y), 7)]
    expected = loss(trainer.predict(x, lengths), y).item()
    assert trainer.evaluate(batches, metric=None) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_every_step_is_that_of_all_steps_at_once():
    """A batch in which every label is ignored does not count."""
    net, loss = spiking_net(classes=3), WHOLE["ignored"]
    trainer = FPTTTrainer(net, adam(net), loss)
    x, y = torch.rand(5, 12, 3), torch.randint(3, (5, 12))
    y[:, :4] = 1
    outputs = []
    batch = trainer.prepare(x, y)
    with trainer.evaluation():
        trainer.visit(batch, lambda t, output: outputs.append(output))
    expected = loss(torch.cat(outputs), y.flatten()).item()
    batches = [(x[:, i : i + 4], y[:, i : i + 4]) for i in range(0, 12, 4)]
    assert trainer.evaluate(batches, metric=None) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------------- a target per step


STEPWISE = {
    "step": {},
    "window": {"window": 3},
    "readout": {"readout": "mean"},
    "update": {"window": 2, "update_every": 4},
    "compiled": {"accelerate": "compile"},
    "compiled windows": {"accelerate": "compile", "window": 2},
}


@pytest.mark.parametrize("options", STEPWISE.values(), ids=STEPWISE)
@pytest.mark.parametrize("masked", [False, True])
def test_with_a_target_per_step_training_scores_what_validation_scores(options, masked):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(6, 8, 3, generator=generator), torch.randint(2, (6, 8), generator=generator)
    data = [(x, y, torch.rand(6, 8, generator=generator) < 0.6)] if masked else [(x, y)]
    torch.manual_seed(1)
    net = spiking_net()
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.0), CE, **options)
    metrics = {"accuracy": accuracy, "f1": MacroF1()}
    with spikes(net):
        # The first batch of a network shows what it takes; from the second on windows are compiled.
        record = trainer.fit(data, 3, val_loader=data, metric=metrics, progress=False)[-1]
    assert record.train_scores == pytest.approx(record.val_scores)
    assert record.decision_loss == pytest.approx(record.val_loss, rel=1e-5)
    last = Batch.of_sequences(*data[0]).scored(trainer.predict(x))
    assert record.train_score != pytest.approx(accuracy(*last).item())  # not of the last step alone


def test_accuracy_says_what_it_needs():
    with pytest.raises(BatchError, match=r"output a dict and target \(4,\).*metric=None"):
        accuracy({"a": torch.rand(4, 2)}, torch.arange(4))


# ---------------------------------------------------------------------- figures of a pass


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_shows(value):
    """As torch's loss of all samples at once does."""

    def loss(output, target):
        return (output - target).abs().mean() * torch.where((target == 9.0).any(), value, 1.0)

    net, (x, y) = spiking_net(), (torch.rand(6, 4, 3), torch.rand(4, 2))
    trainer = FPTTTrainer(net, adam(net), loss)
    data = [(x, y), (x, y), (x, torch.full_like(y, 9.0))]
    expected = pytest.approx(value, nan_ok=True)
    assert trainer.evaluate(data, metric=None) == expected
    assert trainer.fit(data[:2], val_loader=data, metric=None, progress=False)[0].val_loss == expected
    skipping = FPTTTrainer(net, adam(net), loss, on_nonfinite="skip")
    record = skipping.fit(data, metric=None, progress=False)[0]
    assert record.loss == record.loss < 10  # of the updates that were made
    assert record.decision_loss == expected


def test_the_loss_of_an_epoch_is_over_what_counts():
    """Samples, or with a target per step samples and steps, without those that are masked."""
    net = spiking_net()
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.0), CE, alpha=0, auxiliary=False)
    long, short = torch.rand(40, 4, 3), torch.rand(2, 4, 3)
    stepwise = [(x, torch.randint(2, x.shape[:2])) for x in (long, short)]
    one, other = [trainer.train_sequence(*pair).loss.item() for pair in stepwise]
    record = trainer.fit(stepwise, metric=None, progress=False)[0]
    assert record.loss == pytest.approx((40 * one + 2 * other) / 42)
    y = torch.tensor([0, -100, -100, -100])
    one, other = [trainer.train_sequence(short, target).loss.item() for target in (y, y.abs() % 2)]
    unlabeled = (short, torch.full((4,), -100))
    record = trainer.fit([(short, y), unlabeled, (short, y.abs() % 2)], metric=None, progress=False)[0]
    assert record.loss == pytest.approx((one + 4 * other) / 5)


def test_sums_of_many_batches_are_exact():
    trainer = make()
    scores = Decisions(trainer, None)
    scores._objective = SimpleNamespace(is_sum=False, amount=len, loss_of=lambda output, target: output)
    for _ in range(20_000):
        scores.note(torch.tensor(2.302585), torch.zeros(64))
    assert scores.loss == pytest.approx(2.302585, rel=1e-7)


@pytest.mark.parametrize("monitor", [None, "auc", "other"])
def test_a_metric_of_a_whole_pass_may_refuse_one_batch(monitor):
    def auc(output, target):
        if len(target) < 8:
            raise ValueError("only one class present")
        return {"other": 0.5} if monitor == "other" else 0.5

    trainer, metric = make(2), EpochMetric(auc)
    metric = metric if monitor == "other" else {"auc": metric}
    assert trainer.fit([batch()] * 2, metric=metric, monitor=monitor, progress=False)[0].train_score == 0.5


# ---------------------------------------------------------------------- metrics that reach beyond


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("stateful", [False, True])
def test_a_metric_that_writes_to_what_it_is_given(stateful, stepwise):
    def writes(output, target):
        return accuracy(output.sub_(output.max()), target)

    class Writes(Collection):
        def update(self, output, target):
            super().update(output, target.zero_())

    trainer = make(2)
    x, y = batch()
    data = [(x, y.expand(len(x), -1).clone() if stepwise else y.clone())]
    metric = {"writes": Writes() if stateful else writes}
    for call in (trainer.fit, trainer.evaluate):
        with pytest.raises(ConfigurationError, match=r"metric 'writes' writes to .*output - 1"):
            call(data, metric=metric)
    if not stateful:
        with torch.inference_mode():  # whose outputs do not tell
            trainer.evaluate(data, metric=metric)


@pytest.mark.parametrize("call", ["train_batch", "visit"])
@pytest.mark.parametrize("options", [{}, {"readout": "mean"}, {"window": 3}])
def test_a_visitor_may_write_to_what_it_is_given(call, options):
    results = []
    for visitor in (None, lambda t, output: output.zero_()):
        torch.manual_seed(0)
        trainer = make(2, **options)
        prepared = trainer.prepare(*batch())
        context = trainer.evaluation() if call == "visit" else nullcontext()
        with context:
            result = getattr(trainer, call)(prepared, visitor)
        results.append(result if call == "visit" else result.output)
    assert torch.equal(*results)


def test_a_callback_may_evaluate():
    """Figures of the epoch stay as they are, and an object that counts it is not begun again."""
    x, y = uneven()
    other, used, records = [(10 * torch.ones(6, 8, 3), torch.zeros(8).long())], Collection(), []

    class Evaluates:
        def on_batch_end(self, trainer, record):
            if record.batch == 2:
                trainer.evaluate(other, metric=Collection())
                with pytest.raises(ConfigurationError, match="'collection' is an object that counts a pass that has"):
                    trainer.evaluate(other, metric=used)

    for callbacks in ([], [Evaluates()]):
        torch.manual_seed(0)
        trainer = make()
        records += trainer.fit(pieces(x, y, 16), metric=used, callbacks=callbacks, progress=False)
    assert records[0].train_scores == records[1].train_scores
    assert records[0].firing_rates == records[1].firing_rates
    trainer.evaluate(other, metric=used)  # after the pass
