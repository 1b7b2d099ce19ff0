"""Networks with several inputs: drivers cut one tensor into time steps, and the network gets what it was made of."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..torch_internals import forward_pre_hooks
from ..tree import Packing, map_tensors, tensors_in
from .base import unwrapped

_BY_PLACE, _ANYHOW = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
_MORE, _MORE_NAMES = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD

_STATES = ("state", "states", "hidden", "h", "hx")
_MEMBRANES = ("mem", "mems", "membrane", "membranes", "memory", "carry", "v")  # where forward() takes one time step


def takes_state(net: nn.Module) -> bool:
    """Whether ``forward`` names its second argument a state: ``net(x_t, state) -> (output, state)``."""
    parameters = list(inspect.signature(net.forward).parameters.values())
    if len(parameters) != 2 or parameters[1].kind not in (_BY_PLACE, _ANYHOW):
        return False
    # By identity: an array as default has no single answer.
    is_absent = any(parameters[1].default is absent for absent in (None, inspect.Parameter.empty))
    return parameters[1].name in _STATES and is_absent


def further_arguments(net: nn.Module) -> list[str]:
    """Names of the arguments of ``forward`` after the input that need not be passed and may be a state."""
    others = list(inspect.signature(unwrapped(net).forward).parameters.values())[1:]
    return [p.name for p in others if p.default is None or isinstance(p.default, (float, Tensor, tuple, list, dict))]


def takes_membrane(net: nn.Module) -> bool:
    """Whether the only further argument is named like the state of a neuron, and is ``None`` at the start."""
    others = list(inspect.signature(unwrapped(net).forward).parameters.values())[1:]
    return len(others) == 1 and others[0].name in _MEMBRANES and others[0].default is None and others[0].kind == _ANYHOW


def pack_inputs(net: nn.Module, x: Any) -> Tensor:
    """One tensor for all inputs of a network, which from then on unpacks it before it computes.

    A call of the network with its inputs as they are stays what it was.

    Args:
        net: The network.
        x: Its input, or several: a tuple or list of positional arguments, a dictionary of named ones, or whatever
            container ``forward`` takes as its only argument.

    Returns:
        ``x`` itself where it is a tensor.

    Raises:
        BatchShapeError: If the first axes of the inputs differ.
    """
    if isinstance(x, (tuple, list)) and len(x) == 1 and isinstance(x[0], Tensor):
        x = x[0]
    hook = input_hook(net)
    if isinstance(x, Tensor):
        if hook is not None:
            hook.handle.remove()
        return x
    if hook is None:
        inner = unwrapped(net)
        hook = InputHook(inner, x)
        hook.handle = inner.register_forward_pre_hook(hook, with_kwargs=True)
    else:
        hook.take(x)
    return hook.packing.pack(x)


def input_hook(net: nn.Module) -> InputHook | None:
    """What unpacks the inputs of a network that has several."""
    return next((hook for hook in forward_pre_hooks(unwrapped(net)).values() if isinstance(hook, InputHook)), None)


class InputHook:
    """Forward pre-hook that gives a network the inputs of which a packed tensor was made.

    Args:
        net: The network.
        x: Its inputs.
    """

    packing: Packing
    handle: RemovableHandle
    may_be_steps: bool  # not inputs, but the time steps of one
    _bounds: list[tuple[int, int] | None]

    def __init__(self, net: nn.Module, x: Any) -> None:
        parameters = inspect.signature(net.forward).parameters
        self._names = list(parameters)
        self._kinds = [parameter.kind for parameter in parameters.values()]
        self._has_state = takes_state(net)
        self.take(x)

    def take(self, x: Any) -> None:
        """Remember how these inputs are packed, and how the network takes them."""
        packing = Packing(x)
        self._bounds = self._bounds_of(tensors_in(x))
        self.shapes = [tuple(tensor.shape) for tensor in tensors_in(x)]
        if getattr(self, "packing", None) != packing:
            self.packing = packing
        places = sum(kind in (_ANYHOW, _BY_PLACE) for kind in self._kinds)
        plain = isinstance(x, (tuple, list)) and not hasattr(x, "_fields") and not self._has_state
        self.may_be_steps = plain and places == 1 and len(set(self.shapes)) == 1
        self._as_arguments = plain and (_MORE in self._kinds or places >= len(x))
        self._has_more = self._as_arguments and places > len(x)
        self._as_keywords = isinstance(x, dict) and (_MORE_NAMES in self._kinds or x.keys() <= set(self._names))

    def explain(self) -> tuple[str, str]:
        """What the inputs are, and how to pass those that the network does not take."""
        names = ", ".join(self._names)
        what = f"inputs of shapes {', '.join(map(str, self.shapes))}"
        as_steps = "if they are the time steps of one input, pass torch.stack(x); otherwise "
        return what, (as_steps if self.may_be_steps else "") + (
            f"pass what its forward({names}) takes: a tuple in this order, a dictionary with these names, or, for a "
            "single input, a tensor"
        )

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args or not isinstance(args[0], Tensor) or args[0].shape[-1:] != (self.packing.width,):
            return None
        packed, rest = args[0], args[1:]
        if self._as_arguments and len(rest) + len(kwargs) > self._has_more:
            return None  # the user's own call: the trainer adds at most a state to the packed inputs
        inputs = self.packing.unpack(packed)
        if any(self._bounds):
            inputs = self._clamped(inputs)
        if self._as_arguments:
            return (*inputs, *rest), kwargs
        if self._as_keywords:
            free = [name for name in self._names if name not in inputs]
            return (), {**inputs, **dict(zip(free, rest, strict=False)), **kwargs}
        return (inputs, *rest), kwargs

    def _bounds_of(self, tensors: list[Tensor]) -> list[tuple[int, int] | None]:
        """Bounds of integers beside other types: a dry run scales its input, and they may be indices."""
        integers = [not tensor.is_floating_point() and tensor.numel() > 0 for tensor in tensors]
        if all(integers) or not any(integers):
            return [None] * len(tensors)
        flagged = zip(tensors, integers, strict=True)
        found = [(int(tensor.min()), int(tensor.max())) if integer else None for tensor, integer in flagged]
        before = getattr(self, "_bounds", found)
        pairs = zip(found, before, strict=True) if len(before) == len(found) else zip(found, found, strict=True)
        return [(min(a[0], b[0]), max(a[1], b[1])) if a and b else a for a, b in pairs]

    def _clamped(self, inputs: Any) -> Any:
        bounds = iter(self._bounds)

        def clamp(tensor: Tensor) -> Tensor:
            bound = next(bounds)
            return tensor if bound is None else tensor.clamp(*bound)

        return map_tensors(clamp, inputs)
