"""Whether loss, gradients and state are finite, and where they are not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import NotFiniteError
from ..state import ModelState
from ..torch_internals import buffers_of
from ..tree import tensors_in
from .statistics import normalizations


def all_finite(tensors: list[Tensor]) -> bool:
    """Return whether every entry of every tensor is finite; one host synchronization for all of them, if they are.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor(float("nan"))])
        False
    """
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return True
    # 2-norms have a fast kernel, exact checks do not. A norm can overflow where every entry is finite: then look again.
    norms = torch._foreach_norm(floating)
    if torch.stack([norm.float() for norm in norms]).isfinite().all():
        return True
    return all(bool(tensor.isfinite().all()) for tensor in floating)


def not_finite(net: nn.Module, state: ModelState, loss: Tensor) -> NotFiniteError:
    """Return the error that names the first place that is not finite: a module's state, a gradient, else the loss."""
    entries = state.get()
    suspects = [
        (name, f"the state of {name!r} ({type(module).__name__})", tensors_in(entries[name]))
        for name, module in state.modules()
    ]
    suspects += [
        (name, f"the gradient of {name!r}", [parameter.grad])
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    ]
    suspects += [
        (name, f"the running statistics of {name!r}", tensors_in(buffers_of(module)))
        for name, module in normalizations(net).items()
    ]
    found = ((name, place) for name, place, tensors in suspects if not all_finite(tensors))
    layer, place = next(found, ("", "the loss function"))
    error = NotFiniteError(
        f"not finite in {place}; the window's loss is {loss.item():g}. This update was not applied",
        "a smaller learning rate or max_grad_norm may prevent it; on_nonfinite='skip' goes on without the update",
    )
    error.layer, error.place = layer, place  # type: ignore[attr-defined]
    return error
