"""Checks of options, and of the library's version, that the neurons of both libraries share."""

from __future__ import annotations

import math
import re
from importlib import metadata
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


def check_version(library: str, oldest: str) -> None:
    """Check that the installed version of a library is one that the neurons are written for.

    Raises:
        ImportError: If it is older.

    Example:
        >>> check_version("numpy", "1.0")
    """
    try:
        found = metadata.version(library)
    except metadata.PackageNotFoundError:  # a copy in someone's source tree
        return
    if _numbers(found) < _numbers(oldest):
        raise ImportError(
            f"fptt_plugin.{library} needs {library} {oldest} or later, found {found}: pip install '{library}>={oldest}'"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]
