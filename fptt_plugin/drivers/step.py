"""The step driver: one call of the network per time step."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .base import Driver, register_driver, step_modes

# Of an input without a time axis, torch's layers of whole sequences take the samples for time steps.
_SEQUENCES = (nn.RNNBase, nn.MultiheadAttention)


class StepDriver(Driver):
    """For networks whose ``forward`` takes one time step ``[B, ...]`` and whose neurons keep their state."""

    mixing_remedy = (
        ": take .mean(0) over time out of forward() and call functional.set_step_mode(net, 's'), or leave "
        "forward() as it is, call functional.set_step_mode(net, 'm') and leave driver='auto'"
    )

    @property
    def checks_samples(self) -> bool:
        return bool(step_modes(self.net)) or any(isinstance(module, _SEQUENCES) for module in self.net.modules())

    def advance(self, x: Tensor) -> Iterable[Tensor]:
        return (self.select(self.net(x_t)) for x_t in x)

    def explain(self) -> str:
        return "driver: step (net(x_t) once per time step)"


register_driver("step", StepDriver)
