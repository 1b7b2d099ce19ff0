"""Epochs over data loaders, through the trainer's public methods: ``epochs``, ``fit`` and ``evaluate``."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from ..errors import BatchError, ConfigurationError, ConfigurationTypeError, FPTTWarning, check_choice
from ..monitor import FiringRates, unobserved
from ..regularizer import DynamicRegularizer
from ..results import BatchRecord, EpochRecord, SequenceResult
from ..training import Batch, Objective
from .batches import Batching, checked, interruptible, parts_of
from .callbacks import CallbackList, Callbacks
from .metrics import Metrics, Scores, accuracy, by_name, is_stateful
from .progress import Best, Progress

SILENT = 0.01  # firing rate below which a layer is warned of
LOSS = "loss"  # what monitor calls the loss of the decision


class Trainer(Protocol):
    """What these loops use of :class:`~fptt_plugin.FPTTTrainer`."""

    net: nn.Module
    optimizer: Optimizer
    objective: Objective
    regularizer: DynamicRegularizer
    average_weights: str

    @property
    def updates(self) -> int: ...
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
        count: Number of the last epoch.
        first: Number of the first epoch, to resume.
        val_loader: Evaluated after each epoch.
        metric: See :meth:`~fptt_plugin.FPTTTrainer.fit`.
        batch: See :meth:`~fptt_plugin.FPTTTrainer.fit`.
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
    by_name(metric)
    return _epochs(trainer, loader, count, first, val_loader, Run(metric, checked(batch), bar=progress))


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
        begin = time.perf_counter()
        batches = loader(epoch) if callable(loader) else loader
        _set_epoch(batches, epoch)
        with _bar(batches, run.bar, f"epoch {epoch}/{count}") as bar:
            record = _train_epoch(trainer, batches, epoch, run, bar)
        seconds = time.perf_counter() - begin
        if epoch == 1:
            _warn_of_silence(record.firing_rates)
        if trainer.average_weights == "epoch":
            trainer.regularizer.load_averages()
        record = record._replace(updates=trainer.updates, seconds=seconds)
        if val_loader is not None:
            scores, loss = _evaluate(trainer, val_loader, run.metric, run.batching)
            record = record._replace(val_score=_first(scores), val_scores=scores, val_loss=loss)
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
    _check(loader, count, val_loader, checkpoint)
    interval = _check_scheduler(scheduler, scheduler_interval, trainer.optimizer, watch)
    if scheduler is not None:
        loaded = progress.loaded_schedule(scheduler)
        _check_schedule(loaded or scheduler.state_dict(), interval, loader, count, loaded=bool(loaded))
    progress.use_scheduler(scheduler, trainer.optimizer)
    progress.use_generators((loader, val_loader))
    progress.stopping = False
    done = len(progress.history)
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
        every = _epochs(trainer, loader, done + count, done + 1, val_loader, run)
        for _ in range(count):
            if progress.stopping or watch.is_over(progress.history, show):
                break
            with progress.epoch(trainer.optimizer, steps_per_batch=run.step is not None):
                record = next(every)
            progress.history.append(record)
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
                _print(_line(record, done + count))
            hooks.call("on_epoch_end", trainer, record)
    finally:
        hooks.call("on_fit_end", trainer)
    return progress.history[done:]


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
    return _first(scores) if is_single else scores


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
    """Scores and mean loss of the decisions."""
    decisions = Decisions(trainer, metric, with_loss=with_loss)
    with trainer.evaluation(averaged):
        for given in interruptible(loader):
            batch = trainer.prepare(*parts_of(given, batching))
            if batch.per_sequence:
                decisions.note(*batch.scored(trainer.visit(batch)))
            else:
                trainer.visit(batch, decisions.visitor(batch))
    if decisions.samples == 0:
        raise BatchError("the loader gave no batch to evaluate, or no labelled sample")
    return decisions.scores.compute(), decisions.loss


def _train_epoch(trainer: Trainer, batches: Iterable[Any], epoch: int, run: Run, bar: Any) -> EpochRecord:
    """Figures of one pass over the data, those of validation apart."""
    if not trainer.net.training:  # a layer that the user put into evaluation mode stays there
        trainer.net.train()
    decisions, loss, norm = Decisions(trainer, run.metric), _Mean(trainer), _Mean(trainer)
    seen, lr = 0, math.nan
    with FiringRates(trainer.net) as firing:
        for number, given in enumerate(interruptible(batches), start=1):
            batch = trainer.prepare(*parts_of(given, run.batching))
            if trainer.updates == seen == 0:
                _try_metrics(trainer, batch, run.metric)
            lr = float(trainer.optimizer.param_groups[0]["lr"])
            before = trainer.updates
            if batch.per_sequence:
                result = trainer.train_batch(batch)
                decisions.note(*batch.scored(result.output))
            else:
                result = trainer.train_batch(batch, decisions.visitor(batch))
            if run.check is not None and number == 1:
                run.check(decisions.scores)
            loss.add(result.loss, batch.size)
            gradient = trainer.regularizer.grad_norm if trainer.updates > before else None
            if gradient is not None:
                norm.add(gradient, 1)
            seen += batch.size
            if run.step is not None:
                run.step()
            if bar is not None:
                bar.set_postfix(_postfix(loss, decisions, firing))
                bar.update()
            if run.callbacks.watch_batches:
                record = BatchRecord(
                    epoch, number, batch.size, result.loss, result.output, gradient, lr, trainer.updates
                )
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
        _first(scores),
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
    """Metrics and mean loss of decisions, or of the outputs of every step with a target of its own.

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
        """Mean of ``loss_fn(output, target)`` over samples."""
        return self._loss.value

    def note(self, output: Any, target: Any) -> None:
        """Take in the samples that count."""
        before = self.samples
        with torch.no_grad():
            self.scores.update(output, target)
            if self._with_loss and self.samples > before:
                self._loss.add(self._objective.loss_of(output, target), self.samples - before)

    def visitor(self, batch: Batch) -> Callable[[int, Any], None]:
        """What takes in the output of every step of a batch."""
        return lambda t, output: self.note(*batch.scored_at(t, output))


class _Mean:
    """A weighted mean that stays on the device; what is not finite does not count."""

    def __init__(self, trainer: Trainer) -> None:
        self._total = torch.zeros((), device=_device(trainer))
        self._weight = torch.zeros((), device=_device(trainer))
        self.count = 0

    def add(self, value: Tensor, weight: int) -> None:
        value = value.detach().to(self._total.device, torch.float32)
        finite = value.isfinite()
        self._total = self._total + weight * torch.where(finite, value, 0.0)
        self._weight = self._weight + weight * finite
        self.count += 1

    @property
    def value(self) -> float:
        return self._total.item() / (self._weight.item() or math.nan)


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
    for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def _first(scores: Mapping[str, float]) -> float:
    return next(iter(scores.values()), math.nan)


def _device(trainer: Trainer) -> torch.device:
    return next(trainer.net.parameters()).device


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


# ---------------------------------------------------------------------- what decides


class Watch:
    """The figure by which the best epoch is chosen, the plateau seen and training stopped.

    Args:
        metric: One metric, several by name, or ``None``.
        monitor: Name of a metric, or ``"loss"``; ``None``: the first metric, without any the loss.
        higher_is_better: Its direction; ``None``: lower for the loss, higher for a metric.
        patience: Epochs without a better one after which training stops; ``None``: never.
        validates: Whether there is validation data.

    Raises:
        ConfigurationError: If these do not fit together.
    """

    def __init__(
        self,
        metric: Metrics,
        monitor: str | None,
        higher_is_better: bool | None,
        patience: int | None,
        *,
        validates: bool,
    ) -> None:
        self._names = list(by_name(metric))
        self._monitor = monitor or (None if self._names else LOSS)
        starts = tuple(f"{name}/" for name in self._names)  # a metric that gives several numbers
        named = self._monitor in (None, LOSS, *self._names) or str(self._monitor).startswith(starts)
        if isinstance(metric, Mapping) and not named:
            raise self._unknown(self._names)
        self.is_loss = self._monitor == LOSS and LOSS not in self._names
        if self.is_loss and higher_is_better:
            raise ConfigurationError("higher_is_better=True, and what is monitored is the loss", "leave it out")
        self.higher_is_better = not self.is_loss if higher_is_better is None else higher_is_better
        self._validates = validates
        self._patience = patience
        if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
            raise ConfigurationError(f"patience={patience!r} must be a number of epochs, 1 or more, or None")

    @property
    def kind(self) -> str:
        """What is monitored, in words."""
        name = self._monitor or self._names[0]
        better = "highest" if self.higher_is_better else "lowest"
        return f"{better} {name}, {'validation' if self._validates else 'training'}"

    def value(self, record: EpochRecord) -> float:
        """The figure of an epoch: of validation, without validation data of training.

        Raises:
            ConfigurationError: If ``monitor`` is none of the names.
        """
        validated = record.val_loss is not None and self._validates
        if self.is_loss:
            return record.val_loss if validated and record.val_loss is not None else record.decision_loss
        scores = record.val_scores if validated else record.train_scores
        if self._monitor is None:
            return _first(scores)
        if self._monitor not in scores:
            raise self._unknown(scores)
        return scores[self._monitor]

    def check(self, scores: Scores) -> None:
        """Check the scores of a first batch: names that a metric gives are known only then.

        Raises:
            ConfigurationError: If ``monitor`` is none of the names.
        """
        if self._monitor is None or self.is_loss or not scores.samples:
            return
        names = scores.compute()
        if self._monitor not in names:
            raise self._unknown(names)

    def _unknown(self, names: Iterable[str]) -> ConfigurationError:
        choices = ", ".join(map(repr, [*names, LOSS]))
        return ConfigurationError(f"monitor={self._monitor!r} is none of the figures", f"choose one of {choices}")

    def is_over(self, history: list[EpochRecord], show: bool) -> bool:
        """Whether the last ``patience`` epochs were no better than one before."""
        if self._patience is None:
            return False
        best, at = -math.inf, 0
        known = [record for record in history if self._fits(record, history[-1])]
        for place, record in enumerate(known, start=1):
            value = self.value(record) if self.higher_is_better else -self.value(record)
            if value > best:  # nan is not
                best, at = value, place
        over = bool(known) and len(known) - at >= self._patience
        if over and show:
            than = f"better epoch than {known[at - 1].epoch}" if at else "epoch with a score"
            _print(f"stopped: no {than} in {self._patience} ({self.kind})")
        return over

    def _fits(self, record: EpochRecord, last: EpochRecord) -> bool:
        """Whether an epoch, maybe of an earlier call, has the figure that the last one has."""
        if (record.val_loss is None) != (last.val_loss is None):
            return False
        return self.is_loss or next(iter(record.train_scores), None) == next(iter(last.train_scores), None)


# ---------------------------------------------------------------------- what is checked before the first update


def _check(loader: Any, count: Any, val_loader: Any, checkpoint: str | PathLike[str] | None) -> None:
    """Check what would only show after the first epoch."""
    if isinstance(count, bool) or not isinstance(count, int):
        remedy = "pass it by name, val_loader=..." if hasattr(count, "__iter__") else "pass a whole number"
        raise ConfigurationTypeError(
            f"epochs must be a number, and the second argument of fit() is a {type(count).__name__}", remedy
        )
    if val_loader is not None and val_loader is loader and iter(loader) is loader:
        raise ConfigurationError("loader and val_loader are one generator, which is used up after one epoch")
    if checkpoint is not None and not Path(checkpoint).parent.is_dir():
        raise ConfigurationError(f"the folder of checkpoint={str(checkpoint)!r} does not exist", "make it first")


def _check_scheduler(scheduler: Any, interval: str | None, optimizer: Optimizer, watch: Watch) -> str:
    """Check a scheduler; returns the interval at which it steps."""
    check_choice("scheduler_interval", interval, (None, "epoch", "batch"))
    if scheduler is None:
        if interval is not None:
            raise ConfigurationError(
                f"scheduler_interval={interval!r}, and there is no scheduler", "pass scheduler=..."
            )
        return "epoch"
    methods = ("step", "state_dict", "load_state_dict")
    if isinstance(scheduler, type) or not all(callable(getattr(scheduler, method, None)) for method in methods):
        raise ConfigurationError(
            f"scheduler must be one of torch.optim.lr_scheduler, or have its step(), state_dict() and "
            f"load_state_dict(), got {scheduler!r}",
            "build it; what else sets learning rates can do so in a callback",
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigurationError("the scheduler is of another optimizer", "build it with trainer.optimizer")
    mode = "max" if watch.higher_is_better else "min"
    if isinstance(scheduler, ReduceLROnPlateau):
        if interval == "batch":
            raise ConfigurationError("ReduceLROnPlateau needs a figure per epoch", "leave out scheduler_interval")
        if scheduler.mode != mode:
            raise ConfigurationError(
                f"ReduceLROnPlateau has mode={scheduler.mode!r}, and what it gets, the {watch.kind}, is better when "
                f"{'higher' if watch.higher_is_better else 'lower'}",
                f"build the scheduler with mode={mode!r}, pass higher_is_better={not watch.higher_is_better} with a "
                "metric of your own, or monitor='loss'",
            )
        return "epoch"
    needed = [p.name for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
    if [name for name in needed if name not in ("args", "kwargs")]:
        raise ConfigurationError(
            f"step() of a {type(scheduler).__name__} needs {', '.join(needed)}, and fit() calls it without",
            "call it in a callback",
        )
    return interval or ("batch" if _has_cycle(scheduler) else "epoch")


def _has_cycle(scheduler: Any) -> bool:
    """Whether it is a schedule that steps per batch, or chains one of these."""
    chained = getattr(scheduler, "_schedulers", ())
    return isinstance(scheduler, (OneCycleLR, CyclicLR)) or any(map(_has_cycle, chained))


def _check_schedule(state: Mapping[str, Any], interval: str, loader: Any, count: int, *, loaded: bool) -> None:
    """Check that a schedule with an end is long enough: its scheduler would raise in the middle of training.

    Args:
        state: With which the scheduler will begin.
        interval: At which it steps.
        loader: Gives an epoch's batches.
        count: Number of epochs.
        loaded: Whether the state is that of a checkpoint.
    """
    total, batches = state.get("total_steps"), _length(loader) if interval == "batch" else 1
    if total is None or batches is None:  # only OneCycleLR has an end
        return
    left, needed = total - state["last_epoch"], count * batches
    if needed > left:
        asked = f"{count} epoch(s) of {batches} batches" if interval == "batch" else f"{count} epoch(s)"
        remedy = (
            "build it with total_steps=epochs * len(loader); with scheduler_interval='epoch' it steps once per epoch"
        )
        if loaded:
            remedy = f"it is the checkpoint's: pass epochs={left // batches}, and another scheduler in the next call"
        raise ConfigurationError(
            f"OneCycleLR has {left} steps left of total_steps={total}, and {asked} take {needed}", remedy
        )


# ---------------------------------------------------------------------- the screen


def _line(record: EpochRecord, last: int) -> str:
    """What an epoch leaves on the screen."""
    parts = [f"loss {record.loss:.4g} (decision {record.decision_loss:.4g})"]
    parts += [f"{name} {score:.4g}" for name, score in record.train_scores.items()]
    if record.val_loss is not None:
        parts.append(f"val loss {record.val_loss:.4g}")
        parts += [f"val {name} {score:.4g}" for name, score in record.val_scores.items()]
    rates = record.firing_rates.values()
    parts += [f"firing rate {100 * sum(rates) / len(rates):.1f} %"] if rates else []
    parts += [f"grad norm {record.grad_norm:.3g}"] if record.grad_norm is not None else []
    parts += [f"lr {record.lr:.3g}", f"{record.seconds:.1f} s"]
    return f"epoch {record.epoch}/{last}: {', '.join(parts)}"


def _print(text: str) -> None:
    """Print a line, in one of the processes of a distributed training."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        print(text, flush=True)


def _postfix(loss: _Mean, decisions: Decisions, firing: FiringRates) -> dict[str, str]:
    rates = firing.rates().values()
    return {
        "loss": f"{loss.value:.3f}",
        **{name: f"{score:.3f}" for name, score in decisions.scores.so_far().items()},
        "firing rate": f"{100 * sum(rates) / max(len(rates), 1):.1f}%",
    }


def _bar(loader: Any, show: bool, title: str) -> AbstractContextManager[Any]:
    """A progress bar to update; ``None`` without."""
    if not show:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
    except ImportError:  # a convenience, not a dependency
        return nullcontext()
    # Beside the loader, not around it: tqdm would begin to iterate twice, and so change what a sampler draws.
    bar: AbstractContextManager[Any] = tqdm(total=_length(loader), desc=title, leave=False)
    return bar


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream of data
        return None
