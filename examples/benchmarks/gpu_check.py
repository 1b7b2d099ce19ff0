"""What a GPU makes of every way to train: is it right, how fast is it, what does it launch and hold. Four minutes.

    python examples/benchmarks/gpu_check.py
    python examples/benchmarks/gpu_check.py --minutes 10         # compile more of what there was no time for
    python examples/benchmarks/gpu_check.py --smoke              # toys, on a CPU as well: does the script run?

Needs the package, snnTorch, SpikingJelly and PyTorch 2.11 or later, and nothing else. Results go to a file as they
come, so whatever ends the run loses none of them; what there was no time for is in it as ``not_run``.

Right means: the weights after some sequences are those of eager training on the CPU, in double precision, so that a
wrong result is not taken for a rounded one. ``off`` is the largest difference, relative to
how far the weights moved.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from queue import Empty
from statistics import median
from typing import Any, NamedTuple

import snntorch as snn
import torch
from contenders import CONTENDERS, Training, fused_adam
from floors import BARE, FLOORS
from networks import Net, leaky, lif, ltc_srnn
from shared import device_name, versions
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from timing import alternate, forget
from torch import Tensor, nn

from fptt_plugin import BPTT, FPTTTrainer, SavedForBackward
from fptt_plugin.errors import FPTTWarning
from fptt_plugin.functional import MultiGaussian
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky

Record = dict[str, Any]
MODES = ("none", "cudagraph", "compile")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
SAME = 1e-6  # relative to how far the weights moved

# ---------------------------------------------------------------------- networks that must come out right


class Case(NamedTuple):
    """A network, its trainer's options, and how it is trained.

    Attributes:
        build: Makes the network.
        options: For the trainer.
        sample: Shape of one sample at one time step.
        way: ``"sequences"``, ``"masked"`` (sequences of several lengths) or ``"stream"``.
        loss: The loss function.
        steps: Length of the sequences, of several windows.
    """

    build: Callable[[], nn.Module]
    options: dict[str, Any] | None = None
    sample: tuple[int, ...] = (6,)
    way: str = "sequences"
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss
    steps: int = 12


def liquid(recurrent: bool) -> nn.Module:
    hidden = (RLTCLeaky if recurrent else LTCLeaky)(linear_features=12, init_hidden=True, threshold=0.3)
    ends = LTCIntegrator(linear_features=3, init_hidden=True)
    return nn.Sequential(nn.Linear(6, 12), hidden, nn.Linear(12, 3), ends)


def stock() -> nn.Module:
    # The library's own surrogates return single precision.
    fires = [snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True, spike_grad=MultiGaussian()) for _ in range(2)]
    ends = snn.Leaky(beta=0.9, init_hidden=True, reset_mechanism="none", output=True)
    return nn.Sequential(nn.Linear(6, 12), fires[0], nn.Linear(12, 12), fires[1], nn.Linear(12, 3), ends)


def jelly(mode: str = "s") -> nn.Module:
    fires = [neuron.LIFNode(v_threshold=0.3, surrogate_function=surrogate.ATan()) for _ in range(2)]
    net = nn.Sequential(layer.Linear(6, 12), fires[0], layer.Linear(12, 12), fires[1], layer.Linear(12, 3))
    functional.set_step_mode(net, mode)
    return net


def convolutional() -> nn.Module:
    # The normalization has the bias of the layer before it.
    maps = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2)]
    fires = LTCLeaky(conv2d_channels=4, init_hidden=True, threshold=0.3)
    return nn.Sequential(
        *maps, fires, nn.Flatten(), nn.Linear(64, 3), LTCIntegrator(linear_features=3, init_hidden=True)
    )


class Detour(nn.Module):
    """Takes a number over the host, which cannot be recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.detach().mean().cpu().to(x.device)


class Loops(nn.Module):
    """Runs its own loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(6, 12), nn.Linear(12, 3)
        self.fires = snn.Leaky(beta=0.8, threshold=0.3, spike_grad=MultiGaussian())

    def forward(self, x: Tensor) -> Tensor:
        mem, outputs = self.fires.init_leaky(), []
        for x_t in x:
            spk, mem = self.fires(self.into(x_t), mem)
            outputs.append(self.out(spk))
        return torch.stack(outputs)


def weighted() -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))


CASES: dict[str, Case] = {
    "recurrent LTC": Case(partial(liquid, True)),
    "LTC": Case(partial(liquid, False), {"window": 2, "loss_ramp": "constant"}),
    "Leaky": Case(stock),
    "LIFNode": Case(jelly),
    "stream": Case(partial(liquid, True), {"loss_every": 1}, way="stream"),
    "convolutions, batch normalization": Case(convolutional, sample=(1, 8, 8)),
    "window of 8": Case(partial(liquid, True), {"window": 8, "loss_every": 4}, steps=25),
    "window of 10": Case(partial(liquid, False), {"window": 10, "loss_every": 5}, steps=30),
    "LIFNode, multi-step": Case(partial(jelly, "m"), {"window": 4}),
    "own loop over time": Case(Loops),
    "masks": Case(stock, {"readout": "mean"}, way="masked"),
    "class weights": Case(partial(liquid, False), loss=weighted),
    "over the host": Case(lambda: nn.Sequential(Detour(), liquid(True)), {"window": 2, "loss_every": 1}),
    "update every 2 windows": Case(stock, {"window": 2, "update_every": 4, "alpha": 0.0}),
}


@contextmanager
def double_precision() -> Iterator[None]:
    """Context in which Adam, too, counts its steps in double precision: on a GPU it computes with the count."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@double_precision()
def trained(case: Case, device: torch.device, mode: str, count: int) -> tuple[list[Tensor], list[Tensor], str]:
    """Weights before and after training, on the CPU, and what the trainer says of its compilation."""
    torch.manual_seed(0)
    net = case.build().double().to(device)
    before = [weight.detach().cpu().clone() for weight in net.parameters()]
    # Each update divides by its moments: eps keeps rounding from becoming a step where they are nothing but rounding.
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, eps=1e-4, capturable=device.type == "cuda")
    trainer = FPTTTrainer(net, optimizer, case.loss().to(device), accelerate=mode, **(case.options or {}))
    chance = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = 2 * torch.rand(case.steps, 8, *case.sample, generator=chance, dtype=torch.float64).to(device)
        y = torch.randint(3, (8,), generator=chance).to(device)
        if case.way == "stream":
            trainer.reset()
            for t in range(len(x)):
                trainer.step(x[t], None if t == 5 else y)
        else:
            lengths = torch.randint(4, case.steps + 1, (8,), generator=chance).to(device)
            trainer.train_sequence(x, y, *([lengths] if case.way == "masked" else []))
    torch.rand(1, device=device)  # a recording that failed must not have broken the random numbers
    after = [weight.detach().cpu() for weight in net.parameters()]
    return before, after, trainer.explain().splitlines()[-1] if mode != "none" else "eager"


def check(
    name: str, device: torch.device, modes: tuple[str, ...], count: int, my_turn: Callable[[], None]
) -> Iterator[Record]:
    """Whether a network's weights are those of eager training on the CPU, by mode."""
    case, reference = CASES[name], None
    for mode in modes:
        record: Record = {"part": "right", "net": name, "mode": mode}
        if reference is None:
            before, reference, _ = trained(case, torch.device("cpu"), "none", count)
            moved = [(one - other).abs().max().item() for one, other in zip(before, reference, strict=True)]
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FPTTWarning)
            _, after, explained = trained(case, device, mode, count)
        pairs = zip(after, reference, moved, strict=True)
        off = max((one - other).abs().max().item() / max(most, 1e-12) for one, other, most in pairs)
        notes = [str(entry.message) for entry in caught if issubclass(entry.category, FPTTWarning)]
        yield {
            **record,
            "off": float(f"{off:.3g}"),
            "moved": float(f"{min(moved):.3g}"),
            "right": off < SAME and min(moved) > 0,
            "seconds": round(time.perf_counter() - start, 1),
            "compiled": explained,
            "notes": notes,
        }
        forget()


# ---------------------------------------------------------------------- speed, launches, memory


class Sizes(NamedTuple):
    """How large everything is: for a GPU, or toys."""

    hidden: tuple[int, ...]
    batch: int
    steps: int
    windows: tuple[int, ...]
    lengths: tuple[int, ...]
    mnist_steps: int
    rounds: int


GPU = Sizes((512, 128), 128, 80, (1, 8, 28), (100, 784), 784, 3)
TOYS = Sizes((8,), 4, 6, (1, 3), (4, 12), 6, 2)


def ours(net: Net, device: torch.device, mode: str, window: int | None = 1) -> Training:
    model = net.fresh(device)
    kind: Any = FPTTTrainer if window else BPTT
    options = {
        "loss_ramp": "constant",
        "auxiliary": False,
        "accelerate": mode,
        **({"window": window} if window else {}),
    }
    return Training(model, kind(model, fused_adam(model), nn.CrossEntropyLoss(), **options).train_sequence)


def synchronized(training: Training, x: Tensor, y: Tensor) -> Callable[[], None]:
    def run() -> None:
        training.train(x, y)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def networks(sizes: Sizes) -> list[tuple[Net, tuple[int, ...]]]:
    """The networks whose speed is measured, and the lengths of their windows."""
    found = []
    for hidden in sizes.hidden:
        srnn = partial(ltc_srnn, hidden)
        found.append(Net(f"LTC-SRNN {hidden}", "snntorch", srnn, (10,), sizes.batch, sizes.steps))
    first, ends = sizes.hidden[0], sizes.windows[:1] + sizes.windows[-1:]
    found.append(Net(f"Leaky {first}", "snntorch", partial(leaky, first), (10,), sizes.batch, sizes.steps))
    found.append(Net(f"LIFNode {first}", "spikingjelly", partial(lif, first), (10,), sizes.batch, sizes.steps))
    lengths = [sizes.windows, *[sizes.windows[:1]] * (len(found) - 3), ends, sizes.windows[:1]]
    return list(zip(found, lengths, strict=True))


def speed(
    net: Net,
    window: int,
    sizes: Sizes,
    device: torch.device,
    modes: tuple[str, ...],
    with_memory: bool,
    my_turn: Callable[[], None],
) -> Iterator[Record]:
    """Microseconds per time step and launches, by mode, beside BPTT and the bare passes; memory, if asked for."""
    x, y = net.data(max(net.steps, 6 * window), device)
    bptt = "snnTorch BPTT" if net.library == "snntorch" else "SpikingJelly BPTT"
    ways: dict[str, Callable[[], Training]] = {
        "bare passes": lambda: FLOORS[BARE].prepare(net, device),
        "BPTT": lambda: CONTENDERS[bptt].prepare(net, device),
        **{mode: partial(ours, net, device, mode, window) for mode in modes},
    }
    if window == max(sizes.windows):
        ways |= {f"{mode}, BPTT": partial(ours, net, device, mode, None) for mode in modes if mode == "compile"}
    trainings: dict[str, Training] = {}
    calls: dict[str, Callable[[], object]] = {}
    records = {}
    for name, prepare in ways.items():
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FPTTWarning)
            trainings[name] = training = prepare()
            calls[name] = synchronized(training, x, y)
            for _ in range(2):  # sixteen windows of one step share replays, and one has its own
                synchronized(training, x[: max(18, 3 * window)], y)()
        notes = [str(entry.message) for entry in caught if issubclass(entry.category, FPTTWarning)]
        ready = round(time.perf_counter() - start, 1)
        records[name] = {
            "part": "speed",
            "net": net.name,
            "window": window,
            "way": name,
            "ready_s": ready,
            "notes": notes,
        }
    my_turn()
    further = window * -(-8 // window)  # eight windows of one step share a replay
    for name, seconds in alternate(calls, 0.0, least=sizes.rounds).items():
        us = [1e6 * value / len(x) for value in seconds]
        record = {**records[name], "us_per_step": [float(f"{value:.4g}") for value in us], "launches_per_step": None}
        if device.type == "cuda":
            # Of the windows after the first, which trains eagerly.
            few, more = (launches(synchronized(trainings[name], x[: window + steps], y)) for steps in (0, further))
            record["launches_per_step"] = round((more - few) / further, 2)
        yield record
    if with_memory:
        yield from memory(net, sizes, device, {name: trainings[name] for name in (*modes, "BPTT")})


def launches(call: Callable[[], object]) -> int:
    """Kernels and graphs that one call launches."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return sum(event.count for event in profile.key_averages() if event.key in LAUNCHES)


def memory(net: Net, sizes: Sizes, device: torch.device, trainings: dict[str, Training]) -> Iterator[Record]:
    """Peak of the GPU's memory (on a CPU, of what is saved for the backward pass) over the length of the sequence."""
    for way, training in trainings.items():
        peaks = {}
        for steps in sizes.lengths:
            x, y = net.data(steps, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                training.train(x, y)
                peaks[steps] = torch.cuda.max_memory_allocated() - x.nbytes
            else:
                with SavedForBackward(training.model) as saved:
                    training.train(x, y)
                peaks[steps] = saved.peak
        yield {"part": "memory", "net": net.name, "way": way, "bytes": peaks}


def mnist(sizes: Sizes, device: torch.device, modes: tuple[str, ...], my_turn: Callable[[], None]) -> Iterator[Record]:
    """Updates per second on sequences like those of S-MNIST: one pixel per step, an update at each."""
    build = partial(ltc_srnn, sizes.hidden[0], 1)
    net = Net("S-MNIST", "snntorch", build, (1,), sizes.batch, sizes.mnist_steps)
    x, y = net.data(sizes.mnist_steps, device)
    trainings = {mode: ours(net, device, mode) for mode in modes}
    for training in trainings.values():
        for _ in range(2):
            synchronized(training, x[:60], y)()
    my_turn()
    for mode, training in trainings.items():
        start = time.perf_counter()
        synchronized(training, x, y)()
        rate = sizes.mnist_steps / (time.perf_counter() - start)
        yield {"part": "S-MNIST", "net": net.name, "way": mode, "updates_per_s": round(rate, 1)}


# ---------------------------------------------------------------------- the run


class Results:
    """Writes every record at once, and prints a line for it.

    Args:
        path: The file.
        conditions: What the records depend on.
    """

    def __init__(self, path: Path, conditions: Record) -> None:
        self._path, self._content = path, {**conditions, "records": []}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def records(self) -> list[Record]:
        records: list[Record] = self._content["records"]
        return records

    def add(self, record: Record) -> None:
        self.records.append(record)
        self._write()
        print(line_of(record), flush=True)

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._content, indent=1) + "\n")


def line_of(record: Record) -> str:
    """One line of the table."""
    begin = f"{record['part']:8} {record['net']:34} {record.get('mode') or record.get('way', ''):24}"
    if "not_run" in record:
        return f"{begin} not run: {record['not_run']}"
    if record["part"] == "right":
        return f"{begin} {'right' if record['right'] else 'WRONG'}, off by {record['off']:.1e}"
    if record["part"] == "speed":
        begin, launched = f"{begin} window {record['window']:2}", record["launches_per_step"]
        more = "" if launched is None else f", {launched:.1f} launches"
        return f"{begin} {median(record['us_per_step']):9.1f} us per step{more}, ready after {record['ready_s']} s"
    if record["part"] == "memory":
        return f"{begin} " + ", ".join(f"{size / 2**20:.1f} MiB at T = {t}" for t, size in record["bytes"].items())
    return f"{begin} {record['updates_per_s']} updates per second"


class Job(NamedTuple):
    """What one process does: checks a network, or measures one.

    Attributes:
        part: Of the results.
        net: Name of the network.
        records: Makes the records; those that measure time first call what they are given, to wait for their turn.
        is_timed: Whether it measures time.
    """

    part: str
    net: str
    records: Callable[[Callable[[], None]], Iterator[Record]]
    is_timed: bool


def jobs(sizes: Sizes, device: torch.device, modes: tuple[str, ...], names: list[str]) -> list[Job]:
    """Everything, the most important first."""
    nets = networks(sizes)
    found = [Job("right", name, partial(check, name, device, modes, 2), False) for name in names]
    for net, windows in nets:
        for window in windows:
            first = net is nets[0][0] and window == windows[0]
            found.append(Job("speed", net.name, partial(speed, net, window, sizes, device, modes, first), True))
            if first:
                found.append(Job("S-MNIST", net.name, partial(mnist, sizes, device, modes), True))
    return found


def carry_out(job: Job, emit: Callable[[Record], None], my_turn: Callable[[], None]) -> None:
    """Do a job; one that fails is a record, too, and must not hide the others."""
    try:
        for record in job.records(my_turn):
            emit(record)
    except Exception as error:
        emit({"part": job.part, "net": job.net, "not_run": f"{type(error).__name__}: {error}"})
    forget()


def work(i: int, options: argparse.Namespace, queue: Any, turn: Any) -> None:
    """A process of its own: compiles beside the others, and measures alone."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

    def my_turn() -> None:
        queue.put((i, "ready"))
        turn.wait()

    carry_out(chosen(options)[i], lambda record: queue.put((i, record)), my_turn)
    queue.put((i, "done"))


def chosen(options: argparse.Namespace) -> list[Job]:
    """The jobs of a run with these options."""
    device, sizes = torch.device(options.device), TOYS if options.smoke else GPU
    modes = ("none",) if options.smoke else MODES if device.type == "cuda" else ("none", "compile")
    return jobs(sizes, device, modes, [*CASES][:3] if options.smoke else [*CASES])


class Processes:
    """Runs all jobs in processes of their own: what compiles side by side, what is timed one after another.

    Args:
        options: Of the run.
        results: Where the records go.
    """

    def __init__(self, options: argparse.Namespace, results: Results) -> None:
        context = multiprocessing.get_context("spawn")
        self._jobs, self._most, self._results = chosen(options), options.jobs, results
        self._minutes = options.minutes
        self._queue = context.Queue()
        self._turns = [context.Event() for _ in self._jobs]
        self._processes = [
            context.Process(target=work, args=(i, options, self._queue, turn)) for i, turn in enumerate(self._turns)
        ]
        # The timed ones compile most, and begin first.
        self._to_start = sorted(range(len(self._jobs)), key=lambda i: not self._jobs[i].is_timed)
        self._left = set(self._to_start)
        self._ready: set[int] = set()
        self._counts = dict.fromkeys(self._to_start, 0)

    def run(self) -> None:
        """Run until all is done or the time is up."""
        begin = time.perf_counter()
        half, end = begin + 30 * self._minutes, begin + 60 * self._minutes
        # What is timed waits for the compilers to be quiet, but not for ever.
        while self._left - self._ready and self._listens(half):
            pass
        for i in [i for i in self._left if not self._jobs[i].is_timed]:
            self._end(i)
        for i in sorted(self._left):
            while i in self._left - self._ready and self._listens(end):
                pass
            self._turns[i].set()
            while i in self._left and self._listens(end):
                pass
        for i in sorted(self._left):
            self._end(i)

    def _end(self, i: int) -> None:
        """End a job for which there is no time left."""
        self._left.discard(i)
        if i in self._to_start:
            self._to_start.remove(i)
        else:
            self._processes[i].kill()
        self._note(i, f"no time left after {self._counts[i]} records")

    def _note(self, i: int, why: str) -> None:
        self._results.add({"part": self._jobs[i].part, "net": self._jobs[i].net, "not_run": why})

    def _listens(self, deadline: float) -> bool:
        """Start what there is room for and wait for the next message; whether there is time left."""
        while self._to_start and len(self._running()) < self._most:
            self._processes[self._to_start.pop(0)].start()
        left = deadline - time.perf_counter()
        try:
            i, message = self._queue.get(timeout=max(0.0, min(left, 1.0)))
        except Empty:
            begun = self._left - {*self._to_start}
            for i in [i for i in begun if self._processes[i].exitcode not in (None, 0)]:
                self._left.discard(i)
                self._note(i, "its process died")
            return left > 0
        if message == "ready":
            self._ready.add(i)
        elif message == "done":
            self._left.discard(i)
        else:
            self._counts[i] += 1
            self._results.add(message)
        return left > 0

    def _running(self) -> set[int]:
        return self._left - self._ready - {*self._to_start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=3.9, help="stop after that; default 3.9")
    parser.add_argument("--smoke", action="store_true", help="toys, uncompiled: does the script run?")
    parser.add_argument("--jobs", type=int, help="processes at once; default: one for each core, 1 with --smoke")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_check.json"), help="file to write")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: PyTorch sees no GPU here")
    options.jobs = options.jobs or (1 if options.smoke else os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    conditions = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(torch.device(options.device)),
        "smoke": options.smoke,
        **versions(),
    }
    results = Results(options.out, conditions)
    if options.jobs == 1:
        end = time.perf_counter() + 60 * options.minutes
        for job in chosen(options):
            if time.perf_counter() < end:
                carry_out(job, results.add, lambda: None)
            else:
                results.add({"part": job.part, "net": job.net, "not_run": "no time left"})
    else:
        Processes(options, results).run()
    wrong = [record for record in results.records if record.get("right") is False]
    left = sum("not_run" in record for record in results.records)
    print(f"\n{len(wrong)} wrong, {left} not run; {options.out}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
