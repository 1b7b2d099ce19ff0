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
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
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
    """

    build: Callable[[], nn.Module]
    options: dict[str, Any] | None = None
    sample: tuple[int, ...] = (6,)
    way: str = "sequences"
    loss: Callable[[], nn.Module] = nn.CrossEntropyLoss


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
    # The normalisation has the bias of the layer before it.
    maps = [nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2)]
    fires = LTCLeaky(conv2d_channels=4, init_hidden=True, threshold=0.3)
    return nn.Sequential(
        *maps, fires, nn.Flatten(), nn.Linear(64, 3), LTCIntegrator(linear_features=3, init_hidden=True)
    )


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
    "convolutions, batch normalisation": Case(convolutional, sample=(1, 8, 8)),
    "window of 8": Case(partial(liquid, True), {"window": 8, "loss_every": 4}),
    "LIFNode, multi-step": Case(partial(jelly, "m"), {"window": 4}),
    "own loop over time": Case(Loops),
    "masks": Case(stock, {"readout": "mean"}, way="masked"),
    "class weights": Case(partial(liquid, False), loss=weighted),
    "update every 2 windows": Case(stock, {"window": 2, "update_every": 4, "alpha": 0.0}),
}


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
        x = 2 * torch.rand(12, 8, *case.sample, generator=chance, dtype=torch.float64).to(device)
        y = torch.randint(3, (8,), generator=chance).to(device)
        if case.way == "stream":
            trainer.reset()
            for t in range(len(x)):
                trainer.step(x[t], None if t == 5 else y)
        else:
            lengths = torch.randint(4, 13, (8,), generator=chance).to(device)
            trainer.train_sequence(x, y, *([lengths] if case.way == "masked" else []))
    after = [weight.detach().cpu() for weight in net.parameters()]
    return before, after, trainer.explain().splitlines()[-1] if mode != "none" else "eager"


def check(
    name: str, device: torch.device, modes: tuple[str, ...], count: int, time_is_up: Callable[[], bool]
) -> Iterator[Record]:
    """Whether a network's weights are those of eager training on the CPU, by mode."""
    case, reference = CASES[name], None
    for mode in modes:
        record: Record = {"part": "right", "net": name, "mode": mode}
        if time_is_up():
            yield {**record, "not_run": "no time left"}
            continue
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


GPU = Sizes((512, 128), 128, 80, (1, 8), (100, 784), 784, 5)
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


def networks(sizes: Sizes) -> list[Net]:
    found = []
    for hidden in sizes.hidden:
        srnn = partial(ltc_srnn, hidden)
        found.append(Net(f"LTC-SRNN {hidden}", "snntorch", srnn, (10,), sizes.batch, sizes.steps))
    first = sizes.hidden[0]
    found.append(Net(f"Leaky {first}", "snntorch", partial(leaky, first), (10,), sizes.batch, sizes.steps))
    found.append(Net(f"LIFNode {first}", "spikingjelly", partial(lif, first), (10,), sizes.batch, sizes.steps))
    return found


def speed(net: Net, sizes: Sizes, device: torch.device, modes: tuple[str, ...]) -> Iterator[Record]:
    """Microseconds per time step and launches, by mode and window, beside BPTT and the bare passes."""
    x, y = net.data(net.steps, device)
    bptt = "snnTorch BPTT" if net.library == "snntorch" else "SpikingJelly BPTT"
    ways: dict[str, Callable[[], Training]] = {
        "bare passes": lambda: FLOORS[BARE].prepare(net, device),
        "BPTT": lambda: CONTENDERS[bptt].prepare(net, device),
    }
    for window in sizes.windows:
        ways |= {f"{mode}, window {window}": partial(ours, net, device, mode, window) for mode in modes}
    ways |= {f"{mode}, BPTT": partial(ours, net, device, mode, None) for mode in modes if mode == "compile"}
    calls: dict[str, Callable[[], object]] = {}
    records = {}
    for name, prepare in ways.items():
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FPTTWarning)
            calls[name] = synchronized(prepare(), x, y)
            for _ in range(2):
                calls[name]()
        notes = [str(entry.message) for entry in caught if issubclass(entry.category, FPTTWarning)]
        ready = round(time.perf_counter() - start, 1)
        records[name] = {"part": "speed", "net": net.name, "way": name, "ready_s": ready, "notes": notes}
    for name, seconds in alternate(calls, 0.0, least=sizes.rounds).items():
        us = [1e6 * value / len(x) for value in seconds]
        yield {
            **records[name],
            "us_per_step": [float(f"{value:.4g}") for value in us],
            "launches_per_step": round(launches(calls[name]) / len(x), 2) if device.type == "cuda" else None,
        }


def launches(call: Callable[[], object]) -> int:
    """Kernels and graphs that one call launches."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return sum(event.count for event in profile.key_averages() if event.key in LAUNCHES)


def memory(net: Net, sizes: Sizes, device: torch.device, modes: tuple[str, ...]) -> Iterator[Record]:
    """Peak of the GPU's memory (on a CPU, of what is saved for the backward pass) over the length of the sequence."""
    for way in (*modes, "BPTT"):
        peaks = {}
        for steps in sizes.lengths:
            training = ours(net, device, *(("none", None) if way == "BPTT" else (way, 1)))
            x, y = net.data(steps, device)
            training.train(x[:3], y)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                training.train(x, y)
                peaks[steps] = torch.cuda.max_memory_allocated() - x.nbytes
            else:
                with SavedForBackward(training.model) as saved:
                    training.train(x, y)
                peaks[steps] = saved.peak
        yield {"part": "memory", "net": net.name, "way": way, "bytes": peaks}


def mnist(sizes: Sizes, device: torch.device, modes: tuple[str, ...]) -> Iterator[Record]:
    """Updates per second on sequences like those of S-MNIST: one pixel per step, an update at each."""
    build = partial(ltc_srnn, sizes.hidden[0], 1)
    net = Net("S-MNIST", "snntorch", build, (1,), sizes.batch, sizes.mnist_steps)
    x, y = net.data(sizes.mnist_steps, device)
    for mode in modes:
        call = synchronized(ours(net, device, mode), x, y)
        call()
        start = time.perf_counter()
        call()
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
        launched = record["launches_per_step"]
        more = "" if launched is None else f", {launched:.1f} launches"
        return f"{begin} {median(record['us_per_step']):9.1f} us per step{more}, ready after {record['ready_s']} s"
    if record["part"] == "memory":
        return f"{begin} " + ", ".join(f"{size / 2**20:.1f} MiB at T = {t}" for t, size in record["bytes"].items())
    return f"{begin} {record['updates_per_s']} updates per second"


def run(options: argparse.Namespace, results: Results) -> None:
    """All parts, the quickest to go wrong first; each measurement that fails is a record, too."""
    device, sizes = torch.device(options.device), TOYS if options.smoke else GPU
    modes = ("none",) if options.smoke else MODES if device.type == "cuda" else ("none", "compile")
    end = time.perf_counter() + 60 * options.minutes

    def time_is_up(share: float) -> bool:
        left: float = end - time.perf_counter()
        return bool(left < 60 * options.minutes * (1 - share))

    def collect(part: str, name: str, records: Iterator[Record]) -> None:
        try:
            for record in records:
                results.add(record)
        except Exception as error:  # one that fails must not hide the others
            results.add({"part": part, "net": name, "not_run": f"{type(error).__name__}: {error}"})
        forget()

    names = [*CASES][:3] if options.smoke else [*CASES]
    checks = modes if options.smoke else modes[:2]
    for name in names[:4]:
        collect("right", name, check(name, device, checks, 2, partial(time_is_up, 0.3)))
    nets = networks(sizes)
    for i, net in enumerate(nets):
        if time_is_up(0.4 + 0.1 * i):
            results.add({"part": "speed", "net": net.name, "not_run": "no time left"})
        else:
            collect("speed", net.name, speed(net, sizes, device, modes))
    for part, records in (("S-MNIST", mnist), ("memory", partial(memory, nets[0]))):
        if time_is_up(0.85):
            results.add({"part": part, "net": nets[0].name, "not_run": "no time left"})
        else:
            collect(part, nets[0].name, records(sizes, device, checks))
    for name in names[4:]:
        collect("right", name, check(name, device, checks, 2, partial(time_is_up, 1.0)))
    for name in names if len(modes) > len(checks) else ():
        collect("right", name, check(name, device, modes[len(checks) :], 2, partial(time_is_up, 1.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=3.5, help="begin nothing new after that; default 3.5")
    parser.add_argument("--smoke", action="store_true", help="toys, uncompiled: does the script run?")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_check.json"), help="file to write")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: PyTorch sees no GPU here")
    torch.set_flush_denormal(True)
    conditions = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(torch.device(options.device)),
        "smoke": options.smoke,
        **versions(),
    }
    results = Results(options.out, conditions)
    run(options, results)
    wrong = [record for record in results.records if record.get("right") is False]
    left = sum("not_run" in record for record in results.records)
    print(f"\n{len(wrong)} wrong, {left} not run; {options.out}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
