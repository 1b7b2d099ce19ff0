"""Results of a run: ``result.json`` and ``epochs.csv``, rewritten after every epoch, and ``curves.png`` at the end."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import resource
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _measure import device_name, versions
from models import parameter_count

if TYPE_CHECKING:
    from _experiment import Experiment

# A run goes on with other values of these.
FREE = (
    "epochs",
    "iterations",
    "max_minutes",
    "out",
    "data_dir",
    "threads",
    "device",
    "resume",
    "accelerate",
    "test_every",
    "test_only",
    "recalibrate",
)


class Results:
    """Collects one record per epoch and writes them.

    Args:
        folder: Where to; made if need be.
        experiment: The task.
        options: Its command line.

    Raises:
        ValueError: If the folder holds the results of other settings.
    """

    def __init__(self, folder: Path, experiment: Experiment, options: argparse.Namespace) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.metric = getattr(experiment.score or experiment.metric, "__name__", "metric")
        self.higher_is_better = experiment.higher_is_better
        self.settings = {name: _plain(value) for name, value in vars(options).items()}
        self._check_folder()
        self.records: list[dict[str, Any]] = []
        self.commands: list[str] = []
        self.status = "running"
        device = torch.device(options.device)
        self.notes: dict[str, Any] = {
            "task": experiment.task,
            "variant": experiment.variant,
            "network": str(experiment.net),
            "parameters": parameter_count(experiment.net),
            "higher_is_better": experiment.higher_is_better,
            "machine": {
                "device": str(device),
                "name": device_name(device),
                "threads": options.threads,
                "cores": os.cpu_count(),
            },
            "versions": versions(),
            **experiment.notes,
        }

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.records)

    def go_on(self) -> None:
        """Continues the folder's results."""
        before = json.loads((self.folder / "result.json").read_text())
        self.records, self.commands, self.status = before["records"], before["commands"], before["status"]
        self.notes["saved_for_backward_bytes"] = before["saved_for_backward_bytes"]

    def _check_folder(self) -> None:
        """Refuses a folder with the results of other settings: they are not to be lost, nor mixed with these."""
        file = self.folder / "result.json"
        kept = json.loads(file.read_text())["settings"] if file.exists() else self.settings
        free = FREE if self.settings.get("schedule") != "cosine" else FREE[1:]  # the number of epochs shapes the cosine
        names = kept.keys() | self.settings.keys()
        changed = sorted(name for name in names - set(free) if kept.get(name) != self.settings.get(name))
        if changed:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({', '.join(changed)}): give the same options, choose "
                "another folder with --out, or delete this one"
            )

    def add(self, record: dict[str, Any], status: str) -> None:
        """Takes in one epoch, prints it and writes everything."""
        record["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if self.settings["device"] != "cpu":
            record["peak_device_mib"] = torch.cuda.max_memory_allocated() // 2**20
        self.records.append(record)
        done = record["updates"] - (self.records[-2]["updates"] if len(self.records) > 1 else 0)
        record["ms_per_update"] = 1000 * record["seconds"] / max(done, 1)
        print(
            f"epoch {record['epoch']:3}: loss {record['loss']:.4f}, {self.metric} train {record['train']:.4f}, "
            f"test {record['test']:.4f} (W_bar), {record['test_w']:.4f} (W), firing {_percent(record['firing_rate'])}, "
            f"{record['seconds']:.1f} s, {record['ms_per_update']:.2f} ms per update",
            flush=True,
        )
        self.write(status)

    def replace_test(self, figures: dict[str, float]) -> None:
        """Puts another test of the last checkpoint in the place of its last one."""
        self.records[-1].update(figures)
        print(f"tested again after epoch {self.epochs}: {self.metric} {figures['test']:.4f}")
        self.write(self.status)

    def write(self, status: str) -> None:
        """Writes JSON and CSV, each by way of a neighbor, so that nobody meets half a file."""
        pick = max if self.higher_is_better else min
        tested = [record for record in self.records if math.isfinite(_number(record["test"]))]
        content = {
            **self.notes,
            "status": status,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": self.settings,
            "commands": [*self.commands, shlex.join(["python", *sys.argv])],
            "metric": self.metric,
            "final": self.records[-1] if self.records else None,
            "best": pick(tested, key=lambda record: record["test"]) if tested else None,
            "seconds": sum(record["seconds"] for record in self.records),
            "cpu_seconds": sum(record["cpu_seconds"] for record in self.records),
            "records": self.records,
        }
        _replace(self.folder / "result.json", json.dumps(_finite(content), indent=1) + "\n")
        with (self.folder / "epochs.csv").open("w", newline="") as file:
            names = [name for name in self.records[0] if name != "firing_rates"] if self.records else ["epoch"]
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.records)

    def close(self) -> None:
        """Draws the curves; says so if the network hardly fired."""
        if not self.records:
            return
        if self.records[-1]["firing_rate"] < 0.001:
            print("warning: fewer than 0.1 % of the neurons fire per step: what learned here hardly uses spikes")
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        epochs = [record["epoch"] for record in self.records]
        left.plot(epochs, [record["loss"] for record in self.records])
        left.set(xlabel="epoch", ylabel="training loss", title=self.folder.name)
        for name, label in (("train", "while training"), ("test", "test, W_bar"), ("test_w", "test, W")):
            right.plot(epochs, [record[name] for record in self.records], label=label)
        right.set(xlabel="epoch", ylabel=self.metric)
        right.legend()
        for axes in (left, right):
            axes.grid(alpha=0.3)
        figure.savefig(self.folder / "curves.png", dpi=100)
        plt.close(figure)
        print(f"results: {self.folder}")


def _percent(rate: float | None) -> str:
    return "none" if rate is None or math.isnan(rate) else f"{100 * rate:.2f} %"


def _number(value: float | None) -> float:
    """A figure of a record; one that went through JSON has ``None`` for NaN."""
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    """The same with ``None`` for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    neighbor = path.with_suffix(".tmp")
    neighbor.write_text(text)
    neighbor.replace(path)
