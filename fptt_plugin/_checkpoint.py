"""One file with everything that training needs to go on, written atomically."""

from __future__ import annotations

import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .trainer import FPTTTrainer


def save(trainer: FPTTTrainer, path: str | PathLike[str]) -> None:
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


def load(trainer: FPTTTrainer, path: str | PathLike[str]) -> None:
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
    before = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    try:
        trainer.net.load_state_dict(net)
        trainer.load_state_dict(state)
        trainer.optimizer.load_state_dict(optimizer)
    except Exception as error:
        trainer.net.load_state_dict(before)
        raise ValueError(f"{path} belongs to another network or optimizer: {error}") from error
