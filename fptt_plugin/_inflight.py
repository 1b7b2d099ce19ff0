"""The in-flight driver: trains a network inside its own loop over time, while its ``forward`` runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .drivers import Select, Take
from .state import ModelState, map_tensors


class Length:
    """Number of time steps of an input: its size along an axis, or a constant.

    Args:
        axis: Time axis of the input, 0 or 1; ``None`` for a constant.
        steps: The constant.
    """

    def __init__(self, axis: int | None, steps: int) -> None:
        self.axis = axis
        self.steps = steps

    def __call__(self, x: Tensor) -> int:
        return self.steps if self.axis is None else x.shape[self.axis]


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
    """

    def __init__(self, net: nn.Module, state: ModelState, select: Select, output_module: str, length: Length) -> None:
        self.net = net
        self.state = state
        self.select = select
        self.output_module = output_module
        self.length = length
        self._held: list[Tensor] = []

    def steps_and_batch(self, x: Tensor) -> tuple[int, int] | None:
        # Of an input without time axis the first dimension is the batch.
        return self.length(x), x.shape[1 if self.length.axis == 0 else 0]

    def run(self, x: Tensor, window: int | None, take: Take) -> None:
        expected, count = self.length(x), 0
        output_module = self.net.get_submodule(self.output_module)

        def observe(module: nn.Module, args: Any, returned: Any) -> Any:
            nonlocal count
            # A view cannot be detached in place: the loop gets a copy of its own.
            returned = map_tensors(lambda tensor: tensor.clone() if tensor._is_view() else tensor, returned)
            map_tensors(self._hold, returned)
            if module is output_module:
                count += 1
                if count <= expected:
                    take([self.select(returned)], x[:1])
            return returned

        modules = {id(module): module for _, module in self.state.modules()}
        modules[id(output_module)] = output_module
        handles = [module.register_forward_hook(observe) for module in modules.values()]
        try:
            self.net(x)
        except RuntimeError as error:
            raise _explained(error) from error
        finally:
            for handle in handles:
                handle.remove()
            self._held = []
        if count != expected:
            raise RuntimeError(
                f"the loop in forward() made {count} time steps where {expected} were expected, so the end of the "
                "sequence was missed: let its length follow from the shape of the input"
            )

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
        return f"driver: in-flight (net(x) as it is; each call of {self.output_module!r} ends a time step)"


def _explained(error: RuntimeError) -> RuntimeError:
    text = str(error)
    if "backward through the graph a second time" not in text and "modified by an inplace operation" not in text:
        return error
    return RuntimeError(
        "the loop in forward() carries a tensor over time that no neuron returned, or uses a layer's output that was "
        "computed before the loop, so its graph outlives the time step: move layers such as self.fc(x) into the loop, "
        "and keep such a trace in a neuron or detach it. The network's weights may have moved in this sequence. "
        f"(torch: {text.splitlines()[0]})"
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
