"""Times of several rows side by side: one call of each in turn, many rounds, so that a slow spell hits all alike."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable

import snntorch as snn
import torch
from contenders import Training
from torch import Tensor

MOST_ROUNDS = 200
Clock = Callable[[], float]


def alternate(
    calls: dict[str, Callable[[], object]], seconds: float, least: int = 3, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every call, by that clock, round by round, until the time is up but at least so many rounds."""
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    end = clock() + seconds
    for turn in range(MOST_ROUNDS):
        if turn >= least and clock() > end:
            break
        first = turn % len(names)  # none always runs after the same neighbor has filled the caches
        for name in names[first:] + names[:first]:
            start = clock()
            calls[name]()
            times[name].append(clock() - start)
    return times


def milliseconds_per_step(
    trainings: dict[str, Training], x: Tensor, y: Tensor, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, tuple[list[float], list[str]]]:
    """Per way to train, the milliseconds per time step, round by round, and what it warned of."""
    notes = {name: _warm_up(training, x, y) for name, training in trainings.items()}

    def call(training: Training) -> Callable[[], None]:
        def run() -> None:
            training.train(x, y)
            if x.is_cuda:
                torch.cuda.synchronize()

        return run

    times = alternate({name: call(training) for name, training in trainings.items()}, seconds, clock=clock)
    return {name: ([1000 * value / len(x) for value in times[name]], notes[name]) for name in times}


def _warm_up(training: Training, x: Tensor, y: Tensor) -> list[str]:
    """Two short sequences: what is compiled or allocated once does not count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for _ in range(2):
            training.train(x[: training.warm_up], y)
    return sorted({str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)})


def forget() -> None:
    """Between networks: frees the last one's memory, and its compiled code, of which PyTorch keeps a limited number."""
    snn.SpikingNeuron.init()  # snnTorch keeps a list of every neuron ever made
    torch.compiler.reset()
    gc.collect()
