"""FPTT inside Lightning's Trainer: loggers, callbacks and checkpoints are Lightning's, the updates are FPTT's.

python examples/lightning_loop.py [--smoke]
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fptt_plugin import DynamicRegularizer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.state import ModelState

Batch = tuple[Tensor, Tensor]  # [B, T, features] and [B]


def build_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64),
        LTCLeaky(init_hidden=True, linear_features=64),
        nn.Linear(64, 2),
        LTCIntegrator(init_hidden=True, linear_features=2),
    )


def make_loader(samples: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    """Two classes that differ in the rate of their spikes: [B, T, 8] and [B]."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (samples,), generator=generator)
    x = (torch.rand(samples, 20, 8, generator=generator) < 0.2 + 0.2 * label.view(-1, 1, 1)).float()
    return DataLoader(TensorDataset(x, label), batch_size=32)


class OnlineClassifier(lightning.LightningModule):
    """One update per time step. All of FPTT is the regularizer in ``configure_optimizers``."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # several updates per batch
        self.net = build_net()
        self.state = ModelState(self.net)
        self.averaged = ExitStack()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(self.net.parameters(), lr=3e-3)
        self.regularizer = DynamicRegularizer(optimizer, alpha=0.1, max_grad_norm=1.0)
        return optimizer

    def training_step(self, batch: Batch, index: int) -> None:
        x, label = batch
        optimizer = self.optimizers()
        self.state.reset()
        for x_t in x.transpose(0, 1):
            loss = nn.functional.cross_entropy(self.net(x_t), label)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()  # an FPTT update
            self.state.detach()
        self.log("train_loss", loss, on_epoch=True, on_step=False)

    def on_validation_epoch_start(self) -> None:
        if self.trainer.optimizers:  # in fit, not in validate
            self.averaged.enter_context(self.regularizer.averaged_weights())

    def validation_step(self, batch: Batch, index: int) -> None:
        x, label = batch
        self.state.reset()
        for x_t in x.transpose(0, 1):
            output = self.net(x_t)
        self.log("val_accuracy", (output.argmax(1) == label).float().mean())

    def on_validation_epoch_end(self) -> None:
        self.averaged.close()  # W again


class PrintEpochs(lightning.Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = {name: round(value.item(), 3) for name, value in trainer.callback_metrics.items()}
        print(f"epoch {trainer.current_epoch}: {trainer.global_step} updates, {metrics}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few seconds")
    samples = 320 if parser.parse_args().smoke else 3200

    module = OnlineClassifier()
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[PrintEpochs()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, make_loader(samples, seed=1), make_loader(samples, seed=2))
    assert module.regularizer.updates == trainer.global_step == 3 * 20 * samples // 32


if __name__ == "__main__":
    main()
