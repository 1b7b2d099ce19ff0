"""One file with everything that training needs to go on, written atomically."""

from __future__ import annotations

import os
import pickle
import re
import secrets
import socket
import zipfile
from collections.abc import Callable
from contextlib import suppress
from numbers import Number
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy
from torch.optim import Optimizer
from torch.serialization import get_crc32_options, safe_globals, set_crc32_options

from .errors import CheckpointError, FPTTError
from .tree import map_tensors

_PARTS = ("net", "optimizer", "trainer")
_FACTORED = ("Adafactor",)  # torch's optimizers whose state has not the shape of the weight


def save(content: dict[str, Any], path: str | PathLike[str]) -> None:
    """Write a checkpoint atomically: an interrupted write leaves the old file, with its permissions.

    A symbolic link stays one. Temporary files of processes that were killed while they wrote are removed.

    Raises:
        CheckpointError: If it is a folder.
        OSError: If the file cannot be written, as when the disk is full. The old file is as before.
    """
    path = Path(path).resolve()  # a link stays one
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder", f"name a file in it, {str(path / 'checkpoint.pt')!r}")
    _remove_litter(path)
    # Into a neighbor first: renaming within one directory is atomic, so no reader ever meets half a file. Its name
    # cannot be guessed, and O_EXCL follows no link that waits there.
    neighbor = path.with_name(f"{_prefix(path)}{os.getpid()}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    old = path.stat() if path.exists() else None
    descriptor = os.open(neighbor, flags, 0o666 if old is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if old is not None and os.name == "posix":
                with suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, old.st_uid, old.st_gid)
                os.fchmod(descriptor, old.st_mode & 0o777)
            _write(content, file)
            file.flush()
            os.fsync(descriptor)
        neighbor.replace(path)
    except BaseException:
        neighbor.unlink(missing_ok=True)
        raise


class _Output:
    """A file that remembers why it could not be written: torch's own error names a byte position instead."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    output, checksums = _Output(file), get_crc32_options()
    set_crc32_options(True)  # load() looks for damage by them
    try:
        torch.save(_plain(content), output)  # type: ignore[arg-type]  # it needs no more than write()
    except RuntimeError as error:
        if output.error is None:
            raise
        raise output.error from error
    finally:
        set_crc32_options(checksums)


def _prefix(path: Path) -> str:
    # A process is known by its number on its own machine alone; a shared folder may have others' files.
    host = re.sub(r"[^\w-]", "", socket.gethostname())[:40]
    return f"{path.name[:120]}.{host}-"


def _remove_litter(path: Path) -> None:
    """Remove the temporary files that processes of this machine left when they were killed."""
    if os.name != "posix":  # where asking after a process may end it
        return
    pattern = re.compile(re.escape(_prefix(path)) + r"(\d+)\.[0-9a-f]{16}\.tmp")
    for name in os.listdir(path.parent):
        found = pattern.fullmatch(name)
        if found is not None and not _is_alive(int(found[1])):
            with suppress(OSError):
                (path.parent / name).unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def load(path: str | PathLike[str], net: nn.Module, *, weights_only: bool) -> dict[str, Any]:
    """Read what :func:`save` wrote, onto the device of the network.

    Raises:
        CheckpointError: If the file is not a valid checkpoint.
    """
    device = next(net.parameters()).device
    try:
        with open(path, "rb") as file:
            damaged = _damaged(file)
            if damaged is not None:
                raise ValueError(f"{damaged} was damaged after it had been written")
            with safe_globals(_unsized(net)):
                content = torch.load(file, map_location=device, weights_only=weights_only)
        if not (isinstance(content, dict) and content.keys() & set(_PARTS)):
            raise CheckpointError(
                f"{path} holds no checkpoint of FPTTTrainer.save, but something else",
                "read the weights of a network with net.load_state_dict(torch.load(path)), before the trainer is built",
            )
        missing = [part for part in _PARTS if part not in content]
        if missing:
            raise CheckpointError(
                f"{path} lacks {', '.join(map(repr, missing))}, so FPTTTrainer.save did not write it",
                "read network and optimizer by themselves, each with its load_state_dict()",
            )
        return {part: content[part] for part in _PARTS}
    except (FileNotFoundError, CheckpointError):
        raise
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} holds more than tensors and numbers, such as a state in classes of its own "
                f"({str(error).split('.')[0]})",
                "if you trust the file, read it with load(path, weights_only=False)",
            ) from error
        raise CheckpointError(f"{path} is not a valid checkpoint of FPTTTrainer.save ({error})") from error


def _unsized(net: nn.Module) -> list[Any]:
    """Classes of weights whose sizes the first batch sets: a file of a network that has seen none names them."""
    weights = [*net.parameters(), *net.buffers()]
    return [UninitializedParameter, UninitializedBuffer, *{type(weight) for weight in weights if is_lazy(weight)}]


def _damaged(file: BinaryIO) -> str | None:
    """Name of the first record whose checksum is wrong; torch itself does not look at them."""
    found = None
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            found = archive.testzip()
    file.seek(0)
    return found


def check(
    path: str | PathLike[str],
    content: dict[str, Any],
    net: nn.Module,
    optimizer: Optimizer,
    *,
    check_averages: Callable[[dict[str, Any]], None],
    check_trainer: Callable[[dict[str, Any]], None],
) -> None:
    """Check that a checkpoint is complete and belongs to this network, optimizer and trainer.

    Raises:
        CheckpointError: If it does not.
    """
    try:
        _check_net(net, content["net"])
        _check_groups(optimizer, content["optimizer"])
        check_trainer(content["trainer"])  # names parameters in another order, of which the state knows shapes alone
        _check_optimizer_state(optimizer, content["optimizer"])
        check_averages(content["optimizer"])
    except Exception as error:
        remedy = error.remedy if isinstance(error, FPTTError) else ""
        reason = error.reason if isinstance(error, FPTTError) else f"an entry is missing or malformed ({error!r})"
        raise CheckpointError(f"{path} belongs to another network or optimizer: {reason}", remedy) from error


def in_precision_of(net: nn.Module, content: dict[str, Any]) -> dict[str, Any]:
    """The trainer's part of a checkpoint, its recurrent state in the floating-point types of the network.

    Network and optimizer cast what they load. The state is cast where weights are: under autocast it may have another
    type than they, and keeps that.
    """
    saved = content["net"]
    pairs = [(saved[name].dtype, own.dtype) for name, own in net.state_dict().items() if isinstance(own, Tensor)]
    casts = {there: here for there, here in pairs if there != here and here.is_floating_point}

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(casts.get(tensor.dtype, tensor.dtype))

    trainer = content["trainer"]
    return {**trainer, **{part: map_tensors(cast, trainer[part]) for part in ("state", "readout")}}


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
        if not isinstance(value, Tensor):
            continue
        if not isinstance(state[name], Tensor):
            raise CheckpointError(f"{name} is not a tensor in the file")
        lazy = is_lazy(value) or is_lazy(state[name])
        if not lazy and value.shape != state[name].shape:
            raise CheckpointError(f"{name} has shape {tuple(value.shape)} here, {tuple(state[name].shape)} in the file")


def _check_groups(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check groups, and that the optimizer is of the same kind, which would only show at its next step."""
    own, saved = optimizer.param_groups, state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in saved]:
        raise CheckpointError("the optimizer has other parameter groups")
    missing = {option for group in saved for option in optimizer.defaults.keys() - group.keys()}
    if missing:
        raise CheckpointError(f"the file is not of {type(optimizer).__name__}: it lacks {sorted(missing)}")


def _check_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check that the state of each weight fits it."""
    weights = {
        position: weight
        for group, packed in zip(optimizer.param_groups, state["param_groups"], strict=True)
        for weight, position in zip(group["params"], packed["params"], strict=True)
    }
    elementwise = type(optimizer).__module__.startswith("torch.optim") and type(optimizer).__name__ not in _FACTORED
    for position, entry in state["state"].items():
        weight = weights[position]
        for key, value in entry.items():
            fits = not isinstance(value, Tensor) or value.dim() == 0 or is_lazy(weight) or value.shape == weight.shape
            if elementwise and not fits:
                raise CheckpointError(
                    f"the optimizer's {key!r} has shape {tuple(value.shape)}, its weight {tuple(weight.shape)}"
                )
