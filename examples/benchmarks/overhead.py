"""What ``FPTTTrainer`` costs in eager mode, beside a loop of one's own, the bare passes, and BPTT.

    python examples/benchmarks/overhead.py
    python examples/benchmarks/overhead.py --profile             # and the package's calls in one time step
    python examples/benchmarks/overhead.py --nets "LTC-SRNN 32" --seconds 60
    python examples/benchmarks/overhead.py --steps 784           # BPTT takes longer per step, the others do not

All ways to train a network share one process and take turns, a sequence each. Ratios are taken within a round; shown
are their median and quartiles. The trainer and the own loop must end with the same weights, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from types import CodeType, FrameType
from typing import Any

import torch
import torch.nn.functional as F
from contenders import ALPHA, BETA, CONTENDERS, EAGER, MAX_NORM, RHO, Row, Training, fused_adam
from floors import BARE, FLOORS
from networks import Net, leaky, lif, ltc_srnn
from shared import device_name, versions
from timing import forget, milliseconds_per_step
from torch import Tensor, nn

import fptt_plugin
from fptt_plugin import DynamicRegularizer
from fptt_plugin.state import ModelState

PACKAGE = str(Path(fptt_plugin.__file__).parent)
OWN, BPTT = "own loop", "BPTT"
RATIOS = ((EAGER, OWN), (EAGER, BARE), (OWN, BARE), (EAGER, BPTT))


def own_loop(net: Net, device: torch.device) -> Training:
    """FPTT with the package's regularizer and state in a loop of one's own, without the trainer's checks."""
    model = net.fresh(device)
    optimizer = fused_adam(model)
    DynamicRegularizer(optimizer, ALPHA, BETA, RHO, max_grad_norm=MAX_NORM)
    state = ModelState(model)

    def train(x: Tensor, y: Tensor) -> None:
        state.reset()
        for x_t in x:
            optimizer.zero_grad()
            F.cross_entropy(model(x_t), y).backward()
            optimizer.step()
            state.detach()

    return Training(model, train)


def rows(net: Net) -> dict[str, Row]:
    """The four ways to train."""
    bptt = {"snntorch": "snnTorch BPTT", "spikingjelly": "SpikingJelly BPTT"}[net.library]
    return {EAGER: CONTENDERS[EAGER], OWN: Row(own_loop), BARE: FLOORS[BARE], BPTT: CONTENDERS[bptt]}


def networks(smoke: bool) -> list[Net]:
    """The networks that are measured, or toys."""
    width, batch, steps, seconds = (16, 4, 5, 0.1) if smoke else (128, 128, 50, 20.0)
    small = (8, 2) if smoke else (32, 8)
    srnn = Net(f"LTC-SRNN {width}", "snntorch", partial(ltc_srnn, width), (10,), batch, steps, seconds=seconds)
    return [
        srnn,
        replace(srnn, name=f"LTC-SRNN {small[0]}", build=partial(ltc_srnn, small[0]), batch=small[1]),
        replace(srnn, name=f"Leaky {width}", build=partial(leaky, width)),
        replace(srnn, name=f"LIFNode {width}", library="spikingjelly", build=partial(lif, width)),
    ]


def measure(net: Net, seconds: float) -> dict[str, Any]:
    """Times of one network.

    Raises:
        RuntimeError: If trainer and own loop do not train the same weights.
    """
    device = torch.device("cpu")
    trainings = {name: row.prepare(net, device) for name, row in rows(net).items()}
    measured = milliseconds_per_step(trainings, *net.data(net.steps, device), seconds)
    times = {name: values for name, (values, _) in measured.items()}
    check_same_weights(net, *(trainings[name].model for name in (EAGER, OWN)))
    return {
        "net": net.name,
        "batch": net.batch,
        "T": net.steps,
        "rounds": len(times[EAGER]),
        "ms": {name: float(f"{median(values):.4g}") for name, values in times.items()},
        "ratios": {f"{one} ÷ {other}": spread(times[one], times[other]) for one, other in RATIOS},
    }


def spread(values: list[float], reference: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile of the ratios, round by round."""
    ratios = [one / other for one, other in zip(values, reference, strict=True)]
    return [round(ratio, 3) for ratio in quantiles(ratios, n=4, method="inclusive")]


def check_same_weights(net: Net, one: nn.Module, other: nn.Module) -> None:
    """Check that two networks were trained, and have the same weights.

    Raises:
        RuntimeError: If not.
    """
    start = net.fresh(torch.device("cpu"))
    for (name, weight), same, before in zip(
        one.named_parameters(), other.parameters(), start.parameters(), strict=True
    ):
        if torch.equal(weight, before):
            raise RuntimeError(f"{net.name}: {name} was not trained")
        if not torch.equal(weight, same):
            raise RuntimeError(f"{net.name}: {name} differs between the trainer and the own loop")


class StepProfile:
    """Counts the calls of the package's own functions in one time step: from one call of the network to the next.

    Args:
        model: The network.
        step: Which step of the sequence, from 1; the first ones are not typical.

    Attributes:
        calls: Number of calls of every function, by its code.
        depth: Most frames of the package on the stack at once.
    """

    def __init__(self, model: nn.Module, step: int = 3) -> None:
        self.model, self.step = model, step
        self.begin = type(model).forward.__code__
        self.steps = self.depth = 0
        self.calls: Counter[CodeType] = Counter()

    def __enter__(self) -> StepProfile:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code is self.begin and frame.f_locals.get("self") is self.model:
            self.steps += 1
        if self.steps == self.step and code.co_filename.startswith(PACKAGE):
            self.calls[code] += 1
            self.depth = max(self.depth, _package_frames(frame))

    def figures(self) -> dict[str, int]:
        """Calls, files with a function that is called, and depth."""
        files = {code.co_filename for code in self.calls}
        return {"calls": self.calls.total(), "files": len(files), "depth": self.depth}


def _package_frames(frame: FrameType | None) -> int:
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith(PACKAGE)
        frame = frame.f_back
    return count


def profile(net: Net) -> dict[str, dict[str, int]]:
    """Of every way to train step by step, the package's calls in one step."""
    device = torch.device("cpu")
    x, y = net.data(5, device)
    found = {}
    for name, row in rows(net).items():
        if name != BPTT:
            training = row.prepare(net, device)
            training.train(x, y)
            with StepProfile(training.model) as counted:
                training.train(x, y)
            found[name] = counted.figures()
    return found


def table(records: list[dict[str, Any]]) -> str:
    """Medians in ms per step, and ratios with quartiles."""
    lines = []
    for record in records:
        lines.append(f"\n{record['net']}, batch {record['batch']}, T = {record['T']}, {record['rounds']} rounds")
        lines += [f"  {name:42} {ms:8.3f} ms per step" for name, ms in record["ms"].items()]
        for name, (low, middle, high) in record["ratios"].items():
            lines.append(f"  {name:42} {middle:8.2f} ({low:.2f} to {high:.2f})")
        for name, figures in record.get("profile", {}).items():
            lines.append(
                f"  {name:42} {figures['calls']:8} calls of the package per step, in {figures['files']} files, "
                f"{figures['depth']} frames deep"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy networks, seconds: does it run?")
    parser.add_argument(
        "--profile", action="store_true", help="count the package's calls in a step of the first network"
    )
    parser.add_argument("--nets", nargs="+", metavar="NAME", help="these networks only")
    parser.add_argument("--seconds", type=float, help="per network; default 20")
    parser.add_argument("--steps", type=int, metavar="T", help="length of the sequences; default 50")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/overhead.json"), help="file to write")
    options = parser.parse_args()
    names = [net.name for net in networks(options.smoke)]
    unknown = [name for name in options.nets or () if name not in names]
    if unknown:
        parser.error(f"--nets {unknown[0]!r} is unknown; choose from {', '.join(map(repr, names))}")
    torch.set_flush_denormal(True)  # states that decay would slow down every row
    torch.set_num_threads(options.threads)
    chosen = [net for net in networks(options.smoke) if net.name in (options.nets or names)]
    if options.steps:
        chosen = [replace(net, steps=options.steps) for net in chosen]
    records = []
    for net in chosen:
        record = measure(net, options.seconds or net.seconds)
        if options.profile and net is chosen[0]:
            record["profile"] = profile(net)
        records.append(record)
        print(table([record]), flush=True)
        forget()
    machine = {"device": device_name(torch.device("cpu")), "threads": options.threads, **versions()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
