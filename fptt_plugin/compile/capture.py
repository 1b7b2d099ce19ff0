"""Compiles a function of tensors into one graph, whatever Python, autograd and in-place writes it is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..tree import map_tensors, tensors_in
from .cuda_graph import Function, Replay

# Random numbers come from PyTorch's generators, as without compilation.
_OPTIONS = {"fallback_random": True, "size_asserts": False}


class CannotCompile(Exception):  # noqa: N818 - a decision, not a mistake
    """Why a function stays as it is; the message completes "... runs eagerly, because"."""


def capture(function: Function, inputs: list[Tensor]) -> Function:
    """Traces a function once and compiles what it did.

    Tracing runs it on tensors without data, so what depends on a tensor's value in Python is refused. A backward pass
    within the function is part of the graph. Before the compiled function is handed out it is tried against the
    original on copies of the inputs.

    Args:
        function: Takes and returns a list of tensors; may write into its inputs. What it does besides is done when it
            is traced, and not again when the compiled function runs.
        inputs: An example; their shapes are final.

    Returns:
        The compiled function.

    Raises:
        CannotCompile: With the reason.

    Example:
        >>> def step(tensors):
        ...     weight, x = tensors
        ...     with torch.enable_grad():
        ...         leaf = weight.detach().requires_grad_()
        ...         (gradient,) = torch.autograd.grad((leaf * x).sum(), leaf)
        ...     weight.sub_(gradient)
        ...     return [gradient]
        >>> weight, x = torch.zeros(2), torch.ones(2)
        >>> compiled = capture(step, [weight, x])           # doctest: +SKIP
        >>> compiled([weight, x]), weight                   # doctest: +SKIP
        ([tensor([1., 1.])], tensor([-1., -1.]))
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own parts
        try:
            graph = trace(function, inputs)
            graph = make_fx(torch.func.functionalize(graph), tracing_mode="fake")(*inputs)
            _compute_scalars_once(graph)
            run = torch._inductor.compile(graph, list(inputs), options=_OPTIONS)
        except CannotCompile:
            raise
        except Exception as error:  # whatever tracer and compiler raise, the original function still runs
            raise CannotCompile(_first_line(error)) from error

        def compiled(tensors: list[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                return list(run(*tensors))

        check(function, compiled, inputs)
        return compiled


class Graphs:
    """Compiled versions of one function, one for each layout of its inputs and each setting it holds as a constant.

    Args:
        replay: Record each as a CUDA graph.
    """

    most = 8  # settings that change all the time would otherwise be compiled for ever

    def __init__(self, *, replay: bool = False) -> None:
        self._replay = replay
        self._found: list[tuple[Any, Function]] = []

    def find(self, key: Any, function: Function, example: Callable[[], list[Tensor]], moving: int) -> Function:
        """The version for that key, compiled now if there is none.

        Args:
            key: Layout and settings.
            function: What is compiled.
            example: Gives its inputs.
            moving: How many of these, from the first on, may be other tensors at every call.

        Raises:
            CannotCompile: With the reason.
        """
        for number, (known, compiled) in enumerate(self._found):
            if known == key and (not isinstance(compiled, Replay) or compiled.fits(example())):
                if number:
                    self._found.insert(0, self._found.pop(number))  # the next is likely to be the same
                return compiled
        if len(self._found) == self.most:
            raise CannotCompile(f"it was compiled for {self.most} different shapes or settings already")
        inputs = example()
        compiled = capture(function, inputs)
        if self._replay:
            try:
                compiled = Replay(compiled, inputs, moving)
            except (ValueError, RuntimeError) as error:
                raise CannotCompile(_first_line(error)) from error
        self._found.insert(0, (key, compiled))
        return compiled


def trace(function: Function, inputs: list[Tensor]) -> GraphModule:
    """What the function does to tensors, as a graph.

    Raises:
        CannotCompile: If it writes into a tensor that is not among the inputs: the graph would hold a stale copy.
    """
    # The dispatcher in Python has batch normalisation say that it writes its running statistics.
    with enable_python_dispatcher():
        traced = make_fx(lambda *flat: function(list(flat)), tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    for node in traced.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and getattr(value, "op", "") == "get_attr":
                raise CannotCompile(f"{node.target} writes into a tensor that is neither parameter, buffer nor state")
    return traced


def _compute_scalars_once(traced: GraphModule) -> None:
    """Has every 0-d result that larger tensors need computed once, and not again for each of their entries.

    The compiler would put bias corrections and the like (powers, roots, divisions) into the loops over the weights,
    where they cost more than the update itself. It must store whatever ``as_strided`` looks at.
    """
    graph = traced.graph
    for node in list(graph.nodes):
        users = [user for user in node.users if _rank(user) > 0]
        if node.op == "call_function" and _rank(node) == 0 and users:
            with graph.inserting_after(node):
                stored = graph.call_function(torch.ops.aten.as_strided.default, (node, [], []))
            for user in users:
                user.replace_input_with(node, stored)
    traced.recompile()


def _rank(node: Node) -> int:
    """Dimensions of a node's tensor, the largest of a list of tensors; -1 without any."""
    return max((tensor.dim() for tensor in tensors_in(node.meta.get("val"))), default=-1)


@torch.no_grad()
def check(function: Function, compiled: Function, inputs: list[Tensor]) -> None:
    """Runs both on copies of the inputs.

    Raises:
        CannotCompile: If the results differ by more than rounding can explain. A spike whose membrane lies within
            rounding of its threshold may differ, so single entries are let pass.
    """
    results = []
    for run in (function, compiled):
        copies = [tensor.clone() for tensor in inputs]
        with torch.random.fork_rng():
            results.append([*run(copies), *copies])
    for expected, found in zip(*results, strict=True):
        same = torch.isclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True)
        if same.float().mean() < 0.98:
            raise CannotCompile("the compiled function gives other results")


@contextmanager
def compiling() -> Iterator[None]:
    """Within the context torch's optimizers take their compilable path, with step counts as tensors."""
    kept = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = kept


def layout(tree: Any) -> Any:
    """A nested structure, with each tensor's shape, type and place instead of it; equal for what one graph fits.

    Example:
        >>> layout([torch.zeros(2), 3]) == layout([torch.ones(2), 3]), layout([torch.zeros(2)]) == layout([None])
        (True, False)
    """
    return map_tensors(
        lambda tensor: (tensor.shape, tensor.stride(), tensor.dtype, tensor.device),
        tree,
    )


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy without gaps or repetitions in memory: one whose own copies are laid out as it is.

    Compiled functions address memory by the layout of their example, and are tried out, or fed, through copies.

    Example:
        >>> window = torch.zeros(4, 10).t()[:2]
        >>> window.stride(), dense(window).stride()
        ((1, 10), (1, 2))
    """
    return tensor if torch.empty_like(tensor, device="meta").stride() == tensor.stride() else tensor.clone()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
