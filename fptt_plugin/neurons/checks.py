"""Checks of options that the neurons of both libraries share."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from ..errors import ConfigurationError, ConfigurationTypeError


def check_number(name: str, value: Any) -> float:
    """Return a finite number as a float.

    Raises:
        ConfigurationTypeError: If it is not a number.
        ConfigurationError: If it is not finite.

    Example:
        >>> check_number("adaptation", 2)
        2.0
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ConfigurationTypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ConfigurationError(f"{name} must be finite, got {value!r}")
    return float(value)
