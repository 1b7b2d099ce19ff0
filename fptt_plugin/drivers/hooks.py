"""Hooks in dry runs: those that compute take part, on copies of what they refer to; those that observe do not."""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import itertools
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..torch_internals import forward_hooks, module_hooks, replace_forward_hooks
from ..tree import leaves_in, map_tensors
from .inputs import InputHook

_BY_NAME = (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType)  # which a function calls by name


def is_part_of_network(hook: Any) -> bool:
    """Whether a hook is this package's or torch's own (several inputs, lazy layers, weight normalization)."""
    return isinstance(hook, InputHook) or (getattr(hook, "__module__", None) or "").startswith("torch.")


# ---------------------------------------------------------------------- a copy of the network


def without_hooks(net: nn.Module) -> dict[int, Any]:
    """Entries for the memo of ``copy.deepcopy`` with which the copy of a network has no hooks."""
    every = [hooks for module in net.modules() for hooks in module_hooks(module)]
    return {id(hooks): type(hooks)() for hooks in every}


def copy_hooks(net: nn.Module, copied: nn.Module, memo: dict[int, Any]) -> None:
    """Give the copy of a network the hooks that compute, or write to the network.

    Args:
        net: The network.
        copied: Its copy.
        memo: What stands for what, from ``copy.deepcopy``.
    """
    own = {id(part) for module in net.modules() for part in (module, *leaves_in(vars(module)))}
    every = [hook for module in net.modules() for hooks in module_hooks(module) for hook in hooks.values()]
    computing = {id(_owner(hook)) for hook in every if _kind(hook).computes}
    originals = dict(net.named_modules())
    for name, module in copied.named_modules():  # what a network leaves out of its copies has no hooks there
        for hooks, others in zip(module_hooks(originals[name]), module_hooks(module), strict=True):
            for key, hook in hooks.items():
                if is_part_of_network(hook):
                    others[key] = copy.deepcopy(hook, memo)
                elif _takes_part(hook, own, computing) and (apart := _apart(hook, memo)) is not None:
                    others[key] = apart


@contextmanager
def unobserved(net: nn.Module) -> Iterator[None]:
    """Context in which no monitor sees what passes through the network: a trial run is not part of the training."""
    memo: dict[int, Any] = {id(part): part for part in (*net.modules(), *net.parameters(), *net.buffers())}
    kept = [(module, forward_hooks(module)) for module in net.modules()]
    for module, hooks in kept:
        apart = type(hooks)()
        for key, hook in hooks.items():
            if is_part_of_network(hook):
                apart[key] = hook
            elif _kind(hook).computes and (copied := _apart(hook, memo)) is not None:
                apart[key] = copied
        replace_forward_hooks(module, apart)
    try:
        yield
    finally:
        for module, hooks in kept:
            replace_forward_hooks(module, hooks)


# ---------------------------------------------------------------------- what a hook does


class _Kind(NamedTuple):
    """What the code of a hook shows.

    Attributes:
        computes: It may return something.
        writes: It sets attributes, maybe of a module, or writes to tensors in place, maybe to the output.
    """

    computes: bool
    writes: bool


def _kind(hook: Any) -> _Kind:
    code = getattr(_function_of(hook), "__code__", None)
    if code is None:
        return _Kind(computes=True, writes=True)
    steps = list(dis.get_instructions(code))
    returned = [before for before, step in itertools.pairwise(steps) if step.opname == "RETURN_VALUE"]
    returned += [step for step in steps if step.opname == "RETURN_CONST"]  # Python 3.12 and 3.13
    nothing = all(step.opname in ("LOAD_CONST", "RETURN_CONST") and step.argval is None for step in returned)
    return _Kind(computes=not nothing, writes=any(map(_writes, steps)))


def _writes(step: dis.Instruction) -> bool:
    if step.opname in ("LOAD_METHOD", "LOAD_ATTR"):  # output.mul_(2)
        return str(step.argval).endswith("_") and not str(step.argval).endswith("__")
    in_place = step.opname == "BINARY_OP" and step.argrepr.endswith("=")  # output *= 2
    return in_place or step.opname in ("STORE_ATTR", "STORE_SUBSCR")


def _function_of(hook: Any) -> Any:
    """The function that a hook is in the end: without partials, methods and decorators."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    if not isinstance(hook, (types.FunctionType, types.MethodType)):
        hook = type(hook).__call__
    return inspect.unwrap(getattr(hook, "__func__", hook))


def _owner(hook: Any) -> Any:
    """The object whose method a hook is, or that is called itself; ``None`` for a function."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return None if isinstance(hook, types.FunctionType) else getattr(hook, "__self__", hook)


def _takes_part(hook: Any, own: Iterable[int], computing: Iterable[int]) -> bool:
    """Whether a hook may change what the network computes: by what it returns, or by what it leaves in attributes."""
    kind, owner = _kind(hook), _owner(hook)
    if kind.computes or owner is None:
        return kind.computes or kind.writes
    return id(owner) in own or id(owner) in computing


# ---------------------------------------------------------------------- a copy of a hook


class _Apart:
    """A copy of a hook. As long as it has returned nothing, it may fail: a record that is full, say."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook
        self._computes = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            returned = self._hook(*args, **kwargs)
        except Exception:
            if self._computes:
                raise
            return None
        self._computes |= returned is not None
        return returned


def _apart(hook: Any, memo: dict[int, Any]) -> _Apart | None:
    """A hook that computes the same, on copies of what it refers to; ``None`` if something there cannot be copied.

    Args:
        hook: The hook.
        memo: What stands for what, as for ``copy.deepcopy``: the modules of a copied network for those of the original.
    """
    trial = dict(memo)  # of a copy that fails, half-made objects would stay
    try:
        copied = _copied(hook, trial)
    except Exception:
        return None
    memo.update(trial)
    return _Apart(copied)


def _copied(hook: Any, memo: dict[int, Any]) -> Any:
    if isinstance(hook, functools.partial):
        arguments, keywords = _deepcopy((hook.args, hook.keywords), memo)
        return functools.partial(_copied(hook.func, memo), *arguments, **keywords)
    if not isinstance(hook, types.FunctionType):
        return _deepcopy(hook, memo)
    # Its closure, its default values and the global variables that it names: copy.deepcopy leaves these as they are.
    held, scope = _named_globals(hook), hook.__globals__
    cells = {name: types.CellType() for name in hook.__code__.co_freevars}
    copied = types.FunctionType(
        hook.__code__,
        {**scope, **_deepcopy(held, memo)} if held else scope,
        hook.__name__,
        _deepcopy(hook.__defaults__, memo),
        tuple(cells.values()),
    )
    copied.__kwdefaults__ = _deepcopy(hook.__kwdefaults__, memo)
    memo[id(hook)] = copied
    for cell, given in zip(cells.values(), hook.__closure__ or (), strict=True):
        value = given.cell_contents
        is_own = isinstance(value, types.FunctionType) and value.__module__ == hook.__module__  # what a decorator holds
        cell.cell_contents = _copied(value, memo) if is_own and id(value) not in memo else _deepcopy(value, memo)
    return copied


def _named_globals(function: types.FunctionType) -> dict[str, Any]:
    scope, steps = function.__globals__, dis.get_instructions(function.__code__)
    names = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}
    return {name: scope[name] for name in names if name in scope and not isinstance(scope[name], _BY_NAME)}


def held_by_hooks(net: nn.Module) -> list[Any]:
    """What the hooks of a network refer to: objects, and what is in closures, default values and global variables."""
    held: list[Any] = []
    for hook in (hook for module in net.modules() for hooks in module_hooks(module) for hook in hooks.values()):
        function = _function_of(hook)
        held.append(_owner(hook))
        if isinstance(function, types.FunctionType):
            held += [cell.cell_contents for cell in function.__closure__ or ()]
            held += [*(function.__defaults__ or ()), *_named_globals(function).values()]
    return held


def _deepcopy(value: Any, memo: dict[int, Any]) -> Any:
    def cut(tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None and id(tensor) not in memo:  # deepcopy refuses these
            memo[id(tensor)] = tensor.detach().clone()
        return tensor

    map_tensors(cut, value)
    return copy.deepcopy(value, memo)
