"""Epochs over data loaders, through the trainer's public methods: ``epochs``, ``fit`` and ``evaluate``."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .errors import BatchError, BatchTypeError, ConfigurationError, FPTTWarning, check_entry
from .interrupts import Interruptible
from .monitor import FiringRates, unobserved
from .regularizer import DynamicRegularizer
from .results import EpochRecord, SequenceResult
from .training import Batch
from .tree import map_tensors

SILENT = 0.01  # firing rate below which a layer is warned of
Metric = Callable[[Tensor, Tensor], Tensor]


class Best(NamedTuple):
    """The best epoch so far, and what it takes to compare another one with it.

    Attributes:
        score: Its metric.
        file: Name of the file that holds it.
        metric: What the metric is, in which direction it is better, and on which data it was taken.
    """

    score: float
    file: str
    metric: str


class Progress:
    """What one training knows of its epochs over all calls of ``fit``, in this process and in those before.

    Attributes:
        history: A record per complete epoch.
        best: The best epoch written to a checkpoint.
    """

    def __init__(self) -> None:
        self.history: list[EpochRecord] = []
        self.best: Best | None = None
        self._scheduler: Any = None
        self._loaded: dict[str, Any] = {}  # the scheduler of a checkpoint, until fit gets one

    def use(self, scheduler: Any, optimizer: Optimizer) -> None:
        """Take the scheduler of a call of ``fit``; a loaded state goes into the first one that comes."""
        if self._loaded and scheduler is None:
            _warn(f"the checkpoint has the state of a {self._loaded['kind']}, and fit() got no scheduler")
        elif self._loaded:
            loaded, self._loaded = self._loaded, {}
            if type(scheduler).__name__ == loaded["kind"]:
                scheduler.load_state_dict(copy.deepcopy(loaded["state"]))
                for group, options in zip(optimizer.param_groups, loaded["groups"], strict=True):
                    _set_options(group, options)
            else:
                _warn(f"the checkpoint has the state of a {loaded['kind']}, fit() got a {type(scheduler).__name__}")
        if scheduler is not None:
            self._scheduler = scheduler

    def is_best(self, new: Best, file: Path, *, higher_is_better: bool) -> bool:
        """Whether an epoch replaces the file: it is better, or the best one so far is another's, or gone."""
        old = self.best
        if old is None or old[1:] != new[1:] or math.isnan(old.score) or not file.exists():
            return True
        return new.score > old.score if higher_is_better else new.score < old.score

    def state_dict(self) -> dict[str, Any]:
        """History, best epoch and the state of the scheduler that ``fit`` got."""
        scheduler = self._loaded
        if self._scheduler is not None and not self._loaded:
            state = copy.deepcopy(self._scheduler.state_dict())
            scheduler = {"kind": type(self._scheduler).__name__, "state": state}
        return {
            "history": [record._asdict() for record in self.history],
            "best": None if self.best is None else list(self.best),
            "scheduler": {key: scheduler[key] for key in ("kind", "state") if key in scheduler},
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can read a state; an empty one is of version 0.1.

        Raises:
            CheckpointError: If an entry is missing or malformed.
        """
        if state == {}:
            return
        check_entry(state, "history", _are_records)
        check_entry(state, "best", lambda best: best is None or len(Best(*best)) == 3)
        check_entry(state, "scheduler", lambda saved: not saved or {"kind", "state"} <= saved.keys())

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Restore what :meth:`state_dict` returned; the scheduler's state waits for ``fit`` to get the scheduler."""
        self.history[:] = [EpochRecord(**record) for record in state.get("history", [])]
        self.best = Best(*state["best"]) if state.get("best") else None
        self._scheduler, self._loaded = None, {}
        if state.get("scheduler"):
            groups = [_options(group) for group in optimizer.param_groups]
            self._loaded = {**copy.deepcopy(state["scheduler"]), "groups": groups}


def _are_records(records: list[dict[str, Any]]) -> bool:
    return all(set(record) == set(EpochRecord._fields) for record in records)


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {key: map_tensors(Tensor.clone, value) for key, value in group.items() if key != "params"}


def _set_options(group: dict[str, Any], options: dict[str, Any]) -> None:
    """What a new scheduler does to its optimizer is undone: it sets a learning rate, some the momentum."""
    for key, value in options.items():
        if isinstance(group.get(key), Tensor) and isinstance(value, Tensor):
            group[key].copy_(value)  # a CUDA graph reads this tensor
        else:
            group[key] = value


def _warn(reason: str) -> None:
    remedy = "pass a scheduler of the same class, built as in the run that was saved, to go on with its schedule"
    warnings.warn(f"{reason}: {remedy}", FPTTWarning, stacklevel=5)


class Trainer(Protocol):
    """What these loops use of :class:`~fptt_plugin.FPTTTrainer`."""

    net: nn.Module
    optimizer: Optimizer
    regularizer: DynamicRegularizer
    average_weights: str

    @property
    def updates(self) -> int: ...
    def prepare(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Batch: ...
    def train_batch(self, batch: Batch) -> SequenceResult: ...
    def evaluation(self, averaged: bool | None = None) -> AbstractContextManager[None]: ...
    def visit(self, batch: Batch, visitor: Callable[[int, Tensor], None] | None = None) -> Tensor: ...
    def save(self, path: str | PathLike[str]) -> None: ...


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Fraction of samples whose largest output is the one of their class.

    Args:
        output: Class scores ``[B, C]``.
        target: Class indices ``[B]``.

    Returns:
        A 0-d tensor.

    Raises:
        BatchError: If the shapes are others.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
        0.5
    """
    if output.dim() != 2 or target.dim() != 1 or target.is_floating_point():
        raise BatchError(
            f"accuracy needs class scores [B, C] and integer labels [B], got output {tuple(output.shape)} and target "
            f"{tuple(target.shape)} ({target.dtype})",
            "pass metric=..., a function of output and target",
        )
    return (output.argmax(dim=1) == target).float().mean()


def epochs(
    trainer: Trainer,
    loader: Iterable[Any] | Callable[[int], Iterable[Any]],
    count: int,
    *,
    first: int = 1,
    val_loader: Iterable[Any] | None = None,
    metric: Metric = accuracy,
    progress: bool = False,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch; the caller does what is to be done between two epochs.

    With ``average_weights="epoch"`` the averages are loaded into the weights at the end of each epoch.

    Args:
        trainer: An :class:`~fptt_plugin.FPTTTrainer`.
        loader: Gives ``(x, y)`` or ``(x, y, mask)``; or ``loader(epoch)``, called at the start of each epoch, returns
            what does: the place to seed a sampler or to set a learning rate.
        count: Number of the last epoch.
        first: Number of the first epoch, to resume.
        val_loader: Evaluated after each epoch.
        metric: ``metric(output, target) -> scalar tensor``.
        progress: Show a progress bar where ``tqdm`` is installed.

    Yields:
        One record per epoch, right after it.

    Example:
        >>> import snntorch as snn
        >>> from fptt_plugin import FPTTTrainer
        >>> net = nn.Sequential(nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
        >>> trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss())
        >>> loader = [(torch.rand(5, 4, 2), torch.randint(3, (4,)))]
        >>> [record.epoch for record in epochs(trainer, loader, 2)]
        [1, 2]
    """
    for epoch in range(first, count + 1):
        begin = time.perf_counter()
        batches = loader(epoch) if callable(loader) else loader
        loss, score, rates = _train_epoch(trainer, _bar(batches, progress, f"epoch {epoch}/{count}"), metric)
        seconds = time.perf_counter() - begin
        if epoch == 1:
            _warn_of_silence(rates)
        if trainer.average_weights == "epoch":
            trainer.regularizer.load_averages()
        val = None if val_loader is None else evaluate(trainer, val_loader, metric=metric)
        yield EpochRecord(epoch, loss, score, val, rates, trainer.updates, seconds)


def fit(
    trainer: Trainer,
    progress: Progress,
    loader: Iterable[Any],
    count: int,
    *,
    val_loader: Iterable[Any] | None = None,
    scheduler: Any = None,
    metric: Metric = accuracy,
    higher_is_better: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    bar: bool = True,
) -> list[EpochRecord]:
    """Implement :meth:`FPTTTrainer.fit`."""
    _check(scheduler, higher_is_better, checkpoint)
    progress.use(scheduler, trainer.optimizer)
    done = len(progress.history)
    kind = f"{'highest' if higher_is_better else 'lowest'} {getattr(metric, '__name__', type(metric).__name__)}"
    kind += ", validation" if val_loader is not None else ", training"
    every = epochs(trainer, loader, done + count, first=done + 1, val_loader=val_loader, metric=metric, progress=bar)
    for record in every:
        progress.history.append(record)
        current = record.train_score if record.val_score is None else record.val_score
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(current)
        elif scheduler is not None:
            scheduler.step()
        if checkpoint is not None:
            best = Best(current, Path(checkpoint).name, kind)
            if progress.is_best(best, Path(checkpoint), higher_is_better=higher_is_better):
                progress.best = best
                trainer.save(checkpoint)
    return progress.history[done:]


def evaluate(
    trainer: Trainer, loader: Iterable[Any], *, metric: Metric = accuracy, averaged: bool | None = None
) -> float:
    """Implement :meth:`FPTTTrainer.evaluate`."""
    device = _device(trainer)
    score, seen = torch.zeros((), device=device), 0
    with trainer.evaluation(averaged):
        for parts in _interruptible(loader):
            batch = trainer.prepare(*_tensors(parts, device))

            def visit(t: int, output: Tensor, batch: Batch = batch) -> None:
                nonlocal score, seen
                total, count = _score(metric, *batch.scored_at(t, output))
                score, seen = score + total, seen + count

            if batch.per_sequence:
                total, count = _score(metric, *batch.scored(trainer.visit(batch)))
                score, seen = score + total, seen + count
            else:
                trainer.visit(batch, visit)
    if seen == 0:
        raise BatchError("the loader gave no batch to evaluate, or no labelled sample")
    return score.item() / seen


def _train_epoch(trainer: Trainer, batches: Any, metric: Metric) -> tuple[float, float, dict[str, float]]:
    """Mean loss, mean score and firing rates of one pass over the data."""
    if not trainer.net.training:  # a layer that the user put into evaluation mode stays there
        trainer.net.train()
    device = _device(trainer)
    loss, score, seen, scored = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0
    learned = torch.zeros((), device=device)  # samples whose sequence had a loss
    with FiringRates(trainer.net) as firing:
        for parts in _interruptible(batches):
            batch = trainer.prepare(*_tensors(parts, device))
            if metric is accuracy and trainer.updates == seen == 0:
                _try_metric(trainer, batch, metric)
            result = trainer.train_batch(batch)
            loss += batch.size * result.loss.nan_to_num(0.0)
            learned += batch.size * result.loss.isfinite()
            total, count = _score(metric, *batch.scored(result.output))
            score, scored = score + total, scored + count
            seen += batch.size
            if hasattr(batches, "set_postfix"):
                rates = firing.rates().values()
                figures = {
                    "loss": f"{(loss / learned).item():.3f}",
                    getattr(metric, "__name__", "metric"): f"{score.item() / max(scored, 1):.3f}",
                    "firing rate": f"{100 * sum(rates) / max(len(rates), 1):.1f}%",
                }
                batches.set_postfix(figures)
    if seen == 0:
        raise BatchError(
            "the loader gave no batch: the data set is empty, or smaller than a batch with drop_last=True, or it is a "
            "generator, which is used up after one epoch",
            "pass a DataLoader or a list",
        )
    mean_loss = loss.item() / (learned.item() or math.nan)
    return mean_loss, score.item() / scored if scored else math.nan, firing.rates()


def _warn_of_silence(rates: dict[str, float]) -> None:
    """Warn of layers that hardly fire in the first epoch: what lies behind them gets little to learn from."""
    silent = [f"{name!r} ({100 * rate:.2g} %)" for name, rate in rates.items() if rate < SILENT]
    if silent:
        warnings.warn(
            f"{', '.join(silent)}: fired in less than {100 * SILENT:g} % of neurons and time steps in the first epoch. "
            "Lower the threshold or beta (an LTCLeaky with beta=0.9 takes in a tenth of its input per step, and needs "
            "tens of steps to reach its threshold), or scale up the input or the initial weights",
            FPTTWarning,
            stacklevel=4,
        )


def _check(scheduler: Any, higher_is_better: bool, checkpoint: str | PathLike[str] | None) -> None:
    """Check before the first update what would only show after the first epoch."""
    if scheduler is not None and not hasattr(scheduler, "step"):
        raise ConfigurationError(f"scheduler must be one of torch.optim.lr_scheduler, got {scheduler!r}")
    mode = "max" if higher_is_better else "min"
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != mode:
        raise ConfigurationError(
            f"ReduceLROnPlateau has mode={scheduler.mode!r}, and the metric is better when "
            f"{'higher' if higher_is_better else 'lower'}",
            f"build the scheduler with mode={mode!r}, or pass higher_is_better={not higher_is_better} with a metric of "
            "your own",
        )
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ConfigurationError(f"the folder of checkpoint={str(checkpoint)!r} does not exist", "make it first")


def _score(metric: Metric, output: Tensor, target: Tensor) -> tuple[Tensor | float, int]:
    """Metric times the number of samples, and that number."""
    return (len(output) * metric(output, target) if len(output) else 0.0), len(output)


def _try_metric(trainer: Trainer, batch: Batch, metric: Metric) -> None:
    """Try a metric that does not count its calls on the untrained network: before the first update."""
    with trainer.evaluation(averaged=False), torch.random.fork_rng(), unobserved(trainer.net):
        _score(metric, *batch.scored(trainer.visit(batch)))


def _interruptible(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; signals are handled while it loads, and those that came meanwhile."""
    with Interruptible():
        batches = iter(loader)
    while True:
        with Interruptible():
            try:
                parts = next(batches)
            except StopIteration:
                return
        yield parts


def _tensors(parts: Any, device: torch.device) -> list[Tensor]:
    """The parts of a batch on the network's device.

    Raises:
        BatchTypeError: If the loader gives something else than ``(x, y)`` or ``(x, y, mask)`` of tensors.
    """
    if not isinstance(parts, (tuple, list)) or len(parts) not in (2, 3):
        what = f"{len(parts)} parts" if isinstance(parts, (tuple, list)) else f"a {type(parts).__name__}"
        raise BatchTypeError(
            f"the loader gave {what} per batch, where fit() and evaluate() take (x, y) or (x, y, mask)",
            "wrap it, e.g. [(batch['x'], batch['y']) for batch in loader], or give the DataLoader a collate_fn that "
            "returns these",
        )
    for part in parts:
        if not isinstance(part, Tensor):
            raise BatchTypeError(
                f"the loader gave a {type(part).__name__} where a tensor belongs, in a batch of "
                f"({', '.join(type(entry).__name__ for entry in parts)})",
                "convert it, e.g. with torch.as_tensor() in a collate_fn",
            )
    return [part.to(device) for part in parts]


def _device(trainer: Trainer) -> torch.device:
    return next(trainer.net.parameters()).device


def _bar(loader: Iterable[Any], progress: bool, title: str) -> Any:
    if not progress:
        return loader
    try:
        from tqdm.auto import tqdm
    except ImportError:  # a convenience, not a dependency
        return loader
    return tqdm(loader, desc=title, leave=False)
