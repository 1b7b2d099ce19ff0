"""How ``torch.compile`` is called: its guards see everything that Python code may do between two calls."""

from __future__ import annotations

import itertools
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
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
_INDUCTOR: dict[str, Any] = {"fallback_random": True, "size_asserts": False}
if TorchVersion(torch.__version__) < "2.13":
    # On a GPU a pass of Inductor that orders loops fails where a kernel over lists of tensors was fused, as in the
    # update of many weights: "InductorError: AssertionError".
    _INDUCTOR["loop_ordering_after_fusion"] = False
# PyTorch knows which vector instructions this processor has. With empty caches Inductor would spend eight seconds on
# asking the C++ compiler about each of those of x86. One that does not know AVX-512 fails, and gets AVX2.
_IS_X86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
_TRUST: dict[str, Any] = {"cpp.vec_isa_ok": True} if _IS_X86 and TorchVersion(torch.__version__) >= "2.11" else {}
_OLDER = {"cpp.simdlen": 256}

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
        self._compile = partial(torch.compile, own, fullgraph=fullgraph, backend=backend)
        self._options = _options()
        self._run = self._compile(options=self._options)
        self._runs_whole = fullgraph  # nothing has been executed when compiling fails
        self._settings = _patch()

    def __call__(self, *args: Any) -> Any:
        if not _is_set.get():
            with self._settings:
                return self._call(*args)
        return self._call(*args)

    def _call(self, *args: Any) -> Any:
        try:
            return self._run(*args)
        except Exception as error:
            if not (self._runs_whole and _is_of_an_old_compiler(error, self._options)):
                raise
        _INDUCTOR.update(_OLDER)
        self._options = _options()
        self._run = self._compile(options=self._options)
        return self._run(*args)


def _is_of_an_old_compiler(error: Exception, options: dict[str, Any]) -> bool:
    """Whether kernels may have failed because the C++ compiler does not know what these options take for granted."""
    trusts = "cpp.vec_isa_ok" in options and "cpp.simdlen" not in options
    return trusts and any(sign in str(error) for sign in ("C++ compile error", "undefined symbol"))


def _options() -> dict[str, Any]:
    """Inductor's options. Whoever has said whether the C++ compiler knows the processor's instructions is believed."""
    from torch._inductor import config

    return {**_INDUCTOR, **(_TRUST if config.cpp.vec_isa_ok is None else {})}


_HEADERS = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C" void kernel(float* out) {}
"""


@cache  # once in a process
def read_headers() -> None:
    """Have the C++ compiler read PyTorch's headers, seconds of work with empty caches, while Python traces a graph.

    A kernel that does nothing is compiled in a thread. Kernels wait for the headers, so nothing depends on it but time.
    """
    try:
        from torch._inductor import async_compile, config  # imported here: two threads must not import it at once

        # Not those that change results: in older versions of PyTorch a setting is that of all threads.
        options = {name: value for name, value in _options().items() if name.startswith("cpp.")}
    except Exception:
        return

    def read() -> None:
        with suppress(Exception), config.patch(options):
            async_compile.AsyncCompile().cpp_pybinding(["float*"], _HEADERS)

    threading.Thread(target=read, name="read_headers").start()


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
