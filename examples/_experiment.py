"""What the paper's experiments share: training loop, checkpoints and results. Options are in ``_options``.

Everything random in an epoch follows from ``--seed`` and the number of the epoch, and the checkpoint holds weights,
optimizer, averages and class distribution. So ``--resume`` goes on from the last finished epoch, and on a CPU, with
the same number of threads, every figure (but for times) is what a run without the break gives; operations on a GPU may
round otherwise from run to run. An epoch that was cut short is run again.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from _options import epoch_seed, learning_rate, open_trainer, run_folder
from _results import Results
from torch import Tensor, nn

from fptt_plugin import FiringRates, FPTTTrainer, SavedForBackward

Metric = Callable[[Tensor, Tensor], Tensor]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Fraction of samples whose largest output is that of their class."""
    return (output.argmax(dim=1) == target).float().mean()


@dataclass
class Experiment:
    """One task, as a script describes it.

    Args:
        task: Name of the folder that takes the results.
        variant: What tells runs of this task apart beside the shared options, such as the length of a sequence.
        net: The network.
        loss_fn: Loss of one time step.
        train: ``train(generator) -> loader`` of ``(x, y)`` or ``(x, y, mask)``, as ``train_sequence`` takes them, for
            one epoch; all that is random comes from the generator.
        test: Likewise ``(x, y)``, the same at every call; none with a ``score``.
        metric: ``metric(output, target) -> scalar tensor``.
        score: ``score(trainer, averaged) -> float`` in place of both, for what is no mean over samples.
        higher_is_better: Direction of the metric.
        trainer: Further options of ``FPTTTrainer``.
        notes: Further figures for the JSON, such as chance level.
    """

    task: str
    variant: str
    net: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    train: Callable[[torch.Generator], Iterable[Any]]
    test: Callable[[], Iterable[Any]] = tuple
    metric: Metric = accuracy
    score: Callable[[FPTTTrainer, bool], float] | None = None
    higher_is_better: bool = True
    trainer: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def evaluate(self, trainer: FPTTTrainer, *, averaged: bool) -> float:
        """Score on the test data, with ``W_bar`` or with ``W``."""
        if self.score is not None:
            return self.score(trainer, averaged)
        return trainer.evaluate(self.test(), metric=self.metric, averaged=averaged)


def run(experiment: Experiment, options: argparse.Namespace) -> Results:
    """Trains, measures after every epoch, and writes results and checkpoint to the run's folder."""
    folder = run_folder(experiment.task, experiment.variant, options)
    results = Results(folder, experiment, options)
    net = experiment.net.to(options.device)
    trainer = open_trainer(net, experiment.loss_fn, options, experiment.trainer)
    checkpoint = folder / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        results.go_on()
        trainer.load(checkpoint)
        print(f"going on after epoch {results.epochs} in {folder}")
    else:
        results.notes["saved_for_backward_bytes"] = saved_bytes(experiment, options)
        print(f"{folder}: {results.notes['parameters']} parameters\n{trainer.explain()}")
    begin = time.perf_counter()
    for epoch in range(results.epochs + 1, options.epochs + 1):
        if _out_of_time(begin, results, options.max_minutes):
            results.write("stopped: out of time; go on with --resume")
            break
        try:
            record = one_epoch(trainer, experiment, options, epoch)
        except FloatingPointError as error:
            results.write(f"diverged: {error}")
            break
        trainer.save(checkpoint)
        results.add(record, "finished" if epoch == options.epochs else "running")
    results.close()
    return results


def one_epoch(trainer: FPTTTrainer, experiment: Experiment, options: argparse.Namespace, epoch: int) -> dict[str, Any]:
    """Trains for one epoch, then evaluates with W_bar and with W."""
    generator = torch.Generator().manual_seed(epoch_seed(options, epoch))
    torch.manual_seed(epoch_seed(options, epoch))  # for what the network itself draws
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(options, epoch)
    wall, cpu = time.perf_counter(), time.process_time()
    batches = _bar(experiment.train(generator), f"epoch {epoch}/{options.epochs}")
    record: dict[str, Any] = {"epoch": epoch, "lr": learning_rate(options, epoch)}
    record |= train_epoch(trainer, batches, None if experiment.score else experiment.metric)
    trained = time.perf_counter()
    record |= {"seconds": trained - wall, "cpu_seconds": time.process_time() - cpu}
    record["test"] = experiment.evaluate(trainer, averaged=True)
    record["test_w"] = record["test"]
    if options.method == "fptt" and options.alpha > 0:
        record["test_w"] = experiment.evaluate(trainer, averaged=False)
        if options.average_weights == "epoch":
            trainer.regularizer.load_averages()
    record |= {"evaluation_seconds": time.perf_counter() - trained, "updates": trainer.updates}
    return record


def train_epoch(trainer: FPTTTrainer, batches: Any, metric: Metric | None) -> dict[str, Any]:
    """One pass over the data: mean loss, mean score of the decisions made while training, firing rates.

    The score is nan without a metric, and for tasks with a target at every step: the trainer returns the last step's
    output alone.
    """
    trainer.net.train()
    device = next(trainer.net.parameters()).device
    loss, score, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    with FiringRates(trainer.net) as firing:
        for batch in batches:
            x, y, *mask = (part.to(device) for part in batch)
            result = trainer.train_sequence(x, y, *mask)
            size = len(result.output)
            per_step = y.shape[:2] == x.shape[:2]
            loss += size * result.loss
            score += math.nan if metric is None or per_step else size * metric(result.output, y)
            seen += size
    if seen == 0:
        raise ValueError("no batch to train on: the data set is empty, or smaller than --batch-size")
    rates = firing.rates()
    rate = sum(rates.values()) / len(rates) if rates else math.nan
    return {"loss": loss.item() / seen, "train": score.item() / seen, "firing_rate": rate, "firing_rates": rates}


def saved_bytes(experiment: Experiment, options: argparse.Namespace) -> int:
    """Most bytes that autograd holds at once while a copy of the network trains on one batch."""
    generator = torch.Generator().manual_seed(options.seed)
    x, y, *mask = (part.to(options.device) for part in next(iter(experiment.train(generator))))
    net = copy.deepcopy(experiment.net).to(options.device)
    eager = argparse.Namespace(**{**vars(options), "accelerate": "none"})  # what a graph holds cannot be seen
    trainer = open_trainer(net, experiment.loss_fn, eager, experiment.trainer)
    trainer.predict(x[:2])  # what is found out at the first batch is not counted
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    with SavedForBackward(net) as saved:
        trainer.train_sequence(x, y, *mask)
    return saved.peak


def _out_of_time(begin: float, results: Results, max_minutes: float | None) -> bool:
    """Whether another epoch, as long as the last, would end too late."""
    if max_minutes is None or not results.records:
        return False
    last = results.records[-1]
    expected: float = last["seconds"] + last["evaluation_seconds"]
    return time.perf_counter() - begin + expected > 60 * max_minutes


def _bar(batches: Iterable[Any], title: str) -> Any:
    if not sys.stderr.isatty():
        return batches
    from tqdm.auto import tqdm

    return tqdm(batches, desc=title, leave=False)
