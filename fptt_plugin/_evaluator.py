"""What one does with a network between updates: evaluate it, predict with it, save and load it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from . import _checkpoint, _loop
from ._detect import find_driver, known_driver
from ._engine import Engine
from ._inflight import InFlightDriver, check_in_flight
from ._inputs import Sequence, check_input, check_sequence, time_first
from ._loop import Metric, accuracy
from ._preflight import preflight, warn_of_spikes
from .drivers import Driver, SliceDriver, StepDriver, StepModes
from .objective import Objective
from .regularizer import DynamicRegularizer
from .state import ModelState


class Evaluator:
    """The part of :class:`~fptt_plugin.FPTTTrainer` that does not train."""

    net: nn.Module
    optimizer: Optimizer
    state: ModelState
    objective: Objective
    regularizer: DynamicRegularizer
    average_weights: str
    targets: str
    batch_first: bool
    output_module: str | None
    grad_scaler: GradScaler | None
    _driver: str
    _preflight: bool
    _engine: Engine
    _checked = False  # whether the driver has been tried on a batch
    _modes: StepModes | None = None  # for which the driver was chosen
    _seen_output = False  # whether an output has shown if it is spikes

    def _check_sequence(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Sequence:
        """Checks a batch as the driver needs it; finds the driver at the first, and where step modes have changed."""
        check_input(x, rank=2, what="x must have 2 dimensions or more")
        driver = self._find_driver(x, batch_first=self.batch_first)
        size = driver.steps_and_batch(x)
        return check_sequence(
            x,
            y,
            mask,
            batch_first=self.batch_first,
            targets=self.targets,
            ignore_index=self.objective.ignore_index,
            size=size,
        )

    def _find_driver(self, x: Tensor, *, batch_first: bool) -> Driver:
        engine, strides = self._engine, self._engine.strides
        if self._modes is None and isinstance(engine.driver, StepDriver):
            self._modes = engine.driver.modes
        if self._modes is None or self._modes.changed():
            if self._driver in ("auto", "in-flight"):
                engine.driver = self._modes = None  # if there is none, the next batch is another attempt
                engine.driver = self._choose_driver(x, batch_first)
            self._modes, self._checked = StepModes(self.net), False
        assert engine.driver is not None
        if self._preflight and not self._checked:
            preflight(engine.driver, x.transpose(0, 1) if batch_first else x, strides.window)
            self._checked = True
        if isinstance(engine.driver, SliceDriver):
            engine.driver.note_strides(strides.window, strides.loss_every)
        return engine.driver

    def _choose_driver(self, x: Tensor, batch_first: bool) -> Driver:
        engine, select = self._engine, self._engine.objective.select
        driver = known_driver(self._driver, self.net, engine.state, select) or find_driver(
            self._driver,
            self.net,
            engine.state,
            select,
            self.output_module,
            x,
            batch_first,
            engine.strides.window,
        )
        if isinstance(driver, InFlightDriver):
            check_in_flight({"variant": self.regularizer.variant, "on_nonfinite": engine.on_nonfinite})
        return driver

    def _look_at(self, output: Tensor) -> None:
        if not self._seen_output:
            self._seen_output = warn_of_spikes(output, self._engine.objective.loss_fn, self._engine.readout.mode)

    def evaluate(self, loader: Iterable[Any], *, metric: Metric = accuracy, averaged: bool = True) -> float:
        """Mean metric over a loader, in evaluation mode and without gradients; a stream in progress goes on after.

        Args:
            loader: Gives ``(x, y)`` or ``(x, y, mask)`` as :meth:`train_sequence` takes them; what is masked does not
                count.
            metric: ``metric(output, target) -> scalar tensor``. Default: accuracy.
            averaged: Evaluate ``W_bar`` instead of ``W``; the same with ``alpha=0``.

        Returns:
            The mean over samples (and over steps, with a target per step).
        """
        return _loop.evaluate(self, loader, metric=metric, averaged=averaged)

    def predict(self, x: Tensor, *, averaged: bool = True) -> Tensor:
        """The decision ``[B, ...]`` on a batch of sequences ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``)."""
        check_input(x, rank=2, what="x must have 2 dimensions or more")
        if self._find_driver(x, batch_first=self.batch_first).steps_and_batch(x) is None:
            x = time_first(x, batch_first=self.batch_first)
        with self._evaluation(averaged):
            return self._engine.visit(x)

    @contextmanager
    def _evaluation(self, averaged: bool) -> Iterator[None]:
        """Evaluation mode, no gradients, ``W_bar``; whatever was in progress is as before afterwards."""
        training = {module: module.training for module in self.net.modules()}
        kept = self._engine.snapshot()
        try:
            with torch.no_grad(), self.averaged_weights() if averaged else nullcontext():
                self.net.eval()
                yield
        finally:
            self._engine.restore(kept)
            for module, mode in training.items():
                module.training = mode

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within the context the network holds ``W_bar``; afterwards ``W`` is back, bit for bit."""
        return self.regularizer.averaged_weights()

    def explain(self) -> str:
        """A few lines on what the trainer does with this network."""
        engine, strides = self._engine, self._engine.strides
        kept = {name: ", ".join(state) for name, state in self.state.get().items()}
        layers = ", ".join(f"{name} ({type(module).__name__}: {kept[name]})" for name, module in self.state.modules())
        window = "the whole sequence" if strides.window is None else f"{strides.window} step(s)"
        return "\n".join(
            [
                engine.driver.explain() if engine.driver else "driver: found out at the first batch",
                f"state: {layers}",
                self.objective.explain(),
                f"readout: {engine.readout.mode}; window: {window}; loss every {strides.loss_every or 'window'}; "
                f"update every {strides.update_every or 'window'}",
                f"regulariser: alpha={self.regularizer.alpha}, beta={self.regularizer.beta}, "
                f"variant={self.regularizer.variant!r}; W <- W_bar: {self.average_weights}",
                *([engine.accelerator.explain()] if engine.driver and engine.accelerator else []),
            ]
        )

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Averages, duals, counters, class distribution and recurrent state; network and optimizer have their own.

        Raises:
            RuntimeError: Between two updates, where gradients are pending that no file can hold, and within
                :meth:`averaged_weights`.
        """
        self.regularizer.check_weights()
        scaler = {} if self.grad_scaler is None else self.grad_scaler.state_dict()
        return {"regularizer": self.regularizer.state_dict(), "grad_scaler": scaler, **self._engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned, into a trainer of the same network, optimizer and options.

        Raises:
            ValueError: If it belongs to another network. Nothing is changed then.
        """
        self.check_state_dict(state)
        self.regularizer.load_state_dict(state["regularizer"])
        if self.grad_scaler is not None and state["grad_scaler"]:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self._engine.load_state_dict(state)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses what :meth:`state_dict` of a trainer of another network returned.

        Raises:
            ValueError: If it is one.
        """
        self._engine.check_state_dict(state)
        self.regularizer.check_state_dict(state["regularizer"])

    def save(self, path: str | PathLike[str]) -> None:
        """Writes network, optimizer and trainer to one file, atomically: an interrupted write leaves the old file."""
        _checkpoint.save(self, path)

    def load(self, path: str | PathLike[str], *, weights_only: bool = True) -> None:
        """Reads a file that :meth:`save` wrote.

        ``alpha``, ``beta`` and ``rho`` come back with it, as the optimizer's learning rate does: to go on with others,
        set them on ``trainer.regularizer`` after loading.

        Args:
            path: The file.
            weights_only: As for ``torch.load``: ``False`` also reads objects of any class, which runs code of the file,
                so only from those you trust. Needed where the state of the neurons is in named tuples or dataclasses,
                and for a network that had seen no batch and has lazy layers.

        Raises:
            ValueError: If the file is damaged or belongs to another network. Nothing is changed then.
        """
        _checkpoint.load(self, path, weights_only=weights_only)
