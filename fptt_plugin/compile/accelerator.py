"""Compiled training: which part of it is compiled, and the way back to plain PyTorch where that fails.

Three things can be compiled, each by ``torch.compile``, whose guards notice when anything that Python code reads has
changed: hooks, numbers, modules, shapes. The compiler then runs again, or that call runs eagerly.

* A *window* as one graph: forward pass, losses, backward pass, clipping, regularizer, optimizer, running averages. The
  fastest; its compile time grows with the window.
* The network's *step*, called K times in a window of K steps, and where windows do not fit the one graph. The loop does
  what is left, as without compilation, so whatever trains eagerly trains this way. Ready in seconds for any window.
* The *update* by itself, from the gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..drivers import unwrapped
from ..errors import FPTTWarning
from ..torch_internals import has_backward_hooks, has_global_module_hooks, has_gradient_hooks
from ..training import TrainingLoop, Window, WindowResult
from . import cuda_graph
from .dynamo import CannotCompile, compiler_settings, read_headers, traces_backward
from .kept import KeptBatch, modules_of
from .update import CompiledUpdate, Verdicts
from .window import CompiledStep, CompiledWindow

MODES = ("none", "compile", "cudagraph", "auto")
# Window that is compiled as one graph, of dense layers and of convolutions, which take most of a step's time however
# they are called; longer windows are called step by step, which is sooner ready.
LONGEST, LONGEST_OF_CONVOLUTIONS = 8, 2
LONGEST_RECORDED = 64  # half a second for each step; kernels that are replayed cost the host nothing, fused or not
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PATIENCE = 16  # windows left out of the one graph before the step is compiled for them, too


class Accelerator:
    """Runs windows, steps and updates of a loop compiled, as far as they can be.

    Args:
        loop: The loop.
        mode: ``"compile"``; ``"cudagraph"`` also records the kernels of a window's graph, which takes a GPU; ``"auto"``
            does so on a GPU.

    Attributes:
        reasons: What runs eagerly, and why.
    """

    def __init__(self, loop: TrainingLoop, mode: str) -> None:
        self._loop = loop
        self._mode = mode
        self.reasons: list[str] = []
        self._update: CompiledUpdate | None = None
        self._window: CompiledWindow | None = None
        self._step: CompiledStep | None = None
        self._left_out = 0
        self._verdicts = Verdicts()
        self._before: KeptBatch | None = None  # the batch whose updates are looked at together
        try:
            if loop.updater.grad_scaler is not None:
                raise CannotCompile("a GradScaler steps the optimizer")
            self._update = CompiledUpdate(loop.updater.regularizer, self._verdicts)
        except CannotCompile as reason:
            self._give_up("the update runs eagerly", reason)
        why = _no_step(loop)
        if why is not None:
            self._give_up("forward and backward pass run eagerly", why)
            return
        self._step = CompiledStep(loop)
        if loop.updater.parameters[0].is_cpu:
            read_headers()
        replay = mode in ("cudagraph", "auto") and self._is_on_gpu()
        longest = _longest_fused(loop)
        if self._update is not None and _fits_one_graph(loop, LONGEST_RECORDED if replay else longest):
            self._window = CompiledWindow(loop, self._verdicts, longest_fused=longest, replay=replay)
        if mode == "cudagraph" and (self._window is None or self._window.recorder is None):
            needed = f"a network on a GPU, windows of at most {LONGEST_RECORDED} steps and an update after each"
            self._give_up("kernels are launched one by one", f"a CUDA graph takes {needed}")

    def _is_on_gpu(self) -> bool:
        return all(map(cuda_graph.on_gpu, self._loop.net.parameters()))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Context of a batch of sequences. On a GPU its updates are looked at together, after the last of them."""
        if self._update is not None and self._loop.updater.regularizer.updates and self._is_on_gpu():
            self._before, self._verdicts.pending = KeptBatch(self._loop), []
        try:
            with compiler_settings():
                yield
        finally:
            self._before = None

    def settle(self) -> bool:
        """Whether everything trained in this batch so far was finite; if not, it is undone."""
        if self._verdicts.settle():
            return True
        assert self._before is not None
        self._before.restore()
        return False

    def run(self, window: Window) -> WindowResult | None:
        """Train a window in one graph; ``None`` if the loop must do it."""
        if self._window is None or _has_hooks_on_gradients(self._loop):
            return None
        try:
            return self._window.run(window)
        except CannotCompile as reason:
            self._window = None  # no loss but of speed: the step is compiled instead
            self.reasons.append(f"not the window as one graph, because {reason}")
            return None

    def advance(self, window: Window) -> Iterable[Tensor]:
        """Run the network over a window that the loop trains, compiled from where that is worth it."""
        step, driver = self._step, self._loop.driver
        self._left_out += window.t > 0
        waits = self._window is not None and self._left_out < _PATIENCE
        if step is None or waits or _has_hooks_without_guards(self._loop.net):
            return driver.advance(window.x)
        return self._watched(step, window)

    def _watched(self, step: CompiledStep, window: Window) -> Iterable[Tensor]:
        partly = step.reason
        yield from step.advance(window)
        if step.failure is not None:
            self._step = None
            self._give_up("forward and backward pass run eagerly", step.failure)
        elif step.reason != partly:
            self._give_up("parts of the step run eagerly", step.reason)

    def update(self, windows: int) -> bool:
        """Update the weights with the gradients of that many windows; ``False`` if the optimizer must do it."""
        if self._update is None or (self._window is not None and self._left_out < _PATIENCE):
            return False
        try:
            return self._update.step(windows, self._loop.updater.checked)
        except CannotCompile as reason:
            self._update = None
            self._give_up("the update runs eagerly", reason)
            return False

    def explain(self) -> str:
        """One line on what is compiled."""
        step = "the step" if self._step else ""
        parts = ["the whole window"] if self._window else [step, "the update" if self._update else ""]
        compiled = " and ".join(part for part in parts if part) or "nothing"
        recorder = self._window.recorder if self._window else None
        if recorder:
            compiled += f", not recorded, because {recorder.reason}" if recorder.reason else ", recorded"
        return f"accelerate={self._mode!r}: compiled: {'; '.join([compiled, *self.reasons])}"

    def _give_up(self, what: str, reason: object) -> None:
        self.reasons.append(f"{what}, because {reason}")
        warnings.warn(f"accelerate={self._mode!r}: {self.reasons[-1]}", FPTTWarning, stacklevel=2)


def _no_step(loop: TrainingLoop) -> str | None:
    """Why the network's step cannot be compiled, if it cannot."""
    if loop.driver.pushes:
        return "the network runs its own loop over time, of which no step can be called by itself"
    if unwrapped(loop.net) is not loop.net and hasattr(loop.net, "module"):
        return "the processes exchange gradients in the middle of it"
    return None


def _fits_one_graph(loop: TrainingLoop, longest: int) -> bool:
    window = loop.schedule.window
    is_short = window is not None and window <= longest
    return is_short and loop.schedule.update_every in (None, window) and traces_backward()


def _longest_fused(loop: TrainingLoop) -> int:
    """Length of the longest window whose kernels are fused across its steps."""
    has_convolutions = any(isinstance(module, _CONVOLUTIONS) for module in loop.net.modules())
    return LONGEST_OF_CONVOLUTIONS if has_convolutions else LONGEST


def _has_hooks_on_gradients(loop: TrainingLoop) -> bool:
    """Whether anything acts on gradients between backward pass and update, outside of a graph of both."""
    parameters = loop.updater.parameters
    hooked = any(map(has_gradient_hooks, parameters))
    return hooked or _has_hooks_without_guards(loop.net)


def _has_hooks_without_guards(net: nn.Module) -> bool:
    """Whether there are hooks that the compiler's guards do not see: on backward passes, or on all modules."""
    hooked = any(map(has_backward_hooks, modules_of(net)))
    return hooked or has_global_module_hooks()
