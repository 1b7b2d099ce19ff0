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
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import CannotStepError, CheckpointError
from .torch_internals import transient_buffers, version_of
from .tree import copy_containers, map_leaves, map_tensors

StateDict = dict[str, Any]

# Library -> our module that registers its handlers. By name: nothing here may import either library.
_LIBRARIES = {"snntorch": "fptt_plugin.snntorch", "spikingjelly.activation_based": "fptt_plugin.spikingjelly"}


class StateHandler(Protocol):
    """Where the recurrent state of one type of module lives.

    A handler may also have ``detach(module)``, which detaches the state from its graph out of place. Without it the
    state is read, detached and set. ``replaces = True`` promises that the module replaces its tensors and never writes
    to them; a snapshot then holds references instead of copies. ``look(module)`` is called when the network is first
    seen, for a handler to which it matters what is there before the first input.
    """

    def get(self, module: Any) -> StateDict:
        """Read the state of a module.

        Args:
            module: The module.

        Returns:
            Tensors, numbers, ``None`` or containers of them, by name; only the containers are copies.
        """

    def set(self, module: Any, state: StateDict) -> None:
        """Restore a state that :meth:`get` returned, without writing into the old tensors.

        Args:
            module: The module.
            state: Its state.
        """

    def reset(self, module: Any) -> None:
        """Restore the state before the first input.

        Args:
            module: The module.
        """


class AttributeHandler:
    """State kept in plain attributes (or buffers) of a module: the handler for most neurons written by hand.

    Registered for a subclass of a neuron of either library, it adds its attributes to the state of that neuron.

    Args:
        **initial: Name of each state attribute and its value before the first input, usually ``None``. It may be a
            container that the module changes in place: each module gets a copy of its own at each reset.

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


_SIZED = "_state_buffers"  # attribute of a module with further buffers; copies of the module take it along


class BufferHandler:
    """State kept in the non-persistent buffers of a module that replaces them at every step, as snnTorch's neurons do.

    Those of the library are known by name. Of a subclass's own, the ones that are empty before the first input are
    state, which that input gives its shape; the others are constants and stay.

    Args:
        *names: Buffers that are state, whatever they hold.

    Example:
        >>> import torch
        >>> neuron = nn.Module()
        >>> neuron.register_buffer("mem", torch.ones(2), persistent=False)
        >>> neuron.register_buffer("mask", torch.ones(2), persistent=False)
        >>> handler = BufferHandler("mem")
        >>> handler.get(neuron)
        {'mem': tensor([1., 1.])}
        >>> handler.reset(neuron); neuron.mem, neuron.mask
        (tensor([]), tensor([1., 1.]))
    """

    replaces = True

    def __init__(self, *names: str) -> None:
        self._names = frozenset(names)

    def look(self, module: Any) -> AbstractSet[str]:
        found = transient_buffers(module)
        if found <= self._names:
            return found
        if _SIZED not in vars(module):
            setattr(module, _SIZED, {name for name in found if name in self._names or _is_state(getattr(module, name))})
        sized: AbstractSet[str] = getattr(module, _SIZED)
        return sized

    def get(self, module: Any) -> StateDict:
        return {name: getattr(module, name) for name in sorted(self.look(module))}

    def set(self, module: Any, state: StateDict) -> None:
        for name, value in state.items():
            setattr(module, name, value)

    def reset(self, module: Any) -> None:
        for name, value in self.get(module).items():
            # Empty tensors, which the next input replaces by ones of its own shape.
            setattr(module, name, None if value is None else value.detach().new_zeros(0))

    def detach(self, module: Any) -> None:
        for name in self.look(module):
            value = getattr(module, name)
            if value is not None and value.requires_grad:
                setattr(module, name, value.detach())


def _is_state(buffer: Any) -> bool:
    """Whether a buffer is empty before the first input, or was computed by a network that has run before."""
    return buffer is None or not buffer.numel() or buffer.grad_fn is not None


class _Addition(AttributeHandler):
    """Attributes of a subclass besides the state of the class that it extends."""

    def __init__(self, inherited: StateHandler, initial: StateDict) -> None:
        super().__init__(**initial)
        self._inherited = inherited

    def look(self, module: Any) -> None:
        _look(self._inherited, module)

    def get(self, module: Any) -> StateDict:
        return {**self._inherited.get(module), **super().get(module)}

    def set(self, module: Any, state: StateDict) -> None:
        self._inherited.set(module, {name: value for name, value in state.items() if name not in self.initial})
        super().set(module, {name: value for name, value in state.items() if name in self.initial})

    def reset(self, module: Any) -> None:
        self._inherited.reset(module)
        super().reset(module)


def _look(handler: StateHandler, module: Any) -> None:
    look = getattr(handler, "look", None)
    if look is not None:
        look(module)


_handlers: dict[type, StateHandler] = {}


def register_state_handler(module_type: type[nn.Module], handler: StateHandler) -> None:
    """Declare where modules of a type (and its subclasses) keep their recurrent state.

    Args:
        module_type: The class of the stateful module.
        handler: Its handler; :class:`AttributeHandler` serves state in plain attributes. It takes the place of the
            handler of a base class; but an :class:`AttributeHandler` adds to a base's handler of another class, as
            those of both libraries are.

    Example:
        >>> class MyNeuron(nn.Module):
        ...     mem = None
        >>> register_state_handler(MyNeuron, AttributeHandler(mem=None))
        >>> [name for name, _ in ModelState(nn.Sequential(MyNeuron())).modules()]
        ['0']
    """
    _load_adapters()
    inherited = next((_handlers[base] for base in module_type.__mro__[1:] if base in _handlers), None)
    if isinstance(handler, AttributeHandler) and inherited is not None and type(inherited) is not AttributeHandler:
        handler = _Addition(inherited, handler.initial)
    _handlers[module_type] = handler


_refused: dict[type, tuple[str, Callable[[Any], bool]]] = {}


def refuse_to_step(
    module_type: type[nn.Module], reason: str, when: Callable[[Any], bool] = lambda module: True
) -> None:
    """Declare that modules of a type cannot be advanced one time step at a time, and what to do instead.

    Args:
        module_type: The class; subclasses are included.
        reason: ``"what is wrong: what to do"``, the end of a sentence that begins with the module's name.
        when: ``when(module) -> bool``: the settings in which the module cannot be stepped. Default: all.
    """
    _refused[module_type] = reason, when


def unsupported_layers(net: nn.Module) -> list[CannotStepError]:
    """Return one error for every module of the network that cannot be advanced step by step."""
    _load_adapters()
    found = []
    for name, module in net.named_modules():
        text, when = next((_refused[base] for base in type(module).__mro__ if base in _refused), ("", None))
        if when is not None and when(module):
            reason, _, remedy = text.partition(": ")
            kind = type(module).__name__
            found.append(CannotStepError(reason, remedy, layer=name or "the network", layer_type=kind))
    return found


Isolation = Callable[[nn.Module], AbstractContextManager[None]]

_isolations: list[Isolation] = []


def isolate_with(context: Isolation) -> None:
    """Register a context in which a library's own reset and detach reach the neurons of the given network alone."""
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


def handler_for(module: nn.Module) -> StateHandler | None:
    """Return the state handler of a module; ``None`` if it has no state that this package knows."""
    return next((_handlers[base] for base in type(module).__mro__ if base in _handlers), None)


def random_state() -> tuple[Tensor, ...]:
    """Return the state of the random generators: the CPU's, then that of each GPU."""
    return (torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []))


def set_random_state(states: tuple[Tensor, ...]) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


class _Kept:
    """A tensor as it is now, whatever is written to it later.

    As long as nothing is, :meth:`value` is the tensor itself: in the middle of a window a copy in its place would be
    another node of the graph, and gradients would be summed in another order.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = version_of(tensor)
        with torch.enable_grad():
            self._copy = tensor.clone()

    def value(self) -> Tensor:
        return self._tensor if version_of(self._tensor) == self._version else self._copy.clone()


def _replaces(handler: StateHandler) -> bool:
    return getattr(handler, "replaces", False)


def _value(leaf: Any) -> Any:
    return leaf.value() if isinstance(leaf, _Kept) else leaf


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
        found = ((name, module, handler_for(module)) for name, module in net.named_modules())
        self._entries = [(name, module, handler) for name, module, handler in found if handler is not None]
        for _, module, handler in self._entries:
            _look(handler, module)

    def add(self, name: str, module: nn.Module, handler: StateHandler) -> None:
        """Add the state of one more module, which need not be part of the network; replaces one of that name."""
        self._entries = [entry for entry in self._entries if entry[0] != name] + [(name, module, handler)]

    def modules(self) -> list[tuple[str, nn.Module]]:
        """List everything that carries state.

        Returns:
            Name and module, in the order of ``net.named_modules()``.
        """
        return [(name, module) for name, module, _ in self._entries]

    def get(self) -> dict[str, StateDict]:
        """Read the state.

        Returns:
            State by module name. It holds references, which a module that changes its state in place writes to.
        """
        return {name: handler.get(module) for name, module, handler in self._entries}

    def snapshot(self) -> dict[str, StateDict]:
        """Keep the present state, to go back to with :meth:`restore`.

        Returns:
            The state, opaque; no later step writes to it.
        """
        return {
            name: handler.get(module) if _replaces(handler) else map_tensors(_Kept, handler.get(module))
            for name, module, handler in self._entries
        }

    def restore(self, snapshot: dict[str, StateDict]) -> None:
        """Restore what :meth:`snapshot` returned, which stays as it is.

        Args:
            snapshot: The state.

        Raises:
            CheckpointError: If it belongs to a network with other stateful modules.
        """
        self.check(snapshot)
        for name, module, handler in self._entries:
            handler.set(module, snapshot[name] if _replaces(handler) else map_leaves(_value, snapshot[name]))

    def set(self, state: dict[str, StateDict]) -> None:
        """Restore a state that :meth:`get` returned.

        Args:
            state: The state.

        Raises:
            CheckpointError: If it belongs to a network with other stateful modules.
        """
        self.check(state)
        for name, module, handler in self._entries:
            handler.set(module, state[name])

    def check(self, state: dict[str, StateDict]) -> None:
        """Check that a state fits the network.

        Raises:
            CheckpointError: If it belongs to a network with other stateful modules.
        """
        names = [name for name, _, _ in self._entries]
        if sorted(names) != sorted(state):
            raise CheckpointError(
                f"this state belongs to another network: it has the stateful modules {sorted(state)}, "
                f"the network has {sorted(names)}"
            )

    def reset(self) -> None:
        """Restore the state before the first input in every module."""
        for _, module, handler in self._entries:
            handler.reset(module)

    def detach(self) -> None:
        """Detach the state from its graph, out of place: tensors that others hold keep their graph."""
        for _, module, handler in self._entries:
            detach = getattr(handler, "detach", None)
            if detach is not None:
                detach(module)
            else:
                handler.set(module, map_tensors(Tensor.detach, handler.get(module)))
