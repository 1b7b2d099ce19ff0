"""What the loss of one time step is: which output it sees, how it is weighted, and the auxiliary term."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BatchError, ErrorList, FPTTError, FPTTWarning, OutputError, integer
from ..functional.losses import ClassDistribution, constant_ramp, linear_ramp
from ..tree import Packing, tensors_in
from .batch import Batch, Window
from .readout import Readout

LossFunction = Callable[[Any, Any], Tensor]
Ramp = Callable[[int, int | None], float]
Output = int | str | Callable[[Any], Any] | None

# snntorch.functional losses of a whole record [T, B, C] that equal the mean over time of the loss of each step.
_DECOMPOSABLE = ("ce_rate_loss", "mse_membrane_loss")
_REGRESSION = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss)
_BINARY = (nn.BCEWithLogitsLoss, nn.BCELoss)
_LABEL_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)  # a log_softmax of log-probabilities changes nothing
_LABEL_FUNCTIONS = (F.cross_entropy, F.nll_loss)
_REGRESSION_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.poisson_nll_loss)
_BINARY_FUNCTIONS = (F.binary_cross_entropy_with_logits, F.binary_cross_entropy)
_LOOKS = 20  # at the first step of a sequence all samples may have the same loss
_RAMPS: dict[str, Ramp] = {"linear": linear_ramp, "constant": constant_ramp}


class Objective:
    """The loss of one time step, ``r_t * loss_fn(out_t, y_t) + (1 - r_t) * divergence(out_t, Q[y, t])``.

    Args:
        loss_fn: ``loss_fn(output, target) -> scalar`` for one time step, or a snnTorch ``SF`` loss that decomposes.
            With a ramp and sequences of different lengths, it is called for the samples of each length by themselves.
            Class weights, ``ignore_index`` and ``reduction="sum"`` of torch's losses mean what they mean for all
            samples at once; of a function of your own, the result must be a mean over samples, or a warning says so.
        output: Picks the output from what the network returns: an index, a key or attribute name, or a callable.
            ``None``: a tensor as it is; of snnTorch's ``(spk, ..., mem)`` the membrane, for spike losses the spikes.
            A callable that returns several tensors, in a tuple, list or dictionary, gives loss and metric all of them:
            ``lambda returned: returned`` whatever the network returns. For a ``forward`` that loops over time, the
            callable may pick one of the records that it returns, or reduce it over time, as
            ``lambda returned: returned[0].sum(0)`` does.
        ramp: ``"linear"`` (``r_t = (t + 1) / T``), ``"constant"`` (1), a callable ``(t, T) -> float``, or ``None``:
            linear for one class label per sequence, constant otherwise.
        auxiliary: Use the divergence term: ``True``, ``False``, your own
            :class:`~fptt_plugin.functional.ClassDistribution`, or ``None``: for one class label per sequence under a
            cross-entropy loss: ``nn.CrossEntropyLoss``, ``nn.NLLLoss`` and their functions, also in a
            ``functools.partial``. It has no weight where the ramp is 1.

    Raises:
        ConfigurationError: If an option is unknown, or ``loss_fn`` needs the whole sequence.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        output: Output = None,
        ramp: str | Ramp | None = None,
        auxiliary: bool | ClassDistribution | None = None,
    ) -> None:
        problems = ErrorList("the loss")
        check_objective(problems, loss_fn, output, ramp, auxiliary)
        problems.raise_any()
        self.loss_fn = loss_fn
        self.output = output if isinstance(output, str) or callable(output) else integer(output)
        self.ramp = ramp
        self.auxiliary = auxiliary
        self.distribution = auxiliary if isinstance(auxiliary, ClassDistribution) else ClassDistribution()
        self.packing: Packing | None = None  # of several outputs
        self.target_packing: Packing | None = None  # of several targets
        self._takes_labels = isinstance(loss_fn, _LABEL_LOSSES) or _function(loss_fn) in _LABEL_FUNCTIONS
        self._is_huber = isinstance(loss_fn, nn.HuberLoss) or _function(loss_fn) is F.huber_loss
        self._record_loss = _snntorch_name(loss_fn) is not None
        self._warned_of_shapes = False
        self._looks = 0  # at whether loss_fn is a mean over samples
        self._labels: bool | None = None  # whether the last target was one class label per sequence
        default = "what the network returns, of several the " + ("first" if self.default_index == 0 else "last")
        self._output = default if output is None else f"output={_callable_name(output) or repr(output)}"
        self._uses_distribution = self._takes_labels if auxiliary is None else auxiliary is not False

    # ------------------------------------------------------------------ which output

    def select(self, returned: Any) -> Tensor:
        """Pick the output that loss and decision see.

        Args:
            returned: What the network returned.

        Returns:
            The tensor.

        Raises:
            OutputError: If there is no such output, or several and none was chosen.
        """
        if callable(self.output):
            return self._packed(self.output(returned))
        if isinstance(self.output, int):
            return self._index(returned, self.output)
        if isinstance(self.output, str):
            found = returned.get(self.output) if isinstance(returned, Mapping) else None
            found = getattr(returned, self.output, None) if found is None else found
            if not isinstance(found, Tensor):
                raise OutputError(f"output={self.output!r}: there is no such entry in {_describe(returned)}")
            return found
        if isinstance(returned, Tensor):
            self._output = "what the network returns"
            return returned
        entries = list(returned) if isinstance(returned, (tuple, list)) else []
        tensors = [entry for entry in entries if isinstance(entry, Tensor)]
        if tensors and len(tensors) == len(entries) and len({tensor.shape for tensor in tensors}) == 1:
            place = self.default_index % len(tensors)
            self._output = f"output[{place}] of the {len(tensors)} that the network returns"
            return tensors[place]
        raise OutputError(
            f"there is no single output in {_describe(returned)}; say which one the loss sees, e.g. output=0, "
            "output='name' or output=lambda returned: returned[0]; for a loss_fn that takes all of them, "
            "output=lambda returned: returned"
        )

    def readout_of(self, own: str) -> str:
        """The readout for a network with a readout of its own.

        snnTorch's loss of spike rates is taken step by step, and its accuracy over the whole record.
        """
        return "rate" if own == "step" and _snntorch_name(self.loss_fn) == "ce_rate_loss" else own

    def _packed(self, picked: Any) -> Tensor:
        """What a callable picked, as one tensor."""
        if isinstance(picked, Tensor):
            self.packing = None
            return picked
        try:
            packing = Packing(picked)
        except FPTTError as error:
            raise OutputError(
                f"output={self.output!r} must pick a tensor, or several with the same first axes, it returned "
                f"{_describe(picked)}"
            ) from error
        if self.packing != packing:
            self.packing = packing
        return packing.pack(picked)

    def unpacked(self, output: Tensor) -> Any:
        """What loss and user see of an output: of several, what ``output`` picked, with tensors ``[B, ...]``."""
        return output if self.packing is None else self.packing.unpack(output)

    @property
    def ignore_index(self) -> int | None:
        """The class index that stands for no label, if ``loss_fn`` has one."""
        found = getattr(self.loss_fn, "ignore_index", None)
        if _function(self.loss_fn) in _LABEL_FUNCTIONS:
            found = getattr(self.loss_fn, "keywords", {}).get("ignore_index", -100)
        return found if isinstance(found, int) else None

    @property
    def default_index(self) -> int:
        """Of ``(spk, ..., mem)``: the spikes for snnTorch's spike losses, the membrane for every other loss."""
        return 0 if _snntorch_name(self.loss_fn) == "ce_rate_loss" else -1

    @staticmethod
    def _index(returned: Any, index: int) -> Tensor:
        try:
            found = returned[index] if isinstance(returned, (tuple, list)) else None
        except IndexError:
            found = None
        if not isinstance(found, Tensor):
            raise OutputError(f"output={index}: there is no such tensor in {_describe(returned)}")
        return found

    def check_output(self, output: Tensor, samples: int) -> None:
        """Check that what was picked at a time step has the samples of the batch in front and, for labels, classes.

        Raises:
            OutputError: If it does not.
        """
        reason = ""
        if output.shape[:1] != (samples,):
            reason = f"does not begin with the {samples} samples of the batch"
        elif output.dim() < 2 and self._takes_labels:
            reason = f"has no class scores for {self.name}, [B, C]"
        if reason:
            raise OutputError(
                f"the output that the loss sees has shape {tuple(output.shape)} at a time step, which {reason}",
                "change what forward() returns or what output=... picks from it",
            )

    # ------------------------------------------------------------------ which loss

    def losses(
        self,
        outputs: Iterable[Tensor],
        span: int,
        window: Window,
        readout: Readout,
        due: range,
        decision: Tensor | None,
        *,
        update: bool = True,
        visitor: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Decision so far and the losses that are due, from the network's outputs in a window.

        Args:
            outputs: The outputs, as they come.
            span: Steps that one output stands for; it belongs to the last of them.
            window: The steps.
            readout: Turns outputs into what loss and decision see.
            due: Steps with a loss, see :meth:`Schedule.due`.
            decision: The decision before this window, ``None`` at the start of a sequence.
            update: ``False`` leaves the class distribution as it is.
            visitor: Called with every step and what the loss sees there, detached.
        """
        batch, losses = window.batch, []
        for t, raw in enumerate(outputs, start=window.t + span - 1):
            self.check_output(raw, batch.size)
            output = readout(raw, span)
            decision = output if batch.ends is None else batch.merge(decision, output, t)
            if visitor is not None:
                visitor(t, output.detach())
            if batch.y is None or not (t in due or batch.carries_loss(t, due)):
                continue
            seen = readout.for_loss(raw, output)
            if batch.mask is None:
                target = batch.y if batch.per_sequence or batch.steps is None else batch.y[t]
                losses.append(self.loss(seen, target, t, batch.steps, batch.per_sequence, update=update))
            else:
                losses += self._losses_of_labeled(seen, batch, t, due, update)
        assert decision is not None
        return decision, losses

    def _losses_of_labeled(self, output: Tensor, batch: Batch, t: int, due: range, update: bool) -> list[Tensor]:
        """Loss of the samples that are labeled at step ``t``, in a list; an empty list without any."""
        target = batch.target(t)
        assert target is not None
        groups = list(batch.groups(t, due))  # samples of equal length share the weight of the ramp
        if len(groups) > 1 and not self._is_of_library and self.is_constant(target, batch.per_sequence):
            groups = [(torch.stack([rows for rows, _ in groups]).any(dim=0), batch.steps)]  # all weights are 1
        outputs, targets = [output[rows] for rows, _ in groups], [target[rows] for rows, _ in groups]
        factors = [1.0] if len(groups) == 1 else self._factors(targets)
        if len(groups) > 1 and self._looks < _LOOKS and not self._is_of_library:
            self._check_mean(outputs, targets, factors)
        losses = [
            self.loss(own_output, own_target, t, steps, batch.per_sequence, update=update, factor=factor)
            for own_output, own_target, (_, steps), factor in zip(outputs, targets, groups, factors, strict=True)
        ]
        return losses if len(losses) < 2 else [_mean_over_samples(losses, targets)]

    @property
    def _is_of_library(self) -> bool:
        """Whether it is known what ``loss_fn`` is a mean over."""
        module = getattr(_function(self.loss_fn), "__module__", None)
        return str(module).startswith(("torch.nn.", "snntorch.functional"))

    def _factors(self, targets: list[Tensor]) -> list[float]:
        """What to multiply ``loss_fn`` of each group of samples by, before the mean over all samples is formed.

        1, unless ``loss_fn`` is no mean over samples: a sum, or a mean with weights of classes or without some labels.
        """
        counts = [len(target) for target in targets]
        if self.is_sum:
            return [sum(counts) / count for count in counts]
        amounts = [float(self.amount(target)) for target in targets]
        return [
            amount * sum(counts) / (sum(amounts) * count) if sum(amounts) else 1.0
            for amount, count in zip(amounts, counts, strict=True)
        ]

    @property
    def is_sum(self) -> bool:
        """Whether ``loss_fn`` is a sum over samples, for all that its options say."""
        return bool(self._option("reduction") == "sum")

    def amount(self, target: Any) -> Tensor | int:
        """What the loss of some samples is divided by to be a mean: their number, or the sum of their class weights."""
        if not self._takes_labels or target.is_floating_point():
            return len(tensors_in(target)[0])
        weight: Tensor | None = self._option("weight")
        counts: Tensor = target.long() != self.ignore_index
        if weight is None:
            return counts.sum()
        # Labels out of range are for the loss function to refuse.
        return torch.where(counts, weight[target.long().clamp(0, len(weight) - 1)], 0.0).sum()

    def _option(self, name: str) -> Any:
        """An option of ``loss_fn``, an object or a ``functools.partial``; ``None`` if it has no such option."""
        keywords = self.loss_fn.keywords if isinstance(self.loss_fn, partial) else {}
        return keywords.get(name, getattr(_function(self.loss_fn), name, None))

    @torch.no_grad()
    def _check_mean(self, outputs: list[Tensor], targets: list[Tensor], factors: list[float]) -> None:
        """Warn if a loss function of the user's is no mean over samples, by its values on some groups of them."""
        self._looks += 1
        whole = self.plain_loss(torch.cat(outputs), torch.cat(targets))
        parts = [self.plain_loss(*group) for group in zip(outputs, targets, factors, strict=True)]
        rounding = torch.finfo(whole.dtype).eps ** 0.5
        if not torch.allclose(_mean_over_samples(parts, targets), whole, rtol=rounding, equal_nan=True):
            self._looks = _LOOKS
            warnings.warn(
                f"{self.name} is no mean over samples. Sequences of each length go into it by themselves, as they have "
                "their own weight of the ramp, and their losses are averaged by the numbers of samples. Average over "
                "samples in it, or pass loss_ramp='constant', with which all samples go into it together; for weights "
                "of classes or a sum, options of torch's own losses are enough",
                FPTTWarning,
                stacklevel=2,
            )

    def loss(
        self,
        output: Tensor,
        target: Tensor,
        t: int,
        steps: int | None,
        per_sequence: bool,
        *,
        update: bool = True,
        factor: float = 1.0,
    ) -> Tensor:
        """Loss of step ``t`` of a sequence of ``steps`` (``None`` for a stream), a scalar tensor.

        ``update=False`` leaves the class distribution as it is; ``factor`` is of ``loss_fn`` alone.

        Raises:
            OutputError: If ``loss_fn`` does not return a scalar.
        """
        self._labels = labels = _are_labels(target, per_sequence)
        weight = self._ramp_for(labels)(t, steps)
        if weight == 1.0:
            return self.plain_loss(output, target, factor)
        row = self.distribution.row(t, output) if labels and self._uses_distribution else None
        return self.weighted_loss(output, target, weight, row, update=update, factor=factor)

    def weight(self, target: Tensor, t: int, steps: int | None, per_sequence: bool) -> float:
        """Weight ``r_t`` of the loss at step ``t``; 1 everywhere with a constant ramp."""
        return self._ramp_for(_are_labels(target, per_sequence))(t, steps)

    def is_constant(self, target: Tensor, per_sequence: bool) -> bool:
        """Whether every step's loss has weight 1."""
        return self._ramp_for(_are_labels(target, per_sequence)) is constant_ramp

    def is_mixed(self, target: Tensor, per_sequence: bool) -> bool:
        """Whether the divergence from the class distribution takes up what the ramp leaves."""
        return _are_labels(target, per_sequence) and self._uses_distribution

    def weighted_loss(
        self,
        output: Tensor,
        target: Tensor,
        weight: float | Tensor,
        row: Tensor | None,
        *,
        update: bool = True,
        factor: float = 1.0,
    ) -> Tensor:
        """Loss of one step of that weight; with a row of the class distribution, mixed with the divergence from it."""
        value = weight * self.plain_loss(output, target, factor)
        if row is None:
            return value
        return value + (1 - weight) * self.distribution.loss_of_row(row, output, target, update=update)

    def plain_loss(self, output: Tensor, target: Tensor, factor: float = 1.0) -> Tensor:
        """``loss_fn`` of one step alone, without ramp and auxiliary term, times ``factor``."""
        if factor == 0.0:  # a mean without weight is not a number
            return output.new_zeros(())
        several = self.target_packing
        value = self.loss_of(self.unpacked(output), target if several is None else several.unpack(target))
        return value if factor == 1.0 else factor * value

    def loss_of(self, output: Any, target: Any) -> Tensor:
        """``loss_fn`` of an output and its target as loss and user see them."""
        single = isinstance(output, Tensor) and isinstance(target, Tensor)
        if single and output.shape != target.shape and not self._takes_labels:
            self._check_broadcast(output, target)
        if single and self._is_huber and not _huber_takes(output, target):
            raise BatchError(
                f"{self.name} does not take a target of type {target.dtype}",
                f"pass targets of the output's type, y.to({output.dtype})",
            )
        try:
            value = self.loss_fn(output.unsqueeze(0) if self._record_loss else output, target)
        except (RuntimeError, ValueError, IndexError) as error:
            remedy = _target_remedy(output, target, like=self._is_like(output)) if single else ""
            if not remedy:
                raise
            raise BatchError(f"{self.name} does not take this target ({error})", remedy) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OutputError(
                f"loss_fn must return a scalar tensor, got {shape}",
                "average it, e.g. with reduction='mean' or .mean()",
            )
        return value.reshape(())

    def _check_broadcast(self, output: Tensor, target: Tensor) -> None:
        """Check that a loss of differences does not pair every output with every target.

        Raises:
            BatchError: For torch's regression losses.
        """
        refused = isinstance(self.loss_fn, _REGRESSION) or _function(self.loss_fn) in _REGRESSION_FUNCTIONS
        if not refused:
            may_be_labels = self._is_binary or not (target.is_floating_point() or _is_one(output))
            if self._warned_of_shapes or may_be_labels or not _broadcasts(output, target):
                return
        reason = f"the output has shape {tuple(output.shape)} and the target {tuple(target.shape)}"
        remedy = _like(output, target)
        if refused:
            raise BatchError(f"{reason}, which {self.name} would broadcast against each other", remedy)
        self._warned_of_shapes = True
        text = f"{reason}; if loss_fn subtracts them, every output is compared with every target: {remedy}"
        warnings.warn(text, FPTTWarning, stacklevel=2)

    @property
    def _is_binary(self) -> bool:
        return isinstance(self.loss_fn, _BINARY) or _function(self.loss_fn) in _BINARY_FUNCTIONS

    def _is_like(self, output: Tensor) -> bool:
        """Whether a target is like the output, a number for each of its: not labels, whatever its type."""
        return self._is_binary or (_is_one(output) and not self._takes_labels)

    @property
    def name(self) -> str:
        """Name of ``loss_fn``."""
        return _callable_name(self.loss_fn) or type(self.loss_fn).__name__

    def _ramp_for(self, labels: bool) -> Ramp:
        if callable(self.ramp):
            return self.ramp
        return _RAMPS[self.ramp or ("linear" if labels else "constant")]

    def explain(self) -> str:
        """One line on output, ramp and auxiliary term: as they are, once a target has been seen."""
        ramp = _callable_name(self.ramp) or self.ramp
        if self._labels is None:
            ramp = ramp or "linear for one label per sequence, else constant"
            auxiliary = "class distribution for one label per sequence" if self._uses_distribution else "none"
        else:
            ramp = ramp or ("linear" if self._labels else "constant")
            mixed = self._labels and self._uses_distribution and ramp != "constant"
            auxiliary = "class distribution" if mixed else "none"
        return f"loss: {self.name} on {self._output}; ramp: {ramp}; auxiliary term: {auxiliary}"


def check_objective(
    problems: ErrorList,
    loss_fn: LossFunction,
    output: Output,
    ramp: str | Ramp | None,
    auxiliary: bool | ClassDistribution | None,
) -> None:
    """Record unusable options."""
    problems.check(callable(loss_fn), f"loss_fn must be callable as loss_fn(output, target), got {loss_fn!r}")
    problems.check(
        output is None or isinstance(output, str) or callable(output) or integer(output) is not None,
        f"output={output!r} must be an index, a name, a callable or None",
    )
    if ramp is not None and not callable(ramp):
        problems.check_choice("loss_ramp", ramp, tuple(_RAMPS))
    problems.check(
        auxiliary is None or isinstance(auxiliary, (bool, ClassDistribution)),
        f"auxiliary={auxiliary!r} must be True, False, a ClassDistribution or None",
    )
    name = _snntorch_name(loss_fn)
    if getattr(loss_fn, "time_var_targets", False):
        problems.check(
            False,
            f"snnTorch's {name} with time_var_targets=True needs the targets of the whole sequence: leave it out and "
            "pass one target per step, [T, B, ...]",
        )
    elif name is not None:
        decomposes = name in _DECOMPOSABLE and not getattr(loss_fn, "population_code", False)
        problems.check(
            decomposes,
            f"snnTorch's {name} needs the record of the whole sequence and is no mean over time steps, so it cannot be "
            f"trained online; use {' or '.join('SF.' + entry for entry in _DECOMPOSABLE)}, or nn.CrossEntropyLoss with "
            "readout='mean'",
        )


def _mean_over_samples(losses: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean of the losses of groups of samples, by their numbers."""
    counts = list(map(len, targets))
    return torch.stack([n * loss for n, loss in zip(counts, losses, strict=True)]).sum() / sum(counts)


def _broadcasts(one: Tensor, other: Tensor) -> bool:
    """Whether an operation on both has more entries than either."""
    try:
        shape = torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        return False
    return bool(math.prod(shape) > max(one.numel(), other.numel()))


def _is_one(output: Tensor) -> bool:
    """Whether there is one output for each sample, so that it is no score among classes."""
    return output.shape[1:] in ((), (1,))


def _huber_takes(output: Tensor, target: Tensor) -> bool:
    """Whether the backward pass of torch's Huber loss takes a target: it wants the type of the output."""
    if output.dtype == target.dtype:
        return True
    cast = torch.is_autocast_enabled(output.device.type) and torch.float64 not in (output.dtype, target.dtype)
    return cast and target.is_floating_point()


def _like(output: Tensor, target: Tensor) -> str:
    """How a target becomes one of the output's shape and kind."""
    steps = "" if target.is_floating_point() else ".float()"
    if output.shape == (*target.shape, 1):
        steps += ".unsqueeze(-1)"  # also of a target per step
    elif target.shape == (*output.shape, 1):
        steps += ".squeeze(-1)"
    return "pass targets of the output's shape" + (f", y{steps}" if steps else "")


def _target_remedy(output: Tensor, target: Tensor, *, like: bool) -> str:
    """What is wrong with targets like the output, or else with class labels; empty if nothing is.

    What it says holds for one target per step as well.
    """
    if like:
        return "" if target.is_floating_point() and target.shape == output.shape else _like(output, target)
    if output.dim() > 2 and target.dim() == 1:
        one = next((axis for axis in range(1, output.dim()) if output.shape[axis] == 1), None)
        remedy = f"let forward() return class scores [B, C] at a time step in place of {list(output.shape)}"
        return remedy if one is None else f"{remedy}, or pass output=lambda output: output.squeeze({one})"
    if target.is_floating_point():
        labels = target.shape == output.shape[:1]
        return "pass class labels as 64-bit integers: y.long()" if labels else ""
    if target.dim() == 2 and target.shape[1] == 1:
        return "pass one label per sample, [B]: y.squeeze(-1)"
    if target.shape == output.shape:
        return f"pass labels, y.argmax({1 - target.dim()}), or class probabilities as floating-point numbers, y.float()"
    if target.dim() == 2 and output.dim() == 2:
        return "pass one label per sample, [B], or one per step, [T, B]: y.transpose(0, 1) if it is [B, T]"
    if target.dtype != torch.int64:
        return "pass class labels as 64-bit integers: y.long()"
    classes = output.shape[1]
    if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < classes):
        low, high = int(target.min()), int(target.max())
        return f"labels must be 0 to {classes - 1}, one for each output; these range from {low} to {high}"
    return ""


def _function(loss_fn: Any) -> Any:
    """The function of a ``functools.partial``; anything else as it is."""
    return loss_fn.func if isinstance(loss_fn, partial) else loss_fn


def _callable_name(value: Any) -> str | None:
    """Name of a function, also of one in a ``functools.partial``."""
    return getattr(_function(value), "__name__", None)


def _are_labels(target: Tensor, per_sequence: bool) -> bool:
    """One class index for a whole sequence."""
    return per_sequence and not target.is_floating_point() and target.dim() == 1


def _snntorch_name(loss_fn: object) -> str | None:
    """Name of a snnTorch record loss, ``None`` for any other callable."""
    module = type(loss_fn).__module__ or ""
    return getattr(loss_fn, "__name__", None) if module.startswith("snntorch.functional") else None


def _describe(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a mapping with keys {list(returned)}"
    if isinstance(returned, (tuple, list)):
        return f"{type(returned).__name__}({', '.join(_describe(entry) for entry in returned)})"
    return f"a {type(returned).__name__}"


def warn_of_spikes(output: Tensor, loss_fn: LossFunction, readout: str) -> bool:
    """Warn of spikes that serve as logits of a cross-entropy, step by step.

    Returns:
        Whether the output could tell: one without a single spike cannot.
    """
    logits = isinstance(loss_fn, (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)) or _function(loss_fn) in (
        F.cross_entropy,
        F.binary_cross_entropy_with_logits,
    )
    if readout != "step" or not logits:
        return True
    if not output.any():
        return False
    if ((output == 0) | (output == 1)).all():
        warnings.warn(
            "the loss sees spikes, all 0 or 1, as logits, so no step can be sure of its class: pass readout='mean' for "
            "firing rates, or end the network in an integrator, LTCIntegrator(), without spikes",
            FPTTWarning,
            stacklevel=4,
        )
    return True
