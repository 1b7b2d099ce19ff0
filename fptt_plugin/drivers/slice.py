"""The slice driver: one call of the network per window of time steps."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ..errors import ConfigurationError, OutputError
from .base import Driver, register_driver


class SliceDriver(Driver):
    """For networks with a leading time axis whose neurons keep their state between calls: SpikingJelly in 'm' mode.

    Fed slices ``[K, B, ...]``; nothing about the network is switched. A network that averages over time at its end
    (``net(x).mean(0)``) yields one output for the slice.

    Attributes:
        keeps_time: Whether the output has a time axis; ``None`` until the first call shows it.
    """

    mixing_remedy = ": if forward() loops over time, call functional.set_step_mode(net, 's') and leave driver='auto'"
    keeps_time: bool | None = None
    _loss_within_window = False

    def advance(self, x: Tensor) -> Iterable[Tensor]:
        output = self.select(self.net(x))
        if self.keeps_time is None:
            self.note_time_axis(output, *x.shape[:2])
            self._check()
        return output.unbind(0) if self.keeps_time else (output,)

    def note_time_axis(self, output: Tensor, steps: int, samples: int) -> None:
        """Find out from an output for so many steps and samples whether it has a time axis.

        Raises:
            OutputError: If it has another shape.
        """
        if output.shape[:2] != (steps, samples) and output.shape[:1] != (samples,):
            raise OutputError(
                f"{type(self.net).__name__} returned an output of shape {tuple(output.shape)} for {steps} steps of "
                f"{samples} samples: expected [{steps}, {samples}, ...], or [{samples}, ...] from a network that "
                "averages over time",
                "where forward() repeats a still image over time, take that out of forward() and pass "
                "x.unsqueeze(0).expand(T, *x.shape), made in the loader's collate_fn",
            )
        self.keeps_time = output.shape[:2] == (steps, samples)
        self.combines_steps = not self.keeps_time

    def check_losses(self, window: int | None, loss_every: int | None) -> None:
        self._loss_within_window = loss_every is not None and (window is None or loss_every % window != 0)
        self._check()

    def _check(self) -> None:
        if self._loss_within_window and self.keeps_time is False:
            raise ConfigurationError(
                f"loss_every asks for a loss within a window, and {type(self.net).__name__} averages its output over "
                "the time steps of the window",
                "leave loss_every out (one loss per window), make it a multiple of window, or let forward() return "
                "its output of every step, [T, B, ...]",
            )

    def explain(self) -> str:
        return "driver: slice (net(x[t:t+K]) once per window of K steps)"


register_driver("slice", SliceDriver)
