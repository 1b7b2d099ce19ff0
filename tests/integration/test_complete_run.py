"""The complete run: killed in mid-epoch and started again, it ends as an uninterrupted one, for both libraries."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from nets import flat

EXAMPLES, EPOCHS = Path(__file__).parents[2] / "examples", 4


def command(library, folder):
    script = EXAMPLES / "complete_run.py"
    return [sys.executable, "-u", script, "--library", library, "--epochs", str(EPOCHS), "--folder", folder]


def run(library, folder, *, kill_after=None):
    """What a run prints; it is killed some time after it has printed the line of an epoch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(library, folder), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if kill_after is not None and line.startswith(f"epoch {kill_after}/"):
                while not (folder / "last.pt").exists() or len(history(folder)) < kill_after:
                    time.sleep(0.01)  # the line comes before the callback
                time.sleep(0.2)  # into the next epoch
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == (-signal.SIGKILL if kill_after else 0)
    return lines


def history(folder):
    return torch.load(folder / "last.pt")["trainer"]["fit"]["history"]


def logged(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_it_is_short():
    lines = (EXAMPLES / "complete_run.py").read_text().splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(library, tmp_path):
    pytest.importorskip("tensorboard")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lines = run(library, whole)
    assert len(lines) == EPOCHS
    assert len(run(library, killed, kill_after=2)) == 2
    assert len(history(killed)) == 2
    assert len(run(library, killed)) == EPOCHS - 2
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(folder / name) for folder in (whole, killed))
        for content in (one, other):
            for unseeded in ("python", "numpy"):
                del content["trainer"]["fit"]["random"][unseeded]
        for record in (*one["trainer"]["fit"]["history"], *other["trainer"]["fit"]["history"]):
            del record["seconds"]
        tensors, others = flat(one), flat(other)
        assert len(tensors) == len(others) > 20
        assert all(map(torch.equal, tensors, others))
        assert one["trainer"]["fit"]["history"] == other["trainer"]["fit"]["history"]
    records = history(whole)
    assert records[-1]["val_scores"]["accuracy"] > 0.8
    assert 0.05 < next(iter(records[-1]["firing_rates"].values())) < 0.5
    assert records[-1]["lr"] < 1e-6 < records[0]["lr"]
    for folder in (whole, killed):
        scalars = logged(folder)
        for tag, name in (("val/f1", "f1"), ("val/accuracy", "accuracy")):
            found = dict(scalars[tag])
            assert sorted(found) == [1, 2, 3, 4]
            assert [found[epoch] for epoch in sorted(found)] == pytest.approx([r["val_scores"][name] for r in records])


@pytest.mark.slow
def test_a_complete_run_has_nothing_left_to_do(tmp_path):
    pytest.importorskip("tensorboard")
    run("snntorch", tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    assert run("snntorch", tmp_path) == []
    assert (tmp_path / "last.pt").read_bytes() == before
