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
from typing import TYPE_CHECKING

from torch import nn

from ._capture import CannotCompile
from ._compiled_update import CompiledUpdate
from ._compiled_window import CompiledWindow, Outcome
from ._position import Chunk
from .drivers import StepDriver

if TYPE_CHECKING:
    from ._engine import Engine

MODES = ("none", "compile", "cudagraph", "auto")

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Accelerator:
    """Runs windows and updates of an engine as compiled graphs, as far as they can be.

    Args:
        engine: The engine.
        mode: ``"compile"``; ``"cudagraph"`` also records the graph's kernels, which takes a GPU and a ``capturable``
            optimizer; ``"auto"`` does so where that is given.

    Attributes:
        reasons: What runs eagerly, and why.
    """

    def __init__(self, engine: Engine, mode: str) -> None:
        self._engine = engine
        self._mode = mode
        self._update: CompiledUpdate | None = None
        self._window: CompiledWindow | None = None
        self.reasons: list[str] = []
        replay = mode in ("cudagraph", "auto") and _on_gpu(engine)
        try:
            if engine.updater.grad_scaler is not None:
                raise CannotCompile("a GradScaler steps the optimizer")
            self._update = CompiledUpdate(engine.updater.regularizer)
        except CannotCompile as reason:
            self._give_up("training runs", reason)
            return
        why = _refusal(engine)
        if why is None:
            self._window = CompiledWindow(engine, self._update, replay=replay)
            if mode == "cudagraph" and not replay:
                needed = "a CUDA graph takes a network on a GPU and an optimizer built with capturable=True"
                self._give_up("kernels are launched one by one, compiled but not recorded", CannotCompile(needed), "")
        else:
            self._give_up("forward and backward pass run", CannotCompile(why))

    def windows(self, chunk: Chunk, window: int) -> Outcome | None:
        """Trains as many windows as one graph fits; ``None`` if the first of them must be trained eagerly."""
        if self._window is None or self._update is None:
            return None
        try:
            return self._window.run(chunk, window)
        except CannotCompile as reason:
            self._window = None
            self._give_up("forward and backward pass run", reason)
            return None

    def update(self, windows: int) -> bool:
        """Updates the weights with the gradients of so many windows; ``False`` if the optimizer must do it."""
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
        warnings.warn(f"accelerate={self._mode!r}: {self.reasons[-1]}", UserWarning, stacklevel=2)


def _on_gpu(engine: Engine) -> bool:
    weights = next(engine.net.parameters(), None)
    groups = engine.updater.optimizer.param_groups
    return weights is not None and weights.is_cuda and all(group.get("capturable", False) for group in groups)


def _refusal(engine: Engine) -> str | None:
    """Why the windows of an engine cannot be compiled, if they cannot."""
    if not isinstance(engine.driver, StepDriver):
        return "the network runs its own loop over time, of which no step can be called by itself"
    if isinstance(engine.net, _PARALLEL):
        return "the processes exchange gradients in the middle of it"
    if engine.strides.window is None:
        return "the window is the whole sequence: a graph of one step, or a few, would serve any length"
    if engine.strides.update_every not in (None, engine.strides.window):
        return "update_every is not the window"
    return None
