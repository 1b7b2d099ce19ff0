"""The loops over data loaders: ``fit`` and ``evaluate``."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ._inputs import Sequence
from .monitor import FiringRates, unobserved
from .results import EpochRecord

if TYPE_CHECKING:
    from ._evaluator import Evaluator
    from .trainer import FPTTTrainer

Metric = Callable[[Tensor, Tensor], Tensor]


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Fraction of samples whose largest output is the one of their class.

    Args:
        output: Class scores ``[B, C]``.
        target: Class indices ``[B]``.

    Raises:
        ValueError: If these are no scores and labels.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor(0.5000)
    """
    if output.dim() != 2 or target.dim() != 1 or target.is_floating_point():
        raise ValueError(
            f"accuracy needs class scores [B, C] and integer labels [B], got output {tuple(output.shape)} and target "
            f"{tuple(target.shape)} ({target.dtype}): pass metric=..., a function of output and target"
        )
    return (output.argmax(dim=1) == target).float().mean()


def fit(
    trainer: FPTTTrainer,
    loader: Iterable[Any],
    epochs: int,
    *,
    val_loader: Iterable[Any] | None = None,
    scheduler: Any = None,
    metric: Metric = accuracy,
    higher_is_better: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool = True,
) -> list[EpochRecord]:
    """Implements :meth:`FPTTTrainer.fit`."""
    _check(scheduler, higher_is_better, checkpoint)
    history: list[EpochRecord] = []
    best = math.nan
    is_better = operator.gt if higher_is_better else operator.lt
    for epoch in range(1, epochs + 1):
        begin = time.perf_counter()
        loss, score, rates = _train_epoch(trainer, _bar(loader, progress, f"epoch {epoch}/{epochs}"), metric)
        seconds = time.perf_counter() - begin
        if trainer.average_weights == "epoch":
            trainer.regularizer.load_averages()
        val = None if val_loader is None else evaluate(trainer, val_loader, metric=metric)
        history.append(EpochRecord(epoch, loss, score, val, rates, trainer.updates, seconds))
        current = score if val is None else val
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(current)
        elif scheduler is not None:
            scheduler.step()
        if checkpoint is not None and (math.isnan(best) or is_better(current, best)):
            best = current
            trainer.save(checkpoint)
    return history


def _train_epoch(trainer: FPTTTrainer, batches: Any, metric: Metric) -> tuple[float, float, dict[str, float]]:
    """Mean loss, mean score and firing rates of one pass over the data."""
    if not trainer.net.training:  # a layer that the user put into evaluation mode stays there
        trainer.net.train()
    device = _device(trainer)
    loss, score, seen, scored = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0
    learned = torch.zeros((), device=device)  # samples whose sequence had a loss
    with FiringRates(trainer.net) as firing:
        for batch in batches:
            sequence = trainer._check_sequence(*(part.to(device) for part in batch))
            if metric is accuracy and trainer.updates == seen == 0:
                _try_metric(trainer, sequence, metric)
            result = trainer._train(sequence)
            loss += sequence.batch * result.loss.nan_to_num(0.0)
            learned += sequence.batch * result.loss.isfinite()
            total, count = _score(metric, sequence, sequence.steps - 1, result.output)
            score, scored = score + total, scored + count
            seen += sequence.batch
            if hasattr(batches, "set_postfix"):
                rates = firing.rates().values()
                figures = {
                    "loss": f"{(loss / learned).item():.3f}",
                    getattr(metric, "__name__", "metric"): f"{score.item() / max(scored, 1):.3f}",
                    "firing rate": f"{100 * sum(rates) / max(len(rates), 1):.1f}%",
                }
                batches.set_postfix(figures)
    if seen == 0:
        raise ValueError(
            "the loader gave no batch: the data set is empty, or smaller than a batch with drop_last=True, or it is a "
            "generator, which is used up after one epoch (pass a DataLoader or a list)"
        )
    return (loss / learned).item(), score.item() / scored if scored else math.nan, firing.rates()


def _check(scheduler: Any, higher_is_better: bool, checkpoint: str | PathLike[str] | None) -> None:
    """Refuses before the first update what would only show after the first epoch."""
    if scheduler is not None and not hasattr(scheduler, "step"):
        raise ValueError(f"scheduler must be one of torch.optim.lr_scheduler, got {scheduler!r}")
    mode = "max" if higher_is_better else "min"
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != mode:
        raise ValueError(
            f"ReduceLROnPlateau has mode={scheduler.mode!r}, and the metric is better when "
            f"{'higher' if higher_is_better else 'lower'}: build the scheduler with mode={mode!r}, or pass "
            f"higher_is_better={not higher_is_better} with a metric of your own"
        )
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ValueError(f"the folder of checkpoint={str(checkpoint)!r} does not exist: make it first")


def _score(metric: Metric, sequence: Sequence, t: int, output: Tensor) -> tuple[Tensor | float, int]:
    """Metric at step ``t`` times the number of labelled samples, and that number."""
    target, mask = sequence.target(t), sequence.labelled(t)
    if mask is None:
        return sequence.batch * metric(output, target), sequence.batch
    count = int(mask.sum())
    return (count * metric(output[mask], target[mask]) if count else 0.0), count


def _try_metric(trainer: FPTTTrainer, sequence: Sequence, metric: Metric) -> None:
    """Tries a metric, which may not count its calls, on the untrained network: before the first update."""
    with trainer._evaluation(averaged=False), torch.random.fork_rng(), unobserved(trainer.net):
        _score(metric, sequence, sequence.steps - 1, trainer._engine.visit(sequence.x))


def evaluate(trainer: Evaluator, loader: Iterable[Any], *, metric: Metric = accuracy, averaged: bool = True) -> float:
    """Implements :meth:`FPTTTrainer.evaluate`."""
    device = _device(trainer)
    score, seen = torch.zeros((), device=device), 0
    with trainer._evaluation(averaged):
        for batch in loader:
            sequence = trainer._check_sequence(*(part.to(device) for part in batch))

            def visit(t: int, output: Tensor, sequence: Sequence = sequence) -> None:
                nonlocal score, seen
                if t == sequence.steps - 1 or not sequence.per_sequence:
                    total, count = _score(metric, sequence, t, output)
                    score, seen = score + total, seen + count

            trainer._engine.visit(sequence.x, visit)
    if seen == 0:
        raise ValueError("the loader gave no batch to evaluate, or no labelled sample")
    return score.item() / seen


def _device(trainer: Evaluator) -> torch.device:
    return next(trainer.net.parameters()).device


def _bar(loader: Iterable[Any], progress: bool, title: str) -> Any:
    if not progress:
        return loader
    try:
        from tqdm.auto import tqdm
    except ImportError:  # a convenience, not a dependency
        return loader
    return tqdm(loader, desc=title, leave=False)
