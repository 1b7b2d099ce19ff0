"""FPTT on several processes with DistributedDataParallel: each trains on its share of every batch.

torchrun --standalone --nproc-per-node 2 examples/torchrun_loop.py [--smoke]
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds")
    samples = 640 if parser.parse_args().smoke else 6400
    torch.set_num_threads(1)
    dist.init_process_group("gloo")  # "nccl" with one GPU per process
    rank = dist.get_rank()

    torch.manual_seed(0)  # the same weights and data in all processes; the sampler takes each one's share
    label = torch.randint(2, (samples,))
    x = (torch.rand(samples, 20, 8) < 0.2 + 0.2 * label.view(-1, 1, 1)).float()  # the class is the rate
    data = TensorDataset(x, label)
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, seed=1, drop_last=True)
    loader = DataLoader(data, batch_size=16, sampler=sampler, drop_last=True)
    layers = [nn.Linear(8, 64), LTCLeaky(init_hidden=True, linear_features=64), nn.Linear(64, 2)]
    net = nn.Sequential(*layers, LTCIntegrator(init_hidden=True, linear_features=2))

    # The neurons' state is in buffers, and each process has that of its own samples.
    model = DistributedDataParallel(net, broadcast_buffers=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    # The auxiliary term is off: each process would estimate its class distributions from its own share.
    trainer = FPTTTrainer(model, optimizer, nn.CrossEntropyLoss(), batch_first=True, auxiliary=False)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        (record,) = trainer.fit(loader, epochs=1, progress=False)
        if rank == 0:
            print(f"epoch {record.epoch}: loss {record.loss:.3f}, accuracy {record.train_score:.2f}")

    weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    others = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(others, weights)
    if rank == 0:
        equal = all(torch.equal(weights, other) for other in others)
        print(f"{len(others)} processes, {trainer.updates} updates, equal weights: {equal}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
