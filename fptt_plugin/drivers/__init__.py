"""Drivers: how a network is called in time, which driver fits a network, and what cannot be driven."""

from .base import Driver, StepModes, driver_names, register_driver, step_modes, unwrapped
from .checks import preflight
from .detect import check_driver, check_network, find_driver, known_driver, takes_state
from .explicit import ExplicitDriver
from .in_flight import InFlightDriver, check_in_flight
from .layouts import layout_remedy
from .slice import SliceDriver
from .step import StepDriver

__all__ = [
    "Driver",
    "ExplicitDriver",
    "InFlightDriver",
    "SliceDriver",
    "StepDriver",
    "StepModes",
    "check_driver",
    "check_in_flight",
    "check_network",
    "driver_names",
    "find_driver",
    "known_driver",
    "layout_remedy",
    "preflight",
    "register_driver",
    "step_modes",
    "takes_state",
    "unwrapped",
]
