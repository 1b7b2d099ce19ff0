"""What the package uses of PyTorch beyond its public interface, each with its reason: to be read with a new release.

Besides, ``compile/dynamo.py`` calls ``torch._dynamo`` and ``torch._inductor``, ``functional/fptt.py`` the kernels over
lists of tensors, ``torch._foreach_*``, and ``spikingjelly/`` reads the memories of SpikingJelly's ``MemoryModule``.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake as _is_fake
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import _has_any_global_hook
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

# ---------------------------------------------------------------------- tensors

# No function, because it is asked for every weight at every update.
version_of: Callable[[Tensor], int] = attrgetter("_version")
"""How often a tensor was written to in place: there is no other way to see that without reading its values."""


is_fake: Callable[[Any], bool] = _is_fake
"""Whether a tensor has no data, because a compiler traces the step."""


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view, which cannot be detached in place."""
    return tensor._is_view()


# ---------------------------------------------------------------------- functions of autograd


def with_signature(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Store the signature of the ``forward`` of an ``autograd.Function``, for which ``apply()`` asks at every call.

    ``inspect.signature`` returns what is stored; to find it out takes a third of the time of a small call.
    """
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


# ---------------------------------------------------------------------- modules

# The dictionaries in which a module keeps what is its own: to see at every window, or put back, what is in them.
# To walk the network by net.modules() takes ten times as long.


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters, by name."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers, by name."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The modules of which a module consists, by name."""
    return module._modules


def transient_buffers(module: nn.Module) -> set[str]:
    """Names of the buffers that are no part of ``state_dict()``, such as a neuron's state."""
    return module._non_persistent_buffers_set


# A module's methods register hooks, and do not tell which there are.


def forward_hooks(module: nn.Module) -> dict[int, Any]:
    """A module's forward hooks."""
    return module._forward_hooks


def forward_pre_hooks(module: nn.Module) -> dict[int, Any]:
    """A module's forward pre-hooks."""
    return module._forward_pre_hooks


has_global_module_hooks: Callable[[], bool] = _has_any_global_hook
"""Whether there are hooks on all modules, which the compiler's guards do not see."""

NORMALIZATIONS: type[nn.Module] = _NormBase
"""The class that all normalizations with running statistics share."""


def module_hooks(module: nn.Module) -> list[dict[int, Any]]:
    """A module's hooks of every kind."""
    return [forward_pre_hooks(module), forward_hooks(module), module._backward_pre_hooks, module._backward_hooks]


def replace_forward_hooks(module: nn.Module, hooks: dict[int, Any] | None = None) -> None:
    """Put other forward hooks in the place of a module's, ``None`` for none: their handles stay valid for the old."""
    module._forward_hooks = OrderedDict() if hooks is None else hooks


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks on its backward pass, which the compiler's guards do not see."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Whether a parameter has hooks on its gradient."""
    return bool(parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None))


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that ``torch.compile(net)`` has wrapped in this one, if it has."""
    return getattr(module, "_orig_mod", None)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled, by ``torch.compile(module)`` or ``module.compile()``."""
    return compiled_from(module) is not None or module._compiled_call_impl is not None


# ---------------------------------------------------------------------- optimizers

# As torch's optimizers do it: torch.compiler.disable would import the compiler together with the package.
outside_of_compile = torch._disable_dynamo


def step_hooks(optimizer: Optimizer) -> list[Any] | None:
    """An optimizer's step hooks; ``None`` for what only looks like an optimizer, and has no place for them."""
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return None
    return [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]


def has_global_step_hooks() -> bool:
    """Whether there are step hooks on all optimizers."""
    return bool(_global_optimizer_pre_hooks or _global_optimizer_post_hooks)


def note_step(optimizer: Optimizer) -> None:
    """Tell a scheduler, which wraps ``optimizer.step()`` to see it called, that the optimizer has made its step."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        optimizer._opt_called = True  # type: ignore[attr-defined]
