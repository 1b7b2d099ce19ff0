"""The figure that decides: which epoch is best, when a plateau is reached, when training stops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ..errors import ConfigurationError, integer
from ..results import EpochRecord
from .metrics import Metrics, Scores, by_name
from .screen import echo

LOSS = "loss"  # what monitor calls the loss of the decision


class Watch:
    """The figure by which the best epoch is chosen, the plateau seen and training stopped.

    Args:
        metric: One metric, several by name, or ``None``.
        monitor: Name of a metric, or ``"loss"``; ``None``: the first metric, without any the loss.
        higher_is_better: Its direction; ``None``: lower for the loss, higher for a metric.
        patience: Epochs without a better one after which training stops; ``None``: never.
        validates: Whether there is validation data.

    Raises:
        ConfigurationError: If these do not fit together.
    """

    def __init__(
        self,
        metric: Metrics,
        monitor: str | None,
        higher_is_better: bool | None,
        patience: int | None,
        *,
        validates: bool,
    ) -> None:
        self._names = list(by_name(metric))
        self._monitor = monitor or (None if self._names else LOSS)
        starts = tuple(f"{name}/" for name in self._names)  # a metric that gives several numbers
        named = self._monitor in (None, LOSS, *self._names) or str(self._monitor).startswith(starts)
        if isinstance(metric, Mapping) and not named:
            raise self._unknown(self._names)
        self.is_loss = self._monitor == LOSS and LOSS not in self._names
        if self.is_loss and higher_is_better:
            raise ConfigurationError("higher_is_better=True, and what is monitored is the loss", "leave it out")
        self.higher_is_better = not self.is_loss if higher_is_better is None else higher_is_better
        self._figure = self._monitor or next(iter(self._names), LOSS)
        self._validates = validates
        self._patience = None if patience is None else integer(patience)
        if patience is not None and (self._patience or 0) < 1:
            raise ConfigurationError(f"patience={patience!r} must be a number of epochs, 1 or more, or None")

    @property
    def kind(self) -> str:
        """What is monitored, in words."""
        name = self._monitor or self._names[0]
        better = "highest" if self.higher_is_better else "lowest"
        return f"{better} {name}, {'validation' if self._validates else 'training'}"

    def value(self, record: EpochRecord) -> float:
        """The figure of an epoch of this call: of validation, without validation data of training.

        Raises:
            ConfigurationError: If ``monitor`` is none of the names.
        """
        scores = self._scores(record)
        if self._monitor is None:  # what a metric that gives several numbers calls the first is known only now
            self._figure = next(iter(scores), self._figure)
        elif scores and self._figure not in scores:
            raise self._unknown(scores)
        return scores.get(self._figure, math.nan)

    def _scores(self, record: EpochRecord) -> Mapping[str, float]:
        """The figures among which that of this call is, by name."""
        if self.is_loss:
            loss = record.val_loss if self._validates else record.decision_loss
            return {} if loss is None else {LOSS: loss}
        return record.val_scores if self._validates else record.train_scores

    def check(self, scores: Scores) -> None:
        """Check the scores of a first batch: names that a metric gives are known only then.

        A metric of a whole pass is computed only if its own name is not the one: it may take what one batch lacks, such
        as a sample of each class.

        Raises:
            ConfigurationError: If ``monitor`` is none of the names.
        """
        if self._monitor in (None, *scores.names()) or self.is_loss or not scores.samples:
            return
        try:
            names = scores.compute()
        except Exception:  # the end of the epoch raises it, unless it is of a single batch alone
            return
        if self._monitor not in names:
            raise self._unknown(names)

    def _unknown(self, names: Iterable[str]) -> ConfigurationError:
        choices = ", ".join(map(repr, [*names, LOSS]))
        return ConfigurationError(f"monitor={self._monitor!r} is none of the figures", f"choose one of {choices}")

    def is_over(self, history: list[EpochRecord], show: bool) -> bool:
        """Whether the last ``patience`` epochs that have the figure of this call were no better than one before."""
        if self._patience is None:
            return False
        best, at = -math.inf, 0
        known = [record for record in history if self._fits(record)]
        for place, record in enumerate(known, start=1):
            figure = self._scores(record)[self._figure]
            value = figure if self.higher_is_better else -figure
            if value > best:  # nan is not
                best, at = value, place
        over = bool(known) and len(known) - at >= self._patience
        if over and show:
            than = f"better epoch than {known[at - 1].epoch}" if at else "epoch with a score"
            echo(f"stopped: no {than} in {self._patience} ({self.kind})")
        return over

    def _fits(self, record: EpochRecord) -> bool:
        """Whether an epoch, maybe of an earlier call with other arguments, has the figure of this one."""
        return (record.val_loss is not None) == self._validates and self._figure in self._scores(record)
