"""Time per step and memory over the length of the sequence, from the benchmark's file."""

from __future__ import annotations

from statistics import median
from typing import Any

MIB = 2**20
BPTT = ("snnTorch BPTT", "SpikingJelly BPTT")
HEADS = ["T", "FPTT, eager", "FPTT, compiled", "BPTT", "FPTT saves", "BPTT saves"]


def costs(benchmarks: dict[str, Any], net: str) -> str:
    """The table of one network in Markdown: a row for each length, what was not run left empty.

    Raises:
        ValueError: If the benchmark does not have that network.
    """
    found = [record for record in benchmarks["records"] if record["net"] == net]
    if not found:
        raise ValueError(f"the page asks for the costs of {net!r}: there are {', '.join(benchmarks['networks'])}")

    def cell(part: str, rows: tuple[str, ...], length: int, unit: str) -> str:
        for record in found:
            if record["part"] == part and record["row"] in rows and record.get("T") == length:
                if "ms" in record:
                    return f"{median(record['ms']):.2f} {unit}"
                if "bytes" in record:
                    return f"{record['bytes'] / MIB:.3g} {unit}"
                return str(record["not_run"])
        return "not run"

    lengths = sorted({record["T"] for record in found if record["part"] in ("time", "saved") and "T" in record})
    lines = [HEADS, ["---:"] * len(HEADS)]
    for length in lengths:
        times = [cell("time", rows, length, "ms") for rows in (("ours, eager",), ("ours, compiled",), BPTT)]
        saved = [cell("saved", rows, length, "MiB") for rows in (("ours, eager",), BPTT)]
        lines.append([str(length), *times, *saved])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
