"""Running average and dual of every trained weight, and the swap of weights for their averages."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter


class Averages:
    """``W_bar`` and scaled dual ``lam / alpha`` of the weights that have been updated.

    A weight that is frozen, or has not been updated, is its own average.

    Attributes:
        average: ``W_bar`` by weight.
        dual: Scaled dual by weight.
        swapped: Whether the weights hold ``W_bar`` just now.
    """

    def __init__(self) -> None:
        self.swapped = False
        self.clear()

    def clear(self) -> None:
        """Forgets all of it: every weight is its own average."""
        self.average: dict[Tensor, Tensor] = {}
        self.dual: dict[Tensor, Tensor] = {}
        self._versions: dict[Tensor, int] = {}  # of the weights after their last update

    def take_in(self, weights: Iterable[Tensor]) -> None:
        """Begins the averages of weights that have none."""
        for weight in weights:
            if weight not in self.average:
                self.average[weight] = weight.detach().clone()
                self.dual[weight] = torch.zeros_like(weight, requires_grad=False)

    def note(self, weights: Iterable[Tensor]) -> None:
        """Notes that these weights are as their update left them."""
        self._versions.update((weight, weight._version) for weight in weights)

    @torch.no_grad()
    def load(self) -> None:
        """Puts ``W_bar`` into the weights; the duals stay."""
        self._warn_of_strangers()
        for weight, average in self._in_training():
            weight.copy_(average)
        self.note(self.average)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Within the context the weights hold ``W_bar``; afterwards they are back, bit for bit."""
        self._warn_of_strangers()
        # By way of .data, which autograd does not watch: as W comes back, a backward pass through it may be pending.
        kept = [(weight, weight.detach().clone()) for weight, _ in self._in_training()]
        before, self.swapped = self.swapped, True
        try:
            for weight, average in self._in_training():
                weight.data.copy_(average)
            yield
        finally:
            self.swapped = before
            for weight, value in kept:
                weight.data.copy_(value)

    def _in_training(self) -> list[tuple[Tensor, Tensor]]:
        return [(weight, average) for weight, average in self.average.items() if weight.requires_grad]

    def _warn_of_strangers(self) -> None:
        if any(weight._version != version for weight, version in self._versions.items()):
            self._versions = {}  # once
            warnings.warn(
                "weights were changed since their last update, by load_state_dict() or in place, and W_bar, which "
                "evaluation uses, does not know: call restart_averages() on the regulariser after loading weights, or "
                "evaluate W itself with averaged=False",
                UserWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ checkpoints

    def __getstate__(self) -> dict[str, Any]:
        """Copies of the weights count their versions anew."""
        return {**vars(self), "_versions": {}}

    def state_dict(self, parameters: list[Tensor]) -> dict[str, Any]:
        """Averages and duals by the position of the weight in a list."""
        return {
            kind: {i: values[p].clone() for i, p in enumerate(parameters) if p in values}
            for kind, values in (("averages", self.average), ("duals", self.dual))
        }

    def load_state_dict(self, parameters: list[Tensor], state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.clear()
        self.average, self.dual = (
            {parameters[i]: value.to(parameters[i].device, copy=True) for i, value in state[kind].items()}
            for kind in ("averages", "duals")
        )


def check_averages(parameters: list[Tensor], state: dict[str, Any]) -> None:
    """Refuses averages of another network.

    Raises:
        ValueError: If they are.
    """
    for i, average in state["averages"].items():
        fits = i < len(parameters) and (
            isinstance(parameters[i], UninitializedParameter) or parameters[i].shape == average.shape
        )
        if not fits:
            raise ValueError(
                f"the state belongs to another network: its parameter {i} has shape {tuple(average.shape)}; build "
                "network and optimizer as they were when it was saved"
            )
