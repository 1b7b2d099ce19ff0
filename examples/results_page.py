"""Tables and pictures of the paper's experiments, made from their JSON files and nothing else.

    python examples/results_page.py --collect runs      # first copy what was run to docs/results, made small
    python examples/results_page.py                     # fill in docs/results.md, draw docs/images/results_*.png

The page is written by hand but for what stands between ``<!-- table NAME -->`` or ``<!-- commands NAME -->`` and
``<!-- end -->``, which is replaced; running the script again changes nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from _result_files import Row, Run, collect, load, rows
from _result_plots import draw

MIB = 2**20


class Table(NamedTuple):
    """One table of the page.

    Attributes:
        where: Settings of its runs; a tuple: any of these.
        columns: Settings that tell rows apart beside the arm.
        paper: The paper's figure, for the rows that it is about (FPTT with liquid neurons).
        last: The score is the mean of that many evaluations at the end of a run.
        equal_time: Show the score at equal CPU time, too: that of the quickest row's whole run.
    """

    where: dict[str, Any]
    columns: tuple[str, ...] = ()
    paper: str = "none"
    last: int = 1
    equal_time: bool = False


PLAIN = {"norm": (None, "none"), "spread": (None, False)}  # None: runs from before there was the option
ADDING: dict[str, Any] = {"task": "adding", "readout": "membrane", "library": "snntorch", **PLAIN}
LTC = {**ADDING, "neuron": "ltc"}
PIXELS: dict[str, Any] = {"task": "sequential_mnist", "permuted": False, **PLAIN}
PERMUTED: dict[str, Any] = {"task": "sequential_mnist", "permuted": True, "dataset": "mnist", **PLAIN}
NORMALIZED: dict[str, Any] = {"task": "sequential_mnist", "dataset": "mnist", "recipe": "normalized"}
WHOLE = {"norm": "step", "norm_gamma": 1.0, "spread": True, "no_auxiliary": True}  # the recipe, nothing left out
STEP: dict[str, Any] = {**NORMALIZED, **WHOLE, "window": (14, 28)}
SHORT = {"steps": 196, "subset": 10_000, "epochs": 8}
PARTS: dict[str, Any] = {**NORMALIZED, **SHORT, "permuted": False, "method": "fptt", "alpha": 0.1, "lr": 0.003}
NMNIST: dict[str, Any] = {"task": ("dvs_gesture", "event_counts"), "dataset": "nmnist"}
SOLVED = "Fig. 3: solved"
TABLES = {
    "adding-0.1": Table({**LTC, "length": 100, "threshold": 0.1}, last=4, paper=SOLVED),
    "adding-0.5": Table({**LTC, "length": 100, "threshold": 0.5}, last=4, paper=SOLVED),
    "adding-long": Table({**LTC, "length": (200, 500, 1000), "threshold": 0.1}, ("length",), last=4, paper=SOLVED),
    "adding-normalized": Table(
        {"task": "adding", "neuron": "ltc", "recipe": "normalized"}, ("length", "iterations"), last=4, paper=SOLVED
    ),
    "adding-neurons": Table({**ADDING, "threshold": 0.1, "method": "fptt", "alpha": 0.5}, ("neuron", "length"), last=4),
    "window": Table({**PIXELS, "dataset": "digits", "epochs": 30}, ("window", "lr"), equal_time=True),
    "window-long": Table(
        {**PIXELS, "dataset": "mnist", "steps": 196, "subset": 10_000, "epochs": 8}, ("window", "lr"), equal_time=True
    ),
    "normalized": Table({**STEP, **SHORT, "permuted": False, "window": 14}, ("lr",)),
    "normalized-parts": Table({**PARTS, "window": 14}, ("norm", "norm_gamma", "spread")),
    "normalized-window": Table({**PARTS, **WHOLE}, ("window",)),
    "normalized-permuted": Table({**STEP, **SHORT, "permuted": True}, ("lr",)),
    "normalized-full": Table({**STEP, "steps": 784, "permuted": False}, ("hidden", "lr", "epochs"), paper="97.37 %"),
    "normalized-permuted-full": Table(
        {**STEP, "steps": 784, "permuted": True}, ("hidden", "lr", "epochs"), paper="94.77 %"
    ),
    "rmnist": Table(
        {"task": ("rate_mnist", "rate_counts"), "dataset": "mnist"},
        ("library", "subset", "epochs", "window", "batch_size", "lr"),
        paper="98.63 %",
    ),
    "smnist": Table({**PIXELS, "dataset": "mnist", "steps": 784}, ("window", "lr", "epochs"), paper="97.37 %"),
    "psmnist": Table({**PERMUTED, "steps": 784}, ("window", "lr", "epochs"), paper="94.77 %"),
    "psmnist-half": Table({**PERMUTED, "steps": 196}, ("window", "lr", "epochs")),
    "ecg": Table({"task": "ecg_stream", "steps": 1301, **PLAIN}, ("window", "lr", "epochs"), equal_time=True),
    "ecg-normalized": Table({"task": "ecg_stream", "steps": 1301, "recipe": "normalized"}, ("lr",)),
    "lengths": Table(
        {"task": "ecg_stream", "epochs": 6, "method": ("fptt", "bptt"), **PLAIN},
        ("steps", "window", "lr"),
        paper="Table 2: flat for FPTT",
    ),
    "nmnist": Table({**NMNIST, "frames": (1, 20)}, ("lr",)),
    "detection": Table({"task": "detection", "dataset": "bccd", "norm": None}, ("lr", "epochs")),
    "detection-twin": Table(
        {"task": "detection", "dataset": "bccd", "norm": "none"},
        ("rectifiers", "maps", "augment", "recalibrate", "lr", "epochs"),
    ),
}


class Task(NamedTuple):
    """A row of the summary: one task, each arm at its own best learning rate.

    Attributes:
        name: As the reader sees it.
        where: Settings of its runs.
        paper: The paper's figure.
        says: What the row says, in one sentence.
        last: As in :class:`Table`.
    """

    name: str
    where: dict[str, Any]
    paper: str
    says: str
    last: int = 1


def _adding(length: int, says: str) -> Task:
    return Task(f"Adding, T = {length}", {**LTC, "length": length, "threshold": 0.1}, "solved", says, last=4)


SUMMARY = [
    _adding(100, "eps does what the regularizer does"),
    _adding(200, "the same; BPTT is far behind by this number of iterations"),
    _adding(500, "unfinished, and level"),
    *(
        Task(f"the same, normalized, T = {length}", {"task": "adding", "recipe": "normalized", "length": length},
             "solved", says, last=4)
        for length, says in (
            (200, "one seed"),
            (500, "400 iterations learn what 800 did not; level"),
            (1000, "it learns, and is not done"),
        )
    ),
    Task("digits pixel by pixel, T = 64, window 8 (BPTT: T)", {**PIXELS, "dataset": "digits", "epochs": 30,
         "window": (1, 8)}, "none", "level; FPTT trains at a wider range of learning rates"),
    Task("S-MNIST at half size, T = 196, 10 000 images, window 16", {**PIXELS, **SHORT, "dataset": "mnist",
         "window": (1, 16)}, "none", "the regularizer or eps gain over alpha = 0"),
    Task("the same, normalized, window 14", {**STEP, **SHORT, "permuted": False, "window": 14}, "none",
         "all arms gain; FPTT is three points ahead of both controls"),
    Task("the same, pixels permuted", {**STEP, **SHORT, "permuted": True}, "none", "FPTT ahead of alpha = 0 each time"),
    Task("S-MNIST, T = 784, not normalized", {**PIXELS, "dataset": "mnist", "steps": 784}, "97.4 %",
         "five epochs; the authors normalize every step"),
    Task("the same, normalized, 128 neurons, 10 epochs", {**STEP, "steps": 784, "permuted": False},
         "97.4 %", "one seed each: FPTT is four points ahead of eps, and nine of alpha = 0"),
    Task("the same, pixels permuted, T = 784", {**STEP, "steps": 784, "permuted": True}, "94.8 %",
         "one seed each: FPTT is 14 points ahead of alpha = 0; still learning"),
    Task("R-MNIST, 20 epochs", {"task": "rate_mnist", "dataset": "mnist", "epochs": 20, **PLAIN}, "98.6 %",
         "a ReLU network on the spike counts has 98.3 %"),
    Task("ECG, T = 1301, window 10 (BPTT: T)", {"task": "ecg_stream", "steps": 1301, "epochs": 6, **PLAIN}, "none",
         "the regularizer makes no difference"),
    Task("the same, normalized", {"task": "ecg_stream", "steps": 1301, "recipe": "normalized"}, "none",
         "nothing gained in six epochs; at lr 0.01 the seeds lie 14 points apart"),
    Task("N-MNIST, 1 000 recordings", {**NMNIST, "frames": 20, "task": "dvs_gesture"}, "none",
         "level within the spread of the seeds, three to four points"),
    Task("blood cells (detection), 16 epochs", {"task": "detection", "epochs": 16, "norm": None}, "none",
         "the regularizer lowers the score"),
    Task("the same, three maps, 96 epochs", {"task": "detection", "epochs": 96, "maps": 3}, "none",
         "level at alpha = 0.01; a ReLU network has 65.5 % after 64 epochs"),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).parents[1] / "docs"
    parser.add_argument("--collect", type=Path, metavar="RUNS", help="copy result.json files from below that folder")
    parser.add_argument("--results", type=Path, default=docs / "results")
    parser.add_argument("--page", type=Path, default=docs / "results.md")
    parser.add_argument("--images", type=Path, default=docs / "images")
    options = parser.parse_args()
    if options.collect:
        print(f"{collect(options.collect, options.results)} runs copied to {options.results}")
    try:
        runs = load(options.results)
        options.page.write_text(fill(options.page.read_text(), runs))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    draw({name: table_rows(table, runs) for name, table in TABLES.items()}, options.images)


def fill(page: str, runs: list[Run]) -> str:
    """The page with every table and list of commands made again.

    Raises:
        ValueError: If the page asks for a table that there is not.
    """

    def replace(found: re.Match[str]) -> str:
        kind, name = found["kind"], found["name"]
        if (kind, name) == ("table", "summary"):
            return f"<!-- table summary -->\n{summary(runs)}\n<!-- end -->"
        if name not in TABLES:
            raise ValueError(f"the page asks for a table {name!r}: there are {', '.join(TABLES)}")
        make = markdown_table if kind == "table" else commands
        return f"<!-- {kind} {name} -->\n{make(TABLES[name], runs)}\n<!-- end -->"

    return re.sub(r"<!-- (?P<kind>table|commands) (?P<name>\S+) -->\n.*?<!-- end -->", replace, page, flags=re.DOTALL)


def table_rows(table: Table, runs: list[Run]) -> list[Row]:
    """The rows of a table.

    Raises:
        ValueError: If two runs of a row have the same seed: they differ in something that the table does not show.
    """
    found = rows(runs, table.where, table.columns)
    for row in found:
        seeds = [run["settings"]["seed"] for run in row.runs]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{row.label}: seeds {seeds}; add the setting in which these runs differ to the columns")
    return found


def markdown_table(table: Table, runs: list[Run]) -> str:
    """The table in Markdown; says so if none of its runs was made."""
    found = table_rows(table, runs)
    if not found:
        return "Not run."
    budget = min(row.cpu_seconds() for row in found)
    heads = ["", "paper", "ours", "best score", "n", "CPU time", "updates", "firing rate", "parameters", "saved bytes"]
    if table.equal_time:
        heads.insert(4, f"at {budget:.0f} s")
    cells = [_cells(row, table, budget) for row in found]
    # A paper without figures, and a network of one size, need no column.
    shown = [
        i for i, head in enumerate(heads) if head not in ("paper", "parameters") or _tells(row[i] for row in cells)
    ]
    # Cells of one number stand at the right; those with a spread may wrap.
    rule = ["---:" if heads[i] in ("n", "CPU time", "updates", "firing rate", "saved bytes") else "---" for i in shown]
    lines = [[heads[i] for i in shown], rule, *([row[i] for i in shown] for row in cells)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _tells(cells: Iterable[str]) -> bool:
    """Whether a column has something to tell its rows apart, or the paper's figure."""
    return len(found := set(cells)) > 1 or not (found == {"none"} or next(iter(found)).isdigit())


def _cells(row: Row, table: Table, budget: float) -> list[str]:
    run = row.runs[0]
    show = percent if run["higher_is_better"] else decimal
    ours = "FPTT" in row.arm and run["settings"].get("neuron") == "ltc"
    updates, firing = row.mean("updates"), row.mean("firing_rate")
    label = row.label.replace(" = ", "\u00a0=\u00a0").replace("lr ", "lr\u00a0").replace("window ", "window\u00a0")
    cells = [label, table.paper if ours else "none", spread(row.scores(table.last), show)]
    cells += [spread(row.best(), show)]
    if table.equal_time:
        cells += [spread(row.scores_at(budget), show)]
    runs = f"{len(row.runs)} ({row.diverged()}\u00a0diverged)" if row.diverged() else str(len(row.runs))
    cells += [runs, f"{row.cpu_seconds():.0f} s"]
    cells += ["none" if updates is None else f"{updates:.0f}", "none" if firing is None else f"{100 * firing:.1f} %"]
    saved = run.get("saved_for_backward_bytes")
    return [*cells, str(run["parameters"]), "none" if saved is None else f"{saved / MIB:.3g} MiB"]


ARMS = ("FPTT", "alpha = 0", "alpha = 0, eps", "BPTT")


def summary(runs: list[Run]) -> str:
    """Each task in a row, each arm at its own best learning rate, and how many rates it had."""
    heads = ["", "paper", *ARMS, "CPU time of FPTT", "what it shows"]
    lines = [heads, ["---"] * len(heads)]
    for task in SUMMARY:
        found = rows(runs, task.where, ("lr", "window"))
        arms = [[row for row in found if _kind(row) == kind] for kind in ARMS]
        times = [best.cpu_seconds() for best in map(_best, arms[:1], [task.last]) if best is not None]
        time = f"{times[0] / 60:.0f} min" if times else "none"
        lines.append([task.name, task.paper, *(_arm_cell(arm, task.last) for arm in arms), time, task.says])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _kind(row: Row) -> str:
    """Which of ``ARMS`` a row belongs to."""
    settings = row.runs[0]["settings"]
    if settings["method"] == "tbptt":
        return "alpha = 0" if settings["eps"] in (None, "1e-8") else "alpha = 0, eps"
    return {"fptt": "FPTT", "bptt": "BPTT"}[settings["method"]]


def _best(found: list[Row], last: int) -> Row | None:
    """The row with the best mean score."""
    if not found:
        return None
    pick = max if found[0].runs[0]["higher_is_better"] else min
    return pick(found, key=lambda row: mean(row.scores(last)))


def _arm_cell(found: list[Row], last: int) -> str:
    best = _best(found, last)
    if best is None:
        return "not run"
    show = percent if best.runs[0]["higher_is_better"] else decimal
    return f"{show(mean(best.scores(last)))} (n\u00a0=\u00a0{len(best.runs)}, {len(found)}\u00a0tried)"


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Mean, and smallest and largest if there are several."""
    if not values:
        return "none"
    if len(values) == 1:
        return show(values[0])
    low, high = show(min(values)), show(max(values))
    return f"{show(mean(values))} ({low.removesuffix(UNIT)} to {high})"


UNIT = "\u00a0%"  # not to be broken from its number


def percent(value: float) -> str:
    return f"{100 * value:.1f}{UNIT}"


def decimal(value: float) -> str:
    return f"{value:.4f}"


def commands(table: Table, runs: list[Run]) -> str:
    """The command of each row's first run, with commits, dates and device, folded away."""
    found = table_rows(table, runs)
    if not found:
        return "None."
    members = [run for row in found for run in row.runs]
    days = sorted({run["date"][:10] for run in members})
    commits = sorted({run["versions"].get("commit", "unknown") for run in members})
    devices = sorted({f"{run['machine']['name']}, {run['machine']['threads']} thread" for run in members})
    lines = ["<details><summary>Commands, date, commit, device</summary>", "", "```bash"]
    for row in found:
        seeds = ", ".join(str(run["settings"]["seed"]) for run in row.runs)
        lines.append(f"{_command(row.runs[0])}  # seeds {seeds}")
    return "\n".join(
        [*lines, "```", "", f"{' to '.join(days)}; {', '.join(commits)}; {'; '.join(devices)}", "", "</details>"]
    )


def _command(run: Run) -> str:
    """The command that trained, and the one that tested again if there is one."""
    trained = [command for command in run["commands"] if "--test-only" not in command]
    tested = [command for command in run["commands"] if "--test-only" in command]
    return " && ".join(trained[-1:] + [command + " --resume" for command in tested[-1:]])


if __name__ == "__main__":
    main()
