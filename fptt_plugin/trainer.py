"""``FPTTTrainer``: trains an existing spiking network online, one loss and one update per time step or window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from . import checkpoint as _checkpoint
from . import fit as _fit
from .compile import MODES, Accelerator
from .drivers import (
    Driver,
    InFlightDriver,
    StepModes,
    check_driver,
    check_in_flight,
    check_network,
    find_driver,
    known_driver,
    preflight,
)
from .errors import ConfigurationError, ErrorList
from .fit import Metric, accuracy
from .functional.losses import ClassDistribution
from .regularizer import DynamicRegularizer, check_optimizer, check_regularizer_options
from .results import EpochRecord, SequenceResult, StepResult
from .state import ModelState
from .training import (
    READOUTS,
    TARGETS,
    Batch,
    LossFunction,
    Objective,
    Output,
    Ramp,
    Readout,
    RunState,
    Schedule,
    TrainingLoop,
    Updater,
    check_data_parallel,
    check_input,
    check_objective,
    check_schedule,
    time_first,
    warn_of_spikes,
)


class FPTTTrainer:
    """Trains a spiking network online by Forward Propagation Through Time.

    Gradients are taken at the current weights ``W`` and reach back ``window`` steps; memory does not depend on the
    length of the sequence. The running averages ``W_bar`` are for evaluation.

    Args:
        net: The network, unchanged: its ``forward`` takes one time step ``[B, ...]`` and its neurons keep their state
            (snnTorch with ``init_hidden=True``, SpikingJelly in 's' mode); or it is a SpikingJelly network in 'm' mode;
            or its ``forward`` loops over time; or takes and returns the state. See ``driver``.
        optimizer: Its ``torch.optim`` optimizer. Schedulers keep working on it.
        loss_fn: ``loss_fn(output, target) -> scalar`` for one time step.
        alpha: Strength of the dynamic regulariser, >= 0; 0 is truncated BPTT, the control. Default 0.1.
        beta: Rate of the running average, in (0, 1]. Default 0.5.
        rho: Fraction of the dual left out of the gradient. Default 0.
        variant: ``"dual"`` (the authors' code) or ``"gradient"`` (Algorithm 2), see :class:`DynamicRegularizer`.
        window: Steps that a gradient reaches back; then the state is detached. Default 1; ``None`` is the whole
            sequence.
        loss_every: A loss at every n-th step; ``None``, the default, at the last step of each window. The last step
            of a sequence always carries one. A window's loss is the mean over its steps with a loss.
        update_every: Steps between weight updates, a multiple of ``window`` (the windows' gradients are averaged);
            ``None``, the default, is ``window``.
        max_grad_norm: Largest norm of the regularised gradient. Default 1; ``None`` does not clip.
        average_weights: When ``W_bar`` replaces ``W``: after each ``"epoch"`` of :meth:`fit` (the authors), after each
            ``"sequence"``, or ``"never"``. ``None``, the default, is ``"epoch"``, and ``"never"`` with
            ``variant="gradient"``, whose averages carry the last raw gradients.
        output: Which output of the network the loss sees, see :class:`~fptt_plugin.training.Objective`.
        readout: What loss and decision see at a step: ``"step"``: its output; ``"mean"``, ``"sum"``, ``"max"``: the
            mean, sum or maximum of the outputs so far, the past without gradient. ``None``, the default: what the
            network itself returns when the sequence ends there, the step's output for networks that return every step.
            Networks that end in spikes need ``"mean"``.
        loss_ramp: Weight of the loss over time, see :class:`~fptt_plugin.training.Objective`.
        auxiliary: Class-distribution term, see :class:`~fptt_plugin.training.Objective`.
        targets: Whether ``y`` holds one target per ``"sequence"`` or per ``"step"``; ``"auto"`` decides by its shape.
        batch_first: Sequences are ``[B, T, ...]`` instead of ``[T, B, ...]``.
        driver: How the network is called in time. ``"step"``: ``net(x_t)``; ``"slice"``: ``net(x[t:t+window])``,
            SpikingJelly in 'm' mode; ``"in-flight"``: ``net(x)`` once, for networks that loop over time in ``forward``;
            ``"explicit"``: ``net(x_t, state) -> (output, state)``; a name registered with
            :func:`~fptt_plugin.drivers.register_driver`, or a :class:`~fptt_plugin.drivers.Driver` of your own.
            ``"auto"`` finds out at the first batch, see :meth:`explain`.
        output_module: For the in-flight driver: the module whose call ends a time step, and whose output is trained;
            found if ``None``.
        preflight: Check on copies, with a few steps of the first batch, that no sequence depends on the one before, and
            that SpikingJelly networks and those with explicit state keep time steps and samples apart. ``False`` for
            networks that mix these on purpose.
        on_nonfinite: ``"raise"`` or ``"skip"`` an update whose loss or gradient is not finite; either way weights,
            running statistics and state are as they were after the update before it. With ``"skip"``, a stream also
            leaves out a step whose input is not finite, and a target that is not.
        grad_scaler: A ``torch.amp.GradScaler`` for float16: scales the loss and steps the optimizer. Updates that it
            skips for infinite gradients count as skipped.
        accelerate: ``"none"``; ``"compile"`` compiles windows of one or two steps into one graph, from forward pass to
            weight update, and for longer ones the network's step and the update (5 to 20 seconds when a form first
            comes); ``"cudagraph"`` also records windows in one graph on a GPU; ``"auto"`` is the latter on a GPU, else
            ``"compile"``. A window's results are those of ``"none"`` within rounding, from which the two runs drift
            apart as soon as a spike flips. What cannot be compiled runs eagerly; :meth:`explain` says what and why.

    Attributes:
        regularizer: The :class:`DynamicRegularizer` on the optimizer.
        state: The network's recurrent state, a :class:`~fptt_plugin.state.ModelState`.
        objective: The loss of a time step, a :class:`~fptt_plugin.training.Objective`.
        steps: Time steps so far, those left out as not finite too, those of a failed call not.
        updates: Weight updates so far.
        skipped: Updates, and steps of a stream, skipped because something was not finite.

    Raises:
        FPTTError: With everything that is wrong with the arguments, before anything is changed; a
            :class:`~fptt_plugin.errors.ConfigurationError`, or a :class:`~fptt_plugin.errors.CannotStepError` if only
            the network is to blame.

    Source: Yin, Corradi, Bohté 2023 (arXiv:2112.11231).

    Example:
        >>> import torch
        >>> from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 16), LTCLeaky(init_hidden=True), nn.Linear(16, 2), LTCIntegrator(init_hidden=True))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        >>> trainer = FPTTTrainer(net, optimizer, nn.CrossEntropyLoss(), window=5)
        >>> x, y = torch.rand(20, 8, 4), torch.randint(2, (8,))      # T = 20, B = 8
        >>> result = trainer.train_sequence(x, y)
        >>> result.output.shape, result.updates
        (torch.Size([8, 2]), 4)
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        loss_fn: LossFunction,
        *,
        alpha: float = 0.1,
        beta: float = 0.5,
        rho: float = 0.0,
        variant: str = "dual",
        window: int | None = 1,
        loss_every: int | None = None,
        update_every: int | None = None,
        max_grad_norm: float | None = 1.0,
        average_weights: str | None = None,
        output: Output = None,
        readout: str | None = None,
        loss_ramp: str | Ramp | None = None,
        auxiliary: bool | ClassDistribution | None = None,
        targets: str = "auto",
        batch_first: bool = False,
        driver: str | Driver = "auto",
        output_module: str | None = None,
        preflight: bool = True,
        on_nonfinite: str = "raise",
        grad_scaler: GradScaler | None = None,
        accelerate: str = "none",
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        state = ModelState(net)
        problems = ErrorList(type(self).__name__)
        check_regularizer_options(problems, alpha, beta, rho, variant, max_grad_norm)
        check_optimizer(problems, optimizer)
        check_objective(problems, loss_fn, output, loss_ramp, auxiliary)
        check_schedule(problems, window, loss_every, update_every, variant)
        problems.check_choice("average_weights", average_weights, (None, "epoch", "sequence", "never"))
        problems.check_choice("readout", readout, (None, *READOUTS))
        problems.check_choice("targets", targets, TARGETS)
        check_driver(problems, net, driver, output_module)
        problems.check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
        problems.check_choice("accelerate", accelerate, MODES)
        problems.check(
            grad_scaler is None or isinstance(grad_scaler, GradScaler),
            f"grad_scaler must be a torch.amp.GradScaler or None, got {type(grad_scaler).__name__}",
        )
        check_network(problems, net, state, optimizer, driver)
        check_data_parallel(problems, net, state)
        problems.raise_any()

        self.net = net
        self.optimizer = optimizer
        self.state = state
        self.objective = Objective(loss_fn, output, loss_ramp, auxiliary)
        self.regularizer = DynamicRegularizer(optimizer, alpha, beta, rho, variant=variant, max_grad_norm=max_grad_norm)
        self.schedule = Schedule(window, loss_every, update_every)
        self.average_weights = average_weights or ("never" if variant == "gradient" else "epoch")
        self.targets = targets
        self.batch_first = batch_first
        self.output_module = output_module
        self.grad_scaler = grad_scaler
        self.accelerate = accelerate
        self._driver_choice = driver
        self._readout_choice = readout
        self._preflight = preflight
        self._driver_is_checked = False
        self._step_modes: StepModes | None = None  # for which the driver was chosen
        self._output_is_checked = False
        self._run_state = RunState(state, Readout(readout or "step"), self.objective.distribution)
        self._loop = TrainingLoop(
            net,
            self.objective,
            self._run_state,
            Updater(net, optimizer, self.regularizer, state, grad_scaler),
            self.schedule,
            on_nonfinite,
        )
        self._use_driver(known_driver(driver, net, state, self.objective.select))
        if self._loop.has_driver:
            self._step_modes = StepModes(net)

    @property
    def steps(self) -> int:
        return self._run_state.steps

    @property
    def updates(self) -> int:
        return self._run_state.updates

    @property
    def skipped(self) -> int:
        return self._run_state.skipped

    # ------------------------------------------------------------------ training

    def reset(self) -> None:
        """Begin a new sequence or stream: every neuron is as before its first input; the weights stay."""
        self._loop.reset()

    def step(
        self,
        x_t: Tensor,
        y_t: Tensor | None = None,
        mask: Tensor | None = None,
        new_sequence: Tensor | None = None,
    ) -> StepResult:
        """Train on one time step of a stream: predicts, and learns from the target if there is one.

        A target counts where a loss is due (``loss_every``): with the defaults, at the last step of each window.

        Args:
            x_t: Input ``[B, ...]``.
            y_t: Target ``[B, ...]``; ``None`` for a step without.
            mask: Which samples are labelled, boolean ``[B]``; the targets of the others are not looked at.
            new_sequence: Which samples begin a new sequence with this step, boolean ``[B]``: before it, their state
                (and their mean so far, with ``readout="mean"``) is as after :meth:`reset`; the others go on.

        Returns:
            Output, loss and whether the weights moved.

        Raises:
            BatchError: If shapes or values are impossible, or the batch size changes without a :meth:`reset`. Weights
                and state are as before then.
            BatchTypeError: If the input is not a floating-point tensor, or a mask not a boolean one.
            CannotStepError: If single samples of this network cannot begin a new sequence.
            NotFiniteError: If loss or gradient is not finite (``on_nonfinite="raise"``); the state is back where it
                was after the last update.
        """
        self.regularizer.check_weights()
        batch = Batch.of_step(
            x_t,
            y_t,
            mask,
            new_sequence,
            ignore_index=self.objective.ignore_index,
            finite=self._loop.on_nonfinite != "skip",
        )
        if self.schedule.window is None:
            raise ConfigurationError(
                "window=None waits for the end of the sequence, and a stream has none",
                "build the trainer with a window",
            )
        self._find_driver(batch.x, batch_first=False)
        return self._loop.step(batch)

    def train_sequence(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> SequenceResult:
        """Reset the state and train on one batch of sequences, window by window.

        Args:
            x: Input ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``).
            y: Target ``[B, ...]``, or one per step in the layout of ``x``.
            mask: Which targets count: boolean ``[B]``, boolean per step in the layout of ``x``, or integer lengths
                ``[B]`` of padded sequences; ``None``: all. With one target per sequence, a sample ends with its last
                step that counts: there it is decided, and its loss ramp is complete.

        Returns:
            The decision, the mean loss of the windows (skipped ones left out; nan without any) and the number of
            updates.

        Raises:
            BatchError: If shapes or values are impossible. Nothing is changed then.
            BatchTypeError: If the input is not a floating-point tensor, or the mask neither boolean nor lengths.
            NotFiniteError: If loss or gradient is not finite (``on_nonfinite="raise"``); earlier updates stay.
        """
        return self.train_batch(self.prepare(x, y, mask))

    def prepare(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Batch:
        """Check a batch of sequences as :meth:`train_sequence` takes it, and find the driver at the first one.

        Returns:
            The batch for :meth:`train_batch` and :meth:`visit`.

        Raises:
            BatchError: If shapes or values are impossible. Nothing is changed then.
            CannotStepError: If the network cannot be trained step by step.
        """
        check_input(x, rank=2, what="x must have 2 dimensions or more")
        driver = self._find_driver(x, batch_first=self.batch_first)
        return Batch.of_sequences(
            x,
            y,
            mask,
            batch_first=self.batch_first,
            targets=self.targets,
            ignore_index=self.objective.ignore_index,
            size=driver.steps_and_batch(x),
        )

    def train_batch(self, batch: Batch) -> SequenceResult:
        """Train on what :meth:`prepare` returned; :meth:`train_sequence` is these two."""
        self.regularizer.check_weights()
        result = self._loop.train(batch)
        if not self._output_is_checked:
            readout = self._run_state.readout.mode
            self._output_is_checked = warn_of_spikes(result.output, self.objective.loss_fn, readout)
        if self.average_weights == "sequence":
            self.regularizer.load_averages()
        return result

    def fit(
        self,
        loader: Iterable[Any],
        epochs: int = 1,
        *,
        val_loader: Iterable[Any] | None = None,
        scheduler: Any = None,
        metric: Metric = accuracy,
        higher_is_better: bool = True,
        checkpoint: str | PathLike[str] | None = None,
        progress: bool = True,
    ) -> list[EpochRecord]:
        """Train on every batch of a loader, epoch by epoch, with a progress bar where ``tqdm`` is installed.

        Args:
            loader: Gives ``(x, y)`` or ``(x, y, mask)`` as :meth:`train_sequence` takes them; moved to the network's
                device. Modules that are in evaluation mode while the network is in training mode stay there.
            epochs: Passes over the data. Default 1.
            val_loader: Evaluated after each epoch.
            scheduler: Learning-rate scheduler, stepped after each epoch; ``ReduceLROnPlateau`` gets the metric, and its
                mode must be the metric's direction.
            metric: ``metric(output, target) -> scalar tensor``. Default: accuracy.
            higher_is_better: Direction of the metric, for the best checkpoint.
            checkpoint: File for the best epoch so far of this call, by validation (training, without a
                ``val_loader``).
            progress: Show the bar: loss, metric and mean firing rate so far.

        Returns:
            One record per epoch.

        Raises:
            ConfigurationError: If metric, scheduler or the checkpoint's folder cannot be used.
            BatchError: If the loader is empty.
        """
        return _fit.fit(
            self,
            loader,
            epochs,
            val_loader=val_loader,
            scheduler=scheduler,
            metric=metric,
            higher_is_better=higher_is_better,
            checkpoint=checkpoint,
            progress=progress,
        )

    # ------------------------------------------------------------------ evaluation

    def evaluate(self, loader: Iterable[Any], *, metric: Metric = accuracy, averaged: bool | None = None) -> float:
        """Mean metric over a loader, in evaluation mode and without gradients; a stream in progress goes on after.

        Args:
            loader: Gives ``(x, y)`` or ``(x, y, mask)`` as :meth:`train_sequence` takes them; what is masked does not
                count.
            metric: ``metric(output, target) -> scalar tensor``. Default: accuracy.
            averaged: Evaluate ``W_bar`` instead of ``W``; the same with ``alpha=0``. ``None``, the default: ``W_bar``,
                but ``W`` with ``variant="gradient"``.

        Returns:
            The mean over samples (and over steps, with a target per step).
        """
        return _fit.evaluate(self, loader, metric=metric, averaged=averaged)

    def predict(self, x: Tensor, mask: Tensor | None = None, *, averaged: bool | None = None) -> Tensor:
        """The decision ``[B, ...]`` on a batch of sequences: what the network returns at the end of each.

        Args:
            x: ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``).
            mask: Boolean per step in the layout of ``x``, or integer lengths ``[B]``, of padded sequences: each sample
                is decided at its own last step.
            averaged: See :meth:`evaluate`.
        """
        check_input(x, rank=2, what="x must have 2 dimensions or more")
        size = self._find_driver(x, batch_first=self.batch_first).steps_and_batch(x)
        if size is None:
            x = time_first(x, batch_first=self.batch_first)
        batch = Batch.without_target(x, mask, batch_first=self.batch_first, size=size)
        with self.evaluation(averaged):
            return self.visit(batch)

    @contextmanager
    def evaluation(self, averaged: bool | None = None) -> Iterator[None]:
        """Context in evaluation mode, without gradients and with ``W_bar`` (see :meth:`evaluate`).

        Whatever was in progress is as before afterwards.
        """
        training = {module: module.training for module in self.net.modules()}
        kept = self._run_state.snapshot()
        if averaged is None:
            averaged = self.regularizer.variant != "gradient"
        try:
            with torch.no_grad(), self.averaged_weights() if averaged else nullcontext():
                self.net.eval()
                yield
        finally:
            self._run_state.restore(kept)
            for module, mode in training.items():
                module.training = mode

    def visit(self, batch: Batch, visitor: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Run a batch of sequences from the initial state, without losses; use it within :meth:`evaluation`.

        Args:
            batch: From :meth:`prepare`.
            visitor: Called with every time step and what the loss would see there, ``[B, ...]``.

        Returns:
            The decision ``[B, ...]``.
        """
        return self._loop.visit(batch, visitor)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Context in which the network holds ``W_bar``; afterwards ``W`` is back, bit for bit."""
        return self.regularizer.averaged_weights()

    def explain(self) -> str:
        """A few lines on what the trainer does with this network."""
        schedule, loop = self.schedule, self._loop
        entries = {name: ", ".join(state) for name, state in self.state.get().items()}
        layers = ", ".join(
            f"{name} ({type(module).__name__}: {entries[name]})" for name, module in self.state.modules()
        )
        window = "the whole sequence" if schedule.window is None else f"{schedule.window} step(s)"
        return "\n".join(
            [
                loop.driver.explain() if loop.has_driver else "driver: found out at the first batch",
                f"state: {layers}",
                self.objective.explain(),
                f"readout: {self._run_state.readout.mode}; window: {window}; "
                f"loss every {schedule.loss_every or 'window'}; update every {schedule.update_every or 'window'}",
                f"regulariser: alpha={self.regularizer.alpha}, beta={self.regularizer.beta}, "
                f"variant={self.regularizer.variant!r}; W <- W_bar: {self.average_weights}",
                *([loop.executor.explain()] if loop.executor is not None else []),
            ]
        )

    # ------------------------------------------------------------------ the driver

    def _find_driver(self, x: Tensor, *, batch_first: bool) -> Driver:
        """The driver; found and checked at the first batch, and again where step modes have changed."""
        loop = self._loop
        modes_changed = self._step_modes is not None and self._step_modes.changed()
        if modes_changed and self._driver_choice in ("auto", "in-flight"):
            self._use_driver(None)
        if not loop.has_driver:
            self._use_driver(self._choose_driver(x, batch_first))  # if this fails, the next batch is another attempt
        if modes_changed or self._step_modes is None:
            self._step_modes, self._driver_is_checked = StepModes(self.net), False
        if not self._driver_is_checked:
            x = x.transpose(0, 1) if batch_first else x
            preflight(loop.driver, x, self.schedule.window, thorough=self._preflight)
            loop.driver.check_losses(self.schedule.window, self.schedule.loss_every)
            self._use_driver(loop.driver)  # by now it knows the network's readout
            if self.accelerate != "none" and loop.executor is None:
                loop.executor = Accelerator(loop, self.accelerate)
            self._driver_is_checked = True
        return loop.driver

    def _choose_driver(self, x: Tensor, batch_first: bool) -> Driver:
        choice, select = self._driver_choice, self.objective.select
        driver = known_driver(choice, self.net, self.state, select)
        if driver is None:
            assert isinstance(choice, str)
            driver = find_driver(
                choice,
                self.net,
                self.state,
                select,
                x,
                output_module=self.output_module,
                output_chosen=self.objective.output is not None,
                batch_first=batch_first,
                window=self.schedule.window,
            )
        if isinstance(driver, InFlightDriver):
            check_in_flight({"variant": self.regularizer.variant, "on_nonfinite": self._loop.on_nonfinite})
        return driver

    def _use_driver(self, driver: Driver | None) -> None:
        """Make it the loop's driver, with the network's own readout unless the user chose one."""
        self._loop.driver = driver
        if driver is not None:
            self._run_state.readout.mode = self._readout_choice or driver.readout

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Options and counter of the regulariser, counters, class distribution and recurrent state.

        Network and optimizer, with ``W_bar`` and dual, have their own state dicts.

        Raises:
            CallOrderError: Between two updates, where gradients are pending that no file can hold, and within
                :meth:`averaged_weights`.
        """
        self.regularizer.check_weights()
        scaler = {} if self.grad_scaler is None else self.grad_scaler.state_dict()
        return {"regularizer": self.regularizer.state_dict(), "grad_scaler": scaler, **self._run_state.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into a trainer of the same network, optimizer and options.

        Raises:
            CheckpointError: If it belongs to another network. Nothing is changed then.
        """
        self.check_state_dict(state)
        self.regularizer.load_state_dict(state["regularizer"])
        if self.grad_scaler is not None and state["grad_scaler"]:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self._run_state.load_state_dict(state)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a state belongs to a trainer of this network.

        Raises:
            CheckpointError: If it does not.
        """
        self.state.check(state["state"])
        self.regularizer.check_state_dict(state["regularizer"])

    def save(self, path: str | PathLike[str]) -> None:
        """Write network, optimizer and trainer to one file, atomically: an interrupted write leaves the old file."""
        content = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "trainer": self.state_dict()}
        _checkpoint.save(content, path)

    def load(self, path: str | PathLike[str], *, weights_only: bool = True) -> None:
        """Read a file that :meth:`save` wrote.

        ``alpha``, ``beta`` and ``rho`` come back with it, as the optimizer's learning rate does: to go on with others,
        set them on ``trainer.regularizer`` after loading.

        Args:
            path: The file.
            weights_only: As for ``torch.load``: ``False`` also reads objects of any class, which runs code of the file,
                so only from those you trust. Needed where the state of the neurons is in named tuples or dataclasses,
                and for a network that had seen no batch and has lazy layers.

        Raises:
            CheckpointError: If the file is damaged or belongs to another network. Nothing is changed then.
        """
        content = _checkpoint.load(path, self.net, weights_only=weights_only)
        _checkpoint.check(path, content, self.net, self.optimizer, self.check_state_dict)
        self.net.load_state_dict(content["net"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.load_state_dict(content["trainer"])
