"""What results say about memory, machine and versions."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from fptt_plugin import FPTTTrainer, SavedForBackward


def saved_bytes(trainer: FPTTTrainer, x: Tensor, y: Tensor, *mask: Tensor) -> int:
    """Most bytes that autograd holds at once while the trainer trains on one batch; the weights move."""
    trainer.predict(x[:2])  # what is found out at the first batch does not count
    with SavedForBackward(trainer.net) as saved:
        trainer.train_sequence(x, y, *mask)
    return saved.peak


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in ("fptt_plugin", "torch", "snntorch", "spikingjelly", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
        if answer.returncode == 0:  # not so where the scripts were copied out of the repository
            found["commit"] = answer.stdout.strip()
    return found
