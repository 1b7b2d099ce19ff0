"""Training: the loop, its state, the schedule, the objective and the update."""

from .batch import TARGETS, Batch, Window, check_input, time_first
from .intake import to_tensors
from .loop import Executor, TrainingLoop, Visitor, WindowResult
from .objective import LossFunction, Objective, Output, Ramp, check_objective, warn_of_spikes
from .processes import check_data_parallel
from .readout import READOUTS, Readout, warn_of_liquid_counts
from .run_state import RunState
from .schedule import Schedule, check_schedule
from .statistics import normalizations, recalibrating
from .structure import Structure
from .update import Updater

__all__ = [
    "READOUTS",
    "TARGETS",
    "Batch",
    "Executor",
    "LossFunction",
    "Objective",
    "Output",
    "Ramp",
    "Readout",
    "RunState",
    "Schedule",
    "Structure",
    "TrainingLoop",
    "Updater",
    "Visitor",
    "Window",
    "WindowResult",
    "check_data_parallel",
    "check_input",
    "check_objective",
    "check_schedule",
    "normalizations",
    "recalibrating",
    "time_first",
    "to_tensors",
    "warn_of_liquid_counts",
    "warn_of_spikes",
]
