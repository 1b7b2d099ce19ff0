"""The in-flight driver: a network is trained inside its own loop over time, while its ``forward`` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..errors import BatchError, CallOrderError, CannotStepError, ConfigurationError, OutputError
from ..interrupts import Interruptible
from ..state import ModelState, isolated
from ..torch_internals import is_compiled, is_view
from ..tree import map_tensors, tensors_in
from .base import PARALLEL, Driver
from .returned import StepOutput


class TimeAxis:
    """Number of time steps of an input: its size along an axis, or a constant.

    Args:
        axis: Time axis of the input, 0 or 1; ``None`` for an input without one.
        steps: Steps of the first input.
        fixed: The loop runs that many steps whatever the input.
    """

    def __init__(self, axis: int | None, steps: int, fixed: bool = False) -> None:
        self.axis = axis
        self.steps = steps
        self.fixed = fixed

    def __call__(self, x: Tensor) -> int:
        steps = self.steps if self.axis is None else x.shape[self.axis]
        if steps == 0 or (self.fixed and steps != self.steps):
            if steps:
                raise BatchError(
                    f"the input has {steps} time steps, and the loop in forward() makes {self.steps} whatever it gets",
                    "let its length follow from the input, for t in range(len(x))",
                )
            raise BatchError(
                f"x of shape {tuple(x.shape)} is an empty sequence", "leave it out, or check how the data were cut"
            )
        return steps

    def __str__(self) -> str:
        if self.axis is None or self.fixed:
            return f"{self.steps} time steps in every sequence"
        return f"as many as x.shape[{self.axis}]"


class GraphOutlivesStepError(CannotStepError, RuntimeError):
    """The network uses a tensor of an earlier time step whose graph is gone."""


class InFlightDriver(Driver):
    """For networks whose own ``forward`` loops over time, as in most snnTorch tutorials.

    The network is called as it is, once per sequence. A hook on the module that ends each time step hands its output to
    the trainer, which takes the loss, goes backward and updates the weights before the loop's next step begins. What
    the neurons returned is then detached *in place*: the tensors that the loop holds in its local variables, and in
    the lists it collects, are these same objects, so nothing reaches back further.

    Args:
        output_module: Name of the module whose call ends a time step.
        time: Number of time steps of an input.
        every: Calls of the output module in a time step, of which the last ends it.
        step: What ``forward`` would return for a single step, from which the output is picked; ``None`` picks it from
            what the output module returns.
    """

    pushes = True

    def __init__(self, output_module: str, time: TimeAxis, every: int = 1, step: StepOutput | None = None) -> None:
        self.output_module = output_module
        self.time = time
        # Of an input without time axis the first dimension is the batch.
        self.axes = (None if time.fixed else time.axis, 1 if time.axis == 0 else 0)
        self.every = every
        self.step = step
        if step is not None:
            self.readout, self.factor, self.guesses = step.chosen.readout, step.chosen.factor, step.guessed
        self.hoisted: list[str] = []  # layers that ran before the loop in the dry run
        self._in_place: list[Tensor] = []

    def steps_and_batch(self, x: Tensor) -> tuple[int, int] | None:
        return self.time(x), x.shape[self.axes[1]]

    def run(self, x: Tensor, take: Callable[[Tensor], bool]) -> None:
        expected, calls = self.time(x), 0
        output_module = self.net.get_submodule(self.output_module)
        sources = [] if self.step is None else [source for source in self.step.sources if source is not None]
        names = {self.net.get_submodule(source.module): source.module for source in sources}
        latest: dict[tuple[str, int], Tensor] = {}

        def observe(module: nn.Module, args: Any, returned: Any) -> Any:
            nonlocal calls
            # A view cannot be detached in place: the loop gets a copy of its own.
            returned = map_tensors(lambda tensor: tensor.clone() if is_view(tensor) else tensor, returned)
            map_tensors(self._hold, returned)
            if module in names:
                latest.update(((names[module], place), tensor) for place, tensor in enumerate(tensors_in(returned)))
            if module is output_module:
                calls += 1
                if calls % self.every == 0 and calls <= expected * self.every:
                    output = self.selected(returned) if self.step is None else self.step.output(latest, self.select)
                    if take(output):
                        self._detach_in_place()
            return returned

        modules = {id(module): module for _, module in self.state.modules()}
        cells = (module for module in self.net.modules() if isinstance(module, nn.RNNCellBase))
        modules |= {id(module): module for module in (output_module, *names, *cells)}
        handles = [module.register_forward_hook(observe) for module in modules.values()]
        try:
            with isolated(self.net), Interruptible():
                self.net(x)
        except RuntimeError as error:
            raise self._explained(error) from error
        finally:
            for handle in handles:
                handle.remove()
            self._in_place = []
        if calls != expected * self.every:
            raise CallOrderError(
                f"the loop in forward() made {calls // self.every} time steps where {expected} were expected, and "
                "weights have moved in them",
                "let its length follow from the input, for t in range(len(x)), or build a new trainer when you change "
                "it",
            )

    def selected(self, returned: Any) -> Tensor:
        """The output that the loss sees, of what the output module returned.

        Raises:
            OutputError: If there is no such output, or several and none was chosen.
        """
        try:
            return self.select(returned)
        except Exception as error:  # output=... is any function, and may have been written for something else
            name = repr(self.output_module)
            what = error if isinstance(error, OutputError) else f"output=... raised {error!r}"
            raise OutputError(
                f"{what}. (Module {name} returned that: a network that loops over time is trained on the output of "
                "the module that ends a time step, not on what forward() returns; name another with output_module)",
            ) from error

    def _hold(self, tensor: Tensor) -> Tensor:
        self._in_place.append(tensor)
        return tensor

    def advance(self, x: Tensor) -> Iterable[Tensor]:
        raise CannotStepError(
            f"{type(self.net).__name__} loops over time inside forward() and cannot take one step of a stream",
            "use train_sequence(), or move the body of the loop into a network of its own",
        )

    def _detach_in_place(self) -> None:
        """Detach what the loop in ``forward`` holds: the tensors themselves, since it keeps references to them."""
        for tensor in self._in_place:
            if tensor.grad_fn is not None:
                tensor.detach_()
        self._in_place = []

    def explain(self) -> str:
        ordinal = "each" if self.every == 1 else f"every {self.every}."
        source = self.step.chosen if self.step else None
        seen = f"; the output is tensor {source.place} of {source.module!r}" if source else ""
        return (
            f"driver: in-flight (net(x) as it is; {ordinal} call of {self.output_module!r} ends a time step; "
            f"{self.time}{seen})"
        )

    def _explained(self, error: RuntimeError) -> Exception:
        text = str(error)
        if "backward through the graph a second time" not in text and "modified by an inplace operation" not in text:
            return error
        cause = (
            f"{', '.join(map(repr, self.hoisted))} runs before the loop: move it into the loop's body"
            if self.hoisted
            else "move such a computation into the loop's body, and detach a trace that you keep yourself, "
            "trace = 0.9 * trace.detach() + spk"
        )
        return GraphOutlivesStepError(
            f"the loop over time in the forward() of {type(self.net).__name__} uses a tensor that no neuron returned "
            "and that was computed in an earlier time step, or before the loop, so its graph outlives the step; "
            f"{cause}. (torch: {text.splitlines()[0]})"
        )


def check_in_flight(options: dict[str, str]) -> None:
    """Check that no option goes back to the start of a window.

    Raises:
        ConfigurationError: If ``variant="gradient"`` or ``on_nonfinite="skip"``.
    """
    for option, value in (("variant", "gradient"), ("on_nonfinite", "skip")):
        if options[option] == value:
            raise ConfigurationError(
                f"{option}={value!r} goes back to the start of a window, which a network that loops over time inside "
                "forward() cannot",
                f"leave {option} at its default, or let forward() take one time step",
            )


def check_eager(net: nn.Module) -> None:
    """Check that nothing around a network prevents training while its ``forward`` runs.

    Raises:
        CannotStepError: If it is wrapped for data parallelism, or compiled.
    """
    if isinstance(net, PARALLEL):
        raise CannotStepError(
            f"the network loops over time inside forward(), and {type(net).__name__} allows one backward per forward",
            "let forward() take one time step, or train in one process",
        )
    compiled = [name or type(net).__name__ for name, module in net.named_modules() if _is_compiled(module)]
    if compiled:
        raise CannotStepError(
            f"the network loops over time inside forward() and {', '.join(map(repr, compiled))} is compiled, which "
            "leaves no place to train in between",
            "pass the network as it was before torch.compile",
        )


def _is_compiled(module: nn.Module) -> bool:
    return is_compiled(module) and bool(ModelState(module).modules())
