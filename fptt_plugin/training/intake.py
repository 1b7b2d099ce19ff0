"""What users pass becomes tensors on the network's device: arrays and numbers, in whatever containers they come."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import BatchTypeError
from ..tree import map_leaves


def to_tensors(value: Any, name: str, net: nn.Module) -> Any:
    """A value with tensors on the network's device in the place of numpy's arrays, numbers and lists of these.

    Arrays and numbers that are floating-point take the type of the network's weights (numpy's own is float64), and
    integers are 64 bits long, except for 8-bit images. Tensors keep their type.

    Args:
        value: A tensor, an array, nested lists of numbers, a tuple of numbers, a list or tuple of 0-d tensors; or
            several of these in tuples, lists, dictionaries and dataclasses.
        name: What it is, for the message.
        net: The network.

    Raises:
        BatchTypeError: If there is something else in it.

    Example:
        >>> to_tensors(np.ones((2, 3)), "x", nn.Linear(3, 1)).dtype
        torch.float32
        >>> to_tensors([0, 2], "y", nn.Linear(3, 1))
        tensor([0, 2])
    """
    device = next(net.parameters()).device

    def convert(leaf: Any) -> Tensor:
        if isinstance(leaf, Tensor):
            return leaf if leaf.device == device else leaf.to(device, non_blocking=leaf.is_pinned())
        if isinstance(leaf, (np.ndarray, np.generic, Number)):
            array = np.asarray(leaf)
            if array.dtype.kind in "biuf":
                found = torch.as_tensor(array)
                kind = _weight_type(net) if array.dtype.kind == "f" else torch.int64
                return found.to(device) if found.dtype in (torch.bool, torch.uint8) else found.to(device, kind)
        raise _unusable(leaf, name, value)

    if isinstance(value, Tensor):  # the common case, also at every step of a stream
        return convert(value)
    if isinstance(value, PackedSequence):
        raise BatchTypeError(
            f"{name} is a PackedSequence",
            "pass what pad_packed_sequence(x) returns: the padded sequences as x, the lengths as mask",
        )
    return map_leaves(convert, _stacked(value, name))


def _stacked(value: Any, name: str) -> Any:
    """The value with lists of numbers as arrays, and labels that were not collated, 0-d tensors, as one tensor."""
    if type(value) is dict:
        return {key: _stacked(entry, name) for key, entry in value.items()}
    if type(value) not in (list, tuple) or not value:
        return value
    if all(isinstance(entry, Tensor) and entry.dim() == 0 for entry in value):
        return torch.stack(list(value))
    if isinstance(value, tuple) and not all(isinstance(entry, (Number, np.generic)) for entry in value):
        return tuple(_stacked(entry, name) for entry in value)  # several inputs or targets
    if not _are_numbers(list(value)):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise BatchTypeError(f"{name} has lists of different lengths", "pad them, and pass the lengths") from error


def _are_numbers(value: Any) -> bool:
    """Whether nested lists hold numbers and nothing else."""
    if type(value) is list:
        return all(map(_are_numbers, value))
    return isinstance(value, (Number, np.generic))


def _weight_type(net: nn.Module) -> torch.dtype:
    types = (parameter.dtype for parameter in net.parameters())
    return next((dtype for dtype in types if dtype.is_floating_point), torch.get_default_dtype())


def _unusable(leaf: Any, name: str, value: Any) -> BatchTypeError:
    where = "" if leaf is value else f", in {_form(value)}"
    reason = f"{name} has a {type(leaf).__name__} where a tensor belongs{where}"
    return BatchTypeError(reason, "pass tensors or arrays; fit() and evaluate() pick them from a batch with batch=...")


def _form(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dictionary with the keys {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type(entry).__name__ for entry in value)})"
    return f"a {type(value).__name__}"
