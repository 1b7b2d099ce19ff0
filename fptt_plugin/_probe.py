"""Dry runs on a copy of a network: which modules are called, and what outlives a time step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .state import ModelState, isolated, map_tensors, tensors_in


class Calls(NamedTuple):
    """What one run of a network called, in the order in which the calls returned.

    Attributes:
        modules: Names of all modules, those inside a neuron left out.
        neurons: Names of the neurons among them.
    """

    modules: list[str]
    neurons: list[str]

    @property
    def unique(self) -> bool:
        """Every neuron that is called is called once."""
        return len(self.neurons) == len(set(self.neurons)) > 0

    def steps(self) -> int:
        """How often the pattern of calls repeats, 1 if it does not.

        A neuron counts together with the call before it: one that serves two layers of a step stays one step.
        """
        calls = [i for i, name in enumerate(self.modules) if name in self.neurons]
        before = [self.modules[i - 1] if i else "" for i in calls]
        tail = self.modules[calls[-1] :] if calls else []
        for period in range(1, len(calls) // 2 + 1):
            pairs = zip(self.neurons, self.neurons[period:], before, before[period:], strict=False)
            same = [(one == other, b == c) for one, other, b, c in pairs]
            # The first step follows on what comes before the loop, a later one on the end of the step before.
            follows = same[0][1] or before[period] in tail
            if len(calls) % period == 0 and follows and same[0][0] and all(all(pair) for pair in same[1:]):
                return len(calls) // period
        return 1


class Probe:
    """Runs a copy of a network; the network itself, its state, its monitors and other networks stay as they are.

    Raises:
        ValueError: If the network cannot be copied.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = _copy(net)
        self.state = ModelState(self.net)

    def run(self, x: Tensor) -> Any:
        """One call of the copy, with the random numbers that the network would get."""
        with torch.random.fork_rng(), isolated(self.net):
            return self.net(x)

    def calls(self, x: Tensor) -> Calls:
        """What the copy calls on ``x``, from its initial state and without gradients."""
        calls, neurons = Calls([], []), dict(self.state.modules())
        inside = {id(m) for neuron in neurons.values() for m in neuron.modules() if m is not neuron}

        def note(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                calls.modules.append(name)
                if name in neurons:
                    calls.neurons.append(name)

            return hook

        handles = [
            module.register_forward_hook(note(name))
            for name, module in self.net.named_modules()
            if id(module) not in inside
        ]
        try:
            self.state.reset()
            with torch.no_grad():
                self.run(x)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def forgotten(self, x_t: Tensor) -> list[str]:
        """Names of neurons whose state does not survive from one call of the network to the next."""
        forgotten: list[str] = []

        def watch(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                now = self.state.get()[name]
                if any(isinstance(v, Tensor) and now.get(key) is not v for key, v in before[name].items()):
                    forgotten.append(name)

            return hook

        self.state.reset()
        with torch.no_grad():
            self.run(x_t)
            before = self.state.get()
            handles = [module.register_forward_pre_hook(watch(name)) for name, module in self.state.modules()]
            self.run(x_t)
        for handle in handles:
            handle.remove()
        return forgotten

    def outputs(self, x: Tensor, name: str) -> tuple[list[Any], Any]:
        """What a module returns at each of its calls, and the copy in the end, from its initial state; with graph."""
        outputs: list[Any] = []

        def keep(module: nn.Module, args: Any, returned: Any) -> None:
            outputs.append(map_tensors(Tensor.clone, returned))  # what comes after may write into it

        handle = self.net.get_submodule(name).register_forward_hook(keep)
        try:
            self.state.reset()
            with torch.enable_grad():
                return outputs, self.run(x)
        finally:
            handle.remove()

    def parameters_behind(self, value: Any) -> list[str]:
        """Names of the parameters that the graph of these tensors leads to, also where the gradient is 0."""
        nodes = [tensor.grad_fn for tensor in tensors_in(value) if tensor.grad_fn is not None]
        seen, leaves = set(nodes), set()
        while nodes:
            node = nodes.pop()
            leaves.add(id(getattr(node, "variable", None)))
            new = {following for following, _ in node.next_functions if following is not None} - seen
            seen |= new
            nodes += new
        return [name for name, parameter in self.net.named_parameters() if id(parameter) in leaves]

    def trainable(self, name: str) -> bool:
        """Whether this module is a layer with weights to train."""
        module = self.net.get_submodule(name)
        return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def is_record(found: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Whether a tensor is, within rounding, what a network usually returns of its outputs over time.

    That is their stack, or that of their running sums or means, with time at any axis; their last; their maximum; or a
    multiple of their sum, since ``count / num_steps`` is their mean only for inputs that are not cut.

    Example:
        >>> outputs = list(torch.rand(5, 3, 2))
        >>> is_record(sum(outputs) / 7, outputs), is_record(torch.stack(outputs, 1), outputs)
        (True, True)
        >>> is_record(torch.stack(outputs).sigmoid(), outputs)
        False
    """
    found, stacked = found.detach(), torch.stack([output.detach() for output in outputs])
    kinds = [torch.finfo(tensor.dtype).eps for tensor in (found, stacked) if tensor.is_floating_point()]
    tolerance = min(64 * max(kinds, default=0.0), 0.05)
    found, stacked = found.to(stacked.device, torch.float32), stacked.float()
    sums = stacked.cumsum(0)
    means = sums / torch.arange(1, len(sums) + 1, device=sums.device).view(-1, *[1] * (sums.dim() - 1))
    forms = [record.movedim(0, axis) for record in (stacked, sums, means) for axis in range(stacked.dim())]
    forms += [stacked[-1], stacked.amax(0)]
    if found.numel() == sums[-1].numel():
        square = sums[-1].square().sum()
        factor = (found.flatten() @ sums[-1].flatten()) / square if square else square
        forms.append(factor * sums[-1])
    return any(_same(found, form, tolerance) for form in forms)


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Equal values in equal order: axes of size 1, and steps and samples put together, make no difference."""
    if one.numel() != other.numel():
        return False
    scale = other.nan_to_num().abs().amax().item() if other.numel() else 0.0
    return torch.allclose(one.flatten(), other.flatten(), rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _copy(net: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}

    def cut(tensor: Tensor) -> Tensor:
        if tensor.grad_fn is not None:  # deepcopy refuses these
            memo[id(tensor)] = tensor.detach().clone()
        return tensor

    for module in net.modules():
        map_tensors(cut, vars(module))
        for hooks in _hooks(module):
            memo.update((id(hook), _nothing) for hook in hooks.values() if not _is_torch(hook))
    try:
        copied = copy.deepcopy(net, memo)
    except Exception as error:
        raise ValueError(
            f"{type(net).__name__} cannot be copied for the dry run that finds out how to call it ({error!r}): pass "
            "driver='step' if forward() takes one time step; otherwise take what copy.deepcopy refuses out of the "
            "network's attributes"
        ) from error
    for module in copied.modules():
        for hooks in _hooks(module):
            for key in [key for key, hook in hooks.items() if not _is_torch(hook)]:
                del hooks[key]  # monitors of the original have nothing to see here
    return copied


def _hooks(module: nn.Module) -> list[dict[int, Any]]:
    return [module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks]


def _is_torch(hook: Any) -> bool:
    """Whether a hook is part of how torch computes (lazy layers, weight normalisation) rather than a monitor."""
    return (getattr(hook, "__module__", None) or "").startswith("torch.")


def _nothing(*_: Any) -> None:
    pass
