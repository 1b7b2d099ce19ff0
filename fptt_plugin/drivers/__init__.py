"""Drivers: how a network is called in time, which driver fits a network, and what cannot be driven."""

from .base import Driver, StepModes, driver_names, register_driver, step_modes, unwrapped
from .checks import preflight
from .detect import check_driver, check_network, find_driver, known_driver
from .explicit import ExplicitDriver
from .failures import neurons_rest
from .hooks import unobserved
from .in_flight import InFlightDriver, check_in_flight
from .inputs import input_hook, pack_inputs, takes_state
from .layouts import layout_remedy, takes_integers
from .returned import warn_of_guess, warn_of_modes
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
    "input_hook",
    "known_driver",
    "layout_remedy",
    "neurons_rest",
    "pack_inputs",
    "preflight",
    "register_driver",
    "step_modes",
    "takes_integers",
    "takes_state",
    "unobserved",
    "unwrapped",
    "warn_of_guess",
    "warn_of_modes",
]
