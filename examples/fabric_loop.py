"""FPTT in a training loop of your own with Lightning Fabric: the regularizer on the optimizer is all it needs.

python examples/fabric_loop.py [--smoke]
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from lightning_fabric import Fabric
from torch import nn

from fptt_plugin import DynamicRegularizer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.state import ModelState


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds")
    sequences = 20 if parser.parse_args().smoke else 300

    torch.set_num_threads(1)  # more wait for each other on so small a network
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0)
    layers = [nn.Linear(8, 64), LTCLeaky(init_hidden=True, linear_features=64), nn.Linear(64, 2)]
    net = nn.Sequential(*layers, LTCIntegrator(init_hidden=True, linear_features=2))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    regularizer = DynamicRegularizer(optimizer, alpha=0.1, max_grad_norm=1.0)  # before setup, which wraps the optimizer
    state = ModelState(net)
    model, wrapped = fabric.setup(net, optimizer)

    for sequence in range(sequences):
        label = torch.randint(2, (32,))
        x = (torch.rand(20, 32, 8) < 0.2 + 0.2 * label.view(1, -1, 1)).float()  # the class is the rate
        state.reset()
        for x_t in x:
            output = model(x_t)
            loss = nn.functional.cross_entropy(output, label)
            wrapped.zero_grad()
            fabric.backward(loss)
            wrapped.step()  # an FPTT update
            state.detach()
        if sequence % (sequences // 5) == 0 or sequence == sequences - 1:
            accuracy = (output.argmax(1) == label).float().mean()
            print(f"sequence {sequence}: loss {loss.item():.3f}, accuracy {accuracy.item():.2f}")
    assert regularizer.updates == 20 * sequences

    # Averages and duals are part of the optimizer's state: Fabric's checkpoint is enough to go on.
    with tempfile.TemporaryDirectory() as folder:
        fabric.save(f"{folder}/checkpoint.pt", {"net": model, "optimizer": wrapped})
        fabric.load(f"{folder}/checkpoint.pt", {"net": model, "optimizer": wrapped})
    assert regularizer.updates == 20 * sequences


if __name__ == "__main__":
    main()
