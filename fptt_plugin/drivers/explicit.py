"""The explicit driver: networks that take and return their state."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Number
from typing import Any, Self

from torch import Tensor, nn

from ..errors import OutputError
from ..state import AttributeHandler, ModelState
from ..tree import map_leaves
from .base import Driver, Select, register_driver


class ExplicitDriver(Driver):
    """For networks that take and return their state, ``net(x_t, state) -> (output, state)``, ``None`` at the start.

    The state may be tensors, numbers and ``None``, nested in dicts, lists, tuples, dataclasses, deques and namespaces,
    and the network may change these containers in place. Neurons with a state of their own may be among the layers.
    """

    sees_state = False  # whether the loss may see the state, too: of (spk, mem) the membrane

    sequence_remedy = (
        "driver='explicit' gives forward() one time step [B, ...]: if it loops over time itself, pass "
        "driver='in-flight'; if it hands sequences to a layer (nn.LSTM, SpikingLSTM), wrap it in a module that calls "
        "it on x_t.unsqueeze(0) and returns output[0] and the state"
    )
    mixing_remedy = f"; {sequence_remedy}"

    def bind(self, net: nn.Module, state: ModelState, select: Select) -> Self:
        self._holder = StateHolder()
        state.add("the state that forward() returns", self._holder, AttributeHandler(value=None))
        return super().bind(net, state, select)

    def advance(self, x: Tensor) -> Iterable[Tensor]:
        return (self._step(x_t) for x_t in x)

    def _step(self, x_t: Tensor) -> Tensor:
        returned = self.net(x_t, self._holder.value)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise OutputError(
                "driver='explicit' calls net(x_t, state) and expects (output, state) back, got "
                f"{type(returned).__name__}",
                "wrap the network in a module that does so",
            )
        output, state = returned
        self._holder.value = map_leaves(self._check_leaf, state)
        return self.select(returned if self.sees_state else output)

    def _check_leaf(self, leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, (Tensor, Number, str)):
            return leaf
        raise OutputError(
            f"the state that {type(self.net).__name__} returns holds an object of type {type(leaf).__name__}, which "
            "cannot be detached from the graph or put back",
            "let the state be tensors, numbers and None, nested in dicts, lists, tuples, dataclasses, deques and "
            "namespaces",
        )

    def explain(self) -> str:
        return "driver: explicit (net(x_t, state) -> (output, state) once per time step)"


class StateHolder(nn.Module):
    """Holds the state that a network with explicit state returned last."""

    value: Any = None


register_driver("explicit", ExplicitDriver)
