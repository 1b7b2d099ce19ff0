"""Compiled training: which part of it is compiled, and the way back to plain PyTorch where that fails.

``accelerate="compile"`` turns a whole window (forward pass, losses, backward pass, clipping, regulariser, optimizer,
running averages) into one graph, whatever the length of the sequence, and compiles it at the first window of each
shape. Results are the eager ones within rounding. Where the network's step cannot be compiled, the update still is.
The first window of a sequence and windows with masked targets run eagerly. ``.grad`` is left as the last eager window
had it.

A graph holds as constants every number that is a plain attribute of a module; changing one compiles anew. Numbers in
other objects (a surrogate's slope, say) and tensors that are neither parameter, buffer nor state are fixed for good.
"""

from __future__ import annotations

import warnings

from ..drivers import unwrapped
from ..errors import FPTTWarning
from ..training import TrainingLoop, Window, WindowResult
from .capture import CannotCompile
from .update import CompiledUpdate
from .window import CompiledWindow

MODES = ("none", "compile", "cudagraph", "auto")


class Accelerator:
    """Runs windows and updates of a loop as compiled graphs, as far as they can be.

    Args:
        loop: The loop.
        mode: ``"compile"``; ``"cudagraph"`` also records the graph's kernels, which takes a GPU and a ``capturable``
            optimizer; ``"auto"`` does so where that is given.

    Attributes:
        reasons: What runs eagerly, and why.
    """

    def __init__(self, loop: TrainingLoop, mode: str) -> None:
        self._loop = loop
        self._mode = mode
        self._update: CompiledUpdate | None = None
        self._window: CompiledWindow | None = None
        self.reasons: list[str] = []
        replay = mode in ("cudagraph", "auto") and _on_gpu(loop)
        try:
            if loop.updater.grad_scaler is not None:
                raise CannotCompile("a GradScaler steps the optimizer")
            self._update = CompiledUpdate(loop.updater.regularizer)
        except CannotCompile as reason:
            self._give_up("training runs", reason)
            return
        why = _uncompilable(loop)
        if why is None:
            self._window = CompiledWindow(loop, self._update, replay=replay)
            if mode == "cudagraph" and not replay:
                needed = "a CUDA graph takes a network on a GPU and an optimizer built with capturable=True"
                self._give_up("kernels are launched one by one, compiled but not recorded", CannotCompile(needed), "")
        else:
            self._give_up("forward and backward pass run", CannotCompile(why))

    def run(self, window: Window) -> WindowResult | None:
        """Train a window, and those after it that one graph fits; ``None`` if it must be trained eagerly."""
        if self._window is None or self._update is None:
            return None
        try:
            return self._window.run(window)
        except CannotCompile as reason:
            self._window = None
            self._give_up("forward and backward pass run", reason)
            return None

    def update(self, windows: int) -> bool:
        """Update the weights with the gradients of that many windows; ``False`` if the optimizer must do it."""
        # Beside a compiled window few updates are left, not worth a graph of their own.
        if self._update is None or self._window is not None:
            return False
        try:
            return self._update.step(windows)
        except CannotCompile as reason:
            self._update = None
            self._give_up("the update runs", reason)
            return False

    def explain(self) -> str:
        """One line on what is compiled."""
        compiled = "the whole window" if self._window else "the update" if self._update else "nothing"
        return f"accelerate={self._mode!r}: compiled: {'; '.join([compiled, *self.reasons])}"

    def _give_up(self, what: str, reason: CannotCompile, how: str = " eagerly") -> None:
        self.reasons.append(f"{what}{how}, because {reason}")
        warnings.warn(f"accelerate={self._mode!r}: {self.reasons[-1]}", FPTTWarning, stacklevel=2)


def _on_gpu(loop: TrainingLoop) -> bool:
    weights = next(loop.net.parameters(), None)
    groups = loop.updater.optimizer.param_groups
    return weights is not None and weights.is_cuda and all(group.get("capturable", False) for group in groups)


def _uncompilable(loop: TrainingLoop) -> str | None:
    """Why the windows of a loop cannot be compiled, if they cannot."""
    if loop.driver.pushes:
        return "the network runs its own loop over time, of which no step can be called by itself"
    if unwrapped(loop.net) is not loop.net and hasattr(loop.net, "module"):
        return "the processes exchange gradients in the middle of it"
    if loop.schedule.window is None:
        return "the window is the whole sequence: a graph of one step, or a few, would serve any length"
    if loop.schedule.update_every not in (None, loop.schedule.window):
        return "update_every is not the window"
    return None
