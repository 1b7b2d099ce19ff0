"""Epochs over data loaders: the loop, its metrics and callbacks, and what it makes of the loader's batches."""

from .batches import Batching
from .callbacks import Callback, Callbacks
from .loop import epochs, evaluate, fit
from .metrics import EpochMetric, Metric, Metrics, accuracy
from .progress import Progress
from .recalibration import recalibrate

__all__ = [
    "Batching",
    "Callback",
    "Callbacks",
    "EpochMetric",
    "Metric",
    "Metrics",
    "Progress",
    "accuracy",
    "epochs",
    "evaluate",
    "fit",
    "recalibrate",
]
