"""``fit`` over several calls, interrupts and processes: history, best checkpoint and schedule go on."""

import copy
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from nets import adam, copies, identical, spiking_net
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import ConfigurationError, FPTTWarning
from fptt_plugin.fit import Callback

CE = nn.CrossEntropyLoss()


def loader(count=3):
    generator = torch.Generator().manual_seed(3)
    return [(torch.rand(6, 4, 3, generator=generator), torch.arange(4) % 2) for _ in range(count)]


def make(optimizer=adam, **options):
    torch.manual_seed(0)
    net = spiking_net()
    return FPTTTrainer(net, optimizer(net), CE, readout="mean", **options)


def figures(history):
    return [record._replace(seconds=0.0) for record in history]


SCHEDULES = {
    "cosine": lambda optimizer: schedules.CosineAnnealingLR(optimizer, 10),
    "restarts": lambda optimizer: schedules.CosineAnnealingWarmRestarts(optimizer, 3),
    "lambda": lambda optimizer: schedules.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
    "one cycle": lambda optimizer: schedules.OneCycleLR(optimizer, 0.05, total_steps=30),
    "one cycle per epoch": lambda optimizer: schedules.OneCycleLR(optimizer, 0.05, total_steps=11),
    "cyclic": lambda optimizer: schedules.CyclicLR(optimizer, 0.01, 0.05, step_size_up=4, cycle_momentum=False),
    "warm-up per batch": lambda optimizer: schedules.LinearLR(optimizer, 0.1, total_iters=20),
    "warm-up": lambda optimizer: schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, 0.1, total_iters=4), schedules.StepLR(optimizer, 2)], [4]
    ),
    "warm-up and milestones": lambda optimizer: schedules.SequentialLR(
        optimizer, [schedules.LinearLR(optimizer, 0.1, total_iters=2), schedules.MultiStepLR(optimizer, [1, 3])], [2]
    ),
    "plateau": lambda optimizer: schedules.ReduceLROnPlateau(optimizer, "max", patience=1),
}


INTERVALS = {"one cycle per epoch": "epoch", "warm-up per batch": "batch"}
PER_BATCH = ("one cycle", "cyclic", "warm-up per batch")


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("built", ["before loading", "after loading"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name, built):
    build, options = SCHEDULES[name], {"scheduler_interval": INTERVALS.get(name), "progress": False}
    data, whole = loader(), make()
    scheduler = build(whole.optimizer)
    history = whole.fit(data, 10, val_loader=data, scheduler=scheduler, **options)

    first = make()
    first.fit(data, 5, val_loader=data, scheduler=build(first.optimizer), **options)
    first.save(tmp_path / "a.pt")
    second = make()
    other = build(second.optimizer) if built == "before loading" else None
    second.load(tmp_path / "a.pt")
    other = other or build(second.optimizer)
    resumed = second.fit(data, 5, val_loader=data, scheduler=other, **options)

    assert [record.epoch for record in resumed] == [6, 7, 8, 9, 10]
    assert figures(second.history) == figures(history) == figures(whole.history)
    assert identical(second.net.parameters(), whole.net.parameters())
    found, expected = [t.optimizer.state_dict()["param_groups"] for t in (second, whole)]
    assert found == expected
    assert other.state_dict()["last_epoch"] == (30 if name in PER_BATCH else 10)
    assert len({record.lr for record in history}) > 1
    rates = {record.updates for record in history}
    assert len(rates) == 10


@pytest.mark.slow
def test_a_resumed_run_in_a_new_process(tmp_path):
    script = textwrap.dedent(
        """
        import os, sys, torch
        sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
        from test_resume import SCHEDULES, loader, make
        trainer, first, count = make(), sys.argv[2], int(sys.argv[3])
        if first != "none":
            trainer.load(first)
        scheduler = SCHEDULES["cosine"](trainer.optimizer)
        trainer.fit(loader(), count, scheduler=scheduler, progress=False)
        trainer.save(sys.argv[4])
        """
    )
    here, environment = os.path.dirname(__file__), {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments):
        subprocess.run([sys.executable, "-c", script, here, *map(str, arguments)], check=True, env=environment)

    run("none", 5, tmp_path / "a.pt")
    run(tmp_path / "a.pt", 5, tmp_path / "b.pt")
    run("none", 10, tmp_path / "whole.pt")
    ones, others = make(), make()
    ones.load(tmp_path / "b.pt")
    others.load(tmp_path / "whole.pt")
    assert identical(ones.net.parameters(), others.net.parameters())
    assert figures(ones.history) == figures(others.history)
    assert len(ones.history) == 10
    assert ones.optimizer.param_groups[0]["lr"] == others.optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("scheduler", [None, "step"])
def test_a_schedule_that_is_not_gone_on_with_is_said(tmp_path, scheduler):
    trainer = make()
    trainer.fit(loader(), 2, scheduler=SCHEDULES["cosine"](trainer.optimizer), progress=False)
    trainer.save(tmp_path / "a.pt")
    other = make()
    other.load(tmp_path / "a.pt")
    given = scheduler and schedules.StepLR(other.optimizer, 1)
    with pytest.warns(FPTTWarning, match="state of a CosineAnnealingLR"):
        other.fit(loader(), scheduler=given, progress=False)
    # A later call can still take it up, unless another schedule has begun.
    if scheduler is None:
        late = SCHEDULES["cosine"](other.optimizer)
        other.fit(loader(), scheduler=late, progress=False)
        assert late.last_epoch == 3


def test_a_checkpoint_before_the_next_fit_keeps_the_schedule(tmp_path):
    trainer = make()
    trainer.fit(loader(), 4, scheduler=SCHEDULES["cosine"](trainer.optimizer), progress=False)
    trainer.save(tmp_path / "a.pt")
    other = make()
    other.load(tmp_path / "a.pt")
    other.save(tmp_path / "b.pt")
    third = make()
    third.load(tmp_path / "b.pt")
    scheduler = SCHEDULES["cosine"](third.optimizer)
    third.fit(loader(), scheduler=scheduler, progress=False)
    assert scheduler.last_epoch == 5


# ---------------------------------------------------------------------- several calls


class Scores:
    """A metric with given scores, one per evaluation."""

    __name__ = "given"

    def __init__(self, trainer, scores):
        self.trainer, self.scores = trainer, iter(scores)

    def __call__(self, output, target):
        return torch.tensor(0.0 if self.trainer.net.training else next(self.scores))


@pytest.mark.parametrize(
    ("higher", "calls", "best"),
    [
        (True, [[0.2, 0.7], [0.1], [0.6, 0.3]], 2),
        (True, [[0.2], [0.1], [0.6], [0.5]], 3),
        (False, [[0.2, 0.7], [0.3], [0.1, 0.3]], 4),
        (True, [[float("nan")], [0.1], [float("nan")]], 2),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_worse_epoch_of_a_later_call_never_overwrites_the_best(tmp_path, higher, calls, best, resume):
    trainer, file, weights = make(), tmp_path / "best.pt", []
    for scores in calls:
        metric, options = Scores(trainer, scores), {"higher_is_better": higher, "progress": False}
        for _ in scores:
            trainer.fit(loader(), 1, val_loader=loader(1), checkpoint=file, metric=metric, **options)
            weights.append(copies(trainer.net.parameters()))
        if resume:
            trainer.save(tmp_path / "last.pt")
            trainer = make()
            trainer.load(tmp_path / "last.pt")
    assert [record.epoch for record in trainer.history] == list(range(1, len(weights) + 1))
    other = make()
    other.load(file)
    assert len(other.history) == best
    assert identical(other.net.parameters(), weights[best - 1])


@pytest.mark.parametrize("change", ["file", "gone", "direction", "data", "metric"])
def test_a_best_epoch_that_cannot_be_compared_begins_again(tmp_path, change):
    trainer, file = make(), tmp_path / "best.pt"
    options = {"metric": Scores(trainer, [0.9, 0.5]), "val_loader": loader(1), "progress": False}
    trainer.fit(loader(), checkpoint=file, **options)
    if change == "file":
        file = tmp_path / "other.pt"
    elif change == "gone":
        file.unlink()
    elif change == "direction":
        options["higher_is_better"] = False
    elif change == "data":
        options["val_loader"] = None
    else:
        options["metric"].__class__ = type("Other", (Scores,), {"__name__": "other"})
    trainer.fit(loader(), checkpoint=file, **options)
    other = make()
    other.load(file)
    assert len(other.history) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["loader", "validation"])
def test_the_history_survives_an_interrupt_and_the_epoch_counts_again(error, where):
    class Breaks:
        def __init__(self, whole):
            self.whole = whole

        def __iter__(self):
            yield from loader(2)
            if self.whole == 0:
                raise error
            self.whole -= 1

    trainer, scheduler_steps = make(), 3
    data, val = (Breaks(3), loader(1)) if where == "loader" else (loader(2), Breaks(3))
    scheduler = SCHEDULES["cosine"](trainer.optimizer)
    with pytest.raises(error):
        trainer.fit(data, 10, val_loader=val, scheduler=scheduler, progress=False)
    assert [record.epoch for record in trainer.history] == [1, 2, 3]
    assert scheduler.last_epoch == scheduler_steps
    returned = trainer.fit(loader(2), 2, val_loader=loader(1), scheduler=scheduler, progress=False)
    assert [record.epoch for record in returned] == [4, 5]
    assert len(trainer.history) == 5


STEPPED = {
    "one cycle": lambda optimizer: schedules.OneCycleLR(optimizer, 0.05, total_steps=9),
    "step": lambda optimizer: schedules.StepLR(optimizer, 2, 0.5),
    "factors": lambda optimizer: schedules.MultiplicativeLR(optimizer, lambda _: 0.9),
    "warm-up": lambda optimizer: schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.1, total_iters=4), schedules.ExponentialLR(optimizer, 0.9)],
        milestones=[4],
    ),
    "milestones": lambda optimizer: schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.1, total_iters=2), schedules.MultiStepLR(optimizer, [2, 4])],
        milestones=[2],
    ),
}


class Rates(Callback):
    """Notes the learning rate of each batch; saves in the middle of an epoch, and ends it."""

    def __init__(self, end=None, file=None):
        self.seen, self.end, self.file = [], end, file

    def on_batch_end(self, trainer, record):
        self.seen.append(record.lr)
        if (record.epoch, record.batch) == self.end:
            trainer.save(self.file)
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", STEPPED)
def test_a_schedule_per_batch_counts_whole_epochs(name, tmp_path):
    file, options = tmp_path / "mid.pt", {"scheduler_interval": "batch", "progress": False}
    rates, trainer = Rates(), make()
    trainer.fit(loader(3), 3, scheduler=STEPPED[name](trainer.optimizer), callbacks=[rates], **options)
    assert len(set(rates.seen)) > 3

    trainer, again = make(), Rates()
    scheduler = STEPPED[name](trainer.optimizer)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader(3), 3, scheduler=scheduler, callbacks=[Rates((2, 2), file)], **options)
    assert len(trainer.history) == 1
    trainer.fit(loader(3), 2, scheduler=scheduler, callbacks=[again], **options)  # in the same process
    assert again.seen == rates.seen[3:]

    resumed, again = make(), Rates()
    resumed.load(file)
    resumed.fit(loader(3), 2, scheduler=STEPPED[name](resumed.optimizer), callbacks=[again], **options)
    assert again.seen == rates.seen[3:]


def test_the_end_of_a_loaded_schedule(tmp_path):
    trainer = make()
    trainer.fit(loader(3), 1, scheduler=STEPPED["one cycle"](trainer.optimizer), progress=False)
    trainer.save(tmp_path / "last.pt")
    other = make()
    other.load(tmp_path / "last.pt")
    longer = schedules.OneCycleLR(other.optimizer, 0.05, total_steps=30)
    with pytest.raises(
        ConfigurationError, match=r"6 steps left of total_steps=9, .*checkpoint's: pass epochs=2, and an"
    ):
        other.fit(loader(3), 9, scheduler=longer, progress=False)
    assert other.fit(loader(3), 2, scheduler=longer, progress=False)[-1].lr < 1e-6  # as the remedy says
    longer = schedules.OneCycleLR(other.optimizer, 0.05, total_steps=6)
    assert other.fit(loader(3), 2, scheduler=longer, progress=False)[0].lr > 1e-3


@pytest.mark.parametrize("interval", ["epoch", "batch"])
@pytest.mark.parametrize("hook", ["on_epoch_end", "on_batch_end"])
def test_what_a_callback_loads_is_where_the_schedule_goes_on(hook, interval, tmp_path):
    class Back:
        """Saves in the first epoch, goes back to that in the third, once, and saves after each."""

        def __init__(self):
            self.saved = self.loaded = None

    def call(self, trainer, record):
        if record.epoch == 2 and self.saved is None:
            trainer.save(tmp_path / "back.pt")
            self.saved = copy.deepcopy(scheduler.state_dict()), trainer.optimizer.param_groups[0]["lr"]
        if record.epoch == 4 and self.loaded is None:
            trainer.load(tmp_path / "back.pt")
            self.loaded = scheduler.state_dict(), trainer.optimizer.param_groups[0]["lr"]
            trainer.save(tmp_path / "again.pt")
        trainer.save(tmp_path / "last.pt")

    setattr(Back, hook, call)
    trainer, back = make(), Back()
    scheduler = schedules.ExponentialLR(trainer.optimizer, 0.8)
    options = {"scheduler_interval": interval, "progress": False}
    records = trainer.fit(loader(1), 5, scheduler=scheduler, callbacks=[back], **options)
    assert [record.epoch for record in records] == [1, 2, 3, 4, 5]
    one, other = (torch.load(tmp_path / name)["trainer"]["fit"] for name in ("back.pt", "again.pt"))
    assert one["scheduler"]["state"] == other["scheduler"]["state"]
    if (hook, interval) != ("on_batch_end", "batch"):  # where the file has the start of its epoch
        assert back.loaded == back.saved
    resumed, begin = make(), Rates()
    resumed.load(tmp_path / "last.pt")
    new = schedules.ExponentialLR(resumed.optimizer, 0.8)
    resumed.fit(loader(1), 1, scheduler=new, callbacks=[begin], **options)
    final = trainer.optimizer.param_groups[0]["lr"]
    assert begin.seen[0] == pytest.approx(final if hook == "on_epoch_end" else final / 0.8)


def test_a_callback_loads_the_state_of_another_scheduler(tmp_path):
    trainer = make()
    trainer.fit(loader(1), 1, scheduler=schedules.StepLR(trainer.optimizer, 1), progress=False)
    trainer.save(tmp_path / "step.pt")
    back = [lambda trainer, record: trainer.load(tmp_path / "step.pt")]
    other = make()
    with pytest.warns(FPTTWarning, match=r"has the state of a StepLR, fit\(\) got a ExponentialLR"):
        other.fit(loader(1), 1, scheduler=schedules.ExponentialLR(other.optimizer, 0.9), callbacks=back, progress=False)


class Options(Callback):
    """The optimizer's options when an epoch begins."""

    def on_epoch_begin(self, trainer, epoch):
        self.groups = copy.deepcopy(trainer.optimizer.param_groups)


@pytest.mark.parametrize("name", [*STEPPED, "momentum", "own"])
def test_a_schedule_restores_what_it_writes(name, tmp_path):
    class Own(schedules.StepLR):
        """May write anything."""

    build = (
        STEPPED.get(name)
        or {
            "momentum": lambda optimizer: schedules.ChainedScheduler(
                [schedules.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=True, base_momentum=0.5)]
            ),
            "own": lambda optimizer: Own(optimizer, 1),
        }[name]
    )
    net = spiking_net()
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), CE)
    trainer.fit(loader(2), 1, scheduler=build(trainer.optimizer), progress=False)
    trainer.save(tmp_path / "last.pt")
    trainer.load(tmp_path / "last.pt")
    (group,) = trainer.optimizer.param_groups
    lr, momentum = group["lr"], group["momentum"]
    group["weight_decay"] = 0.5
    scheduler = build(trainer.optimizer)
    group["momentum"] = 0.3
    begin = Options()
    trainer.fit(loader(1), 1, scheduler=scheduler, callbacks=[begin], progress=False)
    (found,) = begin.groups
    assert found["lr"] == lr
    assert found["momentum"] == (momentum if name in ("one cycle", "momentum", "own") else 0.3)
    assert found["weight_decay"] == (0.0 if name == "own" else 0.5)


@pytest.mark.parametrize("name", [*STEPPED, "lambda", "cyclic"])
def test_a_group_added_after_loading_has_the_new_schedule(name, tmp_path):
    build = (
        STEPPED.get(name)
        or {
            "lambda": lambda optimizer: schedules.LambdaLR(optimizer, lambda step: 0.9**step),
            "cyclic": lambda optimizer: schedules.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False),
        }[name]
    )
    net = spiking_net()
    trainer = FPTTTrainer(net, torch.optim.SGD(net[0].parameters(), lr=0.1), CE)
    trainer.fit(loader(1), 2, scheduler=build(trainer.optimizer), progress=False)
    trainer.save(tmp_path / "last.pt")
    trainer.load(tmp_path / "last.pt")
    trainer.optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.02})
    lr, scheduler = trainer.optimizer.param_groups[0]["lr"], build(trainer.optimizer)
    new = trainer.optimizer.param_groups[1]["lr"]
    begin = Options()
    trainer.fit(loader(1), 1, scheduler=scheduler, callbacks=[begin], progress=False)
    assert [group["lr"] for group in begin.groups] == [lr, new]
    assert len(scheduler.get_last_lr()) == 2


def test_a_group_added_within_an_epoch_that_is_cut_short():
    class Adds:
        def on_batch_end(self, trainer, record):
            trainer.optimizer.add_param_group({"params": list(net[2].parameters())})
            raise KeyError("mine")

    net = spiking_net()
    trainer = FPTTTrainer(net, torch.optim.SGD(net[0].parameters(), lr=0.1), CE)
    scheduler = schedules.StepLR(trainer.optimizer, 1)
    with pytest.raises(KeyError, match="mine"):
        trainer.fit(loader(2), scheduler=scheduler, scheduler_interval="batch", callbacks=[Adds()], progress=False)
    assert (scheduler.last_epoch, trainer.optimizer.param_groups[0]["lr"]) == (0, 0.1)


def test_the_history_comes_back_with_its_figures(tmp_path):
    trainer = make()
    trainer.fit(loader(), 2, val_loader=loader(1), progress=False)
    trainer.fit(loader(), 1, progress=False)
    trainer.save(tmp_path / "a.pt")
    other = make()
    assert other.history == []
    other.load(tmp_path / "a.pt")
    assert other.history == trainer.history
    assert other.history[0].firing_rates.keys() == {"1"}
    assert other.history[2].val_score is None
    other.fit(loader(), progress=False)
    assert len(trainer.history) == 3


# ---------------------------------------------------------------------- random numbers


class Noisy:
    """A loader that draws from torch, numpy and Python, and from a generator of its own, as transforms do."""

    def __init__(self, generator=None):
        self.generator = generator

    def __iter__(self):
        for x, y in loader():
            noise = [torch.rand(1), torch.rand(1, generator=self.generator), np.random.rand(), random.random()]  # noqa: NPY002
            yield x + 0.3 * sum(float(one) for one in noise), y


def noisy_trainer():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    net = spiking_net(extra=[nn.Dropout(0.2)])
    return FPTTTrainer(net, adam(net), CE)


def shuffled(**options):
    x, y = torch.rand(12, 6, 3, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 2
    return DataLoader(TensorDataset(x, y), **(options or {"batch_size": 4, "shuffle": True}))


def sampler():
    return RandomSampler(range(12), generator=torch.Generator().manual_seed(5))


LOADERS = {
    "shuffled": shuffled,
    "noisy": Noisy,
    "generator": lambda: Noisy(torch.Generator().manual_seed(5)),
    "sampler": lambda: shuffled(batch_size=4, sampler=sampler()),
    "batch sampler": lambda: shuffled(batch_sampler=BatchSampler(sampler(), 4, False)),
}


@pytest.mark.parametrize("build", LOADERS.values(), ids=LOADERS)
def test_random_numbers_go_on(tmp_path, build):
    whole, data = noisy_trainer(), build()
    whole.batch_first = isinstance(data, DataLoader)
    val = None if whole.batch_first else loader(1)
    history = whole.fit(data, 5, val_loader=val, progress=False)
    first = noisy_trainer()
    first.batch_first = whole.batch_first
    save = [lambda trainer, record: trainer.save(tmp_path / "last.pt")]
    data = build()
    first.fit(data, 2, val_loader=val, callbacks=save, progress=False)
    assert len({record.loss for record in history}) == 5
    for same in (True, False):
        second = noisy_trainer()
        second.batch_first = whole.batch_first
        second.load(tmp_path / "last.pt")
        torch.rand(7)  # other things are built
        if not same:
            torch.manual_seed(9)  # other random numbers are asked for
        second.fit(build(), 3, val_loader=val, progress=False)
        assert (figures(second.history) == figures(history)) == same
        assert identical(second.net.parameters(), whole.net.parameters()) == same


def test_a_file_without_random_states_loads(tmp_path):
    trainer = make()
    trainer.fit(loader(), 1, progress=False)
    state = trainer.state_dict()
    del state["fit"]["random"]
    for record in state["fit"]["history"]:
        for name in ("decision_loss", "val_loss", "train_scores", "val_scores", "lr", "grad_norm"):
            del record[name]
    other = make()
    other.load_state_dict(state)
    before = torch.get_rng_state()
    assert other.history[0].loss == trainer.history[0].loss
    other.fit(loader(), 1, progress=False)
    assert torch.equal(before, torch.get_rng_state())
