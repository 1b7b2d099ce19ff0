"""Logistic regression on the logarithm of event counts per pixel: what recordings tell without their timing.

    python examples/event_counts.py --dataset nmnist

The floor for ``dvs_gesture.py``: a network that does no better has not used time. Writes the same files.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _event_files import write_recordings
from _event_task import add_event_options, recordings
from _experiment import Experiment
from _options import base_parser, parse
from _results import Results
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn


def event_counts(train: bool, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Events per pixel and polarity ``[N, pixels]``, the whole recording in one frame, and labels ``[N]``."""
    found: list[Any] = list(recordings(train, options))
    counts = torch.stack([torch.as_tensor(frames).sum(dim=0).flatten().float() for frames, _ in found])
    return counts, torch.tensor([label for _, label in found])


def main() -> None:
    parser = base_parser(__doc__)
    add_event_options(parser, "dvs_gesture", frames=1)
    options = parse(parser, write_recordings)
    options.downsample = options.downsample or 1
    options.method, options.device = "logistic regression", "cpu"
    begin = time.process_time()
    (x, y), (x_test, y_test) = event_counts(True, options), event_counts(False, options)
    model = LogisticRegression(max_iter=1000).fit(x.log1p(), y)  # a few pixels fire ten times as often as the rest
    seconds = time.process_time() - begin
    net = nn.Linear(x.shape[1], len(model.classes_))  # stands for the model, which has as many parameters
    task = Experiment("event_counts", options.dataset, net, nn.CrossEntropyLoss(), lambda generator: [], lambda: [])
    results = Results(options.out or Path("runs", "event_counts", options.dataset), task, options)
    score, train_score = (float(model.score(part.log1p(), labels)) for part, labels in ((x_test, y_test), (x, y)))
    nothing = {"loss": None, "firing_rate": None, "updates": 0, "lr": None}
    record = {"epoch": 1, "train": train_score, "test": score, "seconds": seconds, "cpu_seconds": seconds, **nothing}
    results.records.append(record)
    results.write("finished")
    print(f"logistic regression on event counts: test accuracy {100 * score:.1f} %\nresults: {results.folder}")


if __name__ == "__main__":
    main()
