"""Nested containers: dictionaries, lists, tuples, named tuples and dataclasses of tensors and other leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every leaf of nested dictionaries, lists, tuples and dataclasses.

    The containers are new ones of the same types.

    Example:
        >>> map_leaves(lambda leaf: leaf is None, {"a": [1, None]})
        {'a': [False, True]}
    """
    if isinstance(value, Tensor):  # the common case, asked for at every step
        return function(value)
    if isinstance(value, dict):
        # A copy keeps the default factory of a defaultdict, and what a subclass holds besides.
        mapped = {} if type(value) is dict else copy.copy(value)
        for key, entry in value.items():
            mapped[key] = map_leaves(function, entry)
        return mapped
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(function, entry) for entry in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, entry) for entry in value)
    if is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        copied = copy.copy(value)
        for name in (field.name for field in fields(value) if hasattr(value, field.name)):
            # Not the constructor: fields that __init__ computes are computed already, and frozen ones have no setter.
            object.__setattr__(copied, name, map_leaves(function, getattr(value, name)))
        return copied
    return function(value)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply a function to every tensor in nested containers, see :func:`map_leaves`; other leaves stay.

    Example:
        >>> import torch
        >>> map_tensors(lambda t: t + 1, {"a": [torch.zeros(1), None]})
        {'a': [tensor([1.]), None]}
    """
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def copy_containers(value: Any) -> Any:
    """Copy the containers and keep the leaves, so that a container changed in place is nobody else's."""
    return map_leaves(lambda leaf: leaf, value)


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor in nested containers, in order.

    Example:
        >>> import torch
        >>> tensors_in({"a": [torch.zeros(1), None], "b": torch.ones(1)})
        [tensor([0.]), tensor([1.])]
    """
    found: list[Tensor] = []
    map_tensors(found.append, value)
    return found
