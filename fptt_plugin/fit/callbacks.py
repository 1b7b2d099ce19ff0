"""What is called while ``fit`` runs: objects with hooks, or plain functions at the end of each epoch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ConfigurationError
from ..interrupts import Interruptible
from ..results import BatchRecord, EpochRecord

HOOKS = {  # and what each is called with
    "on_fit_begin": ("trainer",),
    "on_epoch_begin": ("trainer", "epoch"),
    "on_batch_end": ("trainer", "record"),
    "on_epoch_end": ("trainer", "record"),
    "on_fit_end": ("trainer",),
}


class Callback:
    """Hooks of :meth:`~fptt_plugin.FPTTTrainer.fit`: derive from this class, or write one that has some of its methods.

    Each hook gets the trainer, and may look at everything, change learning rates, save, load, evaluate (with a metric
    object of its own), and call :meth:`~fptt_plugin.FPTTTrainer.stop`. Callbacks are called in the order in which they
    are passed. An exception ends ``fit``.

    Example:
        >>> class Patience(Callback):
        ...     def on_epoch_end(self, trainer, record):
        ...         if record.val_loss > 2 * min(past.val_loss for past in trainer.history):
        ...             trainer.stop()
    """

    def on_fit_begin(self, trainer: Any) -> None:
        """Before the first epoch; ``trainer.history`` has those of earlier calls and of a loaded checkpoint.

        Args:
            trainer: The trainer.
        """

    def on_epoch_begin(self, trainer: Any, epoch: int) -> None:
        """Before an epoch, numbered from 1 over all calls.

        Args:
            trainer: The trainer.
            epoch: Its number.
        """

    def on_batch_end(self, trainer: Any, record: BatchRecord) -> None:
        """After a batch, its update and the step of a scheduler per batch; tensors are on the network's device.

        Args:
            trainer: The trainer.
            record: Figures of the batch.
        """

    def on_epoch_end(self, trainer: Any, record: EpochRecord) -> None:
        """After an epoch: it is the last of ``trainer.history``, the scheduler and the best checkpoint are done.

        Args:
            trainer: The trainer.
            record: Figures of the epoch.
        """

    def on_fit_end(self, trainer: Any) -> None:
        """After the last epoch, and after an error or interrupt.

        Args:
            trainer: The trainer.
        """


EpochFunction = Callable[[Any, EpochRecord], Any]
Callbacks = Iterable[Callback | EpochFunction | Any] | None


class CallbackList:
    """Calls the hooks that callbacks have; a function without hooks is called at the end of each epoch.

    Signals such as Ctrl-C are handled within: a logger may wait for a network.

    Raises:
        ConfigurationError: If one has no hook and cannot be called, or does not take what its hook is called with.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        callbacks = () if callbacks is None else callbacks
        is_one = callable(callbacks) or any(hasattr(callbacks, hook) for hook in HOOKS)
        if is_one or not isinstance(callbacks, Iterable):
            raise ConfigurationError(f"callbacks is {callbacks!r}", "pass a list, callbacks=[...]")
        self._hooks: dict[str, list[Callable[..., Any]]] = {hook: [] for hook in HOOKS}
        for callback in callbacks:
            for hook, function in _hooks_of(callback).items():
                _check_arguments(callback, hook, function)
                self._hooks[hook].append(function)

    @property
    def watch_batches(self) -> bool:
        """Whether any of them looks at batches."""
        return bool(self._hooks["on_batch_end"])

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback that has it."""
        for function in self._hooks[hook]:
            with Interruptible():
                function(*arguments)


def _hooks_of(callback: Any) -> dict[str, Callable[..., Any]]:
    """What is called of a callback, by hook."""
    found = {hook: getattr(callback, hook) for hook in HOOKS if callable(getattr(callback, hook, None))}
    names = ", ".join(HOOKS)
    if isinstance(callback, type) or not (found or callable(callback)):
        raise ConfigurationError(
            f"the callback {callback!r} has none of the hooks {names}",
            "pass an object with one of them, or a function(trainer, record) for the end of each epoch",
        )
    if isinstance(callback, Callback):  # whose own hooks hide a misspelled one
        others = [name for name in dir(callback) if name.startswith("on_") and name not in HOOKS]
        if others:
            raise ConfigurationError(
                f"the callback {callback!r} has {', '.join(others)}, which fit() never calls", f"the hooks are {names}"
            )
    return found or {"on_epoch_end": callback}


def _check_arguments(callback: Any, hook: str, function: Callable[..., Any]) -> None:
    """Check now what would only show when the hook is called, maybe after hours."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of something built in
        return
    try:
        signature.bind(*HOOKS[hook])
    except TypeError as error:
        name = f"{hook} of the callback {callback!r}" if function is not callback else f"the callback {callback!r}"
        raise ConfigurationError(
            f"{name} takes {signature}, and is called with ({', '.join(HOOKS[hook])})", "give it these arguments"
        ) from error
