"""Recurrent state of one model: read, write, reset and detach, out of place and for that model alone.

The libraries' own helpers reach further than one model (snnTorch's class methods walk a global list of neurons) or
detach in place (SpikingJelly's fail on views); an online trainer can use neither. Here a handler per module type says
where the state lives. snnTorch's and SpikingJelly's are registered as soon as those libraries are imported; a
neuron of your own joins with :func:`register_state_handler`.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

from torch import Tensor, nn

StateDict = dict[str, Any]

# Library -> our module that registers its handlers. By name: nothing here may import either library.
_LIBRARIES = {"snntorch": "fptt_plugin.snntorch", "spikingjelly.activation_based": "fptt_plugin.spikingjelly"}


class StateHandler(Protocol):
    """Where the recurrent state of one type of module lives.

    A handler may also have ``detach(module)``, which cuts the state from its graph, out of place. Without it the state
    is read, detached and written back.
    """

    def get(self, module: Any) -> StateDict:
        """The state by name: tensors, numbers, ``None``, or containers of them; only the containers are copies."""

    def set(self, module: Any, state: StateDict) -> None:
        """Puts a state that :meth:`get` returned back, without writing into the old tensors."""

    def reset(self, module: Any) -> None:
        """Puts the module where it was before its first input."""


class AttributeHandler:
    """State kept in plain attributes (or buffers) of a module: the handler for most neurons written by hand.

    Args:
        **initial: Name of each state attribute and its value before the first input, usually ``None``. It may be a
            list that the module changes in place: each module gets a copy of its own at each reset.

    Example:
        >>> class Counter(nn.Module):
        ...     total = None
        >>> handler = AttributeHandler(total=None)
        >>> counter = Counter()
        >>> counter.total = 3
        >>> handler.get(counter)
        {'total': 3}
        >>> handler.reset(counter); counter.total is None
        True
    """

    def __init__(self, **initial: Any) -> None:
        self.initial = initial

    def get(self, module: Any) -> StateDict:
        return {name: copy_containers(getattr(module, name)) for name in self.initial}

    def set(self, module: Any, state: StateDict) -> None:
        for name, value in state.items():
            setattr(module, name, copy_containers(value))

    def reset(self, module: Any) -> None:
        self.set(module, copy.deepcopy(self.initial))


class BufferHandler:
    """State kept in the non-persistent buffers of a module, as in snnTorch's neurons.

    Example:
        >>> import torch
        >>> neuron = nn.Module()
        >>> neuron.register_buffer("mem", torch.ones(2), persistent=False)
        >>> handler = BufferHandler()
        >>> handler.get(neuron)
        {'mem': tensor([1., 1.])}
        >>> handler.reset(neuron); neuron.mem
        tensor([])
    """

    def get(self, module: Any) -> StateDict:
        return {name: getattr(module, name) for name in sorted(module._non_persistent_buffers_set)}

    def set(self, module: Any, state: StateDict) -> None:
        for name, value in state.items():
            setattr(module, name, value)

    def reset(self, module: Any) -> None:
        for name, value in self.get(module).items():
            # Empty tensors, which the next input replaces by ones of its own shape; snnTorch's DeltaLeaky has None.
            setattr(module, name, None if value is None else value.detach().new_zeros(0))

    def detach(self, module: Any) -> None:
        for name in module._non_persistent_buffers_set:
            value = getattr(module, name)
            if value is not None and value.requires_grad:
                setattr(module, name, value.detach())


_handlers: dict[type, StateHandler] = {}


def register_state_handler(module_type: type[nn.Module], handler: StateHandler) -> None:
    """Tells the package where modules of a type (and its subclasses) keep their recurrent state.

    Args:
        module_type: The class of the stateful module.
        handler: Its handler; :class:`AttributeHandler` serves state in plain attributes.

    Example:
        >>> class MyNeuron(nn.Module):
        ...     mem = None
        >>> register_state_handler(MyNeuron, AttributeHandler(mem=None))
        >>> [name for name, _ in ModelState(nn.Sequential(MyNeuron())).modules()]
        ['0']
    """
    _handlers[module_type] = handler


_refused: dict[type, tuple[str, Callable[[Any], bool]]] = {}


def refuse_to_step(
    module_type: type[nn.Module], reason: str, when: Callable[[Any], bool] = lambda module: True
) -> None:
    """Notes that modules of a type cannot be advanced one time step at a time, and what to do instead.

    Args:
        module_type: The class, with its subclasses.
        reason: Ends a sentence that begins with the module's name.
        when: ``when(module) -> bool``: the settings in which it cannot; by default all.
    """
    _refused[module_type] = reason, when


def refusals(net: nn.Module) -> list[str]:
    """One sentence for every module of the network that cannot be advanced step by step; names it and the remedy."""
    _load_adapters()
    found = []
    for name, module in net.named_modules():
        reason, when = next((_refused[base] for base in type(module).__mro__ if base in _refused), ("", None))
        if when is not None and when(module):
            found.append(f"{name or 'the network'!r} ({type(module).__name__}) {reason}")
    return found


Isolation = Callable[[nn.Module], AbstractContextManager[None]]

_isolations: list[Isolation] = []


def isolate_with(context: Isolation) -> None:
    """Names a context in which a library's own reset and detach reach the neurons of the given network alone."""
    _isolations.append(context)


@contextmanager
def isolated(net: nn.Module) -> Iterator[None]:
    """Within the context the libraries' own reset and detach reach the neurons of this network alone."""
    _load_adapters()
    with ExitStack() as stack:
        for context in _isolations:
            stack.enter_context(context(net))
        yield


def _load_adapters() -> None:
    for library, adapter in _LIBRARIES.items():
        if library in sys.modules:
            importlib.import_module(adapter)


def _handler_for(module: nn.Module) -> StateHandler | None:
    return next((_handlers[base] for base in type(module).__mro__ if base in _handlers), None)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies a function to every tensor in nested containers, see :func:`map_leaves`; the rest passes through.

    Example:
        >>> import torch
        >>> map_tensors(lambda t: t + 1, {"a": [torch.zeros(1), None]})
        {'a': [tensor([1.]), None]}
    """
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, value)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Applies a function to all that dictionaries, lists, tuples and dataclasses, nested as they may be, hold.

    The containers are new ones of the same types.

    Example:
        >>> map_leaves(lambda leaf: leaf is None, {"a": [1, None]})
        {'a': [False, True]}
    """
    if isinstance(value, Tensor):  # the common case, and every step asks for it
        return function(value)
    if isinstance(value, dict):
        mapped = {} if type(value) is dict else copy.copy(value)  # a default factory, or what a subclass holds, stays
        for key, entry in value.items():
            mapped[key] = map_leaves(function, entry)
        return mapped
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(function, entry) for entry in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_leaves(function, entry) for entry in value)
    if is_dataclass(value) and not isinstance(value, (type, nn.Module)):
        copied = copy.copy(value)
        for name in (field.name for field in fields(value) if hasattr(value, field.name)):
            # Whatever __init__ computes from its arguments is computed already, and a frozen one has no setter.
            object.__setattr__(copied, name, map_leaves(function, getattr(value, name)))
        return copied
    return function(value)


def copy_containers(value: Any) -> Any:
    """A copy down to tensors and the like, which stay the same objects: what one side changes in place is its own."""
    return map_leaves(lambda leaf: leaf, value)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested containers, see :func:`map_leaves`, in order.

    Example:
        >>> import torch
        >>> tensors_in({"a": [torch.zeros(1), None], "b": torch.ones(1)})
        [tensor([0.]), tensor([1.])]
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    return found


class ModelState:
    """The recurrent state of every stateful module of one network.

    Args:
        net: The network. Its modules are looked up once, here.

    Example:
        >>> import snntorch as snn, torch
        >>> net = nn.Sequential(nn.Linear(2, 3), snn.Leaky(beta=0.9, init_hidden=True))
        >>> state = ModelState(net)
        >>> _ = net(torch.ones(1, 2))
        >>> state.get()["1"]["mem"].shape
        torch.Size([1, 3])
        >>> state.reset(); state.get()["1"]["mem"].shape
        torch.Size([0])
    """

    def __init__(self, net: nn.Module) -> None:
        _load_adapters()
        found = ((name, module, _handler_for(module)) for name, module in net.named_modules())
        self._entries = [(name, module, handler) for name, module, handler in found if handler is not None]

    def add(self, name: str, module: nn.Module, handler: StateHandler) -> None:
        """Counts the state of one more module, which need not be part of the network, instead of one of that name."""
        self._entries = [entry for entry in self._entries if entry[0] != name] + [(name, module, handler)]

    def modules(self) -> list[tuple[str, nn.Module]]:
        """Name and module of everything that carries state, in the order of ``net.named_modules()``."""
        return [(name, module) for name, module, _ in self._entries]

    def get(self) -> dict[str, StateDict]:
        """State by module name. Holds references: cheap, and valid because states are replaced, not overwritten."""
        return {name: handler.get(module) for name, module, handler in self._entries}

    def set(self, state: dict[str, StateDict]) -> None:
        """Puts back a state that :meth:`get` returned.

        Raises:
            ValueError: If it belongs to a network with other stateful modules.
        """
        self.check(state)
        for name, module, handler in self._entries:
            handler.set(module, state[name])

    def check(self, state: dict[str, StateDict]) -> None:
        """Refuses the state of a network with other stateful modules.

        Raises:
            ValueError: If it is one.
        """
        names = [name for name, _, _ in self._entries]
        if sorted(names) != sorted(state):
            raise ValueError(
                f"this state belongs to another network: it has the stateful modules {sorted(state)}, "
                f"the network has {sorted(names)}"
            )

    def reset(self) -> None:
        """Puts every module where it was before its first input."""
        for _, module, handler in self._entries:
            handler.reset(module)

    def detach(self) -> None:
        """Cuts the state from the graph that produced it, out of place: tensors that others hold keep their graph."""
        for _, module, handler in self._entries:
            detach = getattr(handler, "detach", None)
            if detach is not None:
                detach(module)
            else:
                handler.set(module, map_tensors(Tensor.detach, handler.get(module)))
