"""The in-flight driver: trains a network inside its own loop over time, while its ``forward`` runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .drivers import Select, Shortcut, Take
from .state import ModelState, isolated, map_tensors

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Length:
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
            raise ValueError(
                f"the input has {steps} time steps, and the loop in forward() makes {self.steps} whatever it gets: let "
                "its length follow from the input, for t in range(len(x))"
                if steps
                else f"x of shape {tuple(x.shape)} is an empty sequence: leave it out, or check how the data were cut"
            )
        return steps

    def __str__(self) -> str:
        if self.axis is None or self.fixed:
            return f"{self.steps} time steps in every sequence"
        return f"as many as x.shape[{self.axis}]"


class InFlightDriver:
    """For networks whose own ``forward`` loops over time, as in most snnTorch tutorials.

    The network is called as it is, once per sequence. A hook on the module that ends each time step hands its output to
    the trainer, which takes the loss, goes backward and updates the weights before the loop's next step begins. What
    the neurons returned is then detached *in place*: the tensors that the loop holds in its local variables, and in
    the lists it collects, are these same objects, so nothing reaches back further.

    Args:
        net: The network.
        state: Its recurrent state.
        select: Picks the output from what the output module returns.
        output_module: Name of the module whose call ends a time step.
        length: Number of time steps of an input.
        every: Calls of the output module in a time step, of which the last ends it.
    """

    def __init__(
        self,
        net: nn.Module,
        state: ModelState,
        select: Select,
        output_module: str,
        length: Length,
        every: int = 1,
    ) -> None:
        self.net = net
        self.state = state
        self.select = select
        self.output_module = output_module
        self.length = length
        self.every = every
        self.hoisted: list[str] = []  # layers that ran before the loop in the dry run
        self._held: list[Tensor] = []

    def steps_and_batch(self, x: Tensor) -> tuple[int, int] | None:
        # Of an input without time axis the first dimension is the batch.
        return self.length(x), x.shape[1 if self.length.axis == 0 else 0]

    def run(self, x: Tensor, window: int | None, take: Take, shortcut: Shortcut = lambda rest: 0) -> None:
        expected, calls = self.length(x), 0
        output_module = self.net.get_submodule(self.output_module)

        def observe(module: nn.Module, args: Any, returned: Any) -> Any:
            nonlocal calls
            # A view cannot be detached in place: the loop gets a copy of its own.
            returned = map_tensors(lambda tensor: tensor.clone() if tensor._is_view() else tensor, returned)
            map_tensors(self._hold, returned)
            if module is output_module:
                calls += 1
                if calls % self.every == 0 and calls <= expected * self.every:
                    take([self.selected(returned)], x[:1])
            return returned

        modules = {id(module): module for _, module in self.state.modules()}
        modules[id(output_module)] = output_module
        handles = [module.register_forward_hook(observe) for module in modules.values()]
        try:
            with isolated(self.net):
                self.net(x)
        except RuntimeError as error:
            raise self._explained(error) from error
        finally:
            for handle in handles:
                handle.remove()
            self._held = []
        if calls != expected * self.every:
            raise RuntimeError(
                f"the loop in forward() made {calls // self.every} time steps where {expected} were expected, and "
                "weights have moved in them: let its length follow from the input, for t in range(len(x)), or build a "
                "new trainer when you change it"
            )

    def selected(self, returned: Any) -> Tensor:
        """The output that the loss sees, of what the output module returned.

        Raises:
            ValueError: If there is no such output, or several and none was chosen.
        """
        try:
            return self.select(returned)
        except ValueError as error:
            name = repr(self.output_module)
            raise ValueError(
                f"{error}. (Module {name} returned that: a network that loops over time is trained on the output of "
                "the module that ends a time step, not on what forward() returns; name another with output_module)"
            ) from error

    def _hold(self, tensor: Tensor) -> Tensor:
        self._held.append(tensor)
        return tensor

    def advance(self, x: Tensor) -> list[Tensor]:
        raise ValueError(
            f"{type(self.net).__name__} loops over time inside forward() and cannot take one step of a stream: use "
            "train_sequence(), or move the body of the loop into a network of its own"
        )

    def detach(self) -> None:
        for tensor in self._held:
            if tensor.grad_fn is not None:
                tensor.detach_()
        self._held = []
        self.state.detach()

    def explain(self) -> str:
        ordinal = "each" if self.every == 1 else f"every {self.every}."
        return (
            f"driver: in-flight (net(x) as it is; {ordinal} call of {self.output_module!r} ends a time step; "
            f"{self.length})"
        )

    def _explained(self, error: RuntimeError) -> RuntimeError:
        text = str(error)
        if "backward through the graph a second time" not in text and "modified by an inplace operation" not in text:
            return error
        cause = (
            f"{', '.join(map(repr, self.hoisted))} runs before the loop: move it into the loop's body"
            if self.hoisted
            else "move such a computation into the loop's body, and detach a trace that you keep yourself, "
            "trace = 0.9 * trace.detach() + spk"
        )
        return RuntimeError(
            f"the loop over time in the forward() of {type(self.net).__name__} uses a tensor that no neuron returned "
            "and that was computed in an earlier time step, or before the loop, so its graph outlives the step; "
            f"{cause}. (torch: {text.splitlines()[0]})"
        )


def check_in_flight(options: dict[str, str]) -> None:
    """Refuses options that go back to the start of a window.

    Raises:
        ValueError: If one is set so.
    """
    for option, value in (("variant", "gradient"), ("on_nonfinite", "skip")):
        if options[option] == value:
            raise ValueError(
                f"{option}={value!r} goes back to the start of a window, which a network that loops over time inside "
                f"forward() cannot: leave {option} at its default, or let forward() take one time step"
            )


def check_eager(net: nn.Module) -> None:
    """Refuses wrappers that leave no place to train while ``forward`` runs.

    Raises:
        ValueError: If there is one; says what to do instead.
    """
    if isinstance(net, _PARALLEL):
        raise ValueError(
            f"the network loops over time inside forward(), and {type(net).__name__} allows one backward per forward: "
            "let forward() take one time step, or train in one process"
        )
    compiled = [name or type(net).__name__ for name, module in net.named_modules() if _is_compiled(module)]
    if compiled:
        raise ValueError(
            f"the network loops over time inside forward() and {', '.join(map(repr, compiled))} is compiled, which "
            "leaves no place to train in between: pass the network as it was before torch.compile"
        )


def _is_compiled(module: nn.Module) -> bool:
    compiled = hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
    return compiled and bool(ModelState(module).modules())


def unwrapped(net: nn.Module) -> nn.Module:
    """The network that the user wrote, without the wrappers of torch.compile and data parallelism."""
    inner = getattr(net, "_orig_mod", net.module if isinstance(net, _PARALLEL) else None)
    return unwrapped(inner) if isinstance(inner, nn.Module) else net
