"""Why a network does not run: the layer that raised the exception, and what to do about it."""

from __future__ import annotations

import inspect
import operator
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CannotRunError, CannotStepError, FPTTError
from ..state import AttributeHandler, ModelState, handler_for
from ..tree import tensors_in
from .base import cannot_step, step_modes, unwrapped
from .inputs import input_hook
from .trial import TrialCopy

_SIZES = ("in_features", "in_channels", "num_features", "num_channels", "input_size", "num_embeddings")
_FEW = 10  # samples: more than the dry runs take


def does_not_run(
    net: nn.Module,
    copy: TrialCopy,
    x: Tensor,
    error: Exception,
    *,
    given: Tensor | None = None,
    what: str = "an input",
    on_step: Exception | None = None,
    otherwise: str = "call it on your data by hand to see why",
) -> CannotStepError:
    """The error for a dry run that failed.

    Args:
        net: The network.
        copy: The copy of it that failed.
        x: What the copy was called on, ``[T, B, ...]``.
        error: What it raised.
        given: The input as it is trained on, where ``x`` is but a part of it.
        what: The input, in words.
        on_step: What it raised on a single time step, where that was tried, too.
        otherwise: The remedy where the failure itself shows none.

    Returns:
        An error with the innermost layer that raised, its exception, and a remedy that fits both.
    """
    what = f"{what} of shape {tuple(x.shape)}"
    if isinstance(error, FPTTError) and isinstance(on_step, FPTTError | None):  # says itself what to do
        return cannot_step(net, f"does not run on {what}: {error.reason}", error.remedy)
    name, layer = _innermost(copy.latest, error)
    inside = f" in {name!r} ({type(layer).__name__})" if name else ""
    also = f" nor on one step of it ({on_step!r})" if on_step and repr(on_step) != repr(error) else ""
    hook = input_hook(copy.net)
    if hook is not None:
        what, remedy = hook.explain()
    else:
        remedy = (
            _initial_state(net, x, name, layer)
            or _pair_of_outputs(net, error)
            or _type(net, x, name, error)
            or _repetition(net, x, given, _without_time_axis(net, name, layer))
            or _without_time_axis(net, name, layer)
            or _hidden_state(net, x)
            or (given is not None and _runs(net, given) and otherwise)  # on that shape alone: time is not its axis
            or _size(name, layer, error)
            or _further_arguments(net)
            or otherwise
        )
    return cannot_step(net, f"does not run on {what} ({error!r}{inside}){also}", remedy, CannotRunError)


def _innermost(net: nn.Module, error: Exception) -> tuple[str, nn.Module]:
    """Name and module of the innermost layer whose call raised the error; the network itself has no name."""
    names = {id(module): name for name, module in net.named_modules()}
    callers = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    found = [names[id(caller)] for caller in callers if id(caller) in names]
    name = found[-1] if found else ""
    return name, net.get_submodule(name)


def _initial_state(net: nn.Module, x: Tensor, name: str, layer: nn.Module) -> str:
    """Where a neuron runs on the values that it is built with, and not on those that its handler gives it."""
    handler = handler_for(layer)
    if not isinstance(handler, AttributeHandler) or not (_runs(net, x) or _runs(net, x[0])):
        return ""
    line = handler_code(unwrapped(net).get_submodule(name), handler.initial)
    return (
        f"it runs on the state that {type(layer).__name__} is built with, and not on that of its state handler: "
        f"register the values that it is built with, {line}"
    )


def _runs(net: nn.Module, x: Tensor) -> bool:
    """Whether the network runs as it is, without a reset before."""
    try:
        TrialCopy(net).run(x)
    except Exception:
        return False
    return True


def handler_code(module: nn.Module, names: Iterable[str]) -> str:
    """The line that registers a handler for a neuron's type, with what its state is before the first input.

    Args:
        module: The neuron, as it was built.
        names: Its state attributes; those of a handler that is registered already are added.
    """
    handler = handler_for(module)
    known = handler.initial if isinstance(handler, AttributeHandler) else {}
    values = {name: getattr(module, name, None) for name in dict.fromkeys([*known, *names])}
    code = f"AttributeHandler({_as_arguments(values)})"
    return f"fptt_plugin.state.register_state_handler({type(module).__name__}, {code})"


def _as_code(value: Any) -> str:
    """A value as Python code; dots for a tensor that some input has left, ``None`` where an object stands."""
    if isinstance(value, Tensor):
        return _tensor_as_code(value)
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    name = type(value).__name__
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_as_code(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, deque):
        return f"collections.deque([{', '.join(map(_as_code, value))}], maxlen={value.maxlen})"
    if isinstance(value, list) or type(value) is tuple:
        entries = ", ".join(map(_as_code, value))
        return f"[{entries}]" if isinstance(value, list) else f"({entries}{',' * (len(value) == 1)})"
    if isinstance(value, SimpleNamespace):
        return f"types.SimpleNamespace({_as_arguments(vars(value))})"
    if isinstance(value, tuple):  # with names
        return f"{name}({_as_arguments(value._asdict())})"  # type: ignore[attr-defined]
    if is_dataclass(value) and not isinstance(value, type):
        return f"{name}({_as_arguments({f.name: getattr(value, f.name) for f in fields(value) if f.init})})"
    return "None"


def _as_arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_as_code(value)}" for name, value in values.items())


def _tensor_as_code(value: Tensor) -> str:
    if not value.numel():
        return "None"
    fill = value.flatten()[0].item()
    if not bool((value == fill).all()):
        return "..."
    dtype = "" if value.dtype == torch.get_default_dtype() else f", dtype={value.dtype}"
    return f"torch.full({tuple(value.shape)}, {fill!r}{dtype})" if fill else f"torch.zeros({tuple(value.shape)}{dtype})"


def _pair_of_outputs(net: nn.Module, error: Exception) -> str:
    """Where a layer gets the pair that a snnTorch neuron with explicit state returns."""
    neurons = [name for name, module in net.named_modules() if getattr(module, "init_hidden", True) is False]
    if not neurons or "not tuple" not in str(error):
        return ""
    names = ", ".join(map(repr, neurons))
    return f"{names} return (spk, mem), which the next layer cannot take: build them with init_hidden=True"


def _type(net: nn.Module, x: Tensor, name: str, error: Exception) -> str:
    """Where a layer gets another floating-point type than its weights have."""
    types = {parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()}
    if "dtype" not in str(error) or len(types) != 1 or not name:
        return ""
    dtype = types.pop()
    if x.is_floating_point() and x.dtype != dtype:
        return f"convert the input with x.to({dtype})"
    return (
        f"the weights are {dtype}, and a layer before {name!r} returns another type, as snnTorch's surrogate "
        "gradients do, which give spikes as torch.float32: train in torch.float32, or pass the neurons "
        "spike_grad=fptt_plugin.functional.MultiGaussian()"
    )


def _hidden_state(net: nn.Module, x: Tensor) -> str:
    """Where a network runs on one number of samples only: that of a state that the samples before have left."""
    copy, sizes = TrialCopy(net), list[int]()
    for count in range(2, min(x.shape[1], _FEW)):
        copy.state.reset()
        with suppress(Exception):
            copy.run(x[:, :count] if "m" in step_modes(net).values() else x[0, :count])
            sizes.append(count)
    if len(sizes) != 1:
        return ""
    return (
        f"it runs on {sizes[0]} samples, and on no other number of them. If it keeps a state in a closure or a global "
        "variable, no reset reaches it: keep it in an attribute of the module; if it is built for a number of samples, "
        "take that from the input"
    )


def _repetition(net: nn.Module, x: Tensor, given: Tensor | None, layers: str) -> str:
    """Where a network in 'm' mode takes a still image and repeats it over time, maybe behind its first layers.

    Args:
        net: The network.
        x: What it failed on, ``[T, B, ...]``.
        given: The input as it is trained on.
        layers: What to do about layers that know no time axis, if they are to get sequences.
    """
    if "m" not in step_modes(net).values():
        return ""
    samples = x.shape[1]
    images = [x[0]] if given is None else [x[0], given[torch.arange(samples, device=given.device) % len(given)]]
    if not any(shape[1:2] == (samples,) for image in images for shape in _inputs_of_neurons(net, image)):
        return ""
    return (
        "forward() repeats a still image over time: take that out of forward() and pass x.unsqueeze(0).expand(T, "
        f"*x.shape), made in the loader's collate_fn{layers and f'; then {layers}'}"
    )


def _inputs_of_neurons(net: nn.Module, x: Tensor) -> list[torch.Size]:
    """Shapes of what the neurons get on an input; none if the network does not run on it."""
    copy, shapes = TrialCopy(net), list[torch.Size]()

    def note(_: nn.Module, args: Any) -> None:
        shapes.extend(tensor.shape for tensor in tensors_in(args[:1]))

    for _, neuron in copy.state.modules():
        neuron.register_forward_pre_hook(note)
    try:
        copy.run(x)
    except Exception:
        return []
    return shapes


def _without_time_axis(net: nn.Module, name: str, layer: nn.Module) -> str:
    """Where a layer of torch gets the time axis of a network in 'm' mode, and SpikingJelly has a layer for it."""
    modes = step_modes(net)
    if "m" not in modes.values():
        return ""
    # What an nn.Flatten makes of [T, B, ...] fails in the layer behind it.
    suspects = [(name, layer), *((n, m) for n, m in net.named_modules() if type(m) is nn.Flatten)]
    for suspect, module in suspects:
        kind = type(module).__name__
        within = any(not owner or suspect == owner or suspect.startswith(f"{owner}.") for owner in modes)
        if within or isinstance(module, nn.Linear) or not type(module).__module__.startswith("torch.nn."):
            continue
        if hasattr(sys.modules.get("spikingjelly.activation_based.layer"), kind):
            return (
                f"{suspect!r} is a torch.nn.{kind}, which knows no time axis, and the network is in 'm' mode: replace "
                f"it by SpikingJelly's layer.{kind} with step_mode='m', or wrap it in layer.SeqToANNContainer"
            )
    return ""


def _size(name: str, layer: nn.Module, error: Exception) -> str:
    """Where a layer is built for another number of features."""
    if "dtype" in str(error):
        return ""
    size = next((attribute for attribute in _SIZES if isinstance(getattr(layer, attribute, None), int)), None)
    if not name or size is None or not isinstance(error, (RuntimeError, ValueError, IndexError)):
        return ""
    return (
        f"{name!r} is built with {size}={getattr(layer, size)}: build it for what it gets, or check the order of the "
        "input's axes"
    )


def _further_arguments(net: nn.Module) -> str:
    """Where ``forward`` needs more than the input."""
    signature = inspect.signature(unwrapped(net).forward)
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    if len(required) < 2 or "args" in required:
        return ""
    return (
        f"its forward() takes {', '.join(required)}; if these are inputs, pass a tuple or a dictionary of them; if "
        "they are states, wrap it in a module whose forward(x_t, state) returns (output, state), where state is a "
        "tuple of the states, and None at the start of a sequence"
    )


@contextmanager
def neurons_rest(state: ModelState) -> Iterator[None]:
    """Check that a backward pass steps no neuron, as it does where it runs layers again to save memory.

    SpikingJelly's own checkpointing gives the neurons the state that they had at first. The state after the step,
    from which torch's starts, is the wrong one.

    Raises:
        CannotStepError: If a neuron is called with the state after the step.
    """
    states = state.get()

    def watch(name: str) -> Callable[..., None]:
        def hook(neuron: nn.Module, args: Any) -> None:
            now, after = tensors_in(state.get()[name]), tensors_in(states[name])
            if len(now) == len(after) and all(map(operator.is_, now, after)):
                raise CannotStepError(
                    "is stepped a second time by the backward pass, which runs it again (torch.utils.checkpoint), "
                    "so that its gradients are wrong",
                    "leave stateful layers out of torch.utils.checkpoint, or use SpikingJelly's "
                    "memopt.checkpoint_module, which keeps their state",
                    layer=name,
                    layer_type=type(neuron).__name__,
                )

        return hook

    hooks = [neuron.register_forward_pre_hook(watch(name)) for name, neuron in state.modules()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
