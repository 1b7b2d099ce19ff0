"""Metrics over a pass of the data: functions, whose mean over samples is taken, and objects that count themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import BatchError, ConfigurationError, OutputError
from ..torch_internals import version_of
from ..tree import map_tensors, precise, tensors_in

# snntorch.functional's metrics of a record of spikes [T, B, C] that need no more than its sum over time.
_RECORD_METRICS = ("accuracy_rate",)


class StatefulMetric(Protocol):
    """The protocol of torchmetrics and torcheval: a metric that sees every batch and answers for all of them."""

    def update(self, output: Tensor, target: Tensor) -> Any:
        """Take in one batch."""

    def compute(self) -> Any:
        """The score of all batches since :meth:`reset`: one number, or several by name."""

    def reset(self) -> Any:
        """Forget all batches."""


MetricFunction = Callable[[Any, Any], Any]
Metric = MetricFunction | StatefulMetric
Metrics = Metric | Mapping[str, Metric] | None


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Fraction of samples whose largest output is the one of their class.

    Args:
        output: Class scores ``[B, C]``.
        target: Class indices ``[B]``.

    Returns:
        A 0-d tensor.

    Raises:
        BatchError: If output or target has another shape.

    Example:
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1])).item()
        0.5
    """
    tensors = isinstance(output, Tensor) and isinstance(target, Tensor)
    if not tensors or output.dim() != 2 or target.dim() != 1 or target.is_floating_point():
        raise BatchError(
            f"accuracy needs class scores [B, C] and integer labels [B], got output {_form(output)} and target "
            f"{_form(target)}",
            "pass metric=..., a function of output and target, or metric=None for the loss alone",
        )
    return (output.argmax(dim=1) == target).float().mean()


class EpochMetric:
    """A function of all decisions of a pass at once: for F1 and others that are not means over samples.

    Those of scikit-learn, for example. An object by torchmetrics' protocol, which counts instead of collecting, takes
    less memory.

    Args:
        function: ``function(output, target) -> number``, or several numbers by name in a dictionary. Called at the end
            of the pass with the outputs ``[N, ...]`` and targets ``[N, ...]`` of its N samples, on the CPU.

    Example:
        >>> spread = EpochMetric(lambda output, target: output.max() - output.min())
        >>> for batch in ([1.0, 2.0], [7.0]):
        ...     spread.update(torch.tensor(batch), torch.zeros(len(batch)))
        >>> spread.compute()
        tensor(6.)
    """

    def __init__(self, function: MetricFunction) -> None:
        if not callable(function) or isinstance(function, type):
            raise ConfigurationError(f"EpochMetric is of {function!r}", "pass a function of output and target")
        self.function = function
        self.__name__ = name_of(function)
        self._batches: list[tuple[Any, Any]] = []

    def update(self, output: Any, target: Any) -> None:
        """Take in one batch.

        Args:
            output: Outputs ``[B, ...]``, or several of these.
            target: Targets ``[B, ...]``, or several of these.
        """
        self._batches.append(map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), (output, target)))

    def compute(self) -> Any:
        """What the function makes of all batches since :meth:`reset`.

        Returns:
            What it returns.
        """
        joined = iter([torch.cat(parts) for parts in zip(*map(tensors_in, self._batches), strict=True)])
        return self.function(*map_tensors(lambda _: next(joined), self._batches[0]))

    def reset(self) -> None:
        """Forget all batches."""
        self._batches = []


def _form(value: Any) -> str:
    return f"{tuple(value.shape)} ({value.dtype})" if isinstance(value, Tensor) else f"a {type(value).__name__}"


class Scores:
    """Metrics by name over one pass of the data.

    A function is averaged over samples: it counts as often as its batch has samples. An object with ``update``,
    ``compute`` and ``reset`` is reset, sees every batch, and answers at the end.

    Args:
        metrics: One metric, several by name, or ``None``.
        device: Where the samples are.

    Raises:
        ConfigurationError: If one is neither a function nor such an object, or writes to what it is given.

    Example:
        >>> scores = Scores({"top1": accuracy}, torch.device("cpu"))
        >>> scores.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> scores.compute()
        {'top1': 0.5}
    """

    def __init__(self, metrics: Metrics, device: torch.device) -> None:
        self._metrics = by_name(metrics)
        self._alone = not isinstance(metrics, Mapping)
        self._device = device
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in self._metrics}  # of functions
        self._counts: dict[str, dict[str, int]] = {name: {} for name in self._metrics}
        self.samples = 0
        for metric in self._metrics.values():
            if is_stateful(metric):
                metric.reset()
                if hasattr(metric, "to"):
                    metric.to(device)

    def update(self, output: Any, target: Any) -> None:
        """Take in the samples of a batch, or of one of its time steps."""
        count = len(tensors_in(target)[0])
        if not count:
            return
        self.samples += count
        given = [tensor for tensor in tensors_in((output, target)) if not tensor.is_inference()]
        versions = list(map(version_of, given))
        for name, metric in self._metrics.items():
            if is_stateful(metric):
                metric.update(output, target)
            else:
                self._add(name, metric(_record(metric, output), target), count)
            if versions != list(map(version_of, given)):  # the loss and other metrics see them, too
                raise ConfigurationError(
                    f"metric {name!r} writes to the outputs or targets that it is given",
                    "let it make tensors of its own, as output - 1 does in place of output.sub_(1)",
                )

    def _add(self, name: str, value: Any, count: int) -> None:
        """Add what a function returned for some samples."""
        sums, counts = self._sums[name], self._counts[name]
        for key, number in self._numbers(name, value).items():
            part = count * number.to(self._device, precise(self._device))
            sums[key] = sums[key] + part if key in sums else part
            counts[key] = counts.get(key, 0) + count  # a metric may leave out what a batch does not have

    def compute(self) -> dict[str, float]:
        """Every score by name, in the order of the metrics; none without samples.

        Raises:
            OutputError: If a metric does not give numbers, or two give one of the same name.
        """
        found: dict[str, float] = {}
        for name, metric in self._metrics.items() if self.samples else ():
            if is_stateful(metric):
                scores = {key: float(number.item()) for key, number in self._numbers(name, metric.compute()).items()}
            else:
                scores = self._means(name)
            if twice := [key for key in scores if key in found]:
                raise OutputError(f"two metrics give {twice[0]!r}", "pass them under other names")
            found |= scores
        return found

    def names(self) -> list[str]:
        """Names of the scores so far; an object that counts is taken to give one number, of its own name."""
        named = [[name] if is_stateful(metric) else self._sums[name] for name, metric in self._metrics.items()]
        return [key for keys in named for key in keys]

    def so_far(self) -> dict[str, float]:
        """The means over samples, for a progress bar; what objects count is known at the end."""
        return {key: mean for name in self._metrics for key, mean in self._means(name).items()}

    def _means(self, name: str) -> dict[str, float]:
        return {key: total.item() / self._counts[name][key] for key, total in self._sums[name].items()}

    def _numbers(self, name: str, value: Any) -> dict[str, Tensor]:
        """What a metric returned, by name: a single number has the metric's name, several have their own.

        Raises:
            OutputError: If it is neither a number nor several of them by name.
        """
        if isinstance(value, Mapping):
            prefix = "" if self._alone else f"{name}/"
            return {f"{prefix}{key}": _number(f"{name}/{key}", entry) for key, entry in value.items()}
        return {name: _number(name, value)}


def by_name(metrics: Metrics) -> dict[str, Any]:
    """Metrics by name; a single one has its own.

    Raises:
        ConfigurationError: If one of them is none.
    """
    if metrics is None:
        return {}
    named = dict(metrics) if isinstance(metrics, Mapping) else {name_of(metrics): metrics}
    for name, metric in named.items():
        if not (is_stateful(metric) or callable(metric)) or isinstance(metric, type):
            raise ConfigurationError(
                f"metric {name!r} is {metric!r}",
                "pass metric(output, target) -> number, an object with update(), compute() and reset(), such as those "
                "of torchmetrics, or several of them by name in a dictionary",
            )
        record_metric = _snntorch_name(metric)
        if record_metric not in (None, *_RECORD_METRICS):
            raise ConfigurationError(
                f"snnTorch's {record_metric} needs the record of the whole sequence, and a metric sees the decision",
                "use SF.accuracy_rate, or a metric of the decision [B, ...]",
            )
    counting = [id(metric) for metric in named.values() if is_stateful(metric)]
    if len(set(counting)) < len(counting):
        raise ConfigurationError("two metrics are one object, which would count every batch twice", "build it twice")
    return named


_IN_USE: set[int] = set()  # objects that count a pass, by identity: those of users may not be hashable


@contextmanager
def in_use(metrics: Metrics) -> Iterator[None]:
    """Context of a pass that these metrics count: a callback within it may evaluate, by others.

    Raises:
        ConfigurationError: If one of them counts another pass, which would begin again. It is as before then.
    """
    counting = {id(metric): name for name, metric in by_name(metrics).items() if is_stateful(metric)}
    taken = [name for key, name in counting.items() if key in _IN_USE]
    if taken:
        raise ConfigurationError(
            f"metric {taken[0]!r} is an object that counts a pass that has not ended", "build another one for this pass"
        )
    _IN_USE.update(counting)
    try:
        yield
    finally:
        _IN_USE.difference_update(counting)


def name_of(metric: Any) -> str:
    """The name of a metric: that of the function or, in small letters, of the class."""
    function = getattr(metric, "func", metric)  # functools.partial
    name = getattr(function, "__name__", None)
    if name is None:
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()
    return "metric" if name == "<lambda>" else str(name)


def is_stateful(metric: Any) -> bool:
    """Whether a metric counts itself: torchmetrics' protocol."""
    return all(callable(getattr(metric, method, None)) for method in ("update", "compute", "reset"))


def _snntorch_name(metric: Any) -> str | None:
    function = getattr(metric, "func", metric)
    module = getattr(function, "__module__", None) or ""
    return getattr(function, "__name__", None) if str(module).startswith("snntorch.functional") else None


def _record(metric: Any, output: Any) -> Any:
    """What a metric sees: snnTorch's want a time axis."""
    return output if _snntorch_name(metric) is None else output.unsqueeze(0)


def _number(name: str, value: Any) -> Tensor:
    try:
        number = torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    except Exception:
        number = torch.empty(0)
    if number.numel() != 1 or number.is_complex():
        form = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise OutputError(
            f"metric {name!r} must give one number, or several by name in a dictionary, it gave {form}",
            "average what it gives, e.g. with .mean(), or return a dictionary",
        )
    return number.detach().reshape(())


def first_of(scores: Mapping[str, float]) -> float:
    """The first of several scores, nan without any."""
    return next(iter(scores.values()), math.nan)
