"""One file with everything that training needs to go on, written atomically."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from numbers import Number
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .errors import CheckpointError, FPTTError

_PARTS = ("net", "optimizer", "trainer")


def save(content: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write a checkpoint atomically: an interrupted write leaves the old file."""
    path = Path(path).resolve()  # a link stays one
    # Into a neighbour first: renaming within one directory is atomic, so no reader ever meets half a file.
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with neighbour.open("wb") as file:
            torch.save(_plain(content), file)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    except BaseException:
        neighbour.unlink(missing_ok=True)
        raise


def load(path: str | PathLike[str], net: nn.Module, *, weights_only: bool) -> dict[str, Any]:
    """Read what :func:`save` wrote, onto the device of the network.

    Raises:
        CheckpointError: If the file is not a valid checkpoint.
    """
    device = next(net.parameters()).device
    try:
        content = torch.load(path, map_location=device, weights_only=weights_only)
        return {part: content[part] for part in _PARTS}
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} holds more than tensors and numbers: a state in classes of its own, or a network saved before "
                f"its first batch with sizes still to be inferred ({str(error).split('.')[0]})",
                "if you trust the file, read it with load(path, weights_only=False)",
            ) from error
        raise CheckpointError(f"{path} is not a valid checkpoint of FPTTTrainer.save ({error})") from error


def check(
    path: str | PathLike[str],
    content: dict[str, Any],
    net: nn.Module,
    optimizer: Optimizer,
    check_trainer: Callable[[dict[str, Any]], None],
) -> None:
    """Check that a checkpoint belongs to this network, optimizer and trainer.

    Raises:
        CheckpointError: If it does not.
    """
    try:
        _check_net(net, content["net"])
        _check_optimizer(optimizer, content["optimizer"])
        check_trainer(content["trainer"])
    except Exception as error:
        remedy = error.remedy if isinstance(error, FPTTError) else ""
        reason = error.reason if isinstance(error, FPTTError) else repr(error)
        raise CheckpointError(f"{path} belongs to another network or optimizer: {reason}", remedy) from error


def _plain(value: Any) -> Any:
    """The same with Python's numbers for those of numpy, which torch does not read back without being told to."""
    if type(value) in (dict, list, tuple):
        entries = value.items() if isinstance(value, dict) else value
        return type(value)(map(_plain, entries))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def _check_net(net: nn.Module, state: dict[str, Any]) -> None:
    """Check names and shapes; a lazy parameter takes any shape."""
    own = net.state_dict()
    if own.keys() != state.keys():
        raise CheckpointError(f"names that only one of them has: {sorted(own.keys() ^ state.keys())}")
    for name, value in own.items():
        lazy = is_lazy(value) or is_lazy(state[name])
        if isinstance(value, Tensor) and not lazy and value.shape != state[name].shape:
            raise CheckpointError(f"{name} has shape {tuple(value.shape)} here, {tuple(state[name].shape)} in the file")


def _check_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check the groups, and that the optimizer is of the same kind, which would only show at its next step."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved]:
        raise CheckpointError("the optimizer has other parameter groups")
    missing = {option for group in saved for option in optimizer.defaults.keys() - group.keys()}
    if missing:
        raise CheckpointError(f"the file is not of {type(optimizer).__name__}: it lacks {sorted(missing)}")
