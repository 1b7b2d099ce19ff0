"""``FPTTTrainer``: trains an existing spiking network online, one loss and one update per time step or window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parameter import is_lazy
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
    input_hook,
    known_driver,
    layout_remedy,
    pack_inputs,
    preflight,
    takes_integers,
    unwrapped,
    warn_of_guess,
    warn_of_modes,
)
from .errors import (
    BatchShapeError,
    BatchTypeError,
    CallOrderError,
    CannotRunError,
    CheckpointError,
    ConfigurationError,
    ErrorList,
    check_choice,
    check_entry,
)
from .fit import Batching, Callbacks, Metrics, Progress, accuracy
from .functional.losses import ClassDistribution
from .interrupts import Uninterrupted
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
    Structure,
    TrainingLoop,
    Updater,
    Visitor,
    check_data_parallel,
    check_input,
    check_objective,
    check_schedule,
    time_first,
    to_tensors,
    warn_of_liquid_counts,
    warn_of_spikes,
)

# Attributes that the trainer's parts hold as well, and options that may be changed at any time.
_BUILT_FROM = frozenset(
    ("net", "optimizer", "state", "objective", "regularizer", "schedule", "output_module", "grad_scaler")
)
_CHOICES = {"average_weights": ("epoch", "sequence", "never"), "targets": TARGETS, "accelerate": MODES}


class FPTTTrainer:
    """Trains a spiking network online by Forward Propagation Through Time.

    Gradients are taken at the current weights ``W`` and reach back ``window`` steps; memory does not depend on the
    length of the sequence. The running averages ``W_bar`` are for evaluation.

    Args:
        net: The network, unchanged: its ``forward`` takes one time step ``[B, ...]`` and its neurons keep their state
            (snnTorch with ``init_hidden=True``, SpikingJelly in 's' mode); or it is a SpikingJelly network in 'm' mode;
            or its ``forward`` loops over time; or takes and returns the state. See ``driver``.
        optimizer: Its ``torch.optim`` optimizer. Schedulers keep working on it.
        loss_fn: ``loss_fn(output, target) -> scalar`` for one time step: the mean over samples, or with torch's losses
            another reduction, see :class:`~fptt_plugin.training.Objective`.
        alpha: Strength of the dynamic regularizer, >= 0; 0 is truncated BPTT, the control. Default 0.1.
        beta: Rate of the running average, in (0, 1]. Default 0.5.
        rho: Fraction of the dual left out of the gradient. Default 0.
        variant: ``"dual"`` (the authors' code, the default) or ``"gradient"`` (Algorithm 2), see
            :class:`DynamicRegularizer`.
        window: Steps that a gradient reaches back; then the state is detached. Default 1; ``None`` is the whole
            sequence.
        loss_every: A loss at every n-th step; ``None``, the default, at the last step of each window. The last step
            of a sequence always carries one. A window's loss is the mean over its steps with a loss.
        update_every: Steps between weight updates, a multiple of ``window`` (the windows' gradients are averaged);
            ``None``, the default, is ``window``.
        max_grad_norm: Largest norm of the regularized gradient. Default 1; ``None`` does not clip.
        average_weights: When ``W_bar`` replaces ``W``: after each ``"epoch"`` of :meth:`fit` (the authors), after each
            ``"sequence"``, or ``"never"``. ``None``, the default, is ``"epoch"``, and ``"never"`` with
            ``variant="gradient"``, whose averages carry the last raw gradients.
        output: Which output of the network the loss sees, see :class:`~fptt_plugin.training.Objective`.
        readout: What loss and decision see at a step: ``"step"``: its output; ``"mean"``, ``"sum"``, ``"max"``: the
            mean, sum or maximum of the outputs so far, the past without gradient; ``"rate"``: the loss sees the step's
            output, and the decision is the mean so far. ``None``, the default: what the network itself returns when the
            sequence ends there; for networks that return every step, the step's output, and ``"rate"`` with snnTorch's
            ``SF.ce_rate_loss``. Networks that end in spikes need ``"mean"`` or ``"rate"``. In a stream, "so far" is
            since the last reset.
        loss_ramp: Weight of the loss over time, see :class:`~fptt_plugin.training.Objective`.
        auxiliary: Class-distribution term, see :class:`~fptt_plugin.training.Objective`.
        targets: Whether ``y`` holds one target per ``"sequence"`` or per ``"step"``; ``"auto"``, the default,
            decides by its shape.
        batch_first: Sequences are ``[B, T, ...]`` instead of ``[T, B, ...]``.
        driver: How the network is called in time. ``"step"``: ``net(x_t)``; ``"slice"``: ``net(x[t:t+window])``,
            SpikingJelly in 'm' mode; ``"in-flight"``: ``net(x)`` once, for networks that loop over time in ``forward``;
            ``"explicit"``: ``net(x_t, state) -> (output, state)``; a name registered with
            :func:`~fptt_plugin.drivers.register_driver`, or a :class:`~fptt_plugin.drivers.Driver` of your own.
            ``"auto"``, the default, finds out at the first batch, see :meth:`explain`.
        output_module: For the in-flight driver: the module whose call ends a time step, and whose output is trained;
            found if ``None``.
        preflight: Check on copies, with a few steps of the first batch, that no sequence depends on the one before, and
            that SpikingJelly networks and those with explicit state keep time steps and samples apart. Default
            ``True``; ``False`` for networks that mix these on purpose.
        on_nonfinite: ``"raise"`` (the default) or ``"skip"`` an update whose loss or gradient is not finite; either way
            weights, running statistics and state are as they were after the update before it. With ``"skip"``, a stream
            also leaves out a step whose input is not finite, and a target that is not.
        grad_scaler: A ``torch.amp.GradScaler`` for float16: scales the loss and steps the optimizer. Updates that it
            skips for infinite gradients count as skipped.
        accelerate: ``"none"``, the default; ``"compile"`` compiles windows of up to eight steps into one graph, from
            forward pass to weight update (up to two with convolutions). For longer ones it compiles the network's step
            and the update (10 seconds to a minute for each new shape). ``"cudagraph"`` records windows of up to 64
            steps on a GPU and replays them; ``"auto"`` is the latter on a GPU, else ``"compile"``. A window's results
            are those of ``"none"`` within rounding, from which the two runs drift apart as soon as a spike flips. What
            cannot be compiled runs eagerly; :meth:`explain` says what and why.

    Attributes:
        regularizer (fptt_plugin.DynamicRegularizer): That of the optimizer.
        state (fptt_plugin.state.ModelState): The network's recurrent state.
        objective (fptt_plugin.training.Objective): The loss of a time step.
        steps (int): Time steps so far. Steps skipped as not finite count; those of a call that failed do not.
        updates (int): Weight updates so far.
        skipped (int): Updates, and steps of a stream, skipped because something was not finite.
        history (list[fptt_plugin.results.EpochRecord]): One record per complete epoch of :meth:`fit`.
        can_save (bool): Whether :meth:`save` is possible now.

    Raises:
        FPTTError: With everything that is wrong with the arguments, before anything is changed; a
            :class:`~fptt_plugin.errors.ConfigurationError`, or a :class:`~fptt_plugin.errors.CannotStepError` if only
            the network is to blame.

    Source: Yin, Corradi, Bohté 2023 (arXiv:2112.11231).

    Example:
        >>> import torch
        >>> from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
        >>> net = nn.Sequential(
        ...     nn.Linear(4, 16), LTCLeaky(init_hidden=True),
        ...     nn.Linear(16, 2), LTCIntegrator(init_hidden=True))
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
        schedule = check_schedule(problems, window, loss_every, update_every, variant)
        problems.check_choice("average_weights", average_weights, (None, *_CHOICES["average_weights"]))
        problems.check_choice("readout", readout, (None, *READOUTS))
        problems.check_choice("targets", targets, _CHOICES["targets"])
        check_driver(problems, net, driver, output_module)
        problems.check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
        problems.check_choice("accelerate", accelerate, _CHOICES["accelerate"])
        problems.check(
            grad_scaler is None or isinstance(grad_scaler, GradScaler),
            f"grad_scaler must be a torch.amp.GradScaler or None, got {type(grad_scaler).__name__}",
        )
        check_network(problems, net, state, optimizer, driver)
        check_data_parallel(problems, net, state, variant)
        problems.raise_any()

        self.net = net
        self.optimizer = optimizer
        self.state = state
        self.objective = Objective(loss_fn, output, loss_ramp, auxiliary)
        self.schedule = schedule
        self.average_weights = average_weights or ("never" if variant == "gradient" else "epoch")
        self.targets = targets
        self.batch_first = batch_first
        self.output_module = output_module
        self.grad_scaler = grad_scaler
        self.accelerate = accelerate
        self._progress = Progress()
        self._structure = Structure(net, optimizer)
        self._driver_choice = driver
        self._readout_choice = readout
        self._preflight = preflight
        self._driver_is_checked = False
        self._step_modes: StepModes | None = None  # for which the driver was chosen
        self._output_is_checked = False
        self._integers: dict[torch.dtype, bool] = {}  # integer types, and whether the network takes them
        self._run_state = RunState(state, Readout(readout or "step"), self.objective.distribution)
        known = known_driver(driver, net, state, self.objective.select)
        # After what may fail, such as a driver of the user's: an optimizer has one regularizer.
        self.regularizer = DynamicRegularizer(optimizer, alpha, beta, rho, variant=variant, max_grad_norm=max_grad_norm)
        self._loop = TrainingLoop(
            net,
            self.objective,
            self._run_state,
            Updater(net, optimizer, self.regularizer, state, grad_scaler),
            self.schedule,
            on_nonfinite,
        )
        self._use_driver(known)
        if self._loop.driver is not None:
            self._step_modes = StepModes(net)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _BUILT_FROM and value is not vars(self).get(name, value):
            raise ConfigurationError(
                f"trainer.{name} cannot be replaced: what the trainer is built from holds on to the old one",
                "build a new trainer; optimizer.load_state_dict() and net.load_state_dict() take over what was learned",
            )
        if name in _CHOICES:
            check_choice(name, value, _CHOICES[name])
        if name == "accelerate" and hasattr(self, "_loop"):
            self._loop.executor = None  # the next batch finds out what can be compiled
        super().__setattr__(name, value)

    @property
    def steps(self) -> int:
        return self._run_state.steps

    @property
    def updates(self) -> int:
        return self._run_state.updates

    @property
    def skipped(self) -> int:
        return self._run_state.skipped

    @property
    def can_save(self) -> bool:
        """Whether :meth:`save` and :meth:`state_dict` are possible now.

        They are not between two updates of a stream, where gradients are pending that no file can hold, and within
        :meth:`averaged_weights`. :meth:`reset` gives such gradients up.
        """
        return not (self._run_state.is_pending or self.regularizer.is_swapped)

    @property
    def history(self) -> list[EpochRecord]:
        """One record per complete epoch of all calls of :meth:`fit`; those before an interrupt or an error are here."""
        return self._progress.history

    # ------------------------------------------------------------------ training

    def reset(self) -> None:
        """Begin a new sequence or stream: every neuron is as before its first input; the weights stay."""
        torch.clear_autocast_cache()
        self._loop.reset()

    def step(
        self,
        x_t: Any,
        y_t: Any = None,
        mask: Any = None,
        new_sequence: Any = None,
    ) -> StepResult:
        """Train on one time step of a stream: predicts, and learns from the target if there is one.

        A target counts where a loss is due (``loss_every``): with the defaults, at the last step of each window.

        Args:
            x_t: Input ``[B, ...]``.
            y_t: Target ``[B, ...]``; ``None`` for a step without.
            mask: Which samples are labeled, boolean ``[B]``; the targets of the others are not looked at.
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
        _check_mode(learns=y_t is not None)
        self.regularizer.check_weights()
        if self._run_state.position.in_window == 0:  # the steps of a window share the copies, as in train_batch()
            torch.clear_autocast_cache()
        self._check_structure()
        x_t = self._inputs(x_t)
        batch = Batch.of_step(
            x_t,
            self._tensors(y_t, "y_t"),
            self._tensors(mask, "mask"),
            self._tensors(new_sequence, "new_sequence"),
            ignore_index=self.objective.ignore_index,
            finite=self._loop.on_nonfinite != "skip",
            integers=not x_t.is_floating_point() and self._takes_integers(x_t.unsqueeze(0), batch_first=False),
        )
        if self.schedule.window is None:
            raise ConfigurationError(
                "window=None waits for the end of the sequence, and a stream has none",
                "build the trainer with a window",
            )
        self._find_driver(batch.x, batch_first=False)
        with Uninterrupted():
            self._run_state.skipped += batch.y is None and y_t is not None  # a target that is not finite
            result = self._loop.step(batch)
        return result._replace(output=self.objective.unpacked(result.output))

    def train_sequence(self, x: Any, y: Any, mask: Any = None) -> SequenceResult:
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

    def prepare(self, x: Any, y: Any, mask: Any = None) -> Batch:
        """Check a batch of sequences as :meth:`train_sequence` takes it, and find the driver at the first one.

        Args:
            x: See :meth:`train_sequence`.
            y: See :meth:`train_sequence`.
            mask: See :meth:`train_sequence`.

        Returns:
            The batch for :meth:`train_batch` and :meth:`visit`.

        Raises:
            BatchError: If shapes or values are impossible. Nothing is changed then.
            CannotStepError: If the network cannot be trained step by step.
        """
        x, y, mask = self._inputs(x), to_tensors(y, "y", self.net), self._tensors(mask, "mask")
        with self._explained(x, y):
            self._check_input(x)
            self._check_structure()
            driver = self._find_driver(x, batch_first=self.batch_first)
            batch = Batch.of_sequences(
                x,
                y,
                mask,
                batch_first=self.batch_first,
                targets=self.targets,
                ignore_index=self.objective.ignore_index,
                size=driver.steps_and_batch(x),
            )
            self._check_ends(batch)
        return batch

    def _inputs(self, x: Any) -> Tensor:
        """What the user passes as input, on the network's device; several inputs as one tensor."""
        if isinstance(x, Tensor) and x.device == self._device:  # as at every step of a stream
            return pack_inputs(self.net, x)
        return pack_inputs(self.net, to_tensors(x, "x", self.net))

    def _tensors(self, value: Any, name: str) -> Any:
        return None if value is None else to_tensors(value, name, self.net)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _check_input(self, x: Tensor) -> None:
        integers = self._takes_integers(x, batch_first=self.batch_first)
        check_input(x, rank=2, what="x must have 2 dimensions or more", integers=integers)

    def _takes_integers(self, x: Tensor, *, batch_first: bool) -> bool:
        """Whether the network takes an input that is one of integers."""
        if x.is_floating_point() or x.dim() < 2:
            return False
        if x.dtype not in self._integers:
            self._integers[x.dtype] = takes_integers(self.net, x.transpose(0, 1) if batch_first else x)
        return self._integers[x.dtype]

    @contextmanager
    def _explained(self, x: Tensor, y: Tensor | None = None) -> Iterator[None]:
        """Context that adds to an error what to do about the layout of the input, where something helps."""
        hook = input_hook(self.net)
        try:
            yield
        except BatchTypeError as error:
            if isinstance(x, Tensor) and isinstance(y, Tensor) and not x.is_floating_point() and x.dim() < y.dim():
                error.remedy = (
                    "input and target look swapped: pass (x, y); fit() and evaluate() read (y, x) with batch=(1, 0)"
                )
            raise
        except (BatchShapeError, CannotRunError) as error:
            inputs = input_hook(self.net)
            may_be_steps = inputs is not None and inputs.may_be_steps
            if isinstance(x, Tensor) and 0 not in x.shape and not may_be_steps:
                target = tuple(y.shape) if isinstance(y, Tensor) else ()
                error.remedy = layout_remedy(self.net, x, target, self.batch_first) or error.remedy
            if hook is not None and not self._driver_is_checked:
                hook.handle.remove()  # the network is as it was
            raise

    def _check_structure(self) -> None:
        """Check that the network is the one that is trained, with what may have changed since the last call."""
        if self._structure.check():
            self._loop.updater.statistics.look_up()

    def _check_ends(self, batch: Batch) -> None:
        """Check that the decision at the end of every sample is known."""
        window = self.schedule.window or batch.steps
        if batch.ends is None or window is None or not self._loop.driver.combines_steps:
            return
        if any((end + 1) % window and end + 1 != batch.steps for end in batch.ends):
            raise ConfigurationError(
                f"samples end within a window, and {type(self.net).__name__} combines the time steps of a window into "
                "one output, padding included",
                "build the trainer with window=1, or let forward() return its output of every step, [T, B, ...]",
            )

    def train_batch(self, batch: Batch, visitor: Callable[[int, Any], None] | None = None) -> SequenceResult:
        """Train on what :meth:`prepare` returned; :meth:`train_sequence` calls both.

        Args:
            batch: From :meth:`prepare`.
            visitor: Called with every time step and what the loss sees there, ``[B, ...]``, detached.

        Returns:
            See :meth:`train_sequence`.

        Raises:
            NotFiniteError: See :meth:`train_sequence`.
        """
        _check_mode()
        self.regularizer.check_weights()
        torch.clear_autocast_cache()  # the user may have loaded weights within the context
        self._check_structure()
        with Uninterrupted():
            result = self._loop.train(batch, self._unpacking(visitor))
            if not self._output_is_checked:
                readout = self._run_state.readout
                self._output_is_checked = warn_of_spikes(result.output, self.objective.loss_fn, readout.mode)
                warn_of_liquid_counts(readout, self.state)
                self.schedule.warn_of_short_sequences(batch.steps)
            if self.average_weights == "sequence":
                self.regularizer.load_averages()
        return result._replace(output=self.objective.unpacked(result.output))

    def _unpacking(self, visitor: Callable[[int, Any], None] | None) -> Visitor | None:
        """The visitor, with copies of the outputs, of several with all: it may write to them, and training goes on."""
        return None if visitor is None else lambda t, output: visitor(t, self.objective.unpacked(output.clone()))

    def fit(
        self,
        loader: Iterable[Any] | Callable[[int], Iterable[Any]],
        epochs: int = 1,
        *,
        val_loader: Iterable[Any] | None = None,
        batch: Batching = None,
        scheduler: Any = None,
        scheduler_interval: str | None = None,
        metric: Metrics = accuracy,
        monitor: str | None = None,
        higher_is_better: bool | None = None,
        patience: int | None = None,
        checkpoint: str | PathLike[str] | None = None,
        callbacks: Callbacks = (),
        progress: bool = True,
    ) -> list[EpochRecord]:
        """Train on every batch of a loader, epoch by epoch.

        Args:
            loader: Gives batches ``(x, y)`` or ``(x, y, mask)`` as :meth:`train_sequence` takes them, or others with
                ``batch``. Moved to the network's device. Modules that are in evaluation mode while the network is in
                training mode stay there. Or ``loader(epoch)`` returns what gives them. A resumed run draws the same
                random numbers, but for those of generators that ``loader(epoch)`` makes and of persistent workers.
            epochs: Passes over the data of this call, after those of earlier calls and of a loaded checkpoint. Default
                1. To complete a run of 10 epochs, pass ``10 - len(trainer.history)``.
            val_loader: Evaluated after each epoch.
            batch: How to read a batch of another form: names of its entries, ``("frames", "label")`` or ``("frames",
                "label", "lengths")``, with a tuple or dictionary of names for several inputs or targets; positions in
                place of names for a tuple; or a function of a batch that returns ``(x, y)`` or ``(x, y, mask)``.
            scheduler: Learning-rate scheduler. ``ReduceLROnPlateau`` gets what is monitored, and its mode must be the
                direction of that. :meth:`save` keeps its state, and the first call after :meth:`load` restores it into
                the scheduler given then, together with the learning rate, which a new scheduler sets. Of the
                optimizer's options it restores what a scheduler of torch writes. In a callback, :meth:`load` restores
                the scheduler of the running call.
            scheduler_interval: Whether it steps after each ``"epoch"`` or each ``"batch"``, as a warm-up does.
                ``None``, the default, is ``"batch"`` for ``OneCycleLR`` and ``CyclicLR``, else ``"epoch"``.
            metric: ``metric(output, target) -> number``, averaged over samples; an object with ``update``, ``compute``
                and ``reset``, such as those of torchmetrics, which sees a whole pass, or a function of a whole pass,
                :class:`~fptt_plugin.fit.EpochMetric`; several of these by name in a dictionary; or ``None``. Default:
                accuracy.
            monitor: What decides which epoch is best: the name of a metric, or ``"loss"``, the decision's loss.
                ``None``, the default, is the first metric, or the loss if there is no metric. Computed on the
                validation data if there is a ``val_loader``, else on the training data.
            higher_is_better: Direction of what is monitored. ``None``, the default: higher, but lower for the loss.
            patience: Stop after so many epochs that were not better than the best before them; ``None``, the default,
                does not. Epochs of earlier calls and of a loaded checkpoint count if they have the figure of this call.
            checkpoint: File for the best epoch. The best score of earlier calls, and of a run that was loaded, counts
                if the file exists and name, ``monitor``, direction and the use of a ``val_loader`` are the same.
            callbacks: Objects with hooks, see :class:`~fptt_plugin.fit.Callback`, or functions that are called after
                each epoch as ``function(trainer, record)``.
            progress: Print a line per epoch, and show a bar in between in a terminal or notebook, where ``tqdm`` is
                installed.

        Returns:
            One record per epoch of this call; :attr:`history` has those of all calls, also if this one is interrupted.

        Raises:
            ConfigurationError: If an argument cannot be used. Nothing is changed then.
            BatchError: If the loader is empty, or a batch cannot be read.
        """
        with Uninterrupted():
            return _fit.fit(
                self,
                self._progress,
                loader,
                epochs,
                val_loader=val_loader,
                batch=batch,
                scheduler=scheduler,
                scheduler_interval=scheduler_interval,
                metric=metric,
                monitor=monitor,
                higher_is_better=higher_is_better,
                patience=patience,
                checkpoint=checkpoint,
                callbacks=callbacks,
                show=progress,
            )

    def stop(self) -> None:
        """End :meth:`fit`, from a callback or a signal handler: after the present batch, with its epoch recorded."""
        self._progress.stopping = True

    # ------------------------------------------------------------------ evaluation

    def evaluate(
        self,
        loader: Iterable[Any],
        *,
        metric: Metrics = accuracy,
        batch: Batching = None,
        averaged: bool | None = None,
    ) -> Any:
        """Score on a loader, in evaluation mode and without gradients; a stream in progress goes on after.

        Args:
            loader: Gives batches as :meth:`fit` takes them; what is masked does not count.
            metric: One metric or several by name, as :meth:`fit` takes them; ``None`` for the loss of the decisions:
                the mean over samples or, of torch's losses with class weights, ``ignore_index`` or
                ``reduction="sum"``, what they are for all samples at once. Default: accuracy.
            batch: As :meth:`fit` takes it.
            averaged: Evaluate ``W_bar`` instead of ``W``; the same with ``alpha=0``. ``None``, the default: ``W_bar``,
                but ``W`` with ``variant="gradient"``.

        Returns:
            A number, for a function its mean over samples (and over steps, with a target per step); for several
            metrics a dictionary of numbers.

        Raises:
            BatchError: If the loader is empty, or a batch cannot be read.
            CallOrderError: If ``averaged=False`` within :meth:`averaged_weights`, where ``W`` is not in the network.
        """
        with Uninterrupted():
            return _fit.evaluate(self, loader, metric=metric, batch=batch, averaged=averaged)

    def recalibrate(self, loader: Iterable[Any], *, batch: Batching = None, averaged: bool | None = None) -> int:
        """Compute the running statistics of batch normalization again, as means over a loader, at the present weights.

        Online training changes the weights many times while running statistics average, so the statistics lag behind,
        the more the faster the weights change; and ``W_bar`` needs others than ``W``. Ten or twenty batches of training
        data are enough. ``torch.optim.swa_utils.update_bn`` does the same for averaged weights. Weights, gradients and
        a stream in progress stay as they are; layers in evaluation mode within a network in training mode keep their
        statistics. So do time steps that no batch reaches. Each call of a layer counts alike: sequences may have
        different lengths.

        Args:
            loader: Gives batches as :meth:`fit` takes them.
            batch: As :meth:`fit` takes it.
            averaged: Whose statistics: as in :meth:`evaluate`.

        Returns:
            How many batches there were.

        Raises:
            BatchError: If the loader is empty, or a batch cannot be read; the old statistics are back.
            ConfigurationError: If the network has no such statistics, or none that move where it is evaluated.
        """
        with Uninterrupted():
            return _fit.recalibrate(self, loader, batch=batch, averaged=averaged)

    def predict(self, x: Any, mask: Any = None, *, averaged: bool | None = None) -> Any:
        """The decision ``[B, ...]`` on a batch of sequences: what the network returns at the end of each.

        Args:
            x: ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``).
            mask: Boolean per step in the layout of ``x``, or integer lengths ``[B]``, of padded sequences: each sample
                is decided at its own last step.
            averaged: See :meth:`evaluate`.

        Returns:
            The decision of each sample, ``[B, ...]``.
        """
        x, mask = self._inputs(x), self._tensors(mask, "mask")
        with self._explained(x):
            self._check_input(x)
            size = self._find_driver(x, batch_first=self.batch_first).steps_and_batch(x)
            if size is None:
                x = time_first(x, batch_first=self.batch_first)
            batch = Batch.without_target(x, mask, batch_first=self.batch_first, size=size)
            self._check_ends(batch)
        with Uninterrupted(), self.evaluation(averaged):
            return self.visit(batch)

    @contextmanager
    def evaluation(self, averaged: bool | None = None) -> Iterator[None]:
        """Context in evaluation mode, without gradients and with ``W_bar`` (see :meth:`evaluate`).

        On exit, state, modes and weights are restored, and training continues where it was.

        Args:
            averaged: See :meth:`evaluate`.

        Returns:
            A context manager.

        Raises:
            CallOrderError: If ``averaged=False`` within :meth:`averaged_weights`.
        """
        if averaged is not None and not averaged and self.regularizer.is_swapped and self.regularizer.alpha > 0:
            raise CallOrderError(
                "averaged=False asks for W, and within averaged_weights() and evaluation() the network holds W_bar",
                "leave the context first, or leave averaged out",
            )
        kept = self._run_state.snapshot()
        if averaged is None:
            averaged = self.regularizer.variant != "gradient"
        torch.clear_autocast_cache()  # the user may have loaded weights within the context
        try:
            with (
                _takes_sizes(self.net),
                torch.no_grad(),
                self.averaged_weights() if averaged else nullcontext(),
                _evaluation_mode(self.net),  # within the others: a layer that merges weights does so with W_bar
            ):
                yield
        finally:
            with Uninterrupted():
                torch.clear_autocast_cache()  # torch before 2.13 would train on copies that were made without gradient
                self._run_state.restore(kept)

    def visit(self, batch: Batch, visitor: Callable[[int, Any], None] | None = None) -> Any:
        """Run a batch of sequences from the initial state, without losses; use it within :meth:`evaluation`.

        Args:
            batch: From :meth:`prepare`.
            visitor: Called with every time step and what the loss would see there, ``[B, ...]``.

        Returns:
            The decision ``[B, ...]``.
        """
        return self.objective.unpacked(self._loop.visit(batch, self._unpacking(visitor)))

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Context in which the network holds ``W_bar``; afterward ``W`` is back, bit for bit.

        Returns:
            A context manager.
        """
        return self.regularizer.averaged_weights()

    def __repr__(self) -> str:
        parts = (type(self.net).__name__, type(self.optimizer).__name__, self.objective.name)
        return f"{type(self).__name__}({', '.join(parts)}: {self.updates} updates)"

    def explain(self) -> str:
        """Describe what the trainer does with this network; complete after the first batch.

        Returns:
            Lines on driver, state, loss, readout and window, regularizer and compilation.
        """
        schedule, loop = self.schedule, self._loop
        entries = {name: ", ".join(state) for name, state in self.state.get().items()}
        layers = ", ".join(
            f"{name} ({type(module).__name__}: {entries[name]})" for name, module in self.state.modules()
        )
        known = loop.driver is not None or self._readout_choice is not None
        readout = self._run_state.readout.mode if known else "found out at the first batch"
        window = "the whole sequence" if schedule.window is None else f"{schedule.window} step(s)"
        return "\n".join(
            [
                loop.driver.explain() if loop.driver else "driver: found out at the first batch",
                f"state: {layers}",
                self.objective.explain(),
                f"readout: {readout}; window: {window}; "
                f"loss every {schedule.loss_every or 'window'}; update every {schedule.update_every or 'window'}",
                f"regularizer: alpha={self.regularizer.alpha}, beta={self.regularizer.beta}, "
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
        if loop.driver is None:
            self._use_driver(self._choose_driver(x, batch_first))  # if this fails, the next batch is another attempt
        if modes_changed or self._step_modes is None:
            self._step_modes, self._driver_is_checked = StepModes(self.net), False
        if not self._driver_is_checked:
            x = x.transpose(0, 1) if batch_first and loop.driver.steps_and_batch(x) is None else x
            preflight(loop.driver, x, self.schedule.window, thorough=self._preflight)
            loop.driver.check_losses(self.schedule.window, self.schedule.loss_every)
            self._use_driver(loop.driver)  # by now it knows the network's readout
            if self._readout_choice is None:
                self._warn_of_readout(loop.driver)
            self._driver_is_checked = True
        if self.accelerate != "none" and loop.executor is None:
            loop.executor = Accelerator(loop, self.accelerate)
        return loop.driver

    def _warn_of_readout(self, driver: Driver) -> None:
        net, evaluated = unwrapped(self.net), driver.readout_in_evaluation
        if driver.guesses:
            warn_of_guess(net, driver.readout)
        elif evaluated not in (None, driver.readout):
            warn_of_modes(net, driver.readout, evaluated)

    def _choose_driver(self, x: Tensor, batch_first: bool) -> Driver:
        choice, select = self._driver_choice, self.objective.select
        driver = known_driver(choice, self.net, self.state, select)
        if driver is None:
            assert isinstance(choice, str)
            find = partial(
                find_driver,
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
            # In training mode, whatever comes first, training or a test: forward() may ask for it, and dropout changes
            # what passes through it, so that it is not taken for the layer before.
            try:
                driver = find(training=True)
            except Exception:
                if self.net.training:
                    raise
                driver = find(training=False)  # batch normalization does not train on a single sample
        if isinstance(driver, InFlightDriver):
            check_in_flight({"variant": self.regularizer.variant, "on_nonfinite": self._loop.on_nonfinite})
        return driver

    def _use_driver(self, driver: Driver | None) -> None:
        """Make it the loop's driver, with the network's own readout unless the user chose one."""
        self._loop.driver = driver  # type: ignore[assignment]
        if driver is not None:
            readout = self._run_state.readout
            readout.mode = self._readout_choice or self.objective.readout_of(driver.readout)
            readout.factor = 1.0 if self._readout_choice else driver.factor

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Options and counter of the regularizer, counters, class distribution and recurrent state.

        Network and optimizer, with ``W_bar`` and dual, have their own state dicts.

        Returns:
            A dictionary that ``torch.load`` reads with ``weights_only=True``, unless neurons keep their state in named
            tuples or dataclasses.

        Raises:
            CallOrderError: Between two updates, where gradients are pending that no file can hold, and within
                :meth:`averaged_weights`.
        """
        self.regularizer.check_weights()
        return {
            "regularizer": self.regularizer.state_dict(),
            "optimizer": type(self.optimizer).__name__,
            "parameters": self._parameter_names(),
            "grad_scaler": {} if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "fit": self._progress.state_dict(),
            **self._run_state.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, into a trainer of the same network, optimizer and options.

        Args:
            state: The state.

        Raises:
            CheckpointError: If it belongs to another network or optimizer, or lacks something. Nothing is changed then.
        """
        self.check_state_dict(state)
        with Uninterrupted():
            self.regularizer.load_state_dict(state["regularizer"])
            if self.grad_scaler is not None and state["grad_scaler"]:
                self.grad_scaler.load_state_dict(state["grad_scaler"])
            self._progress.load_state_dict(state.get("fit", {}), self.optimizer)
            self._run_state.load_state_dict(state)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a state is complete and belongs to a trainer of this network and optimizer.

        Raises:
            CheckpointError: If it does not.
        """
        self._run_state.check_state_dict(state)
        check_entry(state, "regularizer", lambda saved: isinstance(saved, dict))
        self.regularizer.check_state_dict(state["regularizer"])
        kind = type(self.optimizer).__name__
        if state.get("optimizer", kind) != kind:  # files of version 0.1 have neither this nor the names
            raise CheckpointError(
                f"the state is of {state['optimizer']}, and this optimizer is {kind}",
                f"build the trainer with {state['optimizer']}",
            )
        self._check_parameter_names(state.get("parameters", self._parameter_names()))
        own = {} if self.grad_scaler is None else self.grad_scaler.state_dict()
        check_entry(state, "grad_scaler", lambda saved: not own or not saved or saved.keys() == own.keys())
        self._progress.check_state_dict(state.get("fit", {}))

    def _parameter_names(self) -> list[list[str | None]]:
        """Names of the optimizer's parameters, group by group: its state knows them by position alone."""
        names = {parameter: name for name, parameter in self.net.named_parameters()}
        return [[names.get(parameter) for parameter in group["params"]] for group in self.optimizer.param_groups]

    def _check_parameter_names(self, saved: list[list[str | None]]) -> None:
        names = self._parameter_names()
        if [len(group) for group in names] != [len(group) for group in saved]:
            raise CheckpointError("the state belongs to an optimizer with other parameter groups")
        for own, others in zip(names, saved, strict=True):
            for name, other in zip(own, others, strict=True):
                if name != other:
                    raise CheckpointError(
                        f"the optimizer has its parameters in another order: {name!r} where the file has {other!r}",
                        "build it from the parameters in the order in which it was built when the file was saved",
                    )

    def __getstate__(self) -> dict[str, Any]:
        # Neither pickle nor deepcopy takes graphs and the gradients of parameters along.
        self._run_state.check_complete("copy")
        return vars(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write network, optimizer and trainer to one file, atomically: an interrupted write leaves the old file.

        Args:
            path: The file. It holds three state dicts, ``"net"``, ``"optimizer"`` and ``"trainer"``; a network without
                a trainer loads its weights with ``net.load_state_dict(torch.load(path)["net"])``. They are what the
                network holds: ``W_bar`` after an epoch of :meth:`fit` with ``average_weights="epoch"``, ``W`` after
                :meth:`train_sequence`, :meth:`step`, and with ``"never"``.

        Raises:
            CallOrderError: If :attr:`can_save` is false.
            CheckpointError: If ``path`` is a folder.
        """
        content = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "trainer": self.state_dict()}
        _checkpoint.save(content, path)

    def load(self, path: str | PathLike[str], *, weights_only: bool = True) -> None:
        """Read a file that :meth:`save` wrote.

        It restores ``alpha``, ``beta`` and ``rho``, as it restores the optimizer's learning rate. To use others,
        set them on ``trainer.regularizer`` after loading.

        Args:
            path: The file.
            weights_only: As for ``torch.load``: ``False`` also reads objects of any class, which runs code of the file,
                so only from those you trust. Needed where the state of the neurons is in named tuples or dataclasses.

        Raises:
            CheckpointError: If the file is damaged or belongs to another network. Nothing is changed then.
        """
        _check_mode(learns=False)
        content = _checkpoint.load(path, self.net, weights_only=weights_only)
        self.regularizer.check_weights()
        _checkpoint.check(
            path,
            content,
            self.net,
            self.optimizer,
            check_averages=self.regularizer.check_optimizer_state,
            check_trainer=self.check_state_dict,
        )
        state = _checkpoint.in_precision_of(self.net, content)
        with Uninterrupted():
            self.net.load_state_dict(content["net"])
            self.optimizer.load_state_dict(content["optimizer"])
            torch.clear_autocast_cache()
            self.load_state_dict(state)


@contextmanager
def _evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Context in evaluation mode. Modes change by ``train()`` alone, in which layers of LoRA merge their weights."""
    training = {module: module.training for module in net.modules()}
    try:
        net.eval()
        yield
    finally:
        with Uninterrupted():
            for module, mode in training.items():  # from the outside in: train() sets what is inside as well
                if module.training != mode:
                    module.train() if mode else module.eval()


def _takes_sizes(net: nn.Module) -> AbstractContextManager[Any]:
    """Context in which weights that get their sizes from the first input can be trained later.

    Within ``torch.inference_mode()`` they could not.
    """
    unsized = any(is_lazy(tensor) for tensor in chain(net.parameters(), net.buffers()))
    return torch.inference_mode(False) if unsized and torch.is_inference_mode_enabled() else nullcontext()


def _check_mode(*, learns: bool = True) -> None:
    """Check that tensors made now can take part in training.

    Args:
        learns: Whether there is a loss, which needs gradients.

    Raises:
        CallOrderError: Within ``torch.inference_mode()``, and where something is to be learned within
            ``torch.no_grad()``.
    """
    if torch.is_inference_mode_enabled():
        raise CallOrderError(
            "within torch.inference_mode() nothing can be trained or loaded: no training afterward takes the tensors "
            "that are made there",
            "leave the context first; predict() and evaluate() may be called within it",
        )
    if learns and not torch.is_grad_enabled():
        raise CallOrderError(
            "gradients are off (torch.no_grad() or torch.set_grad_enabled(False)), so nothing would be learned",
            "leave the context first, or call torch.set_grad_enabled(True); predict() and evaluate() need no gradients",
        )
