"""Whether the weights are still as their last update left them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..errors import WeightsChangedError
from ..torch_internals import version_of
from ..tree import precise

Fingerprint = tuple[int, int]


class WeightWatch:
    """Notices weights that somebody else has changed, for which their running averages are wrong.

    Fingerprints are compared before every update. They change when a tensor is written to or replaced, and values are
    not read, so the host does not wait for a device. Norms are compared where that may cost something: once after a
    file was loaded, and around each batch of the trainer. They also see ``weight.data.mul_()``, which torch does not
    count. Frozen weights may change.
    """

    def __init__(self) -> None:
        self._left: dict[Tensor, Fingerprint] = {}  # of each weight after its last update
        self._norms: tuple[list[Tensor], Tensor] | None = None  # weights and their norms, see remember_norms()
        self._saved: dict[Tensor, float] = {}  # norms of the weights that loaded averages belong to

    def __getstate__(self) -> dict[str, Any]:
        # The tensors of a copy have fingerprints of their own.
        return {**vars(self), "_left": {}, "_norms": None}

    def note(self, weights: list[Tensor]) -> None:
        """Remember these weights as their update left them."""
        # Written out, as this runs at every update.
        self._left.update(zip(weights, [(version_of(weight), weight.data_ptr()) for weight in weights], strict=True))
        self._norms = None

    def note_unchanged(self, weights: list[Tensor]) -> None:
        """Remember new fingerprints of weights that were written to, and have their old values."""
        norms = self._norms
        self.note([weight for weight in weights if weight in self._left])
        self._norms = norms

    def forget(self) -> None:
        """Take the present weights as the result of the last update, whatever they are."""
        self._left, self._norms, self._saved = {}, None, {}

    def forget_all_but(self, weights: list[Tensor]) -> None:
        """Take other weights as the result of their last update, whatever they are."""
        kept = set(weights)
        self._left = {weight: seen for weight, seen in self._left.items() if weight in kept}

    def check(self) -> None:
        """Compare fingerprints and, once after loading, the norms.

        Raises:
            WeightsChangedError: If a weight was changed, or is not the one saved with its average.
        """
        changed = [(version_of(weight), weight.data_ptr()) for weight in self._left] != [*self._left.values()]
        if changed:
            changed = any(seen != _fingerprint(weight) for weight, seen in self._left.items() if weight.requires_grad)
        if changed or (self._saved and not self._are_as_saved()):
            raise _weights_changed()

    def remember_norms(self) -> None:
        """Remember the norms of the weights that updates have left, for :meth:`check_norms`."""
        weights = [weight for weight in self._left if weight.requires_grad]
        self._norms = (weights, _norms(weights)) if weights else None

    def check_norms(self) -> None:
        """Compare the norms with those remembered, unless the weights have moved by an update since.

        Raises:
            WeightsChangedError: If one of them is another.
        """
        if self._norms is None:
            return
        weights, norms = self._norms
        # Threads and devices add in other orders.
        if not torch.allclose(_norms(weights), norms, rtol=1e-6, atol=0.0, equal_nan=True):
            raise _weights_changed()

    # ------------------------------------------------------------------ files

    def norm_to_save(self, weight: Tensor) -> float:
        """Norm that identifies a weight in a file; -1, which no weight has, if it was changed since its update."""
        if weight in self._saved:
            return self._saved[weight]
        now = _fingerprint(weight)
        return _norm(weight) if self._left.get(weight, now) == now else -1.0

    def expect(self, weight: Tensor, norm: float) -> None:
        """Expect a weight to have this norm at the next :meth:`check`: that which a file's average belongs to."""
        self._saved[weight] = norm

    def _are_as_saved(self) -> bool:
        """Whether the network holds the weights that were expected."""
        due = {w: norm for w, norm in self._saved.items() if w.requires_grad and not is_lazy(w)}
        if not all(_norms_agree(_norm(weight), norm, weight.dtype) for weight, norm in due.items()):
            return False
        self.note([*due])
        for weight in due:
            del self._saved[weight]
        return True


def _fingerprint(weight: Tensor) -> Fingerprint:
    return version_of(weight), weight.data_ptr()


def _norm(weight: Tensor) -> float:
    (weight,) = _real([weight])
    return float(torch.linalg.vector_norm(weight, dtype=precise(weight.device)))


def _norms(weights: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(_real(weights))
    return torch.stack([norm.to(weights[0].device, torch.float32) for norm in norms])


def _real(weights: list[Tensor]) -> list[Tensor]:
    """The real numbers of which weights consist, detached."""
    weights = [weight.detach() for weight in weights]
    return [torch.view_as_real(weight) if weight.is_complex() else weight for weight in weights]


def _norms_agree(norm: float, saved: float, dtype: torch.dtype) -> bool:
    """Whether they differ by no more than loading into another precision, or onto another device, explains."""
    tolerance = max(torch.finfo(dtype).eps, 1e-6)
    return math.isclose(norm, saved, rel_tol=tolerance) or (math.isnan(norm) and math.isnan(saved))


def _weights_changed() -> WeightsChangedError:
    return WeightsChangedError(
        "weights were changed since their last update (by load_state_dict(), in place or by moving them), or are not "
        "those saved with the optimizer; their running averages do not follow",
        "call restart_averages() on the regularizer if other weights were loaded, or accept_weights() if the change "
        "belongs to training, as weight clipping does, and the averages should stay",
    )
