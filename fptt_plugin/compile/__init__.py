"""Compiled training: executors that the training loop hands its windows and updates to."""

from .accelerator import MODES, Accelerator

__all__ = ["MODES", "Accelerator"]
