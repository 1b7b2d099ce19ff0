"""What one training knows of its epochs, over all calls of ``fit`` in this process and in those before."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.optim import Optimizer

from ..errors import FPTTWarning, check_entry
from ..results import EpochRecord
from .batches import with_samplers
from .schedulers import optimizer_options, restore, scheduler_state


class Best(NamedTuple):
    """The best epoch so far, and what it takes to compare another one with it.

    Attributes:
        score: What is monitored.
        file: Name of the file that holds it.
        metric: What is monitored, in which direction it is better, and on which data it was taken.
    """

    score: float
    file: str
    metric: str


class Progress:
    """Records, best epoch, schedule and random numbers.

    Attributes:
        history: A record per complete epoch.
        best: The best epoch written to a checkpoint.
        running: Whether ``fit`` runs: what a callback loads then takes effect at once.
        stopping: Whether the present call of ``fit`` is to end.
    """

    def __init__(self) -> None:
        self.history: list[EpochRecord] = []
        self.best: Best | None = None
        self.running = self.stopping = False
        self._scheduler: Any = None
        self._loaded: dict[str, Any] = {}  # the scheduler of a checkpoint, until fit gets one
        self._begun: dict[str, Any] = {}  # the scheduler when the epoch in progress began, if it steps per batch
        self._generators: list[torch.Generator] = []  # of the loaders
        self._random: dict[str, Any] = {}  # states of a checkpoint, until fit begins
        self._seed = 0  # when they were loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "running": False}  # fit() does not run for a copy that a callback makes

    # ------------------------------------------------------------------ the start of a call

    def loaded_schedule(self, scheduler: Any) -> dict[str, Any]:
        """The state of a checkpoint that :meth:`use_scheduler` would put into a scheduler, if there is one."""
        return dict(self._loaded["state"]) if self._loaded.get("kind") == type(scheduler).__name__ else {}

    def use_scheduler(self, scheduler: Any, optimizer: Optimizer) -> None:
        """Take the scheduler of a call of ``fit``; a loaded state goes into the first one that comes."""
        if self._loaded and scheduler is None:
            _warn(f"the checkpoint has the state of a {self._loaded['kind']}, and fit() got no scheduler")
        elif self._loaded:
            loaded, self._loaded = self._loaded, {}
            if type(scheduler).__name__ == loaded["kind"]:
                restore(scheduler, optimizer, loaded)
            else:
                _warn(f"the checkpoint has the state of a {loaded['kind']}, fit() got a {type(scheduler).__name__}")
        if scheduler is not None:
            self._scheduler = scheduler

    def use_generators(self, loaders: Iterable[Any]) -> None:
        """Take the random generators of the loaders; loaded states go into them, and into those of the process.

        Not where the process was seeded with another seed since: then its user wants other random numbers.
        """
        found = (getattr(one, "generator", None) for loader in loaders for one in with_samplers(loader))
        self._generators = list(dict.fromkeys(g for g in found if isinstance(g, torch.Generator)))
        self._use_random_state()

    def _use_random_state(self) -> None:
        loaded, self._random = self._random, {}
        if loaded and torch.initial_seed() == self._seed:
            _set_random_state(loaded, self._generators)

    # ------------------------------------------------------------------ an epoch

    @contextmanager
    def epoch(self, optimizer: Optimizer, *, steps_per_batch: bool) -> Iterator[None]:
        """Context of an epoch. One that is cut short does not count, and will be run again.

        So the schedule goes back to where the epoch began: here, and in a checkpoint that is saved within it.
        """
        if steps_per_batch:
            self._begin(optimizer)
        try:
            yield
        except BaseException:
            if self._begun:
                restore(self._scheduler, optimizer, self._begun)
            raise
        finally:
            self._begun = {}

    def _begin(self, optimizer: Optimizer) -> None:
        self._begun = {**scheduler_state(self._scheduler), "groups": optimizer_options(optimizer)}

    def is_best(self, new: Best, file: Path, *, higher_is_better: bool) -> bool:
        """Whether an epoch replaces the file: it is better, or the best one so far is another's, or gone."""
        old = self.best
        if old is None or old[1:] != new[1:] or math.isnan(old.score) or not file.exists():
            return True
        return new.score > old.score if higher_is_better else new.score < old.score

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """History, best epoch, the state of the scheduler that ``fit`` got, and of random generators."""
        scheduler = self._loaded or self._begun
        if self._scheduler is not None and not scheduler:
            scheduler = scheduler_state(self._scheduler)
        return {
            "history": [record._asdict() for record in self.history],
            "best": None if self.best is None else list(self.best),
            "scheduler": dict(scheduler),
            "random": (self._random or _random_state(self._generators)) if self.history else {},
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can read a state; an empty one is of version 0.1.

        Raises:
            CheckpointError: If an entry is missing or malformed.
        """
        if state == {}:
            return
        check_entry(state, "history", _are_records)
        check_entry(state, "best", lambda best: best is None or len(Best(*best)) == 3)
        check_entry(state, "scheduler", lambda saved: not saved or {"kind", "state"} <= saved.keys())
        check_entry({"random": {}, **state}, "random", lambda saved: not saved or saved.keys() == _RANDOM)

    def load_state_dict(self, state: dict[str, Any], optimizer: Optimizer) -> None:
        """Restore what :meth:`state_dict` returned; scheduler and random numbers wait for ``fit``, unless it runs."""
        self.history[:] = [EpochRecord(**record) for record in state.get("history", [])]
        self.best = Best(*state["best"]) if state.get("best") else None
        running, steps_per_batch = self._scheduler if self.running else None, bool(self._begun)
        self._scheduler, self._loaded, self._begun = None, {}, {}
        if state.get("scheduler"):
            self._loaded = {"groups": optimizer_options(optimizer), **copy.deepcopy(state["scheduler"])}
        self._random, self._seed = state.get("random", {}), torch.initial_seed()
        if self.running:
            self.use_scheduler(running, optimizer)
            self._use_random_state()
            if steps_per_batch:  # what is left of the epoch in progress begins here
                self._begin(optimizer)


def _are_records(records: list[dict[str, Any]]) -> bool:
    needed = set(EpochRecord._fields) - EpochRecord._field_defaults.keys()
    return all(needed <= record.keys() <= set(EpochRecord._fields) for record in records)


_RANDOM = {"torch", "cuda", "python", "numpy", "loaders"}


def _random_state(generators: list[torch.Generator]) -> dict[str, Any]:
    """States of the generators that data and networks draw from, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  # what transforms of data draw from
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": [version, torch.tensor(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "loaders": [generator.get_state() for generator in generators],
    }


def _set_random_state(state: dict[str, Any], generators: list[torch.Generator]) -> None:
    """Restore what :func:`_random_state` returned, as far as there is such a generator here."""
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    if len(generators) == len(state["loaders"]):
        for generator, one in zip(generators, state["loaders"], strict=True):
            generator.set_state(one.cpu())


def _warn(reason: str) -> None:
    remedy = "pass a scheduler of the same class, built as in the run that was saved, to go on with its schedule"
    warnings.warn(f"{reason}: {remedy}", FPTTWarning, stacklevel=5)
