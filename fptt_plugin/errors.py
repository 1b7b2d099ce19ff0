"""Exceptions and the warning class of the package.

Every refusal is an :class:`FPTTError` with its parts as attributes: the layer, the reason and the remedy. Each kind
also derives from the built-in exception that fits it, so ``except ValueError`` keeps working::

    FPTTError
    ├── ConfigurationError (ValueError)     options of a constructor, or options that do not fit together
    │   └── ConfigurationTypeError (TypeError)  options of the wrong type
    ├── CannotStepError    (ValueError)     a network or layer that cannot be trained step by step
    │   └── CannotRunError                  it does not run on the input: layout, size or type
    ├── BatchError         (ValueError)     data whose shape or values are impossible
    │   ├── BatchShapeError                 shapes that do not fit each other
    │   └── BatchTypeError (TypeError)      data of the wrong type
    ├── OutputError        (ValueError)     what the network or the loss function returned cannot be used
    ├── CheckpointError    (ValueError)     a file or state that is damaged or belongs to another network
    ├── CallOrderError     (RuntimeError)   a call that is impossible at this moment
    ├── WeightsChangedError (RuntimeError)  weights that were changed behind the regularizer's back
    └── NotFiniteError     (FloatingPointError)  a loss, gradient or state with nan or inf

    FPTTWarning (UserWarning)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any


class FPTTError(Exception):
    """Base class of all errors that the package raises on purpose.

    Args:
        reason: What is wrong, a clause without a full stop.
        remedy: What to do about it, as an imperative clause.
        layer: Name of the module that causes it, as in ``net.named_modules()``.
        layer_type: Its class, for the message.
        problems: The single errors, where several are raised at once.

    Example:
        >>> error = CannotStepError("computes all time steps at once", "use neuron.LIFNode", layer="3")
        >>> print(error)
        '3' computes all time steps at once: use neuron.LIFNode
        >>> error.layer, error.remedy, isinstance(error, ValueError)
        ('3', 'use neuron.LIFNode', True)
    """

    def __init__(
        self,
        reason: str,
        remedy: str = "",
        *,
        layer: str = "",
        layer_type: str = "",
        problems: Iterable[FPTTError] = (),
    ) -> None:
        self.reason = reason
        self.remedy = remedy
        self.layer = layer
        self.layer_type = layer_type
        self.problems = tuple(problems)
        super().__init__(reason, remedy)  # the positional arguments, so that the error pickles

    def __str__(self) -> str:
        kind = f" ({self.layer_type})" if self.layer_type else ""
        subject = f"{self.layer!r}{kind} " if self.layer else ""
        return f"{subject}{self.reason}{': ' + self.remedy if self.remedy else ''}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.remedy), vars(self)


class ConfigurationError(FPTTError, ValueError):
    """Options of a constructor that are impossible, or impossible together."""


class ConfigurationTypeError(ConfigurationError, TypeError):
    """Options of the wrong type, or arguments that exclude each other: a ``TypeError`` in snnTorch and SpikingJelly."""


class CannotStepError(FPTTError, ValueError):
    """A network, or a layer of it, that cannot be trained step by step."""


class CannotRunError(CannotStepError):
    """A network that does not run on the input as it is given: its layout, size or type is wrong."""


class BatchError(FPTTError, ValueError):
    """Inputs, targets or masks whose shapes or values are impossible."""


class BatchShapeError(BatchError):
    """Inputs and targets whose shapes do not fit each other."""


class BatchTypeError(BatchError, TypeError):
    """Inputs, targets or masks of the wrong type."""


class OutputError(FPTTError, ValueError):
    """What the network or the loss function returned cannot be used."""


class CheckpointError(FPTTError, ValueError):
    """A file or state that is damaged, or belongs to another network or optimizer."""


class CallOrderError(FPTTError, RuntimeError):
    """A call that is impossible at this moment."""


class WeightsChangedError(FPTTError, RuntimeError):
    """Weights that were changed from outside, so that their running averages no longer belong to them."""


class NotFiniteError(FPTTError, FloatingPointError):
    """A loss, gradient, statistic or state that is not finite."""


class FPTTWarning(UserWarning):
    """Every warning of the package; filter it with ``warnings.filterwarnings(..., category=FPTTWarning)``."""


class ErrorList:
    """Collects all problems with one constructor call and raises them at once.

    Args:
        subject: What is being built.

    Example:
        >>> problems = ErrorList("Thing")
        >>> problems.check(1 > 2, "size=1 must be at least 2")
        >>> problems.raise_any()
        Traceback (most recent call last):
        ...
        fptt_plugin.errors.ConfigurationError: Thing cannot be built:
        - size=1 must be at least 2
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._errors: list[FPTTError] = []

    def add(self, error: FPTTError) -> None:
        """Record one error."""
        self._errors.append(error)

    def check(self, condition: object, reason: str, remedy: str = "") -> None:
        """Record a :class:`ConfigurationError` unless the condition holds."""
        if not condition:
            self.add(ConfigurationError(reason, remedy))

    def check_choice(self, name: str, value: object, allowed: Iterable[object]) -> None:
        """Record a value that is not among those allowed."""
        try:
            check_choice(name, value, allowed)
        except ConfigurationError as error:
            self.add(error)

    def raise_any(self) -> None:
        """Raise what was recorded: the common class of all errors, :class:`ConfigurationError` for a mixture."""
        if not self._errors:
            return
        kinds = {type(error) for error in self._errors}
        kind = kinds.pop() if len(kinds) == 1 else ConfigurationError
        first = self._errors[0]
        listed = "\n".join(f"- {error}" for error in self._errors)
        raise kind(f"{self._subject} cannot be built:\n{listed}", problems=self._errors) from first.__cause__


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check that an option has one of its allowed values.

    Raises:
        ConfigurationError: If it does not; lists the allowed values.

    Example:
        >>> check_choice("reset", "half", ("zero", "none"))
        Traceback (most recent call last):
        ...
        fptt_plugin.errors.ConfigurationError: reset='half' is unknown; choose one of 'zero', 'none'
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigurationError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, allowed))}")


def integer(value: Any) -> int | None:
    """An integer of any type, such as one of numpy's, as an ``int``; ``None`` if it is none. Truth values are none.

    Example:
        >>> import numpy as np
        >>> integer(np.int64(4)), integer(4.0), integer(True)
        (4, None, None)
    """
    try:
        return None if str(getattr(value, "dtype", type(value).__name__)).endswith("bool") else operator.index(value)
    except TypeError:
        return None


def check_count(name: str, value: Any) -> int:
    """Return an option that counts something as an ``int``.

    Raises:
        ConfigurationTypeError: If it is no integer.
        ConfigurationError: If it is less than 1.

    Example:
        >>> check_count("steps", 0)
        Traceback (most recent call last):
        ...
        fptt_plugin.errors.ConfigurationError: steps=0 must be an integer >= 1
    """
    count = integer(value)
    if count is None or count < 1:
        kind = ConfigurationTypeError if count is None else ConfigurationError
        raise kind(f"{name}={value!r} must be an integer >= 1")
    return count


def check_entry(state: Any, key: str, fits: Callable[[Any], object]) -> None:
    """Check that an entry of a saved state is there and well-formed.

    Args:
        state: The saved dictionary.
        key: Name of the entry.
        fits: Whether a value is well-formed; an exception counts as no.

    Raises:
        CheckpointError: If it is missing or malformed.

    Example:
        >>> check_entry({"updates": -1}, "updates", lambda value: value >= 0)
        Traceback (most recent call last):
        ...
        fptt_plugin.errors.CheckpointError: the entry 'updates' is malformed
    """
    if not isinstance(state, dict) or key not in state:
        raise CheckpointError(f"the entry {key!r} is missing")
    try:
        well_formed = bool(fits(state[key]))
    except Exception as error:
        raise CheckpointError(f"the entry {key!r} is malformed ({error!r})") from error
    if not well_formed:
        raise CheckpointError(f"the entry {key!r} is malformed")
