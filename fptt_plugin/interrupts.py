"""Signals such as Ctrl-C wait while things change that belong together: weights, averages, optimizer and counters.

A public call of the trainer holds signals back from its first line to its last, and lets them in where nothing is lost:
during the network's forward pass, while data are loaded. The other way round, with each change guarded by itself, an
interrupt could still come between the end of a ``with`` block and the line that tidies up after it.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

# Signals whose Python handlers commonly raise: Ctrl-C, cluster schedulers, time limits.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


class _Gate:
    """What the contexts of the main thread share, in which alone Python runs signal handlers.

    Attributes:
        is_open: Whether a signal is handled as it comes.
        handlers: The user's handlers, while ours are in their place.
    """

    def __init__(self) -> None:
        self.is_open = True
        self.handlers: dict[int, Any] = {}
        self._waiting: dict[int, FrameType | None] = {}

    def install(self) -> None:
        """Put our handler in the place of the user's, with the gate closed."""
        self.is_open = False
        try:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self.handlers[number] = handler
                    signal.signal(number, self._receive)
        except BaseException:  # a signal that came before its handler was replaced
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """Restore the user's handlers, then handle what has waited."""
        handlers, self.handlers = self.handlers, {}
        self.is_open = True
        # SIGINT last: should it come now, no other is left behind.
        for number, handler in reversed(handlers.items()):
            signal.signal(number, handler)
        self._deliver(handlers)

    def set(self, is_open: bool) -> None:
        """Open the gate, and handle what has waited, or close it."""
        self.is_open = is_open
        if is_open and self._waiting:
            self._deliver(self.handlers)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.is_open and number in self.handlers:
            self.handlers[number](number, frame)
        else:
            self._waiting[number] = frame

    def _deliver(self, handlers: dict[int, Any]) -> None:
        while self._waiting:
            number, frame = self._waiting.popitem()
            if number in handlers:
                handlers[number](number, frame)


_gate = _Gate()


class Uninterrupted:
    """Context in which a signal waits: its Python handler, such as that of Ctrl-C, runs when the context is left.

    In other threads than the main one the context does nothing: no handler runs there.

    Example:
        >>> _ = signal.signal(signal.SIGINT, signal.default_int_handler)  # as at the start, unless a shell ignores it
        >>> try:
        ...     with Uninterrupted():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("the work is done")
        ... except KeyboardInterrupt:
        ...     print("then the interrupt comes")
        the work is done
        then the interrupt comes
    """

    def __enter__(self) -> None:
        self._is_main = threading.current_thread() is threading.main_thread()
        if not self._is_main:
            return
        self._is_outermost, self._was_open = not _gate.handlers, _gate.is_open
        if self._is_outermost:
            _gate.install()
        else:
            _gate.set(False)

    def __exit__(self, *error: object) -> None:
        if not self._is_main:
            return
        if self._is_outermost:
            _gate.uninstall()
        else:
            _gate.set(self._was_open)


class Interruptible:
    """Context within :class:`Uninterrupted` in which signals are handled as they come, and those that waited at once.

    Example:
        >>> _ = signal.signal(signal.SIGINT, signal.default_int_handler)  # as at the start, unless a shell ignores it
        >>> try:
        ...     with Uninterrupted():
        ...         signal.raise_signal(signal.SIGINT)
        ...         with Interruptible():
        ...             print("not reached")
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        interrupted
    """

    def __enter__(self) -> None:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._was_open = _gate.is_open
            _gate.set(True)

    def __exit__(self, *error: object) -> None:
        if self._is_main:
            _gate.is_open = self._was_open
