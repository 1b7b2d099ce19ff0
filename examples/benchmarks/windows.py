"""Compiled windows: one graph for the whole window beside one compiled step that is called K times.

    python examples/benchmarks/windows.py
    python examples/benchmarks/windows.py --windows 1 8 28 --one-graph-up-to 8 --seconds 30

For each window length K the two ways and the bare eager forward and backward pass take turns in one process. Ratios to
the bare pass are taken within a round; shown are their medians. "Ready" is the time of the first compiled window, with
the compiler's caches off. A long window as one graph takes minutes to compile.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # read when torch is imported

import torch
from contenders import Training, ours
from floors import BARE, FLOORS
from networks import Net, networks
from shared import device_name, versions
from timing import alternate, forget

from fptt_plugin.compile import accelerator

ONE_GRAPH, CALLED = "one graph", "called step"


def prepare(net: Net, window: int, longest: int) -> tuple[Training, float]:
    """A network whose windows are compiled as one graph up to that length, and the seconds to its first window."""
    device = torch.device("cpu")
    chosen = accelerator.LONGEST, accelerator.LONGEST_OF_CONVOLUTIONS
    accelerator.LONGEST = accelerator.LONGEST_OF_CONVOLUTIONS = longest  # the trainer looks at its first batch
    try:
        training = ours(net, device, accelerate="compile", window=window)
        x, y = net.data(3 * window, device)  # the first window makes the neurons' state, eagerly
        begin = time.perf_counter()
        training.train(x, y)
        first = time.perf_counter() - begin
    finally:
        accelerator.LONGEST, accelerator.LONGEST_OF_CONVOLUTIONS = chosen
    begin = time.perf_counter()
    training.train(x, y)
    return training, first - (time.perf_counter() - begin)


def measure(net: Net, window: int, options: argparse.Namespace) -> dict[str, Any]:
    """Ratios and times to the first window, for one length."""
    longest = {CALLED: 0, **({ONE_GRAPH: window} if window <= options.one_graph_up_to else {})}
    ready: dict[str, float] = {}
    trainings = {BARE: FLOORS[BARE].prepare(net, torch.device("cpu"))}
    for name, most in longest.items():
        trainings[name], seconds = prepare(net, window, most)
        ready[name] = round(seconds, 1)
    steps = window * max(3, -(-options.steps // window))
    x, y = net.data(steps, torch.device("cpu"))
    calls: dict[str, Callable[[], object]] = {
        name: partial(training.train, x, y) for name, training in trainings.items()
    }
    clock = time.thread_time if options.cpu_time else time.perf_counter
    times = alternate(calls, options.seconds, clock=clock)
    ratios = {name: round(median(map(truediv, times[name], times[BARE])), 3) for name in longest}
    return {"net": net.name, "window": window, "rounds": len(times[BARE]), "ratio": ratios, "ready_seconds": ready}


def line(record: dict[str, Any]) -> str:
    """One length of window."""
    parts = [
        f"{name} {record['ratio'][name]:.2f} (ready in {record['ready_seconds'][name]:.0f} s)"
        for name in record["ratio"]
    ]
    return f"{record['net']}, K = {record['window']}, {record['rounds']} rounds: {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="LTC-SRNN 128", help="name of one of the benchmarks' networks")
    parser.add_argument("--windows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 28, 64], metavar="K")
    parser.add_argument("--one-graph-up-to", type=int, default=16, help="longer windows as the called step alone")
    parser.add_argument("--steps", type=int, default=128, help="of a sequence, rounded up to whole windows")
    parser.add_argument("--seconds", type=float, default=20.0, help="per length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="of the one thread: for a busy machine")
    parser.add_argument("--smoke", action="store_true", help="a toy network, one length")
    parser.add_argument("--out", type=Path, default=Path("results/windows.json"), help="file to write")
    options = parser.parse_args()
    nets = {net.name: net for net in networks("smoke" if options.smoke else "full")}
    if options.smoke:
        options.net, options.windows, options.seconds, options.steps = "Leaky 16", [2], 0.1, 4
    if options.net not in nets:
        parser.error(f"--net {options.net!r} is unknown; choose from {', '.join(map(repr, nets))}")
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    records: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {"device": device_name(torch.device("cpu")), "threads": options.threads, **versions()}
    for window in options.windows:
        records.append(measure(nets[options.net], window, options))
        print(line(records[-1]), flush=True)
        options.out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")
        forget()
    print(options.out)


if __name__ == "__main__":
    main()
