"""Nested containers: dictionaries, lists, tuples, deques, namespaces and dataclasses of tensors and other leaves."""

from __future__ import annotations

import copy
import functools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import BatchShapeError, BatchTypeError


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to every leaf of nested dictionaries, lists, tuples, deques, namespaces and dataclasses.

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
    if isinstance(value, deque):
        return type(value)((map_leaves(function, entry) for entry in value), value.maxlen)
    is_data = is_dataclass(value) and not isinstance(value, (type, nn.Module))
    if is_data or isinstance(value, SimpleNamespace):
        copied = copy.copy(value)
        names = [field.name for field in fields(value)] if is_data else list(vars(value))
        for name in (name for name in names if hasattr(value, name)):
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


def leaves_in(value: Any) -> list[Any]:
    """Return every leaf of nested containers, in order.

    Example:
        >>> leaves_in({"a": [1, None], "b": "c"})
        [1, None, 'c']
    """
    found: list[Any] = []
    map_leaves(found.append, value)
    return found


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


class Packing:
    """How several tensors are one: their leading axes in common, what remains of each side by side along a last axis.

    Training through time cuts and joins one input, one output and one target. Where a network has several, they are
    packed on the way in and unpacked where the network, the loss or the user sees them.

    Args:
        value: Tensors in nested containers.

    Attributes:
        shapes: What remains of the shape of each.

    Raises:
        BatchShapeError: If the first axes of the tensors differ.
        BatchTypeError: If there is something else than tensors among them.

    Example:
        >>> import torch
        >>> pair = {"image": torch.zeros(5, 4, 2, 2), "sound": torch.ones(5, 4, 3)}
        >>> packing = Packing(pair)
        >>> packed = packing.pack(pair)
        >>> packed.shape, packing.unpack(packed[2])["image"].shape
        (torch.Size([5, 4, 7]), torch.Size([4, 2, 2]))
    """

    def __init__(self, value: Any) -> None:
        leaves: list[Any] = []
        self._template = map_leaves(lambda leaf: leaves.append(leaf), value)
        others = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)]
        if others or not leaves:
            raise BatchTypeError(
                f"there is a {others[0]} among the tensors" if others else "there is no tensor in it",
                "leave out what is no tensor",
            )
        leading = 0
        while all(leaf.dim() > leading and leaf.shape[leading] == leaves[0].shape[leading] for leaf in leaves):
            leading += 1
        if leading == 0:
            raise BatchShapeError(
                f"tensors of shapes {', '.join(str(tuple(leaf.shape)) for leaf in leaves)} do not begin with the same "
                "axes",
                "repeat what does not change, e.g. with x.expand(T, *x.shape)",
            )
        self.shapes = [leaf.shape[leading:] for leaf in leaves]
        self.dtypes = [leaf.dtype for leaf in leaves]
        self._dtype = _common(self.dtypes, leaves[0].device)

    @property
    def width(self) -> int:
        """Size of the last axis of a packed tensor."""
        return sum(map(math.prod, self.shapes))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packing) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def pack(self, value: Any) -> Tensor:
        """The tensors of such a value as one, ``[..., n]``; gradients pass through."""
        parts = zip(tensors_in(value), self.shapes, strict=True)
        flat = [part.reshape(*part.shape[: part.dim() - len(shape)], math.prod(shape)) for part, shape in parts]
        return torch.cat([part.to(self._dtype) for part in flat], dim=-1)

    def unpack(self, packed: Tensor) -> Any:
        """The containers with their tensors, of a packed tensor or of rows of one."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = iter(zip(packed.split(sizes, dim=-1), self.shapes, self.dtypes, strict=True))

        def take(_: Any) -> Tensor:
            part, shape, dtype = next(parts)
            whole: Tensor = part.reshape(*part.shape[:-1], *shape)
            return whole.to(dtype)

        return map_leaves(take, self._template)


def precise(device: torch.device) -> torch.dtype:
    """The type of long sums and counts: in single precision they drift, and Apple's GPUs have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def _common(dtypes: list[torch.dtype], device: torch.device) -> torch.dtype:
    """A type that holds values of all of them exactly; integers beside floating-point numbers up to 2 ** 53."""
    common = functools.reduce(torch.promote_types, dtypes)
    mixed = common.is_floating_point and not all(dtype.is_floating_point for dtype in dtypes)
    return torch.float64 if mixed and device.type != "mps" else common
