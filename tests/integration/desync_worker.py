"""Two processes whose data ask for different things; for ``test_processes.py``, which starts it under ``torchrun``.

torchrun --nproc-per-node 2 desync_worker.py OUT
"""

import datetime
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import FPTTError
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky


def build(**options):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), LTCLeaky(init_hidden=True, linear_features=8), nn.Linear(8, 2)]
    net = nn.Sequential(*layers, LTCIntegrator(init_hidden=True, linear_features=2))
    wrapped = DistributedDataParallel(net, broadcast_buffers=False)
    return FPTTTrainer(wrapped, torch.optim.SGD(net.parameters(), 0.1), nn.MSELoss(), **options)


def outcome(trainer, work):
    """What came of it, and the weights."""
    try:
        work()
        error = None
    except FPTTError as caught:
        error = f"{type(caught).__name__}: {caught}"
    weights = [parameter.detach().clone() for parameter in trainer.net.parameters()]
    counts = {"steps": trainer.steps, "updates": trainer.updates, "skipped": trainer.skipped}
    return {"error": error, "w": weights, **counts}


def stream(trainer, rank, unlabeled=(), broken=(), window=1):
    generator = torch.Generator().manual_seed(1 + rank)
    for i in range(12):
        x, y = torch.rand(4, 3, generator=generator), torch.rand(4, 2, generator=generator)
        if (i, rank) in broken:
            x = torch.full_like(x, float("nan"))
        mask = torch.zeros(4, dtype=torch.bool) if (i, rank) in unlabeled and i % 2 else None
        trainer.step(x, None if (i, rank) in unlabeled and i % 2 == 0 else y, mask)


def sequences(trainer, rank, lengths, mask=None, scale=1.0):
    generator = torch.Generator().manual_seed(1 + rank)
    for length in lengths:
        x = torch.rand(length, 4, 3, generator=generator)
        trainer.train_sequence(x, scale * torch.rand(4, 2, generator=generator), mask)


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    rank, found = dist.get_rank(), {}

    def case(name, work, **options):
        trainer = build(**options)
        found[name] = outcome(trainer, lambda: work(trainer))
        dist.barrier()

    case("target", lambda t: stream(t, rank, unlabeled={(6, 0)}))
    case("mask", lambda t: stream(t, rank, unlabeled={(7, 1)}))
    case("window", lambda t: stream(t, rank, unlabeled={(8, 0)}), window=3, loss_every=1)  # one target of three
    case("both", lambda t: stream(t, rank, unlabeled={(4, 0), (4, 1), (5, 0), (5, 1)}))
    case("skip", lambda t: stream(t, rank, broken={(3, 0), (8, 1)}), on_nonfinite="skip")
    case("length", lambda t: sequences(t, rank, [6, 6 + 3 * rank, 6]))
    case("whole", lambda t: sequences(t, rank, [6, 6 + 3 * rank, 6]), window=None)
    empty = torch.zeros(4, dtype=torch.bool)
    case("empty", lambda t: sequences(t, rank, [5], empty if rank else None))
    case("overflow", lambda t: sequences(t, rank, [5], scale=3e38 if rank else 1.0))
    case("overflow, skip", lambda t: sequences(t, rank, [5], scale=3e38 if rank else 1.0), on_nonfinite="skip")
    try:
        build(variant="gradient")
    except ValueError as error:
        found["variant"] = str(error)
    torch.save(found, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me with torchrun"
    main(sys.argv[1])
