"""Compiled training: executors that the training loop hands its windows and updates to."""

from .accelerator import MODES, Accelerator
from .window import SHARED_FROM

__all__ = ["MODES", "SHARED_FROM", "Accelerator"]
