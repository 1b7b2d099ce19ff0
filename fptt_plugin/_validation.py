"""Checks of the trainer's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from .errors import ErrorList as Problems

if TYPE_CHECKING:
    from .state import ModelState


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
