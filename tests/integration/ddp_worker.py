"""A training process for ``test_ecosystem.py``: several sequences under ``torchrun``, or in one process with all data.

torchrun --nproc-per-node 2 ddp_worker.py OUT
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky


def build():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), LTCLeaky(init_hidden=True, linear_features=8), nn.Linear(8, 2)]
    return nn.Sequential(*layers, LTCIntegrator(init_hidden=True, linear_features=2))


def train(net, parameters, share=slice(None), window=1):
    # The class-distribution table is each process's own: processes with other data would have another loss.
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    trainer = FPTTTrainer(net, optimizer, nn.CrossEntropyLoss(), window=window, auxiliary=False)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        x, y = torch.rand(9, 6, 3, generator=generator), torch.randint(2, (6,), generator=generator)
        trainer.train_sequence(x[:, share], y[share])
    return trainer


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, results = dist.get_rank(), {}
    for window in (1, 3):
        net = build()
        # Buffers of process 0 would replace the neurons' state in the others.
        wrapped = DistributedDataParallel(net, broadcast_buffers=False)
        trainer = train(wrapped, net.parameters(), slice(3 * rank, 3 * rank + 3), window)
        averages = [trainer.regularizer.average_of(parameter) for parameter in net.parameters()]
        results[window] = [[p.detach() for p in net.parameters()], averages]
    try:
        train(DistributedDataParallel(net), net.parameters())
    except ValueError as error:
        results["refusal"] = str(error)
    torch.save(results, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start me with torchrun"
    main(sys.argv[1])
