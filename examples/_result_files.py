"""Files of finished runs: made small, read again, and grouped into the rows of a table."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

Run = dict[str, Any]
RECORD = ("epoch", "lr", "loss", "train", "test", "test_w", "firing_rate", "seconds", "cpu_seconds", "updates")
LOCAL = ("out", "data_dir", "cache_dir", "resume", "smoke", "milestones", "max_minutes", "threads")


def collect(runs: Path, results: Path) -> int:
    """Copies every ``result.json`` below ``runs``, made small, to one flat folder; returns how many.

    Smoke tests and runs without a finished epoch stay behind.
    """
    results.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(runs.rglob("result.json")):
        run = json.loads(path.read_text())
        if run["records"] and not run["settings"]["smoke"] and run["status"] != "running":
            name = "-".join(path.relative_to(runs).parts[:-1])
            (results / f"{name}.json").write_text(_one_record_per_line(slim(run)))
            count += 1
    return count


def slim(run: Run) -> Run:
    """What a table or picture needs, and what says where it came from; without paths of the machine."""
    small = {name: run[name] for name in run if name not in ("network", "final", "best", "seconds", "cpu_seconds")}
    small["settings"] = {name: value for name, value in run["settings"].items() if name not in LOCAL}
    small["commands"] = [_without_places(command) for command in run["commands"]]
    small["records"] = [{name: _short(record[name]) for name in RECORD if name in record} for record in run["records"]]
    return small


def _without_places(command: str) -> str:
    """The command without where its files lie."""
    words = iter(shlex.split(command))
    kept: list[str] = []
    for word in words:
        if word in ("--out", "--cache-dir", "--data-dir"):
            next(words)
        elif word != "--resume":
            kept.append(word)
    return shlex.join(kept)


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _one_record_per_line(run: Run) -> str:
    records = ",\n".join("  " + json.dumps(record) for record in run["records"])
    rest = json.dumps({name: value for name, value in run.items() if name != "records"}, indent=1)
    return f'{rest[:-2]},\n "records": [\n{records}\n ]\n}}\n'


def load(results: Path) -> list[Run]:
    """All runs of the folder.

    Raises:
        FileNotFoundError: If there are none.
    """
    paths = sorted(results.glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no result files in {results}: run the experiments, then --collect their folder")
    return [json.loads(path.read_text()) for path in paths]


def setting(run: Run, name: str) -> Any:
    """A setting of a run, or another of its entries."""
    return run["settings"].get(name, run.get(name))


def arm(run: Run) -> str:
    """How a run trains, in words."""
    return _method(run) + ", no auxiliary term" * bool(setting(run, "no_auxiliary"))


def _method(run: Run) -> str:
    method: str = setting(run, "method")
    if method == "bptt":
        return "BPTT"
    if method not in ("fptt", "tbptt"):
        return method  # nothing is trained through time
    name = f"FPTT, alpha = {setting(run, 'alpha'):g}" if method == "fptt" else "alpha = 0"
    eps = setting(run, "alpha") * setting(run, "lr") if setting(run, "eps") == "auto" else float(setting(run, "eps"))
    return name + (f", eps = {eps:g}" if eps != 1e-8 else "")


class Row(NamedTuple):
    """Runs that differ in nothing but the seed.

    Attributes:
        arm: How they train.
        values: Further settings that tell the row apart.
        runs: The runs.
    """

    arm: str
    values: tuple[str, ...]
    runs: list[Run]

    @property
    def label(self) -> str:
        return ", ".join((self.arm, *self.values))

    def scores(self, last: int = 1) -> list[float]:
        """Score of each run: mean of its last evaluations."""
        return [mean(record["test"] for record in tested(run)[-last:]) for run in self.runs]

    def best(self) -> list[float]:
        """Best evaluation of each run."""
        pick = max if self.runs[0]["higher_is_better"] else min
        return [pick(record["test"] for record in tested(run)) for run in self.runs]

    def mean(self, name: str) -> float | None:
        """Mean of an entry of the last record; ``None`` where there is none."""
        values = [run["records"][-1].get(name) for run in self.runs]
        return None if None in values else mean(values)

    def diverged(self) -> int:
        """How many of the runs broke off because something was not finite."""
        return sum(run["status"].startswith("diverged") for run in self.runs)

    def cpu_seconds(self) -> float:
        """Mean time of a run."""
        return mean(curve(run, "cpu_seconds")[-1] for run in self.runs)

    def scores_at(self, cpu_seconds: float) -> list[float]:
        """Score of each run after that much time: its last evaluation by then."""
        found = []
        for run in self.runs:
            reached = [
                record["test"]
                for record, at in zip(run["records"], curve(run, "cpu_seconds"), strict=True)
                if record["test"] is not None and at <= 1.01 * cpu_seconds  # times of a run vary by a few percent
            ]
            found += reached[-1:]
        return found


def tested(run: Run) -> list[dict[str, Any]]:
    """The records of the epochs that were tested, see ``--test-every``."""
    return [record for record in run["records"] if record["test"] is not None]


def curve(run: Run, name: str) -> list[float]:
    """Running sum of an entry over the epochs."""
    total, sums = 0.0, []
    for record in run["records"]:
        total += record[name]
        sums.append(total)
    return sums


def rows(runs: list[Run], where: dict[str, Any], columns: tuple[str, ...]) -> list[Row]:
    """Runs with those settings (a tuple: any of these), grouped by arm and the values of ``columns``."""
    groups: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        if all(_fits(setting(run, name), value) for name, value in where.items()):
            given = (name for name in columns if setting(run, name) not in (None, False))
            values = tuple(_value(run, name) for name in given)
            groups.setdefault((arm(run), values), []).append(run)
    ordered = sorted(groups.items(), key=lambda item: (list(map(_in_order, item[0][1])), _place(item[1][0])))
    return [Row(arm, values, members) for (arm, values), members in ordered]


def at_best_rate(found: list[Row]) -> list[Row]:
    """Of rows that differ in the learning rate alone, the one with the best mean score."""
    best: dict[tuple[str, tuple[str, ...]], Row] = {}
    for row in found:
        key = row.arm, tuple(value for value in row.values if not value.startswith("lr "))
        sign = 1 if row.runs[0]["higher_is_better"] else -1
        if key not in best or sign * mean(row.scores()) > sign * mean(best[key].scores()):
            best[key] = row
    return list(best.values())


def _in_order(value: str) -> tuple[str, float]:
    """Sorts window 8 before window 16."""
    name, _, number = value.rpartition(" ")
    try:
        return name, float(number)
    except ValueError:
        return value, 0.0


def _fits(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, tuple) else bool(found == wanted)


def _value(run: Run, name: str) -> str:
    value = setting(run, name)
    if name == "window":
        return "window T" if setting(run, "method") == "bptt" else f"window {value}"
    if value is True:
        return name
    if name == "norm":
        return f"norm {value}"
    return f"{name} {value:g}" if isinstance(value, int | float) else str(value)


def _place(run: Run) -> tuple[int, float]:
    """FPTT first, by alpha, then the controls."""
    method = setting(run, "method")
    order = {"fptt": 0, "tbptt": 1, "bptt": 3}.get(method, 4)
    return order + (method == "tbptt" and setting(run, "eps") == "auto"), -float(setting(run, "alpha") or 0)
