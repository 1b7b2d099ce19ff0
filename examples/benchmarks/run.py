"""Measures every way to train a spiking network side by side: time and memory, with floors, as JSON, table and plots.

    python examples/benchmarks/run.py
    python examples/benchmarks/run.py --quick                    # shorter, without the widest network
    python examples/benchmarks/run.py --only nets --nets "LTC-SRNN 512"
    python examples/benchmarks/run.py --only nets --nets "LTC-SRNN 512" --again  # replaces these in the results
    python examples/benchmarks/run.py --from-json results/benchmarks/benchmarks.json   # table and plots only

Times mean something on an otherwise idle machine only. On a busy one, ``--threads 1 --cpu-time`` counts the time that
the thread really ran; what others take of caches and memory is in it all the same. Within a network the rows take turns
in one process, a short block each, and ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plots
import report
import torch
from contenders import CHANNELS_LAST, COMPILE, CONTENDERS, GRAPH, Row, Training
from floors import COMPILED_UPDATE, FLOORS
from memory import backward_bytes, expected_bytes, peak_in_fresh_process
from networks import Net, networks
from shared import device_name, versions
from timing import forget, milliseconds_per_step

Record = dict[str, Any]
PARTS = ("nets", "time", "memory")
COVERS = {"nets": "nets", "time": "time", "saved": "memory", "resident": "memory"}


class Run:
    """One run: its options, and which rows a network can have in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.mode = "smoke" if options.smoke else "quick" if options.quick else "full"
        self.clock = time.thread_time if options.cpu_time else time.perf_counter
        self.most_bytes = int(options.max_gib * 2**30)
        self.nets = [net for net in networks(self.mode) if not options.nets or net.name in options.nets]
        self.parts = (options.only,) if options.only else PARTS
        self.absent: dict[str, str] = {}
        if self.device.type != "cuda":
            self.absent[GRAPH] = "no GPU"
        if self.mode == "smoke":
            self.absent |= dict.fromkeys((COMPILE, CHANNELS_LAST, COMPILED_UPDATE), "left out by --smoke")

    def records(self) -> Iterator[Record]:
        """Everything that is measured, network by network."""
        measures = {"nets": self._nets, "time": self._time, "memory": self._memory}
        for part in self.parts:
            measure = measures[part]
            for net in self.nets:
                print(f"{part}: {net.name}", flush=True)
                yield from measure(net)
                forget()

    def _rows(self, net: Net, rows: dict[str, Row]) -> dict[str, Row]:
        """Those for networks of that library that can run here."""
        return {name: row for name, row in self._all_rows(net, rows).items() if name not in self.absent}

    def _all_rows(self, net: Net, rows: dict[str, Row]) -> dict[str, Row]:
        return {name: row for name, row in rows.items() if row.suits(net)}

    def _absent(self, part: str, net: Net, rows: dict[str, Row]) -> Iterator[Record]:
        for name in self._all_rows(net, rows):
            if name in self.absent:
                yield {"part": part, "net": net.name, "row": name, "not_run": self.absent[name]}

    def _nets(self, net: Net) -> Iterator[Record]:
        """Time per update of every row, floors included."""
        rows = {**CONTENDERS, **FLOORS}
        yield from self._timed("nets", net, self._rows(net, rows), net.steps, net.seconds)
        yield from self._absent("nets", net, rows)

    def _time(self, net: Net) -> Iterator[Record]:
        """Time per step over the length of the sequence."""
        rows = {name: row for name, row in CONTENDERS.items() if row.over_time}
        for steps in net.lengths:
            fit = {}
            for name, row in self._rows(net, rows).items():
                if (needed := expected_bytes(net, row, steps, self.device)) > self.most_bytes:
                    yield {"part": "time", "net": net.name, "row": name, "T": steps, "not_run": _too_much(needed)}
                else:
                    fit[name] = row
            yield from self._timed("time", net, fit, steps, net.seconds / 4)
        if net.lengths:
            yield from self._absent("time", net, rows)

    def _timed(self, part: str, net: Net, rows: dict[str, Row], steps: int, seconds: float) -> Iterator[Record]:
        trainings = {name: row.prepare(net, self.device) for name, row in rows.items()}
        for name, (times, notes) in self._measured(net, trainings, steps, seconds).items():
            rounded = [float(f"{value:.4g}") for value in times]
            yield {"part": part, "net": net.name, "row": name, "T": steps, "ms": rounded, "notes": notes}

    def _measured(self, net: Net, trainings: dict[str, Training], steps: int, seconds: float) -> dict[str, Any]:
        return milliseconds_per_step(trainings, *net.data(steps, self.device), seconds, self.clock)

    def _memory(self, net: Net) -> Iterator[Record]:
        """Bytes saved for backward, and the peak of a fresh process, over the length of the sequence."""
        for name, row in self._rows(net, CONTENDERS).items():
            for part, lengths in (("saved", () if row.unseen else net.saved), ("resident", net.resident)):
                for steps in lengths:
                    needed = expected_bytes(net, row, steps, self.device)
                    record: Record = {"part": part, "net": net.name, "row": name, "T": steps}
                    if needed > self.most_bytes:
                        yield {**record, "not_run": _too_much(needed)}
                    elif part == "saved":
                        yield {**record, "bytes": backward_bytes(net, row, steps, self.device)}
                    else:
                        yield {**record, **peak_in_fresh_process(net, name, steps, self.device, self.mode)}


def _too_much(needed: int) -> str:
    return f"needs {needed / 2**30:.0f} GiB"


def conditions(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *_without_out(sys.argv)]),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the thread" if options.cpu_time else "wall clock",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "flush_denormal": True,
        **versions(),
    }


def _without_out(words: list[str]) -> list[str]:
    """Where the files went is nobody's business."""
    place = words.index("--out") if "--out" in words else len(words)
    return words[:place] + words[place + 2 :]


def networks_used(nets: list[Net]) -> dict[str, dict[str, int]]:
    """Batch and parameters by network."""
    sizes = {}
    for net in nets:
        weights = net.fresh(torch.device("cpu")).parameters()
        sizes[net.name] = {"batch": net.batch, "parameters": sum(weight.numel() for weight in weights)}
    return sizes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="shorter, without the widest network and the long sequences")
    size.add_argument("--smoke", action="store_true", help="toy networks, seconds: does it run?")
    parser.add_argument("--only", choices=PARTS, help="time per update by network, time over length, or memory")
    parser.add_argument("--nets", nargs="+", metavar="NAME", help="these networks only")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the one thread, in place of the clock: for a machine that is busy"
    )
    parser.add_argument("--max-gib", type=float, default=6, help="leave out what saves more for backward; default 6")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"), help="folder to write")
    parser.add_argument(
        "--again", action="store_true", help="measure again what is asked for, keep the rest of the results"
    )
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="write table and plots from an earlier run")
    options = parser.parse_args()
    known = [net.name for net in networks("smoke" if options.smoke else "full")]
    unknown = [name for name in options.nets or () if name not in known]
    if unknown:
        parser.error(f"--nets {unknown[0]!r} is unknown; choose from {', '.join(map(repr, known))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if options.cpu_time and (options.device != "cpu" or options.threads != 1):
        parser.error("--cpu-time is that of one thread on a CPU: pass --threads 1")
    if options.from_json and not options.from_json.is_file():
        parser.error(f"--from-json {options.from_json}: no such file")
    if options.again and not (options.out / "benchmarks.json").is_file():
        parser.error(f"--again: there are no results in {options.out} yet")
    return options


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.from_json:
        figures = json.loads(options.from_json.read_text())
    else:
        torch.set_flush_denormal(True)  # states that decay would slow down every row
        if options.threads:
            torch.set_num_threads(options.threads)
        run = Run(options)
        file = options.out / "benchmarks.json"
        figures = {"machines": [], "networks": {}, "records": []}
        if options.again:
            figures = json.loads(file.read_text())
            names = [net.name for net in run.nets]
            old = [
                record
                for record in figures["records"]
                if record["net"] in names and COVERS[record["part"]] in run.parts
            ]
            figures["records"] = [record for record in figures["records"] if record not in old]
        figures["machines"].append(conditions(run.device, options))
        figures["networks"] |= networks_used(run.nets)
        for record in run.records():
            figures["records"].append(record)
            file.write_text(json.dumps(figures, indent=1) + "\n")  # nothing is lost
    for path in (report.write(figures, options.out), *plots.draw(figures, options.out)):
        print(path)


if __name__ == "__main__":
    main()
