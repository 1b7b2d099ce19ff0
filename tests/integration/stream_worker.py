"""A training process for ``test_streams.py``: a stream with all that a checkpoint must hold.

stream_worker.py train FOLDER UPDATES    goes on from FOLDER/last.pt, if there is one; a checkpoint every 7 updates
stream_worker.py memory STEPS            prints resident memory and Python objects after 1 000 steps and at the end
"""

import gc
import hashlib
import sys
from pathlib import Path

import torch
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.tree import map_tensors


def build():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 16),
        LTCLeaky(init_hidden=True, linear_features=16),
        nn.BatchNorm1d(16),
        nn.Dropout(0.1),
        nn.Linear(16, 2),
        LTCIntegrator(init_hidden=True, linear_features=2),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    options = {"window": 1, "readout": "mean", "alpha": 0.1, "driver": "step"}
    return FPTTTrainer(net, optimizer, nn.CrossEntropyLoss(), **options)


def advance(trainer):
    """One step, whose data follow from its number."""
    step = trainer.steps
    torch.manual_seed(step)
    x, y = torch.rand(4, 3), torch.randint(2, (4,))
    labeled, new = torch.rand(4) > 0.2, torch.rand(4) > 0.95
    return trainer.step(x, None if step % 5 == 2 else y, mask=labeled, new_sequence=new)


def digest(trainer):
    found = hashlib.sha256()

    def add(tensor):
        found.update(tensor.detach().contiguous().numpy().tobytes())
        return tensor

    map_tensors(add, [trainer.net.state_dict(), trainer.optimizer.state_dict(), trainer.state_dict()])
    return found.hexdigest()


def train(folder, updates):
    trainer, last = build(), Path(folder) / "last.pt"
    if last.exists():
        trainer.load(last)
    print("begin", trainer.updates, flush=True)
    while trainer.updates < updates:
        if advance(trainer).updated:
            if trainer.updates % 50 == 0:
                print(trainer.updates, digest(trainer), flush=True)
            if trainer.updates % 7 == 0:
                trainer.save(last)


def resident():
    """Resident memory in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def memory(steps):
    trainer = build()
    for step in range(1, steps + 1):
        advance(trainer)
        if step in (1000, steps):
            gc.collect()
            print(step, resident(), len(gc.get_objects()), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "train":
        train(sys.argv[2], int(sys.argv[3]))
    else:
        memory(int(sys.argv[2]))
