"""The table of a benchmark run, from its JSON alone."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from contenders import CHANNELS_LAST, COMPILE, CONTENDERS, EAGER, GRAPH
from floors import BARE, FLOORS

Figures = dict[str, Any]
Record = dict[str, Any]
MIB = 2**20
ROWS = [*CONTENDERS, *FLOORS]


def write(figures: Figures, out: Path) -> Path:
    """Writes ``table.md``; returns its path."""
    table = out / "table.md"
    table.write_text("\n\n".join(_sections(figures)) + "\n")
    return table


def select(figures: Figures, part: str) -> dict[str, list[Record]]:
    """The records of one part by network, in the order of the rows."""
    chosen: dict[str, list[Record]] = {}
    for record in sorted(figures["records"], key=lambda record: ROWS.index(record["row"])):
        if record["part"] == part:
            chosen.setdefault(record["net"], []).append(record)
    return {net: chosen[net] for net in figures["networks"] if net in chosen}


def best_of_ours(records: list[Record]) -> str | None:
    """The way of ours that a user would take of those run: CUDA graph, else compiled, else eager."""
    run = [record["row"] for record in records if "ms" in record]
    return next((name for name in (GRAPH, CHANNELS_LAST, COMPILE, EAGER) if name in run), None)


def p10(values: list[float]) -> float:
    """The tenth percentile: what the row takes when nothing disturbs it."""
    return sorted(values)[len(values) // 10]


def _sections(figures: Figures) -> list[str]:
    # Later runs replace what they measured again; a network's part is that of the last run that names it.
    sections = [
        "# Benchmarks",
        "Runs, a later one in place of what it measured again:",
        "\n".join(map(_machine, figures["machines"])),
    ]
    for title, part, lines in (
        ("Time per update", "nets", _updates),
        ("Time per step over the length of the sequence", "time", _lengths),
        ("Bytes saved for the backward pass", "saved", _saved),
        ("Peak memory of a fresh process", "resident", _resident),
    ):
        tables = select(figures, part)
        if tables:
            sections.append(f"## {title}")
        for net, records in tables.items():
            size = figures["networks"][net]
            sections.append(f"**{net}**, batch {size['batch']}, {size['parameters']:,} parameters")
            sections += lines(records)
    notes = sorted({(record["row"], note) for record in figures["records"] for note in record.get("notes", ())})
    if notes:
        sections += ["## Warnings", "\n".join(f"* {row}: {' '.join(note.split())}" for row, note in notes)]
    return sections


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("fptt_plugin", "torch", "snntorch", "spikingjelly"))
    return (
        f"* `{machine['command']}`: {machine['device']}, {machine['threads']} threads, float32, matmul precision "
        f"{machine['float32_matmul_precision']!r}; {versions}, Python {machine['python']}; {machine['date'][:10]}"
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _updates(records: list[Record]) -> list[str]:
    """Median and p10; ratios are medians over the rounds."""
    times = {record["row"]: record["ms"] for record in records if "ms" in record}
    references = [name for name in (BARE, best_of_ours(records)) if name in times]
    rows = []
    for record in records:
        if "ms" not in record:
            rows.append([record["row"], f"not run: {record['not_run']}", "", *("" for _ in references)])
            continue
        ratios = [_ratio(record["ms"], times[name]) for name in references]
        rows.append([record["row"], f"{median(record['ms']):.3g}", f"{p10(record['ms']):.3g}", *ratios])
    rounds, steps = max(map(len, times.values())), next(record["T"] for record in records if "ms" in record)
    caption = f"ms per update (BPTT: per step), sequences of {steps} steps, {rounds} rounds."
    return [caption, _table(["", "median", "p10", *(f"÷ {name}" for name in references)], rows)]


def _ratio(values: list[float], reference: list[float]) -> str:
    return f"{median(one / other for one, other in zip(values, reference, strict=True)):.2f}"


def _lengths(records: list[Record]) -> list[str]:
    def cell(record: Record) -> str:
        per_step = median(record["ms"])
        return f"{per_step:.3g} ({per_step * record['T'] / 1000:.3g} s)"

    return ["Median ms per step (and seconds per sequence).", _by_length(records, "ms", cell)]


def _saved(records: list[Record]) -> list[str]:
    return [
        "MiB; what lies inside compiled code, or is recomputed, cannot be counted.",
        _by_length(records, "bytes", lambda record: f"{record['bytes'] / MIB:.3g}"),
    ]


def _resident(records: list[Record]) -> list[str]:
    def cell(record: Record) -> str:
        return f"{record['peak'] / MIB:.1f} ({(record['peak'] - record['base']) / MIB:+.1f})"

    return ["MiB at the peak (and above the warm process before it).", _by_length(records, "peak", cell)]


def _by_length(records: list[Record], key: str, cell: Any) -> str:
    """A row of the table per row, a column per length; what was not run says why."""
    lengths = sorted({record["T"] for record in records if "T" in record})
    rows: dict[str, dict[int, str]] = {}
    for record in records:
        text = cell(record) if key in record else f"not run: {record['not_run']}"
        cells = rows.setdefault(record["row"], {})
        cells.update(dict.fromkeys([record["T"]] if "T" in record else lengths, text))
    table = [[name, *(cells.get(steps, "") for steps in lengths)] for name, cells in rows.items()]
    return _table(["", *(f"T = {steps}" for steps in lengths)], table)
