"""Copies of hooks, for dry runs: what a hook computes takes part in them, and what it writes reaches nobody else."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..torch_internals import forward_hooks, replace_forward_hooks
from ..tree import map_tensors
from .inputs import InputHook

_BY_NAME = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)  # which a function calls by name


@contextmanager
def unobserved(net: nn.Module) -> Iterator[None]:
    """Context in which no monitor sees what passes through the network: a trial run is not part of the training."""
    memo: dict[int, Any] = {id(part): part for part in (*net.modules(), *net.parameters(), *net.buffers())}
    kept = [(module, forward_hooks(module)) for module in net.modules()]
    for module, hooks in kept:
        apart = type(hooks)((key, hook_apart(hook, memo)) for key, hook in hooks.items())
        replace_forward_hooks(module, type(hooks)((key, hook) for key, hook in apart.items() if hook is not None))
    try:
        yield
    finally:
        for module, hooks in kept:
            replace_forward_hooks(module, hooks)


def is_part_of_network(hook: Any) -> bool:
    """Whether a hook is this package's or torch's own (several inputs, lazy layers, weight normalization)."""
    return isinstance(hook, InputHook) or (getattr(hook, "__module__", None) or "").startswith("torch.")


def hook_apart(hook: Any, memo: dict[int, Any]) -> Any:
    """A hook that computes the same, on copies of the lists, tensors and objects that it refers to.

    A function refers to them in its closure, its default values and by the names of global variables, which
    ``copy.deepcopy`` leaves as they are.

    Args:
        hook: The hook.
        memo: What stands for what, as for ``copy.deepcopy``: the modules of a copied network for those of the original.

    Returns:
        The copy; ``None`` if something cannot be copied, such as an open file.
    """
    try:
        if isinstance(hook, functools.partial):
            function = hook_apart(hook.func, memo)
            arguments, keywords = _deepcopy((hook.args, hook.keywords), memo)
            return None if function is None else functools.partial(function, *arguments, **keywords)
        if isinstance(hook, types.FunctionType):
            return hook if is_part_of_network(hook) else _function(hook, memo)
        return _deepcopy(hook, memo)
    except Exception:
        return None


def _function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    scope = function.__globals__
    named = {name: scope[name] for name in function.__code__.co_names if name in scope}
    held = {name: value for name, value in named.items() if not isinstance(value, _BY_NAME)}
    cells = function.__closure__ or ()
    apart = types.FunctionType(
        function.__code__,
        {**scope, **_deepcopy(held, memo)} if held else scope,
        function.__name__,
        _deepcopy(function.__defaults__, memo),
        tuple(types.CellType(_deepcopy(cell.cell_contents, memo)) for cell in cells) or None,
    )
    apart.__kwdefaults__ = _deepcopy(function.__kwdefaults__, memo)
    return apart


def _deepcopy(value: Any, memo: dict[int, Any]) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None and id(tensor) not in memo:  # deepcopy refuses these
            memo[id(tensor)] = tensor.detach().clone()
        return tensor

    map_tensors(cut, value)
    return copy.deepcopy(value, memo)
