"""One file with everything that training needs to go on, written atomically."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

if TYPE_CHECKING:
    from ._evaluator import Evaluator


def save(trainer: Evaluator, path: str | PathLike[str]) -> None:
    """Implements :meth:`FPTTTrainer.save`."""
    content = {
        "net": trainer.net.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "trainer": trainer.state_dict(),
    }
    path = Path(path)
    # Into a neighbour first: renaming within one directory is atomic, so no reader ever meets half a file.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load(trainer: Evaluator, path: str | PathLike[str]) -> None:
    """Implements :meth:`FPTTTrainer.load`."""
    device = next(trainer.net.parameters()).device
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        parts = content["net"], content["optimizer"], content["trainer"]
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no complete checkpoint of FPTTTrainer.save: {error}") from error
    net, optimizer, state = parts
    try:
        _check_net(trainer.net, net)
        _check_optimizer(trainer.optimizer, optimizer)
        trainer.check_state_dict(state)
    except Exception as error:
        raise ValueError(f"{path} belongs to another network or optimizer: {error}") from error
    trainer.net.load_state_dict(net)
    trainer.optimizer.load_state_dict(optimizer)
    trainer.load_state_dict(state)


def _check_net(net: nn.Module, state: dict[str, Any]) -> None:
    """Refuses other names or shapes; a lazy parameter takes any shape."""
    own = net.state_dict()
    if own.keys() != state.keys():
        raise ValueError(f"names that only one of them has: {sorted(own.keys() ^ state.keys())}")
    for name, value in own.items():
        lazy = is_lazy(value) or is_lazy(state[name])
        if isinstance(value, Tensor) and not lazy and value.shape != state[name].shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)} here, {tuple(state[name].shape)} in the file")


def _check_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Refuses other groups, or an optimizer of another kind, which would only show at its next step."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved]:
        raise ValueError("the optimizer has other parameter groups")
    missing = {option for group in saved for option in optimizer.defaults.keys() - group.keys()}
    if missing:
        raise ValueError(f"the file is not of {type(optimizer).__name__}: it lacks {sorted(missing)}")
