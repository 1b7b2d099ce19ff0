"""What the paper's experiments share: training loop, checkpoints and results. Options are in ``_options``.

Everything random in an epoch follows from ``--seed`` and the number of the epoch, and the checkpoint holds weights,
optimizer, averages and class distribution. So ``--resume`` goes on from the last finished epoch, and on a CPU, with
the same number of threads, every figure (but for times) is what a run without the break gives; operations on a GPU may
round otherwise from run to run. An epoch that was cut short is run again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from _measure import saved_bytes
from _options import epoch_seed, learning_rate, open_trainer, run_folder
from _results import Results
from torch import Tensor, nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.fit import Metric, accuracy, epochs
from fptt_plugin.results import EpochRecord


def no_score(output: Tensor, target: Tensor) -> Tensor:
    """The metric of a task whose decisions while training are not scored."""
    return torch.tensor(math.nan)


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
        train_metric: Metric of the decisions made while training; ``None``: ``metric``.
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
    train_metric: Metric | None = None
    score: Callable[[FPTTTrainer, bool], float] | None = None
    higher_is_better: bool = True
    trainer: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def evaluate(self, trainer: FPTTTrainer, *, averaged: bool) -> float:
        """Score on the test data, with ``W_bar`` or with ``W``."""
        if self.score is not None:
            return self.score(trainer, averaged)
        return float(trainer.evaluate(self.test(), metric=self.metric, averaged=averaged))


def run(experiment: Experiment, options: argparse.Namespace) -> Results:
    """Train, measure after every epoch, and write results and checkpoint to the run's folder.

    Raises:
        ValueError: If statistics are to be recalibrated and no layer keeps any.
    """
    if options.recalibrate and all(getattr(layer, "running_mean", None) is None for layer in experiment.net.modules()):
        raise ValueError("--recalibrate: the network has no batch normalization with running statistics: leave it out")
    folder = run_folder(experiment.task, experiment.variant, options)
    results = Results(folder, experiment, options)
    net = experiment.net.to(options.device)
    trainer = open_trainer(net, experiment.loss_fn, options, experiment.trainer)
    checkpoint = folder / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        results.go_on()
        trainer.load(checkpoint)
        print(f"going on after epoch {results.epochs} in {folder}")
        if options.test_only:
            results.replace_test(_evaluate(trainer, experiment, options, options.epochs))
            return results
    else:
        results.notes["saved_for_backward_bytes"] = measure_memory(experiment, options)
        print(f"{folder}: {results.notes['parameters']} parameters\n{trainer.explain()}")

    def loader(epoch: int) -> Iterable[Any]:
        torch.manual_seed(epoch_seed(options, epoch))  # for what the network itself draws
        for group in trainer.optimizer.param_groups:
            group["lr"] = learning_rate(options, epoch)
        return experiment.train(torch.Generator().manual_seed(epoch_seed(options, epoch)))

    records = epochs(
        trainer,
        loader,
        options.epochs,
        first=results.epochs + 1,
        metric=experiment.train_metric or experiment.metric,
        progress=sys.stderr.isatty(),
    )
    begin = time.perf_counter()
    while results.epochs < options.epochs:
        if _out_of_time(begin, results, options.max_minutes):
            results.write("stopped: out of time; go on with --resume")
            break
        cpu = time.process_time()
        try:
            record = next(records)
        except FloatingPointError as error:
            results.write(f"diverged: {error}")
            break
        figures = {**_figures(record), "cpu_seconds": time.process_time() - cpu}
        figures |= {"lr": learning_rate(options, record.epoch), **_evaluate(trainer, experiment, options, record.epoch)}
        trainer.save(checkpoint)
        results.add(figures, "finished" if record.epoch == options.epochs else "running")
    results.close()
    return results


def _figures(record: EpochRecord) -> dict[str, Any]:
    """What an epoch's record says, under the names of the result files."""
    rates = record.firing_rates
    return {
        "epoch": record.epoch,
        "loss": record.loss,
        "train": record.train_score,
        "firing_rate": sum(rates.values()) / len(rates) if rates else math.nan,
        "firing_rates": rates,
        "updates": record.updates,
        "seconds": record.seconds,
    }


def _evaluate(
    trainer: FPTTTrainer, experiment: Experiment, options: argparse.Namespace, epoch: int
) -> dict[str, float]:
    """Scores of W_bar and of W on the test data, NaN without a test; then, if asked for, W_bar replaces W."""
    begin = time.perf_counter()
    test = test_w = math.nan
    regularized = options.method == "fptt" and options.alpha > 0

    def score(averaged: bool) -> float:
        if options.recalibrate:
            generator = torch.Generator().manual_seed(epoch_seed(options, epoch))
            trainer.recalibrate(itertools.islice(experiment.train(generator), options.recalibrate), averaged=averaged)
        return experiment.evaluate(trainer, averaged=averaged)

    if epoch % options.test_every == 0 or epoch == options.epochs:
        test = test_w = score(averaged=True)
        if regularized:
            test_w = score(averaged=False)
    if regularized and options.average_weights == "epoch":
        trainer.regularizer.load_averages()
    return {"test": test, "test_w": test_w, "evaluation_seconds": time.perf_counter() - begin}


def measure_memory(experiment: Experiment, options: argparse.Namespace) -> int:
    """Most bytes that autograd holds at once while a copy of the network trains on one batch."""
    generator = torch.Generator().manual_seed(options.seed)
    batch = (part.to(options.device) for part in next(iter(experiment.train(generator))))
    net = copy.deepcopy(experiment.net).to(options.device)
    eager = argparse.Namespace(**{**vars(options), "accelerate": "none"})  # what a graph holds cannot be seen
    trainer = open_trainer(net, experiment.loss_fn, eager, experiment.trainer)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    return saved_bytes(trainer, *batch)


def _out_of_time(begin: float, results: Results, max_minutes: float | None) -> bool:
    """Whether another epoch, as long as the last, would end too late."""
    if max_minutes is None or not results.records:
        return False
    last = results.records[-1]
    expected: float = last["seconds"] + last["evaluation_seconds"]
    return time.perf_counter() - begin + expected > 60 * max_minutes
