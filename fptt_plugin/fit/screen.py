"""What ``fit`` shows: a line per epoch, and a bar in between."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..results import EpochRecord


def line(record: EpochRecord, last: int) -> str:
    """What an epoch leaves on the screen."""
    parts = [f"loss {record.loss:.4g} (decision {record.decision_loss:.4g})"]
    parts += [f"{name} {score:.4g}" for name, score in record.train_scores.items()]
    if record.val_loss is not None:
        parts.append(f"val loss {record.val_loss:.4g}")
        parts += [f"val {name} {score:.4g}" for name, score in record.val_scores.items()]
    rates = record.firing_rates.values()
    parts += [f"firing rate {100 * sum(rates) / len(rates):.1f} %"] if rates else []
    parts += [f"grad norm {record.grad_norm:.3g}"] if record.grad_norm is not None else []
    parts += [f"lr {record.lr:.3g}", f"{record.seconds:.1f} s"]
    return f"epoch {record.epoch}/{last}: {', '.join(parts)}"


def echo(text: str) -> None:
    """Print a line, in one of the processes of a distributed training."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        print(text, flush=True)


def postfix(loss: float, scores: Mapping[str, float], rates: Mapping[str, float]) -> dict[str, str]:
    """What the bar shows of the epoch so far."""
    return {
        "loss": f"{loss:.3f}",
        **{name: f"{score:.3f}" for name, score in scores.items()},
        "firing rate": f"{100 * sum(rates.values()) / max(len(rates), 1):.1f}%",
    }


def bar_of(loader: Any, show: bool, title: str) -> AbstractContextManager[Any]:
    """A progress bar to update, in a terminal or notebook; ``None`` without."""
    if not show:
        return nullcontext()
    try:
        from tqdm.auto import tqdm
        from tqdm.notebook import tqdm_notebook
    except ImportError:  # a convenience, not a dependency
        return nullcontext()
    # Beside the loader, not around it: tqdm would begin to iterate twice, and so change what a sampler draws.
    # A file would get thousands of bars in one line; disable=None asks whether it is a terminal.
    disable = False if issubclass(tqdm, tqdm_notebook) else None
    bar: AbstractContextManager[Any] = tqdm(total=length_of(loader), desc=title, leave=False, disable=disable)
    return bar


def length_of(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream of data
        return None
