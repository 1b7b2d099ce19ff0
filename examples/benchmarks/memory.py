"""Memory of a way to train: bytes that autograd saves for the backward pass, and the peak of a fresh process."""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from contenders import CONTENDERS, Row, Training
from networks import Net, networks

from fptt_plugin import SavedForBackward


def backward_bytes(net: Net, row: Row, steps: int, device: torch.device) -> int:
    """Most bytes held for the backward pass while training on sequences of that length."""
    training = row.prepare(net, device)
    x, y = net.data(steps, device)
    training.train(x[:2], y)  # what is made once, such as Adam's moments, is there
    with SavedForBackward(training.model) as saved:
        training.train(x, y)
    return saved.peak


def expected_bytes(net: Net, row: Row, steps: int, device: torch.device) -> int:
    """The same from the growth over two short sequences, for lengths that may not fit."""
    if row.unseen:
        return 0
    short, longer = (backward_bytes(net, row, length, device) for length in (2, 4))
    return short + (longer - short) // 2 * (steps - 2)


def peak_in_fresh_process(net: Net, row: str, steps: int, device: torch.device, mode: str) -> dict[str, int]:
    """Memory of a process that trains so: ``base`` before, when warm, and ``peak``, the most during one sequence."""
    options = ["--net", net.name, "--row", row, "--steps", str(steps), "--device", str(device), "--mode", mode]
    command = [sys.executable, str(Path(__file__)), *options, "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {row} on {net.name} failed:\n{done.stderr}")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure_here(net: Net, training: Training, steps: int, device: torch.device) -> dict[str, int]:
    """Trains on sequences of ten steps until all is warm, then on the length in question."""
    # One frame shown at every step: the data take the same room at any length.
    frame, y = net.data(1, device)
    for _ in range(3):
        training.train(frame.expand(10, *frame.shape[1:]), y)
    gc.collect()
    _reset_peak(device)
    base = _peak(device)
    training.train(frame.expand(steps, *frame.shape[1:]), y)
    return {"base": base, "peak": _peak(device)}


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (counters := Path("/proc/self/clear_refs")).exists():
        counters.write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux begins with the size of the process that started this one.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the peak since the start, where there is no /proc


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of this process for one row; started by run.py.")
    for name in ("net", "row", "device", "mode"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("steps", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options: Any = parser.parse_args()
    torch.set_flush_denormal(True)  # states that decay would slow down every row
    torch.set_num_threads(options.threads)
    net = next(net for net in networks(options.mode) if net.name == options.net)
    device = torch.device(options.device)
    training = CONTENDERS[options.row].prepare(net, device)
    print(json.dumps(measure_here(net, training, options.steps, device)))


if __name__ == "__main__":
    main()
