"""FPTTTrainer with Hugging Face Accelerate, which prepares network, optimizer and data loader.

python examples/accelerate_loop.py [--smoke]
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds")
    samples = 640 if parser.parse_args().smoke else 6400

    torch.set_num_threads(1)  # more wait for each other on so small a network
    torch.manual_seed(0)
    label = torch.randint(2, (samples,))
    x = (torch.rand(samples, 20, 8) < 0.2 + 0.2 * label.view(-1, 1, 1)).float()  # the class is the rate
    layers = [nn.Linear(8, 64), LTCLeaky(init_hidden=True, linear_features=64), nn.Linear(64, 2)]
    net = nn.Sequential(*layers, LTCIntegrator(init_hidden=True, linear_features=2))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    loader = DataLoader(TensorDataset(x, label), batch_size=32, shuffle=True, drop_last=True)

    model, wrapped, batches = Accelerator(cpu=True).prepare(net, optimizer, loader)
    # The trainer calls backward and steps the optimizer itself: give it the one that Accelerate wraps.
    trainer = FPTTTrainer(model, wrapped.optimizer, nn.CrossEntropyLoss(), batch_first=True)
    for record in trainer.fit(batches, epochs=2, progress=False):
        print(f"epoch {record.epoch}: loss {record.loss:.3f}, accuracy {record.train_score:.2f}")


if __name__ == "__main__":
    main()
