"""How ``torch.compile`` is called: its guards see everything that Python code may do between two calls."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.torch_version import TorchVersion

# Hooks that come and go, numbers that modules count, NumPy's random numbers: nothing is assumed to stay as it was.
_DYNAMO = {
    "trace_autograd_ops": True,
    "skip_nnmodule_hook_guards": False,
    "allow_unspec_int_on_nn_module": True,
    "use_numpy_random_stream": True,
}
# Random numbers come from PyTorch's generators, as without compilation.
_INDUCTOR = {"fallback_random": True, "size_asserts": False}
if TorchVersion(torch.__version__) < "2.13":
    # On a GPU a pass of Inductor that orders loops fails where a kernel over lists of tensors was fused, as in the
    # update of many weights: "InductorError: AssertionError".
    _INDUCTOR["loop_ordering_after_fusion"] = False


_numbers = itertools.count()
_is_set = ContextVar("_is_set", default=False)


def _patch() -> Any:
    """The settings as a context of its own."""
    import torch._dynamo  # together with the package it would take seconds to import

    config: Any = torch._dynamo.config
    return config.patch({name: value for name, value in _DYNAMO.items() if hasattr(config, name)})


@contextmanager
def compiler_settings() -> Iterator[None]:
    """Context with the compiler's settings, which each call of a compiled function would set else, for many calls."""
    with _patch():
        token = _is_set.set(True)
        try:
            yield
        finally:
            _is_set.reset(token)


class CannotCompile(Exception):  # noqa: N818 - a decision, not a mistake
    """Why something stays as it is; the message completes "... runs eagerly, because"."""


class Compiled:
    """A function compiled by ``torch.compile``, again for whatever its guards do not fit.

    Args:
        function: The function. A copy is compiled, so that no other function's recompilations count.
        fullgraph: Raise an exception where the compiler would leave parts of it to Python.
        backend: What makes kernels of a graph, as for ``torch.compile``.

    Example:
        >>> double = Compiled(lambda x: 2 * x)
        >>> double(torch.ones(2))                           # doctest: +SKIP
        tensor([2., 2.])
    """

    def __init__(self, function: Callable[..., Any], *, fullgraph: bool = True, backend: Any = "inductor") -> None:
        # What the compiler learns about changing shapes and numbers it files under the name of the code.
        code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{next(_numbers)}")
        own = types.FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
        self._run = torch.compile(own, fullgraph=fullgraph, backend=backend, options=dict(_INDUCTOR))
        self._settings = _patch()

    def __call__(self, *args: Any) -> Any:
        if _is_set.get():
            return self._run(*args)
        with self._settings:
            return self._run(*args)


def backend(name: str) -> Any:
    """What makes a function of a graph, by the name under which ``torch.compile`` knows it."""
    from torch._dynamo import lookup_backend

    return lookup_backend(name)


def traces_backward() -> bool:
    """Whether this version of torch compiles forward and backward pass into one graph."""
    import torch._dynamo

    return hasattr(torch._dynamo.config, "trace_autograd_ops")


def first_line(error: BaseException) -> str:
    """Return class and first line of an error, for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    more = f" {lines[1]}" if lines[0].endswith((":", "call")) and len(lines) > 1 else ""
    return f"{type(error).__name__}: {lines[0]}{more}"
