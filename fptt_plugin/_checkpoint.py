"""One file with everything that training needs to go on, written atomically."""

from __future__ import annotations

import os
import pickle
import zipfile
from numbers import Number
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


def _plain(value: Any) -> Any:
    """The same with Python's numbers for those of numpy, which torch does not read back without being told to."""
    if type(value) in (dict, list, tuple):
        entries = value.items() if isinstance(value, dict) else value
        return type(value)(map(_plain, entries))
    return value.item() if isinstance(value, Number) and hasattr(value, "item") else value


def load(trainer: Evaluator, path: str | PathLike[str], *, weights_only: bool) -> None:
    """Implements :meth:`FPTTTrainer.load`."""
    device = next(trainer.net.parameters()).device
    try:
        content = torch.load(path, map_location=device, weights_only=weights_only)
        parts = content["net"], content["optimizer"], content["trainer"]
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} holds more than tensors and numbers: a state in classes of its own, or a network saved before "
                "its first batch with sizes still to be inferred. If you trust the file, read it with load(path, "
                f"weights_only=False). ({str(error).split('.')[0]})"
            ) from error
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
