"""What is called while ``fit`` runs: objects with hooks, or plain functions at the end of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import ConfigurationError
from ..interrupts import Interruptible
from ..results import BatchRecord, EpochRecord

HOOKS = ("on_fit_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_fit_end")


class Callback:
    """Hooks of :meth:`~fptt_plugin.FPTTTrainer.fit`: derive from this class, or write one that has some of its methods.

    Each hook gets the trainer, and may look at everything, change learning rates, save, evaluate, and call
    :meth:`~fptt_plugin.FPTTTrainer.stop`. Callbacks are called in the order in which they are passed. An exception ends
    ``fit``.

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
Callbacks = Iterable[Callback | EpochFunction | Any]


class CallbackList:
    """Calls the hooks that callbacks have; a function without hooks is called at the end of each epoch.

    Signals such as Ctrl-C are handled within: a logger may wait for a network.

    Raises:
        ConfigurationError: If one has no hook and cannot be called.
    """

    def __init__(self, callbacks: Callbacks) -> None:
        if callable(callbacks) or any(hasattr(callbacks, hook) for hook in HOOKS):
            raise ConfigurationError(f"callbacks is {callbacks!r}", "pass a list, callbacks=[...]")
        self._hooks: dict[str, list[Callable[..., Any]]] = {hook: [] for hook in HOOKS}
        for callback in callbacks:
            found = {hook: getattr(callback, hook) for hook in HOOKS if callable(getattr(callback, hook, None))}
            if isinstance(callback, type) or not (found or callable(callback)):
                raise ConfigurationError(
                    f"the callback {callback!r} has none of the hooks {', '.join(HOOKS)}",
                    "pass an object with one of them, or a function(trainer, record) for the end of each epoch",
                )
            for hook, function in (found or {"on_epoch_end": callback}).items():
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
