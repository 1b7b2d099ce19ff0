"""Collects everything that is wrong with a configuration and raises it once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from .state import ModelState


class Problems:
    """Findings about the arguments of one constructor.

    Example:
        >>> problems = Problems("Thing")
        >>> problems.check(1 > 2, "size=1 must be at least 2")
        >>> problems.raise_any()
        Traceback (most recent call last):
        ...
        ValueError: Thing cannot be built:
        - size=1 must be at least 2
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._found: list[str] = []

    def check(self, condition: object, message: str) -> None:
        """Notes the message unless the condition holds."""
        if not condition:
            self._found.append(message)

    def check_choice(self, name: str, value: object, allowed: tuple[object, ...]) -> None:
        """Notes a value that is not among those allowed."""
        listed = ", ".join(map(repr, allowed))
        self.check(value in allowed, f"{name}={value!r} is unknown; choose one of {listed}")

    def raise_any(self) -> None:
        """Raises ValueError with all findings, if there are any."""
        if self._found:
            raise ValueError(f"{self._what} cannot be built:\n" + "\n".join(f"- {text}" for text in self._found))


def check_data_parallel(problems: Problems, net: nn.Module, state: ModelState) -> None:
    """Notes a ``DistributedDataParallel`` that overwrites the neurons' state with that of another process."""
    if not isinstance(net, nn.parallel.DistributedDataParallel):
        return
    if not net.broadcast_buffers or net.process_group.size() == 1:
        return
    entries = state.get()
    names = [name for name, module in state.modules() if entries[name].keys() & module._buffers.keys()]
    problems.check(
        not names,
        f"DistributedDataParallel would replace the state of {', '.join(map(repr, names))}, kept in buffers, by that "
        "of process 0 at every call: build it with broadcast_buffers=False",
    )


def check_strides(
    problems: Problems, window: int | None, loss_every: int | None, update_every: int | None, variant: str
) -> None:
    """Notes strides that are no strides, or that do not go together."""
    for name, stride in (("window", window), ("loss_every", loss_every), ("update_every", update_every)):
        problems.check(
            stride is None or (isinstance(stride, int) and stride >= 1), f"{name}={stride!r} must be an integer >= 1"
        )
    if isinstance(update_every, int) and isinstance(window, int | None):
        problems.check(
            window is not None and update_every % max(window, 1) == 0,
            f"update_every={update_every} must be a multiple of window={window}: no update may fall into a window",
        )
        problems.check(
            variant != "gradient" or update_every == window,
            "variant='gradient' takes its second gradient over one window: leave update_every out",
        )


def check_regularizer_options(
    problems: Problems, alpha: float, beta: float, rho: float, variant: str, max_grad_norm: float | None
) -> None:
    """Notes options of the regulariser that are out of range."""
    problems.check(0 <= alpha < float("inf"), f"alpha={alpha} must be >= 0 and finite (0 is plain truncated BPTT)")
    problems.check(0 < beta <= 1, f"beta={beta} must lie in (0, 1]; the paper uses 0.5")
    problems.check(0 <= rho <= 1, f"rho={rho} must lie in [0, 1]; the paper uses 0")
    problems.check_choice("variant", variant, ("dual", "gradient"))
    problems.check(
        max_grad_norm is None or max_grad_norm > 0, f"max_grad_norm={max_grad_norm} must be > 0, or None to not clip"
    )
