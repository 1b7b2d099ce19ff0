"""What differs between the versions of SpikingJelly: 2.x and 0.0.0.0.14, the last before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from spikingjelly.activation_based import base, encoding, layer, neuron
from torch import Tensor

IS_FUNCTIONAL = hasattr(base.MemoryModule, "materialize_states")


def known_types(*names: str) -> Iterator[type]:
    """Return the neurons, layers and encoders of these names that the installed version has."""
    for name in names:
        yield from (getattr(place, name) for place in (neuron, layer, encoding) if hasattr(place, name))


class FunctionalMemory(base.MemoryModule):
    """Stateful module whose step is a pure function of input and state, as all are in SpikingJelly 2.x.

    For 0.0.0.0.14 it has 2.x's way from that function to ``forward``.
    """

    if not IS_FUNCTIONAL:

        def single_step_forward(self, x: Tensor) -> Tensor:
            states = self.materialize_states((x,), self._states(), "s")
            (output,), states = self.single_step_functional_forward((x,), states)
            self._keep(states)
            return output  # type: ignore[no-any-return]

        def multi_step_forward(self, x_seq: Tensor) -> Tensor:
            states, outputs, record = self.materialize_states((x_seq,), self._states(), "m"), [], []
            for x in x_seq:
                (output,), states = self.single_step_functional_forward((x,), states)
                outputs.append(output)
                record.append(states[0])
            self._keep(states)
            if getattr(self, "store_v_seq", False):
                self.v_seq = torch.stack(record)
            return torch.stack(outputs)

        def _states(self) -> tuple[Any, ...]:
            return tuple(value for name, value in self._memories.items() if name != "v_seq")  # there, a memory, too

        def _keep(self, states: tuple[Any, ...]) -> None:
            names = (name for name in self._memories if name != "v_seq")
            self._memories.update(zip(names, states, strict=True))
