"""The screen, callbacks, schedules per batch, early stopping, loggers."""

import builtins
import csv
import re
import signal
import sys
import types

import pytest
import torch
from nets import CE, Before, adam, batch, copies, identical, spiking_net
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from fptt_plugin import BPTT, FPTTTrainer, TruncatedBPTT
from fptt_plugin.errors import ConfigurationError, ConfigurationTypeError
from fptt_plugin.fit import Callback, accuracy


def make(kind=FPTTTrainer, **options):
    torch.manual_seed(0)
    net = spiking_net()
    return kind(net, adam(net), CE, **options)


def loader(count=3):
    generator = torch.Generator().manual_seed(3)
    return [(torch.rand(6, 4, 3, generator=generator), torch.arange(4) % 2) for _ in range(count)]


def without_tqdm(monkeypatch):
    genuine = builtins.__import__

    def no_tqdm(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_tqdm)


# ---------------------------------------------------------------------- the screen


@pytest.mark.parametrize("tqdm", [True, False])
def test_every_epoch_leaves_a_line(tqdm, monkeypatch, capsys):
    if not tqdm:
        without_tqdm(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    history = make().fit(loader(), 3, val_loader=loader(1))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 3
    for line, record in zip(lines, history, strict=True):
        assert line.startswith(
            f"epoch {record.epoch}/3: loss {record.loss:.4g} (decision {record.decision_loss:.4g}), "
        )
        assert f", accuracy {record.train_score:.4g}, val loss {record.val_loss:.4g}, " in line
        assert f", val accuracy {record.val_score:.4g}, " in line
        assert (
            f"firing rate {100 * record.firing_rates['1']:.1f} %, grad norm {record.grad_norm:.3g}, lr 0.05, " in line
        )
        assert re.search(r", \d+\.\d s$", line)
    assert ("epoch 3/3" in captured.err) == tqdm
    make().fit(loader(), 2, progress=False)
    assert capsys.readouterr() == ("", "")


def test_what_is_shown_changes_nothing():
    x, y = torch.rand(12, 6, 3), torch.arange(12) % 2
    losses = []
    for progress in (True, False):
        trainer = make(batch_first=True)
        data = DataLoader(TensorDataset(x, y), 4, shuffle=True)
        losses.append([record.loss for record in trainer.fit(data, 2, progress=progress)])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]


def test_a_line_has_only_what_there_is(capsys):
    make(max_grad_norm=None).fit(loader(), metric=None)
    line = capsys.readouterr().out
    for word in ("val", "accuracy", "grad norm"):
        assert word not in line
    assert "loss" in line


# ---------------------------------------------------------------------- records


@pytest.mark.parametrize("options", [{}, {"accelerate": "compile"}, {"window": 3}, {"max_grad_norm": float("inf")}])
@pytest.mark.parametrize("kind", [FPTTTrainer, TruncatedBPTT, BPTT])
def test_the_gradient_norm_is_that_of_the_last_update_of_each_batch(kind, options):
    if kind is BPTT and "window" in options:
        return
    trainer, other, seen = make(kind, **options), make(kind, **options), []
    data = loader()
    record = trainer.fit(data, progress=False)[0]
    for pair in data:
        other.train_sequence(*pair)
        seen.append(other.regularizer.grad_norm.item())
    assert record.grad_norm == pytest.approx(sum(seen) / 3)
    assert record.grad_norm > 0
    assert make(max_grad_norm=None).fit(data, progress=False)[0].grad_norm is None


def test_an_infinite_limit_measures_and_does_not_clip():
    trainers = make(max_grad_norm=None), make(max_grad_norm=float("inf")), make(max_grad_norm=0.01)
    for trainer in trainers:
        trainer.fit(loader(), 2, progress=False)
    assert identical(trainers[0].net.parameters(), trainers[1].net.parameters())
    assert not identical(trainers[0].net.parameters(), trainers[2].net.parameters())


def test_scalars_for_loggers():
    record = make().fit(loader(), val_loader=loader(1), progress=False)[0]
    scalars = record.scalars()
    assert list(scalars) == [
        "train/loss", "train/decision_loss", "train/accuracy", "val/loss", "val/accuracy", "firing_rate/1", "grad_norm",
        "lr", "updates", "seconds",
    ]  # fmt: skip
    assert scalars["val/accuracy"] == record.val_score
    assert all(isinstance(value, (int, float)) for value in scalars.values())
    assert "val/loss" not in make().fit(loader(), progress=False)[0].scalars()


@pytest.mark.parametrize("name", ["loss", "decision_loss"])
def test_a_metric_does_not_take_the_place_of_a_loss(name):
    record = make().fit(loader(), val_loader=loader(1), metric={name: accuracy}, progress=False)[0]
    scalars = record.scalars()
    assert scalars["train/loss"] == record.loss
    assert scalars["train/decision_loss"] == record.decision_loss
    assert scalars["val/loss"] == record.val_loss
    assert scalars[f"train/metric/{name}"] == record.train_score
    assert scalars[f"val/metric/{name}"] == record.val_score


# ---------------------------------------------------------------------- callbacks


class Notes(Callback):
    def __init__(self):
        self.calls, self.batches = [], []

    def on_fit_begin(self, trainer):
        self.calls.append("begin")

    def on_epoch_begin(self, trainer, epoch):
        self.calls.append(epoch)

    def on_batch_end(self, trainer, record):
        self.calls.append((record.epoch, record.batch))
        self.batches.append(record)

    def on_epoch_end(self, trainer, record):
        assert trainer.history[-1] is record
        self.calls.append(record.epoch)

    def on_fit_end(self, trainer):
        self.calls.append("end")


def test_hooks_are_called_in_order():
    trainer, other, notes, records = make(), make(), Notes(), []
    whole = trainer.fit(loader(2), 2, callbacks=[notes, lambda *seen: records.append(seen)], progress=False)
    assert notes.calls == ["begin", 1, (1, 1), (1, 2), 1, 2, (2, 1), (2, 2), 2, "end"]
    assert records == [(trainer, record) for record in whole]
    for record, pair in zip(notes.batches[:2], loader(2), strict=True):
        result = other.train_sequence(*pair)
        assert torch.equal(record.output, result.output)
        assert record.loss == result.loss
        assert record.size == 4
        assert record.lr == 0.05
        assert record.updates == other.updates
        assert record.grad_norm == other.regularizer.grad_norm
    assert not notes.batches[0].loss.requires_grad


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("hook", ["on_batch_end", "on_epoch_end"])
def test_the_end_is_called_after_an_error(error, hook):
    class Breaks(Callback):
        pass

    def breaks(self, trainer, record):
        if record.epoch == 2:
            raise error

    setattr(Breaks, hook, breaks)
    trainer, notes = make(), Notes()
    with pytest.raises(error):
        trainer.fit(loader(2), 5, callbacks=[notes, Breaks()], progress=False)
    assert notes.calls[-1] == "end"
    assert [record.epoch for record in trainer.history] == [1, 2][: 1 + (hook == "on_epoch_end")]
    assert len(trainer.fit(loader(2), 1, progress=False)) == 1


def test_an_object_with_one_hook_is_enough():
    seen = []
    duck = types.SimpleNamespace(on_batch_end=lambda trainer, record: seen.append(record.batch))
    make().fit(loader(), callbacks=[duck], progress=False)
    assert seen == [1, 2, 3]


class Misspelled(Callback):
    def on_epoch_ends(self, trainer, record):
        pass


class OtherArguments(Callback):
    def on_batch_end(self, record):
        pass


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        ([3], "3 has none of the hooks"),
        ([Notes], "has none of the hooks"),
        (Notes(), "pass a list"),
        (print, "a list"),
        (3, "callbacks is 3: pass a list"),
        ([Misspelled()], r"on_epoch_ends, which fit\(\) never calls: the hooks are on_fit_begin"),
        (
            [OtherArguments()],
            r"on_batch_end of the callback .* takes \(record\), and is called with \(trainer, record\)",
        ),
        ([lambda record: None], r"the callback <function.* takes \(record\), and is called with \(trainer, record\)"),
    ],
)
def test_what_is_no_callback(callbacks, words):
    trainer = make()
    before = Before(trainer)
    with pytest.raises(ConfigurationError, match=words):
        trainer.fit(loader(), callbacks=callbacks, progress=False)
    assert before.differs() == []


def test_no_callbacks_and_those_of_any_arguments():
    seen = []
    make().fit(loader(), callbacks=None, progress=False)
    make().fit(loader(), callbacks=(print_ for print_ in [lambda *given, **_: seen.append(len(given))]), progress=False)
    assert seen == [2]


@pytest.mark.parametrize("where", ["on_fit_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end"])
def test_stop(where):
    trainer, notes = make(), Notes()

    class Stops(Callback):
        pass

    setattr(Stops, where, lambda self, trainer, *_: trainer.stop())
    history = trainer.fit(loader(), 4, val_loader=loader(1), callbacks=[Stops(), notes], progress=False)
    batches = {"on_fit_begin": 0, "on_epoch_begin": 1, "on_batch_end": 1, "on_epoch_end": 3}[where]
    assert len(notes.batches) == batches
    assert len(history) == (batches > 0)
    assert all(record.val_loss is not None for record in history)
    assert notes.calls[-1] == "end"
    assert len(trainer.fit(loader(), 2, progress=False)) == 2  # another call is not stopped


def test_a_signal_handler_may_stop():
    trainer, notes = make(), Notes()
    former = signal.signal(signal.SIGTERM, lambda *_: trainer.stop())
    try:
        raises = types.SimpleNamespace(
            on_batch_end=lambda trainer, record: signal.raise_signal(signal.SIGTERM) if record.epoch == 2 else None
        )
        history = trainer.fit(loader(), 9, callbacks=[notes, raises], progress=False)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert [record.epoch for record in history] == [1, 2]
    assert len(notes.batches) == 4


# ---------------------------------------------------------------------- early stopping, the figure that decides


class Given:
    """A metric with given scores, one per evaluation."""

    __name__ = "given"

    def __init__(self, trainer, scores):
        self.trainer, self.scores = trainer, iter(scores)

    def __call__(self, output, target):
        return 0.0 if self.trainer.net.training else next(self.scores)


NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "higher", "patience", "epochs"),
    [
        ([0.1, 0.5, 0.4, 0.5, 0.9], None, 2, 4),
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.5], None, 2, 6),
        ([0.9, 0.5, 0.6, 0.4, 0.5], False, 1, 3),
        ([NAN, 0.5, NAN, 0.4], None, 2, 4),
        ([NAN, NAN, NAN, 0.4], None, 3, 3),
        ([0.1, 0.2, 0.3], None, 1, 3),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_patience(scores, higher, patience, epochs, resume, tmp_path, capsys):
    trainer, count = make(), len(scores)
    options = {"val_loader": loader(1), "patience": patience, "higher_is_better": higher}
    if resume:
        trainer.fit(loader(1), 2, metric=Given(trainer, scores[:2]), **options)
        trainer.save(tmp_path / "last.pt")
        trainer, scores = make(), scores[2:]
        trainer.load(tmp_path / "last.pt")
    trainer.fit(loader(1), count - len(trainer.history), metric=Given(trainer, scores), **options)
    assert len(trainer.history) == epochs
    out = capsys.readouterr().out
    any_score = any(record.val_score == record.val_score for record in trainer.history)
    words = "no better epoch than" if any_score else "no epoch with a score in 3"
    assert (f"stopped: {words}" in out) == (epochs < count)
    if scores[-1] != 0.3:  # a run that has stopped is not gone on with
        assert trainer.fit(loader(1), 1, metric=Given(trainer, [1.0]), **options) == []
        assert f"stopped: {words}" in capsys.readouterr().out


def constant(output, target):
    return torch.tensor(0.5)


def several(output, target):
    return {"one": torch.tensor(0.5), "other": accuracy(output, target)}


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"val_loader": loader(1)}, 2),
        ({"metric": {"other": constant}}, 2),
        ({"metric": {"m": constant, "other": constant}, "monitor": "other"}, 2),
        ({"metric": several}, 2),
        ({"metric": {"other": constant, "m": constant}, "monitor": "m"}, 0),
        ({}, 0),
    ],
)
def test_patience_counts_epochs_that_have_the_figure(options, epochs):
    trainer = make()
    trainer.fit(loader(1), 4, metric={"m": constant}, progress=False)
    options = {"metric": {"m": constant}, "patience": 1, **options}
    assert len(trainer.fit(loader(1), 3, progress=False, **options)) == epochs


def test_the_loss_may_decide(tmp_path):
    trainer, scores = make(), [0.1, 0.2, 0.3, 0.4, 0.5]
    plateau = schedules.ReduceLROnPlateau(trainer.optimizer, "min", patience=100)
    file, options = tmp_path / "best.pt", {"val_loader": loader(1), "monitor": "loss", "progress": False}
    history = trainer.fit(loader(), 5, metric=Given(trainer, scores), scheduler=plateau, checkpoint=file, **options)
    losses = [record.val_loss for record in history]
    assert plateau.best == min(losses)
    other = make()
    other.load(file)
    assert len(other.history) == 1 + losses.index(min(losses))
    assert [record.val_score for record in history] == scores


def test_another_metric_may_decide(tmp_path):
    trainer = make()
    metrics = {"accuracy": accuracy, "falls": Given(trainer, [0.9, 0.5, 0.4])}
    file = tmp_path / "best.pt"
    options = {"val_loader": loader(1), "metric": metrics, "checkpoint": file, "progress": False}
    history = trainer.fit(loader(), 3, monitor="falls", patience=2, **options)
    assert len(history) == 3
    other = make()
    other.load(file)
    assert len(other.history) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patience": 0}, "patience=0 must be a number of epochs"),
        ({"patience": 1.5}, "patience=1.5"),
        (
            {"monitor": "f1", "metric": {"accuracy": accuracy}},
            "'f1' is none of the figures: choose one of 'accuracy', 'l",
        ),
        ({"monitor": "loss", "higher_is_better": True}, "higher_is_better=True, and what is monitored is the loss"),
        ({"monitor": "f1/ones", "metric": {"accuracy": accuracy}}, "'f1/ones' is none of the figures"),
        ({"scheduler_interval": "step"}, "scheduler_interval='step' is unknown; choose one of None, 'epoch', 'batch'"),
        ({"scheduler_interval": "batch"}, "scheduler_interval='batch', and there is no scheduler"),
        ({"scheduler": schedules.StepLR}, "must be one of torch.optim.lr_scheduler, .* got <class"),
        ({"scheduler": types.SimpleNamespace(step=print)}, r"or have its step\(\), state_dict\(\) and load_state_dict"),
        ({"scheduler": schedules.StepLR(adam(spiking_net()), 1)}, "the scheduler is of another optimizer"),
        (
            {"scheduler": types.SimpleNamespace(step=lambda epoch: None, state_dict=dict, load_state_dict=print)},
            r"step\(\) of a SimpleNamespace needs epoch, and fit\(\) calls it without",
        ),
    ],
)
def test_options_that_do_not_fit(options, words):
    trainer = make()
    before = Before(trainer)
    with pytest.raises(ConfigurationError, match=words):
        trainer.fit(loader(), 2, val_loader=loader(1), progress=False, **options)
    assert before.differs() == []


@pytest.mark.parametrize("second", [loader(1), DataLoader(TensorDataset(torch.rand(4, 2))), "5", 2.0, True, None])
def test_the_second_argument_is_the_number_of_epochs(second):
    trainer = make()
    before = Before(trainer)
    with pytest.raises(ConfigurationTypeError, match=r"epochs must be a number, and the second argument of fit\(\) is"):
        trainer.fit(loader(), second, progress=False)
    with pytest.raises(TypeError, match="val_loader=" if hasattr(second, "__iter__") else "a whole number"):
        trainer.fit(loader(), second, progress=False)
    assert before.differs() == []


# ---------------------------------------------------------------------- schedules per batch


def test_one_cycle_goes_through_its_cycle():
    trainer, notes = make(), Notes()
    scheduler = schedules.OneCycleLR(trainer.optimizer, 0.01, total_steps=15)
    expected = []
    other = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    twin = schedules.OneCycleLR(other, 0.01, total_steps=15)
    for _ in range(15):
        expected.append(other.param_groups[0]["lr"])
        other.step()
        twin.step()
    history = trainer.fit(loader(), 5, scheduler=scheduler, callbacks=[notes], progress=False)
    assert [record.lr for record in notes.batches] == expected
    assert max(expected) == pytest.approx(0.01, rel=0.05)
    assert trainer.optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"]
    assert [record.lr for record in history] == expected[2::3]
    assert history[-1].lr < 1e-6


def test_a_warm_up_per_batch():
    trainer, notes = make(), Notes()
    scheduler = schedules.LambdaLR(trainer.optimizer, lambda batch: min(1.0, (batch + 1) / 4))
    trainer.fit(loader(), 2, scheduler=scheduler, scheduler_interval="batch", callbacks=[notes], progress=False)
    assert [record.lr for record in notes.batches] == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05])
    per_epoch, notes = make(), Notes()
    scheduler = schedules.LambdaLR(per_epoch.optimizer, lambda batch: min(1.0, (batch + 1) / 4))
    per_epoch.fit(loader(), 2, scheduler=scheduler, callbacks=[notes], progress=False)
    assert [record.lr for record in notes.batches] == pytest.approx([0.0125] * 3 + [0.025] * 3)
    assert not identical(trainer.net.parameters(), per_epoch.net.parameters())


def test_a_cycle_that_is_too_short_shows_before_the_first_update():
    trainer = make()
    scheduler = schedules.OneCycleLR(trainer.optimizer, 0.01, total_steps=5)
    before = Before(trainer)
    with pytest.raises(ConfigurationError, match=r"5 steps left of total_steps=5, and 5 epoch.* of 3 batches take 15"):
        trainer.fit(loader(), 5, scheduler=scheduler, progress=False)
    assert before.differs() == []
    trainer.fit(loader(), 5, scheduler=scheduler, scheduler_interval="epoch", progress=False)  # as the remedy says
    assert scheduler.last_epoch == 5
    plateau = schedules.ReduceLROnPlateau(trainer.optimizer, "max")
    with pytest.raises(ConfigurationError, match="needs a figure per epoch"):
        trainer.fit(loader(), scheduler=plateau, scheduler_interval="batch", progress=False)


@pytest.mark.parametrize("chain", ["chained", "sequential"])
def test_a_cycle_in_a_chain_goes_per_batch(chain):
    trainer, notes = make(), Notes()
    optimizer = trainer.optimizer
    if chain == "chained":
        scheduler = schedules.ChainedScheduler([schedules.OneCycleLR(optimizer, 0.01, total_steps=6)])
    else:
        flat = schedules.ConstantLR(optimizer, 0.1, total_iters=2)
        scheduler = schedules.SequentialLR(optimizer, [flat, schedules.OneCycleLR(optimizer, 0.01, total_steps=4)], [2])
    trainer.fit(loader(), 2, scheduler=scheduler, callbacks=[notes], progress=False)
    rates = [record.lr for record in notes.batches]
    assert len(set(rates)) > 4 - (chain == "sequential")
    assert rates[-1] < 1e-6 < max(rates)


def test_a_name_that_a_metric_does_not_give_shows_after_the_first_batch():
    def both(output, target):
        return {"right": accuracy(output, target), "wrong": 1 - accuracy(output, target)}

    for metric in (both, {"both": both}):
        trainer = make()
        with pytest.raises(
            ConfigurationError, match=r"monitor='both.*' is none of the figures: choose one of '.*right'"
        ):
            trainer.fit(loader(), 2, metric=metric, monitor="both/" if metric is both else "both", progress=False)
        assert trainer.history == []
        assert trainer.updates == 6
    good = make().fit(loader(), 1, metric={"both": both}, monitor="both/wrong", higher_is_better=False, progress=False)
    assert len(good) == 1


def test_a_compiled_window_follows_a_schedule_per_batch():
    trainers = make(window=2), make(window=2, accelerate="compile")
    for trainer in trainers:
        scheduler = schedules.OneCycleLR(trainer.optimizer, 0.05, total_steps=30)
        trainer.fit(loader(), 10, scheduler=scheduler, progress=False)
    for one, other in zip(*(trainer.net.parameters() for trainer in trainers), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
    assert "the whole window" in trainers[1].explain()


# ---------------------------------------------------------------------- loggers of a few lines


def test_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = tensorboard.SummaryWriter(tmp_path)

    def log(trainer, record):
        for name, value in record.scalars().items():
            writer.add_scalar(name, value, record.epoch)

    history = make().fit(loader(), 3, val_loader=loader(1), callbacks=[log], progress=False)
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == history[0].scalars().keys()
    for name in ("val/accuracy", "train/loss", "firing_rate/1"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(record.epoch, pytest.approx(record.scalars()[name])) for record in history]


def test_csv(tmp_path):
    file = tmp_path / "log.csv"

    def log(trainer, record):
        row = {"epoch": record.epoch, **record.scalars()}
        with open(file, "a", newline="") as out:
            writer = csv.DictWriter(out, row)
            if record.epoch == 1:
                writer.writeheader()
            writer.writerow(row)

    trainer = make()
    history = trainer.fit(loader(), 2, val_loader=loader(1), callbacks=[log], progress=False)
    trainer.fit(loader(), 1, val_loader=loader(1), callbacks=[log], progress=False)
    rows = list(csv.DictReader(file.open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[1]["val/loss"]) == history[1].val_loss


def test_what_logs_by_keywords():
    """Weights & Biases, MLflow, Comet: ``log(figures, step=...)``."""
    logged = []
    wandb = types.SimpleNamespace(log=lambda figures, step: logged.append((step, figures)))

    class Log(Callback):
        def on_batch_end(self, trainer, record):
            wandb.log({"batch/loss": record.loss.item(), "batch/lr": record.lr}, step=trainer.updates)

        def on_epoch_end(self, trainer, record):
            wandb.log(record.scalars(), step=trainer.updates)

    history = make().fit(loader(), 2, callbacks=[Log()], progress=False)
    assert [step for step, _ in logged] == [6, 12, 18, 18, 24, 30, 36, 36]
    assert logged[3][1] == history[0].scalars()


# ---------------------------------------------------------------------- samplers


@pytest.mark.parametrize("within", ["sampler", "batch_sampler.sampler", "batch_sampler.batch_sampler.sampler"])
def test_samplers_are_told_the_epoch(within):
    class Sampler:
        def __init__(self):
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    class Loader(list):
        pass

    data, (*wrappers, last), sampler = Loader(loader()), within.split("."), Sampler()
    outer = data
    for name in wrappers:
        setattr(outer, name, types.SimpleNamespace())
        outer = getattr(outer, name)
    setattr(outer, last, sampler)
    trainer = make()
    trainer.fit(data, 2, progress=False)
    trainer.fit(data, 1, progress=False)
    assert sampler.epochs == [1, 2, 3]


def test_a_loader_may_depend_on_the_epoch():
    trainer, other = make(), make()
    trainer.fit(lambda epoch: loader()[:epoch], 2, progress=False)
    for pair in loader(1):
        other.train_sequence(*pair)
    other.regularizer.load_averages()
    for pair in loader()[:2]:
        other.train_sequence(*pair)
    other.regularizer.load_averages()
    assert identical(trainer.net.parameters(), copies(other.net.parameters()))
    assert batch()[0].shape == (6, 4, 3)
