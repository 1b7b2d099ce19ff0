"""FPTT's dynamic regularizer on any ``torch.optim`` optimizer, through its step hooks.

The running average ``W_bar`` and the scaled dual ``d = lam / alpha`` of a weight ``p`` are entries of
``optimizer.state[p]``, beside the optimizer's own. Whatever saves, loads, copies or moves an optimizer therefore does
the same to them.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, SupportsFloat

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from ..errors import CallOrderError, CheckpointError, ConfigurationError, ErrorList, FPTTWarning, check_entry
from ..functional.fptt import add_regularizer_gradient_, update_averages_
from ..interrupts import Uninterrupted
from ..torch_internals import outside_of_compile, step_hooks, version_of
from .watch import WeightWatch

AVERAGE = "fptt_average"  # keys in optimizer.state[p]
DUAL = "fptt_dual"
RECORD = tuple(f"fptt_{name}" for name in ("alpha", "variant", "updates", "averages"))  # keys in parameter groups
NORM = "fptt_norm"  # beside AVERAGE in optimizer.state_dict(): of the weight that it belongs to

Entry = dict[str, Any]


class _Number:
    """An option that is checked whenever it is set; without ``__get__``, reading it costs what any attribute costs."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __set__(self, regularizer: Any, value: Any) -> None:
        problems = ErrorList(type(regularizer).__name__)
        _check_number(problems, self._name, value)
        problems.raise_any()
        vars(regularizer)[self._name] = None if value is None else float(value)


class _Variant:
    """What the averages mean, so it stays as it is first set."""

    def __set__(self, regularizer: Any, value: str) -> None:
        if vars(regularizer).setdefault("variant", value) != value:
            raise ConfigurationError(
                "variant cannot be changed, because it says what the averages mean",
                "build another optimizer and regularizer",
            )


class DynamicRegularizer:
    """Turn the steps of an optimizer into FPTT updates.

    Before each ``optimizer.step()`` the gradient of the regularizer is added to every ``.grad`` and the sum is clipped;
    after it the dual and the running average move (``W`` weights, ``W_bar`` their running average, ``lam`` the dual):

    .. code-block:: text

        g    += alpha (W - W_bar) - (1 - rho) lam
        clip g by its global norm
        W     = optimizer step with g
        lam  -= alpha (W - W_bar)
        W_bar = (1 - beta) W_bar + beta W - (beta / alpha) lam

    Gradients are taken at ``W``; ``W_bar`` is for evaluation, see :meth:`averaged_weights`. ``alpha=0`` turns all of
    this off except clipping: the optimizer then does truncated BPTT, and ``W_bar`` is ``W``.

    **Checkpoints.** ``W_bar`` and the dual are part of ``optimizer.state_dict()``. A loop that saves and loads the
    network and the optimizer resumes exactly; build the regularizer with the same options, before or after
    ``optimizer.load_state_dict()``. Copies and pickles of (network, optimizer, regularizer) continue on their own.

    **Weights changed from outside.** Each optimizer step, :meth:`averaged_weights` and :meth:`load_averages` first
    check that the weights are as the last update left them, and raise :class:`~fptt_plugin.errors.WeightsChangedError`
    otherwise. They notice ``net.load_state_dict()``, every in-place operation, and a new tensor in ``weight.data``
    (as after ``net.to()``); not an in-place operation on ``weight.data``. After ``optimizer.load_state_dict()``, before
    or after that of the network, they compare the norms of the weights with those at the time of saving. Call
    :meth:`restart_averages` after loading other weights, or :meth:`accept_weights` after a change that belongs to
    training, as weight clipping does. :meth:`remember_values` and :meth:`check_values` read values and so notice the
    rest; the trainer calls them around every batch of sequences.

    **Closures.** ``optimizer.step(closure)`` evaluates the closure once, adds the gradient of the regularizer, then
    steps. A ``step()`` of a subclass that calls ``super().step()`` is one step.

    A parameter without a gradient in some step (frozen, or unused) is left alone in that step. Parameters may be lazy,
    shared, and spread over several groups; groups may be added later. Works with schedulers, ``foreach``, ``fused``
    and ``capturable`` optimizers, ``torch.amp.GradScaler`` and ``torch.autocast``.

    Args:
        optimizer: Optimizer of the network to train.
        alpha: Strength of the regularizer, >= 0. Default 0.1.
        beta: Rate of the running average, in (0, 1]. Default 0.5.
        rho: Fraction of the dual left out of the gradient, in [0, 1]. Default 0.
        variant: ``"dual"`` is the authors' code; ``"gradient"`` is the paper's Algorithm 2, with half the dual and
            ``lam = grad loss(W_new)``: call :meth:`second_gradient` after each optimizer step.
        max_grad_norm: Largest global 2-norm of the regularized gradient; ``None`` does not clip.

    Attributes:
        alpha (float): May be changed: ``lam`` stays as it is. A step with 0 drops the averages. ``beta``, ``rho`` and
            ``max_grad_norm`` may be changed as well; each is checked when it is set.
        grad_norm (Tensor | None): Norm of the last update's gradient before clipping, a 0-d tensor; ``None`` without
            clipping.
        updates (int): Optimizer steps so far; steps that a ``GradScaler`` skipped do not count.
        check_norm: Called with ``grad_norm`` before gradients are clipped; an exception that it raises leaves weights,
            averages and optimizer as they are.

    Raises:
        ConfigurationError: If an argument is out of range, or the optimizer already carries a regularizer.

    Source: Yin, Corradi, Bohté 2023, and the authors' training scripts, which update in this order.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> regularizer = DynamicRegularizer(optimizer, alpha=0.5)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     (-weight).sum().backward()
        ...     optimizer.step()
        >>> weight.item(), regularizer.average_of(weight).item()
        (1.5, 2.0)
        >>> sorted(optimizer.state[weight])
        ['fptt_average', 'fptt_dual']
    """

    alpha: float = _Number()  # type: ignore[assignment]
    beta: float = _Number()  # type: ignore[assignment]
    rho: float = _Number()  # type: ignore[assignment]
    max_grad_norm: float | None = _Number()  # type: ignore[assignment]
    variant: str = _Variant()  # type: ignore[assignment]

    def __init__(
        self,
        optimizer: Optimizer,
        alpha: float = 0.1,
        beta: float = 0.5,
        rho: float = 0.0,
        *,
        variant: str = "dual",
        max_grad_norm: float | None = None,
    ) -> None:
        problems = ErrorList("DynamicRegularizer")
        check_regularizer_options(problems, alpha, beta, rho, variant, max_grad_norm)
        check_optimizer(problems, optimizer)
        problems.raise_any()
        self.optimizer = optimizer
        self.alpha, self.beta, self.rho = alpha, beta, rho
        self.variant = variant
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self.updates = 0
        self.check_norm: Callable[[Tensor], None] | None = None
        self._dual_unit = self.alpha  # lam = _dual_unit * d: the alpha of the last update
        self._swapped = False
        self._awaits_gradient = False
        self._updated: list[Tensor] = []  # parameters of the step in progress, their averages and scaled duals
        self._averages: list[Tensor] = []
        self._duals: list[Tensor] = []
        self._signs: list[int] = []  # -1 where the optimizer maximizes
        self._begun: dict[Tensor, Entry] = {}  # entries that this step puts into the optimizer
        self._waiting: dict[Tensor, Entry] = {}  # entries of a 0.1 checkpoint, until their parameter's next step
        self._watch = WeightWatch()
        self._check_record(optimizer.param_groups)
        self._register()
        self._adopt(optimizer)

    @property
    def dual_weight(self) -> float:
        """Factor of the dual in the gradient."""
        return (1 - self.rho) * (1.0 if self.variant == "dual" else 0.5)

    # ------------------------------------------------------------------ one update, in the order of its equations

    @outside_of_compile
    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._steps_nest and _steps_within_its_step(optimizer):
            return None
        self.check_ready()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._regularize(optimizer)
            return None
        with torch.enable_grad():
            loss = closure()
        self._regularize(optimizer)
        if len(args) > 1:
            return (args[0], _once(loss), *args[2:]), kwargs
        return args, {**kwargs, "closure": _once(loss)}

    def _regularize(self, optimizer: Optimizer) -> None:
        """Add the gradient of the regularizer to every ``.grad``, then clip."""
        groups = [[weight for weight in group["params"] if weight.grad is not None] for group in optimizer.param_groups]
        if [weight for group in groups for weight in group if weight.grad.layout != torch.strided]:
            raise ConfigurationError("sparse gradients are not supported", "build the embedding with sparse=False")
        if not any(groups) and self.updates:
            warnings.warn(
                "optimizer.step() found no gradient in any of its parameters: if the network's parameters were "
                "replaced, by load_state_dict(assign=True) or a new layer, build optimizer and regularizer again",
                FPTTWarning,
                stacklevel=4,
            )
        if self._dual_unit != self.alpha:
            self._change_unit()
        self._updated, self._averages, self._duals, self._signs, self._begun = [], [], [], [], {}
        every_grad: list[Tensor] = []
        scale = getattr(optimizer, "grad_scale", None)
        for group, weights in zip(optimizer.param_groups, groups, strict=True):
            if not weights:
                continue
            grads = [weight.grad for weight in weights]
            if scale is not None:  # of GradScaler: a fused optimizer would divide by it in its kernel, too late for us
                torch._foreach_div_(grads, scale.to(grads[0].device))
            sign = -1 if group.get("maximize") else 1
            if self.alpha > 0:
                averages, duals = self._take(weights)
                add_regularizer_gradient_(
                    grads, weights, averages, duals, alpha=sign * self.alpha, dual_weight=self.dual_weight
                )
                self._averages += averages
                self._duals += duals
            self._updated += weights
            self._signs += [sign] * len(weights)
            every_grad += grads
        if scale is not None:
            optimizer.grad_scale = None  # type: ignore[attr-defined]  # done above
        if self.max_grad_norm is not None:
            # The two halves of clip_grad_norm_, so that a norm which is not finite can stop the step before it clips.
            self.grad_norm = get_total_norm(every_grad)
            if self.check_norm is not None:
                self.check_norm(self.grad_norm)
            clip_grads_with_norm_(self._updated, self.max_grad_norm, self.grad_norm)

    @outside_of_compile
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._steps_nest and _steps_within_its_step(optimizer):
            return
        # Within autocast the next forward pass would use low-precision copies of the weights before this step.
        torch.clear_autocast_cache()
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            self._watch.note_unchanged(self._updated)  # it may have written to them
            return
        self.updates += 1
        if self.alpha == 0 or not self._updated:
            return
        # Only now: an optimizer takes whatever it finds in a parameter's state at the first step for its own.
        for weight, entry in self._begun.items():
            optimizer.state[weight].update(entry)
            self._waiting.pop(weight, None)
        self._begun = {}
        self._watch.note(self._updated)
        if self.variant == "gradient":
            self._awaits_gradient = True
        else:
            update_averages_(self._updated, self._averages, self._duals, beta=self.beta)

    def second_gradient(self, loss: Callable[[], Tensor]) -> None:
        """Complete an update of ``variant="gradient"`` with the loss gradient at the new weights.

        If ``loss`` raises an exception, ``W_bar`` and the dual skip this update and training can go on.

        Args:
            loss: Computes this step's loss again, from the *same* recurrent state as before the step and with
                normalization statistics frozen. ``.grad`` stays untouched.

        Raises:
            CallOrderError: If no update of that variant is waiting.
        """
        if not self._awaits_gradient:
            if self.alpha == 0 and self.variant == "gradient":
                return
            raise CallOrderError(
                "second_gradient() completes an update of variant='gradient', and none is waiting",
                "call it once after each optimizer step",
            )
        self._awaits_gradient = False
        grads = torch.autograd.grad(loss(), self._updated, allow_unused=True, materialize_grads=True)
        new_duals = [sign * grad / self.alpha for sign, grad in zip(self._signs, grads, strict=True)]
        update_averages_(self._updated, self._averages, self._duals, beta=self.beta, new_duals=new_duals)

    # ------------------------------------------------------------------ W_bar and dual of each weight

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _entry(self, weight: Tensor) -> Entry | None:
        entry = self.optimizer.state.get(weight)
        return entry if entry is not None and AVERAGE in entry else self._waiting.get(weight)

    def _take(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """``W_bar`` and scaled dual of weights about to be updated; where there are none, ``W`` and zero."""
        state, averages, duals = self.optimizer.state, list[Tensor](), list[Tensor]()
        for weight in weights:
            entry = state.get(weight)
            if entry is None or AVERAGE not in entry:
                entry = self._begun[weight] = self._waiting.get(weight) or _first_entry(weight)
            averages.append(entry[AVERAGE])
            duals.append(entry[DUAL])
        return averages, duals

    def _change_unit(self) -> None:
        """Bring the scaled duals to the present ``alpha``, so that ``lam`` stays; with ``alpha=0`` drop all."""
        if self.alpha == 0:
            self._drop_averages()
        elif self._dual_unit > 0:
            entries = [entry for weight in self._parameters() if (entry := self._entry(weight)) is not None]
            if entries:
                torch._foreach_mul_([entry[DUAL] for entry in entries], self._dual_unit / self.alpha)
        self._dual_unit = self.alpha

    def _drop_averages(self) -> None:
        for entry in self.optimizer.state.values():
            if isinstance(entry, dict):
                entry.pop(AVERAGE, None)
                entry.pop(DUAL, None)
        self._waiting = {}
        self.accept_weights()

    def _averaged(self) -> list[tuple[Tensor, Tensor]]:
        """The weights that are not their own average, each with its average."""
        if self.alpha == 0:
            return []
        state, found = self.optimizer.state, []
        for weight in self._parameters():
            entry = state.get(weight)
            if entry is None or AVERAGE not in entry:
                entry = self._waiting.get(weight)
            if entry is not None and weight.requires_grad:
                found.append((weight, entry[AVERAGE]))
        return found

    def average_of(self, parameter: Tensor) -> Tensor:
        """Return ``W_bar`` of a parameter.

        Args:
            parameter: A parameter of the optimizer.

        Returns:
            Its average, detached. It is the parameter itself if that is frozen, before its first update, and with
            ``alpha=0``.
        """
        entry = self._entry(parameter) if parameter.requires_grad and self.alpha > 0 else None
        average: Tensor = parameter.detach() if entry is None else entry[AVERAGE]
        return average

    def dual_of(self, parameter: Tensor) -> Tensor:
        """Return ``lam`` of a parameter.

        Args:
            parameter: A parameter of the optimizer.

        Returns:
            Its dual, detached; zero before the first update and with ``alpha=0``.
        """
        entry = self._entry(parameter) if self.alpha > 0 else None
        if entry is None:
            return torch.zeros_like(parameter, requires_grad=False)
        dual: Tensor = self._dual_unit * entry[DUAL]
        return dual

    @torch.no_grad()
    def load_averages(self) -> None:
        """Copy ``W_bar`` into the weights, as the authors do at the end of every epoch; the duals stay.

        Raises:
            WeightsChangedError: If the weights were changed from outside. Nothing is changed then.
        """
        self.check_ready()
        self._watch.check_norms()
        averaged = self._averaged()
        with Uninterrupted():
            for weight, average in averaged:
                weight.copy_(average)
            self._watch.note([weight for weight, _ in averaged])
            torch.clear_autocast_cache()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Let the weights hold ``W_bar`` within the context; afterward they are back, bit for bit.

        Nothing can be trained within the context. Changes of the weights made there are lost, with a warning.

        Returns:
            A context manager.

        Raises:
            WeightsChangedError: If the weights were changed from outside. Nothing is changed then.
        """
        if self._swapped:  # within another such context
            yield
            return
        self._watch.check()
        self._watch.check_norms()
        averaged = self._averaged()
        kept = [(weight, weight.detach().clone(), version_of(weight)) for weight, _ in averaged]
        try:
            with Uninterrupted():
                self._swapped = True
                # By way of .data, unseen by autograd: as W comes back, a backward pass through it may be pending.
                for weight, average in averaged:
                    weight.data.copy_(average)
                torch.clear_autocast_cache()
            yield
        finally:
            with Uninterrupted():
                changed = any(version_of(weight) != version for weight, _, version in kept)
                for weight, value, _ in kept:
                    weight.data.copy_(value)
                self._watch.note_unchanged([weight for weight, _, _ in kept])
                torch.clear_autocast_cache()
                self._swapped = False
            if changed:
                warnings.warn(
                    "weights were changed within averaged_weights(), and the change is lost: on leaving the context "
                    "they are what they were before; change or load weights outside of it",
                    FPTTWarning,
                    stacklevel=3,
                )

    # ------------------------------------------------------------------ weights changed from outside

    def remember_values(self) -> None:
        """Remember the norms of the weights, for :meth:`check_values`."""
        if self.alpha > 0:
            self._watch.remember_norms()

    def check_values(self) -> None:
        """Check that the weights have the norms that :meth:`remember_values` saw. Synchronizes with the device.

        Compares nothing once the weights have moved by an update or one of the regularizer's methods.

        Raises:
            WeightsChangedError: If one of them was changed from outside, even in place in ``weight.data``.
        """
        self._watch.check_norms()

    @property
    def is_swapped(self) -> bool:
        """Whether the network holds ``W_bar`` in place of ``W``."""
        return self._swapped

    def check_weights(self) -> None:
        """Check that the weights are not swapped for their averages.

        Raises:
            CallOrderError: If they are.
        """
        if self._swapped:
            raise CallOrderError(
                "within averaged_weights() the network holds W_bar in place of W, so nothing can be trained or saved",
                "leave the context first",
            )

    def check_ready(self) -> None:
        """Check that an update may begin here.

        Reads no values, so the host does not wait for a device, except once after the optimizer was loaded.

        Raises:
            CallOrderError: Within :meth:`averaged_weights`, or if an update of ``variant="gradient"`` is incomplete.
            WeightsChangedError: If the weights were changed from outside.
        """
        self.check_weights()
        if self._awaits_gradient:
            raise CallOrderError(
                "the last update of variant='gradient' is incomplete",
                "call second_gradient(loss) after every optimizer step, or accept_weights() to go on without",
            )
        self._watch.check()

    def accept_weights(self) -> None:
        """Take the present weights as the result of the last update: the averages and duals stay.

        For changes that belong to training, such as a projection after each step. An incomplete update of
        ``variant="gradient"`` is given up.

        Example:
            >>> weight = torch.nn.Parameter(torch.ones(1))
            >>> optimizer = torch.optim.SGD([weight], lr=1.0)
            >>> regularizer = DynamicRegularizer(optimizer, alpha=0.5)
            >>> for _ in range(3):
            ...     optimizer.zero_grad()
            ...     weight.sum().backward()
            ...     optimizer.step()
            ...     with torch.no_grad():
            ...         _ = weight.clamp_(min=0.0)
            ...     regularizer.accept_weights()
        """
        self._watch.forget()
        self._awaits_gradient = False
        torch.clear_autocast_cache()

    def restart_averages(self) -> None:
        """Start again from the present weights, ``W_bar = W`` and ``lam = 0``: after other weights were loaded."""
        self.check_weights()
        self._drop_averages()

    # ------------------------------------------------------------------ updates made elsewhere

    def averages_and_duals(self, weights: list[Tensor]) -> tuple[list[Tensor], list[Tensor]] | None:
        """Return ``W_bar`` and the scaled dual ``lam / alpha`` of some weights, to be moved in place.

        For code that computes the whole update itself with the functions of ``fptt_plugin.functional``: check with
        :meth:`check_ready` before, report with :meth:`note_updates` after.

        Args:
            weights: Parameters of the optimizer.

        Returns:
            Two lists over the weights, empty with ``alpha=0``; ``None`` while one of them has not been updated, so
            that ``optimizer.step()`` has to come first.
        """
        if self._dual_unit != self.alpha:
            self._change_unit()
        if self.alpha == 0:
            return [], []
        entries = [self.optimizer.state.get(weight, {}) for weight in weights]
        if not all(AVERAGE in entry for entry in entries):
            return None
        return [entry[AVERAGE] for entry in entries], [entry[DUAL] for entry in entries]

    def note_updates(self, updates: int = 1, grad_norm: Tensor | None = None) -> None:
        """Record updates that were made without ``optimizer.step()``.

        Args:
            updates: Their number; 0 if the weights were written to without a change of their values.
            grad_norm: Norm before clipping of the last one.
        """
        self.updates += updates
        if updates and self.max_grad_norm is not None:
            self.grad_norm = grad_norm
        averaged = [weight for weight, _ in self._averaged()]
        if not updates:
            self._watch.forget_all_but(averaged)  # an update that was undone may have been the first of the others
        self._watch.note(averaged)
        torch.clear_autocast_cache()

    # ------------------------------------------------------------------ checkpoints, copies, removal

    def _register(self) -> None:
        optimizer = self.optimizer
        kinds = [kind for kind in type(optimizer).__mro__ if kind is not Optimizer and "step" in vars(kind)]
        self._steps_nest = len(kinds) > 1
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._write_record),
            optimizer.register_load_state_dict_pre_hook(self._check_load),
            optimizer.register_load_state_dict_post_hook(self._adopt),
        ]

    def _write_record(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        """Add to ``optimizer.state_dict()`` what its averages mean, where every framework keeps it.

        Numbers of the regularizer are in the groups. What belongs to one weight is in its entry, which follows the
        weight when a state is adapted to parameters in another order.
        """
        self.check_weights()
        for group, packed in zip(optimizer.param_groups, state["param_groups"], strict=True):
            pairs = zip(group["params"], packed["params"], strict=True)
            averaged = [pair for pair in pairs if AVERAGE in optimizer.state.get(pair[0], {})]
            record = (self._dual_unit, self.variant, self.updates, len(averaged))
            packed.update(zip(RECORD, record, strict=True))
            for weight, position in averaged:  # in a copy: the entry is the optimizer's own
                state["state"][position] = {**optimizer.state[weight], NORM: self._watch.norm_to_save(weight)}

    def _check_record(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group.get("fptt_averages"):
                self._check_variant(group["fptt_variant"])

    def _check_variant(self, variant: str) -> None:
        if variant != self.variant and self.alpha > 0:
            raise CheckpointError(
                f"the state is of variant={variant!r}, this regularizer of {self.variant!r}, whose dual is another",
                f"build the regularizer with variant={variant!r}",
            )

    def _check_load(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        self.check_weights()
        self.check_optimizer_state(state)

    def check_optimizer_state(self, state: dict[str, Any]) -> None:
        """Check the averages in a state of the optimizer, as ``optimizer.load_state_dict()`` also does.

        Raises:
            CheckpointError: If they belong to another network or variant, or some are missing.
        """
        groups = state["param_groups"]
        self._check_record(groups)
        positions = [position for group in groups for position in group["params"]]
        entries = [state["state"].get(position, {}) for position in positions]
        lost = any(group.get("fptt_averages") for group in groups) and not any(AVERAGE in e for e in entries)
        if lost or any(NORM in entry and not entry.keys() >= {AVERAGE, DUAL} for entry in entries):
            raise CheckpointError("the state lacks the running average of a weight that had one when it was saved")
        # Groups of other lengths are the optimizer's to refuse.
        pairs = [pair for pair in zip(self._parameters(), entries, strict=False) if AVERAGE in pair[1]]
        _check_shapes([(weight, entry.get(key)) for weight, entry in pairs for key in (AVERAGE, DUAL)])

    def _adopt(self, optimizer: Optimizer) -> None:
        """Take over averages that a file brought into the optimizer."""
        self.accept_weights()  # network and optimizer may be loaded in either order
        record: dict[str, Any] = {}
        for group in optimizer.param_groups:
            record |= {key: group[key] for key in RECORD if group.get(key) is not None}
            # The keys stay: torch.distributed.checkpoint loads of a flattened state what the optimizer has keys for.
            group.update(dict.fromkeys(RECORD))
        self.updates = record.get("fptt_updates", self.updates)
        # Without a record, averages of a copied optimizer are taken to be in the present unit; alpha=0 drops them.
        self._dual_unit = record.get("fptt_alpha") or self.alpha or 1.0
        for weight, entry in optimizer.state.items():
            if isinstance(entry, dict) and AVERAGE in entry:  # loading shares tensors with the state it read
                entry[AVERAGE], entry[DUAL] = entry[AVERAGE].clone(), entry[DUAL].clone()
                if NORM in entry:
                    self._watch.expect(weight, entry.pop(NORM))

    def state_dict(self) -> dict[str, Any]:
        """Return hyperparameters and counter; ``W_bar`` and the dual are in ``optimizer.state_dict()``.

        Averages that came from a checkpoint of version 0.1 are included until the first step after loading.

        Returns:
            A dictionary of numbers, names and, from a 0.1 checkpoint, tensors.
        """
        waiting = {i: self._waiting[p] for i, p in enumerate(self._parameters()) if p in self._waiting}
        scale = self._dual_unit / self.alpha if self.alpha > 0 else 0.0
        averages: dict[str, Any] = {
            "averages": {i: entry[AVERAGE].clone() for i, entry in waiting.items()},
            "duals": {i: scale * entry[DUAL] for i, entry in waiting.items()},
        }
        return {
            **(averages if waiting else {}),
            "alpha": self.alpha,
            "beta": self.beta,
            "rho": self.rho,
            "variant": self.variant,
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, hyperparameters included, as torch's optimizers do.

        Also reads the state of version 0.1, which holds averages and duals by position in the optimizer's groups.

        Args:
            state: The state.

        Raises:
            CheckpointError: If the state belongs to another network or variant. Nothing is changed then.
        """
        self.check_state_dict(state)
        self.alpha, self.beta, self.rho = state["alpha"], state["beta"], state["rho"]
        self.updates = state["updates"]
        if "averages" in state:
            self._drop_averages()
            parameters = self._parameters()
            self._waiting = {
                parameters[i]: {
                    AVERAGE: average.to(parameters[i].device, copy=True),
                    DUAL: state["duals"][i].to(parameters[i].device, copy=True),
                }
                for i, average in state["averages"].items()
            }
            self._dual_unit = self.alpha

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can read a state.

        Raises:
            CheckpointError: If the state belongs to another network or variant.
        """
        for key in ("alpha", "beta", "rho"):
            check_entry(state, key, math.isfinite)
        check_entry(state, "variant", lambda variant: variant in ("dual", "gradient"))
        check_entry(state, "updates", lambda updates: isinstance(updates, int) and updates >= 0)
        problems = ErrorList("DynamicRegularizer")
        alpha, beta, rho = state["alpha"], state["beta"], state["rho"]
        check_regularizer_options(problems, alpha, beta, rho, state["variant"], self.max_grad_norm)
        try:
            problems.raise_any()
        except ConfigurationError as error:
            raise CheckpointError(f"the state of the regularizer is malformed: {error.reason}") from error
        self._check_variant(state["variant"])
        if "averages" in state:
            check_entry(state, "duals", lambda duals: duals.keys() == state["averages"].keys())
        parameters, averages = self._parameters(), state.get("averages", {})
        if any(i >= len(parameters) for i in averages):
            raise CheckpointError(f"the state belongs to another network: it has more than {len(parameters)} weights")
        tensors = [*averages.items(), *state.get("duals", {}).items()]
        _check_shapes([(parameters[i], tensor) for i, tensor in tensors])

    def __getstate__(self) -> dict[str, Any]:
        # No context gives the weights of a copy back.
        return {**{name: value for name, value in vars(self).items() if name != "_hooks"}, "_swapped": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._register()  # an optimizer loses its hooks when it is copied

    def remove(self) -> None:
        """Remove hooks and averages: the optimizer steps as if the regularizer had never been there."""
        self.check_weights()
        self._drop_averages()
        for hook in self._hooks:
            hook.remove()
        for group in self.optimizer.param_groups:
            for key in RECORD:
                group.pop(key, None)


def _first_entry(weight: Tensor) -> Entry:
    return {AVERAGE: weight.detach().clone(), DUAL: torch.zeros_like(weight, requires_grad=False)}


# torch wraps the step() of each optimizer class in a function that runs the hooks; all of them share this code.
_HOOKED_STEP = Optimizer.profile_hook_step(Optimizer.step).__code__


def _steps_within_its_step(optimizer: Optimizer) -> bool:
    """Whether this is the ``super().step()`` of a subclass, for which torch runs the hooks of the optimizer again.

    It does so only once the base class has been built by itself somewhere. Read from the stack, not from a flag: a flag
    would outlast a step that raises an exception.
    """
    steps, frame = 0, sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        steps += frame.f_code is _HOOKED_STEP and frame.f_locals["self"] is optimizer
    return steps > 1


def _once(loss: Any) -> Callable[[], Any]:
    """Return a closure for a loss that is already computed."""
    losses = [loss]

    def closure() -> Any:
        if not losses:
            raise CallOrderError(
                "the optimizer evaluates its closure more than once per step, FPTT the loss once",
                "use an optimizer that evaluates it once, such as Adam or SGD",
            )
        return losses.pop()

    return closure


def _check_shapes(averages: list[tuple[Tensor, Any]]) -> None:
    for parameter, average in averages:
        if not isinstance(average, Tensor):
            raise CheckpointError("the state is damaged: the running average or the dual of a weight is no tensor")
        if not is_lazy(parameter) and parameter.shape != average.shape:
            raise CheckpointError(
                f"the state belongs to another network: a weight has shape {tuple(parameter.shape)} here and "
                f"{tuple(average.shape)} there",
                "build network and optimizer as they were when it was saved",
            )


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "alpha": (lambda value: 0 <= value < float("inf"), "be >= 0 and finite (0 is plain truncated BPTT)"),
    "beta": (lambda value: 0 < value <= 1, "lie in (0, 1]; the paper uses 0.5"),
    "rho": (lambda value: 0 <= value <= 1, "lie in [0, 1]; the paper uses 0"),
    "max_grad_norm": (lambda value: value is None or value > 0, "be > 0, or None to not clip"),
}


def check_regularizer_options(
    problems: ErrorList, alpha: float, beta: float, rho: float, variant: str, max_grad_norm: float | None
) -> None:
    """Record options of the regularizer that are not numbers or out of range."""
    options = {"alpha": alpha, "beta": beta, "rho": rho, "max_grad_norm": max_grad_norm}
    for name, value in options.items():
        _check_number(problems, name, value)
    problems.check_choice("variant", variant, ("dual", "gradient"))


def _check_number(problems: ErrorList, name: str, value: object) -> None:
    fits, rule = _RULES[name]
    if isinstance(value, SupportsFloat) or (name == "max_grad_norm" and value is None):
        problems.check(fits(value), f"{name}={value!r} must {rule}")
    else:  # YAML reads 1e-1 as text
        number = "pass a number" + (f", float({value!r})" if isinstance(value, str) else "")
        problems.check(False, f"{name}={value!r} is of type {type(value).__name__}", number)


def check_optimizer(problems: ErrorList, optimizer: Optimizer) -> None:
    """Record an optimizer that cannot carry a regularizer, or carries one already."""
    if not isinstance(optimizer, Optimizer):
        problems.check(False, f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        return
    problems.check(
        not isinstance(optimizer, torch.optim.LBFGS),
        "LBFGS evaluates the loss several times within one step, FPTT once per step: use Adam or SGD",
    )
    hooks = step_hooks(optimizer)
    if hooks is None:  # Accelerate's wrapper, which is not built as an optimizer
        kind = type(optimizer).__name__
        problems.check(False, f"{kind} has no step hooks: pass the optimizer that it wraps, .optimizer")
        return
    taken = any(isinstance(getattr(hook, "__self__", None), DynamicRegularizer) for hook in hooks)
    problems.check(
        not taken,
        "the optimizer already carries a DynamicRegularizer (from an earlier trainer?): build a new optimizer, or call "
        "remove() on that regularizer",
    )
