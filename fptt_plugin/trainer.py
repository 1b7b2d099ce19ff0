"""``FPTTTrainer``: trains an existing spiking network online, one loss and one update per time step or window."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from . import _loop
from ._detect import check_output_module, known_driver, takes_state
from ._engine import Engine
from ._evaluator import Evaluator
from ._inputs import TARGETS, Sequence, check_step, finite_targets, without_ignored
from ._loop import Metric, accuracy
from ._position import Chunk, Strides
from ._update import Updater
from ._validation import Problems, check_data_parallel, check_strides
from .acceleration import MODES
from .drivers import DRIVERS, check_network
from .functional.losses import ClassDistribution
from .objective import LossFunction, Objective, Output, Ramp, Readout, check_objective
from .regularizer import DynamicRegularizer, check_optimizer, check_regularizer_options
from .results import EpochRecord, SequenceResult, StepResult
from .state import ModelState


class FPTTTrainer(Evaluator):
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
        window: Steps that a gradient reaches back; then the state is detached. Default 1.
        loss_every: A loss at every n-th step; ``None``, the default, at the last step of each window. The last step
            of a sequence always carries one. A window's loss is the mean over its steps with a loss.
        update_every: Steps between weight updates, a multiple of ``window`` (the windows' gradients are averaged);
            ``None``, the default, is ``window``.
        max_grad_norm: Largest norm of the regularised gradient. Default 1; ``None`` does not clip.
        average_weights: When ``W_bar`` replaces ``W``: after each ``"epoch"`` of :meth:`fit` (the authors), after each
            ``"sequence"``, or ``"never"``.
        output: Which output of the network the loss sees, see :class:`~fptt_plugin.objective.Objective`.
        readout: ``"step"``: loss and decision see the step's output; ``"mean"``: the mean of the outputs so far, the
            past without gradient. Networks that end in spikes need ``"mean"``.
        loss_ramp: Weight of the loss over time, see :class:`~fptt_plugin.objective.Objective`.
        auxiliary: Class-distribution term, likewise.
        targets: Whether ``y`` holds one target per ``"sequence"`` or per ``"step"``; ``"auto"`` tells by its shape.
        batch_first: Sequences are ``[B, T, ...]`` instead of ``[T, B, ...]``.
        driver: How the network is called in time. ``"step"``: ``net(x_t)``; ``"slice"``: ``net(x[t:t+window])``,
            SpikingJelly in 'm' mode; ``"in-flight"``: ``net(x)`` once, for networks that loop over time in ``forward``;
            ``"explicit"``: ``net(x_t, state) -> (output, state)``. ``"auto"`` finds out at the first batch, see
            :meth:`explain`.
        output_module: For the in-flight driver: the module whose call ends a time step; found if ``None``.
        preflight: Check on copies, with a few steps of the first batch, that no sequence depends on the one before, and
            that SpikingJelly networks and those with explicit state keep time steps and samples apart. ``False`` for
            networks that mix these on purpose.
        on_nonfinite: ``"raise"`` or ``"skip"`` an update whose loss or gradient is not finite; either way weights,
            running statistics and state are as they were after the update before it. With ``"skip"``, a stream also
            leaves out a step whose input is not finite, and a target that is not.
        grad_scaler: A ``torch.amp.GradScaler`` for float16: scales the loss and steps the optimizer. Updates that it
            skips for infinite gradients count as skipped.
        accelerate: ``"none"``; ``"compile"`` compiles each window, from forward pass to weight update, into one graph
            when it first comes (15 to 40 seconds), or the update alone where the network cannot be compiled;
            ``"cudagraph"`` also records it on a GPU; ``"auto"`` is the latter on a GPU with a ``capturable`` optimizer,
            else ``"compile"``. Results are those of ``"none"`` within rounding; what cannot be compiled runs eagerly.

    Attributes:
        regularizer: The :class:`DynamicRegularizer` on the optimizer.
        state: The network's recurrent state, a :class:`~fptt_plugin.state.ModelState`.
        steps: Time steps so far, those left out as not finite too, those of a failed call not.
        updates: Weight updates so far.
        skipped: Updates, and steps of a stream, skipped because something was not finite.

    Raises:
        ValueError: With everything that is wrong with the arguments, before anything is changed.

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
        average_weights: str = "epoch",
        output: Output = None,
        readout: str = "step",
        loss_ramp: str | Ramp | None = None,
        auxiliary: bool | ClassDistribution | None = None,
        targets: str = "auto",
        batch_first: bool = False,
        driver: str = "auto",
        output_module: str | None = None,
        preflight: bool = True,
        on_nonfinite: str = "raise",
        grad_scaler: GradScaler | None = None,
        accelerate: str = "none",
    ) -> None:
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        state = ModelState(net)
        problems = Problems(type(self).__name__)
        check_regularizer_options(problems, alpha, beta, rho, variant, max_grad_norm)
        check_optimizer(problems, optimizer)
        check_objective(problems, loss_fn, output, loss_ramp, auxiliary)
        check_strides(problems, window, loss_every, update_every, variant)
        problems.check_choice("average_weights", average_weights, ("epoch", "sequence", "never"))
        problems.check_choice("readout", readout, ("step", "mean"))
        problems.check_choice("targets", targets, TARGETS)
        problems.check_choice("driver", driver, DRIVERS)
        check_output_module(problems, net, output_module, driver)
        problems.check_choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
        problems.check_choice("accelerate", accelerate, MODES)
        problems.check(
            grad_scaler is None or isinstance(grad_scaler, GradScaler),
            f"grad_scaler must be a torch.amp.GradScaler or None, got {type(grad_scaler).__name__}",
        )
        check_network(problems, net, state, optimizer, explicit=driver == "explicit" or takes_state(net))
        check_data_parallel(problems, net, state)
        problems.raise_any()

        self.net = net
        self.optimizer = optimizer
        self.state = state
        self.objective = Objective(loss_fn, output, loss_ramp, auxiliary)
        self.regularizer = DynamicRegularizer(optimizer, alpha, beta, rho, variant=variant, max_grad_norm=max_grad_norm)
        self.average_weights = average_weights
        self.targets = targets
        self.batch_first = batch_first
        self.output_module = output_module
        self.grad_scaler = grad_scaler
        self._driver = driver
        self._preflight = preflight
        self._engine = Engine(
            net,
            Updater(net, optimizer, self.regularizer, state, grad_scaler),
            state,
            known_driver(driver, net, state, self.objective.select),
            self.objective,
            Readout(readout),
            Strides(window, loss_every, update_every),
            on_nonfinite,
            accelerate,
        )

    @property
    def steps(self) -> int:
        return self._engine.steps

    @property
    def updates(self) -> int:
        return self._engine.updates

    @property
    def skipped(self) -> int:
        return self._engine.skipped

    # ------------------------------------------------------------------ training

    def reset(self) -> None:
        """Starts a new sequence or stream: every neuron is as before its first input; the weights stay."""
        self._engine.reset()

    def step(
        self,
        x_t: Tensor,
        y_t: Tensor | None = None,
        mask: Tensor | None = None,
        new_sequence: Tensor | None = None,
    ) -> StepResult:
        """One time step of a stream: predicts, and learns from the target if there is one.

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
            ValueError: If shapes or values are impossible, the batch size changes without a :meth:`reset`, or single
                samples of this network cannot begin anew. Weights and state are as before then.
            TypeError: If the input is not a floating-point tensor, or a mask not a boolean one.
            FloatingPointError: If loss or gradient is not finite (``on_nonfinite="raise"``); the state is back where it
                was after the last update.
        """
        self.regularizer.check_weights()
        skips = self._engine.on_nonfinite == "skip"
        check_step(x_t, y_t, mask, new_sequence, finite=not skips)
        mask = mask if y_t is None else without_ignored(y_t, mask, self.objective.ignore_index, rank=1)
        if skips and y_t is not None and not finite_targets(y_t, mask):
            y_t, self._engine.skipped = None, self._engine.skipped + 1
        if self._engine.strides.window is None:
            raise ValueError("window=None waits for the end of the sequence, and a stream has none: set window")
        x = x_t.unsqueeze(0)
        self._find_driver(x, batch_first=False)
        if new_sequence is not None and not new_sequence.any():
            new_sequence = None
        return self._engine.step(Chunk(x, lambda t: y_t, None, False, lambda t: mask, new_sequence))

    def train_sequence(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> SequenceResult:
        """Resets the state and trains on one batch of sequences, window by window.

        Args:
            x: Input ``[T, B, ...]`` (``[B, T, ...]`` with ``batch_first``).
            y: Target ``[B, ...]``, or one per step in the layout of ``x``.
            mask: Which targets count, boolean ``[B]`` or one per step in the layout of ``x``; ``None``: all.

        Returns:
            The decision, the mean loss of the windows (skipped ones left out; nan without any) and the number of
            updates.

        Raises:
            ValueError: If shapes or values are impossible. Nothing is changed then.
            TypeError: If the input is not a floating-point tensor, or the mask not a boolean one.
            FloatingPointError: If loss or gradient is not finite (``on_nonfinite="raise"``); earlier updates stay.
        """
        return self._train(self._check_sequence(x, y, mask))

    def _train(self, sequence: Sequence) -> SequenceResult:
        self.regularizer.check_weights()
        result = self._engine.train(sequence)
        self._look_at(result.output)
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
        """Trains on every batch of a loader, epoch by epoch, with a progress bar where ``tqdm`` is installed.

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
            ValueError: If the loader is empty, or metric, scheduler or checkpoint's folder are of no use.
        """
        return _loop.fit(
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
