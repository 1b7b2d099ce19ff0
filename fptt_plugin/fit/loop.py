"""Epochs over data loaders, through the trainer's public methods: ``epochs``, ``fit`` and ``evaluate``."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ..drivers import unobserved
from ..errors import BatchError, ConfigurationError, ConfigurationTypeError, FPTTWarning, integer
from ..monitor import FiringRates
from ..regularizer import DynamicRegularizer
from ..results import BatchRecord, EpochRecord, SequenceResult
from ..training import Batch, Objective
from ..tree import precise
from .batches import Batching, checked, interruptible, parts_of, with_samplers
from .callbacks import CallbackList, Callbacks
from .metrics import Metrics, Scores, accuracy, by_name, first_of, in_use, is_stateful
from .progress import Best, Progress
from .schedulers import check_schedule, check_scheduler
from .screen import bar_of, echo, line, postfix
from .watch import Watch

SILENT = 0.01  # firing rate below which a layer is warned of
UNREACHED = 1e6  # threshold from which on a neuron is meant not to fire


class Trainer(Protocol):
    """What these loops use of :class:`~fptt_plugin.FPTTTrainer`."""

    net: nn.Module
    optimizer: Optimizer
    objective: Objective
    regularizer: DynamicRegularizer
    average_weights: str

    @property
    def updates(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    def prepare(self, x: Any, y: Any, mask: Any = None) -> Batch: ...
    def train_batch(self, batch: Batch, visitor: Callable[[int, Any], None] | None = None) -> SequenceResult: ...
    def evaluation(self, averaged: bool | None = None) -> AbstractContextManager[None]: ...
    def visit(self, batch: Batch, visitor: Callable[[int, Any], None] | None = None) -> Any: ...
    def save(self, path: str | PathLike[str]) -> None: ...


class Run(NamedTuple):
    """What the epochs of one call share.

    Attributes:
        metric: One metric, several by name, or ``None``.
        batching: How the loader's batches are read.
        callbacks: Whose hooks are called.
        check: Called with the scores of the first batch.
        stopping: Whether the epoch is to end with the present batch.
        step: Called after each batch: the step of a scheduler.
        bar: Whether to show a progress bar.
    """

    metric: Metrics = accuracy
    batching: Batching = None
    callbacks: CallbackList = CallbackList(())
    check: Callable[[Scores], None] | None = None
    stopping: Callable[[], bool] = bool  # False
    step: Callable[[], None] | None = None
    bar: bool = False


def epochs(
    trainer: Trainer,
    loader: Iterable[Any] | Callable[[int], Iterable[Any]],
    count: int,
    *,
    first: int = 1,
    val_loader: Iterable[Any] | None = None,
    metric: Metrics = accuracy,
    batch: Batching = None,
    progress: bool = False,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch; the caller does what is to be done between two epochs.

    With ``average_weights="epoch"`` the averages are loaded into the weights at the end of each epoch.

    Args:
        trainer: An :class:`~fptt_plugin.FPTTTrainer`.
        loader: Gives batches as :meth:`~fptt_plugin.FPTTTrainer.fit` takes them; or ``loader(epoch)``, called at the
            start of each epoch, returns what does: the place to seed a sampler or to set a learning rate.
        count: Number of the last epoch, inclusive.
        first: Number of the first epoch, to resume.
        val_loader: Evaluated after each epoch.
        metric: See :meth:`~fptt_plugin.FPTTTrainer.fit`.
        batch: See :meth:`~fptt_plugin.FPTTTrainer.fit`.
        progress: Show a progress bar in a terminal or notebook, where ``tqdm`` is installed.

    Yields:
        One record per epoch, right after it.

    Raises:
        ConfigurationTypeError: If ``first`` or ``count`` is no integer.

    Example:
        >>> import snntorch as snn
        >>> from fptt_plugin import FPTTTrainer
        >>> net = nn.Sequential(nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
        >>> trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss())
        >>> loader = [(torch.rand(5, 4, 2), torch.randint(3, (4,)))]
        >>> [record.epoch for record in epochs(trainer, loader, 2)]
        [1, 2]
    """
    by_name(metric)
    begin, end = integer(first), integer(count)
    if begin is None or end is None:
        raise ConfigurationTypeError(f"first and count must be numbers of epochs, got {first!r} and {count!r}")
    return _epochs(trainer, loader, end, begin, val_loader, Run(metric, checked(batch), bar=progress))


def _epochs(
    trainer: Trainer,
    loader: Iterable[Any] | Callable[[int], Iterable[Any]],
    count: int,
    first: int,
    val_loader: Iterable[Any] | None,
    run: Run,
) -> Iterator[EpochRecord]:
    for epoch in range(first, count + 1):
        run.callbacks.call("on_epoch_begin", trainer, epoch)
        begin, updates, skipped = time.perf_counter(), trainer.updates, trainer.skipped
        batches = loader(epoch) if callable(loader) else loader
        _set_epoch(batches, epoch)
        with bar_of(batches, run.bar, f"epoch {epoch}/{count}") as bar:
            record = _train_epoch(trainer, batches, epoch, run, bar)
        seconds = time.perf_counter() - begin
        if trainer.updates == updates and (trainer.skipped > skipped or math.isnan(record.loss)):
            _warn_of_idleness(epoch, trainer.skipped - skipped)
        if epoch == 1:
            _warn_of_silence(record.firing_rates, trainer)
        if trainer.average_weights == "epoch":
            trainer.regularizer.load_averages()
        record = record._replace(updates=trainer.updates, seconds=seconds)
        if val_loader is not None:
            scores, loss = _evaluate(trainer, val_loader, run.metric, run.batching)
            record = record._replace(val_score=first_of(scores), val_scores=scores, val_loss=loss)
        yield record


def fit(
    trainer: Trainer,
    progress: Progress,
    loader: Iterable[Any] | Callable[[int], Iterable[Any]],
    count: int,
    *,
    val_loader: Iterable[Any] | None = None,
    batch: Batching = None,
    scheduler: Any = None,
    scheduler_interval: str | None = None,
    metric: Metrics = accuracy,
    monitor: str | None = None,
    higher_is_better: bool | None = None,
    patience: int | None = None,
    checkpoint: str | PathLike[str] | None = None,
    callbacks: Callbacks = (),
    show: bool = True,
) -> list[EpochRecord]:
    """Implement :meth:`~fptt_plugin.FPTTTrainer.fit`."""
    watch = Watch(metric, monitor, higher_is_better, patience, validates=val_loader is not None)
    hooks = CallbackList(callbacks)
    batching = checked(batch)
    count = _epoch_count(count)
    _check(loader, val_loader, checkpoint)
    interval = check_scheduler(scheduler, scheduler_interval, trainer.optimizer, watch)
    if scheduler is not None:
        loaded = progress.loaded_schedule(scheduler)
        check_schedule(loaded or scheduler.state_dict(), interval, loader, count, loaded=bool(loaded))
    progress.use_scheduler(scheduler, trainer.optimizer)
    progress.use_generators((loader, val_loader))
    progress.running, progress.stopping = True, False
    records: list[EpochRecord] = []  # of this call: what a callback loads replaces the history
    run = Run(
        metric,
        batching,
        hooks,
        check=watch.check,
        stopping=lambda: progress.stopping,
        step=scheduler.step if interval == "batch" else None,
        bar=show,
    )
    try:
        hooks.call("on_fit_begin", trainer)
        done = len(progress.history)
        every = _epochs(trainer, loader, done + count, done + 1, val_loader, run)
        for _ in range(count):
            if progress.stopping or watch.is_over(progress.history, show):
                break
            with progress.epoch(trainer.optimizer, steps_per_batch=run.step is not None):
                record = next(every)
            progress.history.append(record)
            records.append(record)
            current = watch.value(record)
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(current)
            elif interval == "epoch" and scheduler is not None:
                scheduler.step()
            if checkpoint is not None:
                best = Best(current, Path(checkpoint).name, watch.kind)
                if progress.is_best(best, Path(checkpoint), higher_is_better=watch.higher_is_better):
                    progress.best = best
                    trainer.save(checkpoint)
            if show:
                echo(line(record, done + count))
            hooks.call("on_epoch_end", trainer, record)
    finally:
        progress.running = False
        hooks.call("on_fit_end", trainer)
    return records


def _epoch_count(given: Any) -> int:
    count = integer(given)
    if count is None:
        remedy = "pass it by name, val_loader=..." if hasattr(given, "__iter__") else "pass a whole number"
        raise ConfigurationTypeError(
            f"epochs must be a number, and the second argument of fit() is a {type(given).__name__}", remedy
        )
    return count


def _check(loader: Any, val_loader: Any, checkpoint: str | PathLike[str] | None) -> None:
    """Check what would only show after the first epoch."""
    if val_loader is not None and val_loader is loader and iter(loader) is loader:
        raise ConfigurationError("loader and val_loader are one generator, which is used up after one epoch")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ConfigurationError(f"the folder of checkpoint={str(checkpoint)!r} does not exist", "make it first")
    if checkpoint is not None and Path(checkpoint).is_dir():
        path = str(Path(checkpoint) / "best.pt")
        raise ConfigurationError(f"checkpoint={str(checkpoint)!r} is a folder", f"name a file, checkpoint={path!r}")


def evaluate(
    trainer: Trainer,
    loader: Iterable[Any],
    *,
    metric: Metrics = accuracy,
    batch: Batching = None,
    averaged: bool | None = None,
) -> float | dict[str, float]:
    """Implement :meth:`~fptt_plugin.FPTTTrainer.evaluate`."""
    scores, loss = _evaluate(trainer, loader, metric, checked(batch), averaged=averaged, with_loss=metric is None)
    if metric is None:
        return loss
    is_single = not isinstance(metric, Mapping) and scores.keys() == by_name(metric).keys()
    return first_of(scores) if is_single else scores


# ---------------------------------------------------------------------- one pass over the data


def _evaluate(
    trainer: Trainer,
    loader: Iterable[Any],
    metric: Metrics,
    batching: Batching,
    *,
    averaged: bool | None = None,
    with_loss: bool = True,
) -> tuple[dict[str, float], float]:
    """Scores and loss of the decisions."""
    with in_use(metric), trainer.evaluation(averaged):
        decisions = Decisions(trainer, metric, with_loss=with_loss)
        for given in interruptible(loader):
            batch = trainer.prepare(*parts_of(given, batching))
            if batch.per_sequence:
                decisions.note(*batch.scored(trainer.visit(batch)))
            else:
                trainer.visit(batch, decisions.visitor(batch))
    if decisions.samples == 0:
        raise BatchError("the loader gave no batch to evaluate, or no labeled sample")
    return decisions.scores.compute(), decisions.loss


def _train_epoch(trainer: Trainer, batches: Iterable[Any], epoch: int, run: Run, bar: Any) -> EpochRecord:
    """Figures of one pass over the data, those of validation apart."""
    if not trainer.net.training:  # a layer that the user put into evaluation mode stays there
        trainer.net.train()
    loss, norm = _Mean(trainer, finite=True), _Mean(trainer, finite=True)  # without updates that were skipped
    seen, lr = 0, math.nan
    with in_use(run.metric), FiringRates(trainer.net) as firing:
        decisions = Decisions(trainer, run.metric)
        for number, given in enumerate(interruptible(batches), start=1):
            batch = trainer.prepare(*parts_of(given, run.batching))
            if trainer.updates == seen == 0:
                _try_metrics(trainer, batch, run.metric)
            lr = float(trainer.optimizer.param_groups[0]["lr"])
            before, counted = trainer.updates, decisions.samples
            if batch.per_sequence:
                result = trainer.train_batch(batch)
                decisions.note(*batch.scored(result.output))
            else:
                result = trainer.train_batch(batch, decisions.visitor(batch))
            if run.check is not None and number == 1:
                run.check(decisions.scores)
            loss.add(result.loss, decisions.samples - counted)
            gradient = trainer.regularizer.grad_norm if trainer.updates > before else None
            if gradient is not None:
                norm.add(gradient, 1)
            seen += batch.size
            if run.step is not None:
                run.step()
            if bar is not None:
                bar.set_postfix(postfix(loss.value, decisions.scores.so_far(), firing.rates()))
                bar.update()
            if run.callbacks.watch_batches:
                record = BatchRecord(
                    epoch, number, batch.size, result.loss, result.output, gradient, lr, trainer.updates
                )
                with firing.paused():
                    run.callbacks.call("on_batch_end", trainer, record)
            if run.stopping():
                break
    if seen == 0:
        raise BatchError(
            "the loader gave no batch: the data set is empty, or smaller than a batch with drop_last=True, or it is a "
            "generator, which is used up after one epoch",
            "pass a DataLoader or a list",
        )
    scores = decisions.scores.compute()
    return EpochRecord(
        epoch,
        loss.value,
        first_of(scores),
        None,
        firing.rates(),
        trainer.updates,
        0.0,
        decision_loss=decisions.loss,
        train_scores=scores,
        val_scores={},
        lr=lr,
        grad_norm=norm.value if norm.count else None,
    )


class Decisions:
    """Metrics and loss of decisions, or of the outputs of every step with a target of its own.

    Args:
        trainer: Whose loss function it is.
        metric: One metric, several by name, or ``None``.
        with_loss: Whether the loss is asked for; a metric may take targets that the loss function does not.
    """

    def __init__(self, trainer: Trainer, metric: Metrics, *, with_loss: bool = True) -> None:
        self.scores = Scores(metric, _device(trainer))
        self._objective = trainer.objective
        self._with_loss = with_loss
        self._loss = _Mean(trainer)

    @property
    def samples(self) -> int:
        return self.scores.samples

    @property
    def loss(self) -> float:
        """``loss_fn(output, target)`` of all samples at once."""
        return self._loss.total if self._objective.is_sum else self._loss.value

    def note(self, output: Any, target: Any) -> None:
        """Take in the samples that count."""
        before = self.samples
        with torch.no_grad():
            self.scores.update(output, target)
            if self._with_loss and self.samples > before:
                loss = self._objective.loss_of(output, target)
                self._loss.add(loss, 1 if self._objective.is_sum else self._objective.amount(target))

    def visitor(self, batch: Batch) -> Callable[[int, Any], None]:
        """What takes in the output of every step of a batch."""
        return lambda t, output: self.note(*batch.scored_at(t, output))


class _Mean:
    """A weighted mean that stays on the device; what has no weight, such as a loss without a target, does not count.

    Args:
        trainer: Whose device it is.
        finite: Whether only finite values count.
    """

    def __init__(self, trainer: Trainer, *, finite: bool = False) -> None:
        device = _device(trainer)
        self._total = self._weight = torch.zeros((), device=device, dtype=precise(device))
        self._finite = finite
        self.count = 0

    def add(self, value: Tensor, weight: Tensor | int) -> None:
        value = value.detach().to(self._total)
        # A number is written on the device: to copy it there would wait.
        weight = weight.to(value) if isinstance(weight, Tensor) else torch.full_like(value, weight)
        counts = weight > 0
        if self._finite:
            counts &= value.isfinite()
        self._total = self._total + torch.where(counts, weight * value, 0.0)
        self._weight = self._weight + torch.where(counts, weight, 0.0)
        self.count += 1

    @property
    def value(self) -> float:
        return self._total.item() / (self._weight.item() or math.nan)

    @property
    def total(self) -> float:
        """The weighted sum, nan of nothing."""
        return self.value * self._weight.item()


def _try_metrics(trainer: Trainer, batch: Batch, metric: Metrics) -> None:
    """Try metrics that do not count their calls on the untrained network: before the first update."""
    known = {name: one for name, one in by_name(metric).items() if one is accuracy or is_stateful(one)}
    if not known:
        return
    with trainer.evaluation(averaged=False), torch.random.fork_rng(), unobserved(trainer.net):
        scores = Scores(known, _device(trainer))
        scores.update(*batch.scored(trainer.visit(batch)))
    for one in filter(is_stateful, known.values()):
        one.reset()


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tell a sampler that shuffles by the number of the epoch, as that of DistributedDataParallel does."""
    for owner in with_samplers(loader):
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def _device(trainer: Trainer) -> torch.device:
    return next(trainer.net.parameters()).device


def _warn_of_idleness(epoch: int, skipped: int) -> None:
    """Warn of an epoch that left the weights as they were."""
    cause = (
        f"all of its {skipped} updates were skipped because something was not finite: lower the learning rate, or the "
        "initial scale of the GradScaler"
        if skipped
        else "none of its targets counts: look at the mask, and for labels that equal the loss function's ignore_index"
    )
    warnings.warn(f"epoch {epoch} made no update; {cause}", FPTTWarning, stacklevel=5)


def _warn_of_silence(rates: dict[str, float], trainer: Trainer) -> None:
    """Warn of layers that hardly fire in the first epoch: what lies behind them gets little to learn from."""
    layers = {name: trainer.net.get_submodule(name) for name in rates}
    silent = [name for name, rate in rates.items() if rate < SILENT and not _never_fires(layers[name])]
    if not silent:
        return
    listed = ", ".join(f"{name!r} ({100 * rates[name]:.2g} %)" for name in silent)
    liquid = any(hasattr(layers[name], "mem_gate") for name in silent)
    remedies = ["lower the threshold, or the time constant (beta, tau) of the neurons"]
    if liquid:
        remedies[0] += " (an LTCLeaky with beta=0.9 takes in a tenth of its input per step)"
    remedies += ["scale up the input or the initial weights"]
    if trainer.regularizer.alpha > 0:
        remedies += ["compare with alpha=0, since the regularizer slows training down where gradients are small"]
    warnings.warn(
        f"{listed}: fired in less than {100 * SILENT:g} % of neurons and time steps in the first epoch; "
        + ", or ".join(remedies),
        FPTTWarning,
        stacklevel=5,
    )


def _never_fires(layer: nn.Module) -> bool:
    """Whether a neuron has a threshold out of reach: its membrane is read instead."""
    threshold = getattr(layer, "v_threshold", getattr(layer, "threshold", 0.0))
    return bool(torch.as_tensor(threshold).min() >= UNREACHED)
