"""What a driver is, the drivers by name, and what they ask a network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Self

from torch import Tensor, nn

from ..errors import CannotStepError, ConfigurationError
from ..state import ModelState
from ..torch_internals import compiled_from

Select = Callable[[Any], Tensor]

PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Driver:
    """How a network is called in time.

    Subclass it for a network that none of the built-in drivers can call, implement :meth:`advance`, and pass an
    instance to the trainer, ``driver=MyDriver(...)``, or register it under a name with :func:`register_driver`. The
    trainer calls :meth:`bind` once, and again on copies of the driver for its dry runs on a copy of the network, so
    ``__init__`` may take options but never the network.

    Attributes:
        net: The network.
        state: Its recurrent state. Modules that the driver adds with ``state.add`` count as part of it.
        select: Picks the output that the loss sees from what the network returns.
        readout (str): How the network itself combines its steps into what it returns: ``"step"`` (it returns every
            step, or the last), ``"mean"``, ``"sum"`` or ``"max"``.
        factor (float): Constant by which the network multiplies a sum over its steps. Default 1.
        guesses (bool): Whether ``readout`` is a guess, because every output tried was the same at each step.
        readout_in_evaluation (str | None): The same as ``readout`` in evaluation mode, if the network was asked.
        combines_steps (bool): Whether :meth:`advance` gives one output for all of its steps, combined as ``readout``
            says.
        pushes (bool): ``False``: the trainer calls :meth:`advance` window by window. ``True``: the network runs its own
            loop over time, and the trainer calls :meth:`run` once per batch.
        axes (tuple[int | None, int]): Axes of time and batch in an input; ``None`` for time where an input has no such
            axis, or must keep its number of steps. Default (0, 1).
        mixing_remedy (str): What the error message advises where samples mix.
        sequence_remedy (str): What the error message advises where the network does not take a time step.

    Example:
        >>> class Repeats(Driver):
        ...     '''Calls the network twice per time step, as if every input lasted two steps.'''
        ...     def advance(self, x):
        ...         return [self.select((self.net(x_t), self.net(x_t))[1]) for x_t in x]
        >>> register_driver("repeats", Repeats)
        >>> Repeats().explain()
        'driver: Repeats'
    """

    net: nn.Module
    state: ModelState
    select: Select
    pushes = False
    readout = "step"
    factor = 1.0
    guesses = False
    readout_in_evaluation: str | None = None
    combines_steps = False
    axes: tuple[int | None, int] = (0, 1)
    mixing_remedy = ""
    sequence_remedy = "leave driver='auto', which finds out how forward() takes its time steps"

    @property
    def checks_samples(self) -> bool:
        """Whether the preflight checks that the samples of a batch do not mix."""
        return True

    def bind(self, net: nn.Module, state: ModelState, select: Select) -> Self:
        """Attach the driver to a network.

        Args:
            net: The network.
            state: Its recurrent state.
            select: Picks the output that the loss sees from what the network returns.

        Returns:
            The driver itself.
        """
        self.net, self.state, self.select = net, state, select
        return self

    def on_copy(self, net: nn.Module, state: ModelState) -> Driver:
        """Copy the driver onto a copy of the network.

        Args:
            net: The copy of the network.
            state: Its recurrent state.

        Returns:
            The copy of the driver.
        """
        return copy.copy(self).bind(net, state, self.select)

    def advance(self, x: Tensor) -> Iterable[Tensor]:
        """Run the network over some steps.

        Args:
            x: Input ``[K, B, ...]``.

        Returns:
            One output ``[B, ...]`` per step, best from a generator, as each step is computed; a single output with
            :attr:`combines_steps`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement advance(x)")

    def run(self, x: Tensor, take: Callable[[Tensor], bool]) -> None:
        """Run the network over a whole batch; needed where ``pushes`` is true.

        Args:
            x: Input ``[T, B, ...]``.
            take: Call it with the output of every step as it comes. It may go backward, detach the recurrent state and
                change the weights. It returns whether a window ended: after that, no state or output that
                the network still uses may have a graph that reaches back beyond this step.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement run(x, take)")

    def steps_and_batch(self, x: Tensor) -> tuple[int, int] | None:
        """Number of steps and samples of an input, where its shape does not say them.

        Args:
            x: The input as the user passes it.

        Returns:
            Both numbers; ``None`` where the input is ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``).
        """
        return None

    def check_losses(self, window: int | None, loss_every: int | None) -> None:
        """Check that the losses which are due can be formed from what :meth:`advance` returns.

        Args:
            window: Steps of a window; ``None``: the whole sequence.
            loss_every: Steps between losses; ``None``: one per window.

        Raises:
            ConfigurationError: If they cannot.
        """

    def explain(self) -> str:
        """Describe how the network is called.

        Returns:
            One line.
        """
        return f"driver: {type(self).__name__}"


_drivers: dict[str, Callable[[], Driver]] = {}


def register_driver(name: str, make: Callable[[], Driver]) -> None:
    """Make a driver available by name, as ``FPTTTrainer(..., driver=name)``.

    Args:
        name: The name.
        make: Returns a new driver: the class, if its ``__init__`` needs no arguments.

    Raises:
        ConfigurationError: If the name is taken by a built-in driver.
    """
    if name in ("auto", "in-flight") or (name in ("step", "slice", "explicit") and name in _drivers):
        raise ConfigurationError(f"driver {name!r} is built in", "choose another name")
    _drivers[name] = make


def driver_names() -> tuple[str, ...]:
    """Every name that ``driver=`` accepts."""
    return ("auto", "in-flight", *_drivers)


def driver_named(name: str) -> Driver:
    """Return a new driver of that name, not yet bound to a network."""
    return _drivers[name]()


def unwrapped(net: nn.Module) -> nn.Module:
    """The network that the user wrote, without the wrappers of ``torch.compile`` and data parallelism."""
    inner = net.module if isinstance(net, PARALLEL) else compiled_from(net)
    return net if inner is None else unwrapped(inner)


def step_modes(net: nn.Module) -> dict[str, str]:
    """SpikingJelly's step mode, ``"s"`` or ``"m"``, of every module that has one and is not part of another such."""
    found: dict[str, str] = {}
    inside: set[nn.Module] = set()
    for name, module in net.named_modules():
        supported = getattr(module, "supported_step_mode", None)
        mode = "m" if callable(supported) and tuple(supported()) == ("m",) else getattr(module, "step_mode", None)
        if mode in ("s", "m") and module not in inside:
            found[name] = mode
            inside.update(module.modules())
    return found


class StepModes:
    """The step modes of a network at one time, to see whether they have changed.

    Args:
        net: The network. Its modules are looked up once, here.

    Example:
        >>> from spikingjelly.activation_based import functional, layer
        >>> net = nn.Sequential(layer.Linear(2, 3))
        >>> modes = StepModes(net)
        >>> functional.set_step_mode(net, "m"); modes.changed()
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self._modules: list[Any] = [module for module in net.modules() if hasattr(module, "step_mode")]
        self._kept = self._now()

    def _now(self) -> list[str]:
        return [module.step_mode for module in self._modules]

    def changed(self) -> bool:
        """Whether a step mode differs from what it was; cheap enough for every step of a stream."""
        return bool(self._modules) and self._now() != self._kept


def cannot_step(
    net: nn.Module, reason: str, remedy: str = "", kind: type[CannotStepError] = CannotStepError
) -> CannotStepError:
    """An error about the network as a whole; the reason continues a sentence that begins with its class."""
    return kind(f"{type(unwrapped(net)).__name__} {reason}", remedy)
