"""Random programs in which some calls fail: all goes on as in a twin that never made them."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from differential import random_networks as networks
from differential.cases import OPTIMIZERS, outcome
from torch import Tensor, nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.fit import Callback
from fptt_plugin.tree import tensors_in

SAMPLES, STEPS = 4, 5


class Program(NamedTuple):
    """One combination; ``repr()`` of it is the code that makes it."""

    seed: int
    kind: networks.Kind
    optimizer: str
    window: int | None
    loss_every: int | None
    update_every: int | None
    variant: str
    on_nonfinite: str
    readout: str
    alpha: float
    calls: int


def random_program(number: int) -> Program:
    chance = random.Random(number)
    pick = chance.choice
    driver = pick(["step", "step", "slice", "explicit", "in-flight"])
    jelly = driver == "slice" or (driver in ("step", "in-flight") and pick([True, False]))
    neuron = pick(networks.JELLY_NEURONS if jelly else networks.TORCH_NEURONS)
    window = pick([1, 2, 3])
    variant = "dual" if driver == "in-flight" else pick(["dual", "dual", "gradient"])
    return Program(
        seed=number,
        kind=networks.Kind(driver, neuron, pick(["dense", "norm"]), "membrane", "steps"),
        optimizer=pick(["sgd", "momentum", "adam"]),
        window=window,
        loss_every=pick([None, 1]),
        update_every=2 * window if variant == "dual" and pick([True, False]) else None,
        variant=variant,
        on_nonfinite="raise" if driver == "in-flight" else pick(["raise", "raise", "skip"]),
        readout=pick(["step", "mean"]),
        alpha=pick([0.0, 0.3]),
        calls=12,
    )


class Loss:
    """Cross-entropy that raises an exception, or is interrupted, at one of its next calls."""

    def __init__(self) -> None:
        self.left, self.error = -1, KeyError

    def fail_after(self, calls: int, error: type[BaseException]) -> None:
        self.left, self.error = calls, error

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        if self.left == -1:
            raise self.error("the user's own")
        return F.cross_entropy(output, target)


class User:
    """A trainer, and the calls of one program."""

    def __init__(self, program: Program, net: nn.Module, folder: Path) -> None:
        self.program, self.net, self.folder, self.loss = program, net, folder, Loss()
        self.trainer = FPTTTrainer(
            net,
            OPTIMIZERS[program.optimizer](net.parameters()),
            self.loss,
            window=program.window,
            loss_every=program.loss_every,
            update_every=program.update_every,
            variant=program.variant,
            on_nonfinite=program.on_nonfinite,
            readout=program.readout,
            alpha=program.alpha,
            auxiliary=True,
        )

    def data(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = 1.5 * torch.rand(STEPS, SAMPLES, networks.INPUTS, generator=generator, dtype=torch.float64)
        return x, torch.randint(networks.CLASSES, (SAMPLES,), generator=generator)

    # ------------------------------------------------------------------ calls that work

    def train(self, seed: int) -> Tensor:
        return self.trainer.train_sequence(*self.data(seed)).output

    def step(self, seed: int) -> Tensor:
        x, y = self.data(seed)
        new = torch.tensor([False, True, False, False]) if seed % 4 == 0 else None
        return self.trainer.step(x[0], None if seed % 5 == 0 else y, None, new).output

    def predict(self, seed: int) -> Tensor:
        return self.trainer.predict(self.data(seed)[0])

    def evaluate(self, seed: int) -> Tensor:
        return torch.tensor(self.trainer.evaluate([self.data(seed), self.data(seed + 1)]))

    def reset(self, seed: int) -> Tensor:
        self.trainer.reset()
        return torch.zeros(())

    def save_and_load(self, seed: int) -> Tensor:
        if self.trainer.can_save:
            self.trainer.save(self.folder / "good.pt")
            self.trainer.load(self.folder / "good.pt")
        return torch.zeros(())

    # ------------------------------------------------------------------ calls that fail

    def step_of_another_size(self, seed: int) -> None:
        self.trainer.step(torch.zeros(SAMPLES, networks.INPUTS + 2, dtype=torch.float64))

    def step_without_such_a_class(self, seed: int) -> None:
        x, y = self.data(seed)
        every = self.program.loss_every or self.program.window
        if (self.trainer._run_state.position.t + 1) % every:
            raise ValueError("no loss is due, so nothing would fail")
        self.trainer.step(x[0], y + 90)

    def step_not_finite(self, seed: int) -> None:
        x, y = self.data(seed)
        if self.program.on_nonfinite == "skip":
            raise ValueError("it would be skipped, and counted")
        self.trainer.step(x[0] / 0, y)

    def step_interrupted(self, seed: int) -> None:
        with self.fails_in_the_network(KeyboardInterrupt):
            x, y = self.data(seed)
            self.trainer.step(x[0], y)

    def sequence_without_such_a_class(self, seed: int) -> None:
        x, y = self.data(seed)
        self.trainer.train_sequence(x, y + 90)

    def sequence_not_finite(self, seed: int) -> None:
        x, y = self.data(seed)
        self.trainer.train_sequence(x.log() * 0 / 0, y)

    def sequence_interrupted(self, seed: int) -> None:
        first_window = self.program.window if self.program.loss_every else 1
        self.loss.fail_after(first_window - 1, KeyboardInterrupt)
        self.trainer.train_sequence(*self.data(seed))

    def sequence_that_the_network_interrupts(self, seed: int) -> None:
        with self.fails_in_the_network(KeyboardInterrupt):
            self.trainer.train_sequence(*self.data(seed))

    def prediction_of_another_size(self, seed: int) -> None:
        self.trainer.predict(torch.zeros(STEPS, SAMPLES, networks.INPUTS + 2, dtype=torch.float64))

    def prediction_interrupted(self, seed: int) -> None:
        with self.fails_in_the_network(KeyboardInterrupt):
            self.trainer.predict(self.data(seed)[0])

    def evaluation_with_a_broken_metric(self, seed: int) -> None:
        calls = iter([0.5])
        self.trainer.evaluate([self.data(seed), self.data(seed + 1)], metric=lambda output, target: next(calls))

    def evaluation_with_a_broken_loader(self, seed: int) -> None:
        def loader():
            yield self.data(seed)
            raise OSError("the disk")

        self.trainer.evaluate(loader())

    def evaluation_interrupted(self, seed: int) -> None:
        with self.fails_in_the_network(KeyboardInterrupt):
            self.trainer.evaluate([self.data(seed)], averaged=True)

    def save_without_a_folder(self, seed: int) -> None:
        self.trainer.save(self.folder / "none" / "good.pt")

    def load_of_a_damaged_file(self, seed: int) -> None:
        path = self.folder / "damaged.pt"
        path.write_bytes(b"no checkpoint")
        self.trainer.load(path)

    def load_of_another_network(self, seed: int) -> None:
        path = self.folder / "other.pt"
        torch.save({"net": {"weight": torch.zeros(2, 2)}, "optimizer": {}, "trainer": {}}, path)
        self.trainer.load(path)

    def fit_that_cannot_be(self, seed: int) -> None:
        self.trainer.fit([self.data(seed)], 1, patience=-1, progress=False)

    def fit_with_a_broken_callback(self, seed: int) -> None:
        class Broken(Callback):
            def on_epoch_begin(self, trainer, epoch):
                raise OSError("the disk")

        self.trainer.fit([self.data(seed)], 1, callbacks=[Broken()], progress=False)

    def fit_with_a_broken_loader(self, seed: int) -> None:
        def loader():
            raise OSError("the disk")
            yield

        self.trainer.fit(loader(), 1, progress=False)

    def recalibration_without_data(self, seed: int) -> None:
        self.trainer.recalibrate([])

    @contextmanager
    def fails_in_the_network(self, error: type[BaseException]) -> Iterator[None]:
        """Context in which a layer raises an exception."""

        def fail(*_: Any) -> None:
            raise error

        handle = self.net.head.register_forward_hook(fail)
        try:
            yield
        finally:
            handle.remove()


STREAMS = ("step", "step", "step", "reset")
WORKING = ("train", "predict", "evaluate", "save_and_load")
STREAM_FAILURES = tuple(name for name in vars(User) if name.startswith("step_"))
STARTS = ("sequence_", "prediction_", "evaluation_", "load_of", "save_without", "fit_", "recalibration_")
FAILURES = tuple(name for name in vars(User) if name.startswith(STARTS))


def run(program: Program, folder: Path, *, stumbles: bool) -> dict[str, list[Tensor]]:
    """All values at the end of a program, and what its calls returned."""
    chance = random.Random(program.seed)
    net = networks.build(program.kind, program.seed).double()
    user = User(program, net, folder)
    trainer, streams = user.trainer, program.kind.driver != "in-flight"
    working = (*WORKING, *(STREAMS * 2 if streams else ()))
    failing = (*FAILURES, *(STREAM_FAILURES * 2 if streams else ()))
    torch.manual_seed(program.seed)
    found = [user.train(1)]
    for number in range(program.calls):
        call, failure = chance.choice(working), chance.choice(failing)
        if stumbles:
            stumble(user, failure, 10 * number + 7)
        found.append(getattr(user, call)(10 * number))
    values = outcome(net, trainer.regularizer.average_of, trainer.regularizer.dual_of)
    return {
        "returned": found,
        "state": [tensor.detach() for tensor in tensors_in(trainer.state.get())],
        "gradients": [p.grad for p in net.parameters() if p.grad is not None],
        "counts": [torch.tensor([trainer.steps, trainer.updates, trainer.skipped, len(trainer.history)])],
        "buffers": list(net.buffers()),
        "class distribution": [trainer.objective.distribution.table],
        "random numbers": [torch.get_rng_state()],
        **{name: [value] for name, value in values.items()},
    }


def stumble(user: User, failure: str, seed: int) -> None:
    updates, weights = user.trainer.updates, copy.deepcopy(user.net.state_dict())
    with pytest.raises((Exception, KeyboardInterrupt)):
        getattr(user, failure)(seed)
    assert user.trainer.updates == updates > 0, failure
    assert all(torch.equal(weights[name], value) for name, value in user.net.state_dict().items()), failure


def compare(number: int, folder: Path) -> None:
    program = random_program(number)
    smooth, stumbling = (run(program, folder, stumbles=stumbles) for stumbles in (False, True))
    for name, values in smooth.items():
        for one, other in zip(values, stumbling[name], strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num()), f"{name}; {program!r}"


@pytest.mark.parametrize("number", range(8))
def test_a_few_programs(number, tmp_path):
    compare(number, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 140))
def test_forty_programs(number, tmp_path):
    compare(number, tmp_path)
