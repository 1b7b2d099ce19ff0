"""A complete run, the same for both libraries: metrics, a schedule, early stopping, TensorBoard, and resuming.

Kill it at any time and start it again: it goes on after the last complete epoch, with the figures of an uninterrupted
run. Watch it with ``tensorboard --logdir runs``.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, random_split
from torch.utils.tensorboard import SummaryWriter

from fptt_plugin import FPTTTrainer
from fptt_plugin.fit import accuracy
from fptt_plugin.results import EpochRecord


class Digits(Dataset[dict[str, Tensor]]):
    """Handwritten digits; at each of 20 steps a pixel fires with a probability equal to its brightness."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        self.images, self.labels = torch.tensor(images / 16.0).float(), torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"frames": torch.bernoulli(self.images[i].expand(20, -1)), "label": self.labels[i]}


class MacroF1:
    """Mean F1 score of the classes; any metric of torchmetrics fits in its place."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes)

    def reset(self) -> None:
        self.counts.zero_()

    def update(self, output: Tensor, target: Tensor) -> None:
        ones = torch.ones(len(target))
        self.counts.index_put_((target.cpu(), output.argmax(1).cpu()), ones, accumulate=True)

    def compute(self) -> Tensor:
        hits = self.counts.diag()
        return (2 * hits / (self.counts.sum(0) + self.counts.sum(1)).clamp(min=1)).mean()


def network(library: str) -> nn.Module:
    """A hidden layer and a readout without spikes."""
    hidden: nn.Module
    readout: nn.Module
    if library == "snntorch":
        from fptt_plugin import snntorch as fptt_snn

        hidden, readout = fptt_snn.LTCLeaky(init_hidden=True), fptt_snn.LTCIntegrator(beta=0.8, init_hidden=True)
    else:
        from fptt_plugin import spikingjelly as fptt_sj

        hidden, readout = fptt_sj.LTCLeaky(), fptt_sj.LTCIntegrator(beta=0.8)
    return nn.Sequential(nn.Linear(64, 64), hidden, nn.Dropout(0.1), nn.Linear(64, 10), readout)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--library", choices=["snntorch", "spikingjelly"], default="snntorch")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--folder", type=Path, default=Path("runs/digits"))
options = parser.parse_args()
options.folder.mkdir(parents=True, exist_ok=True)
last = options.folder / "last.pt"

torch.manual_seed(0)
train, test = random_split(Digits(), [0.75, 0.25])
train_loader = DataLoader(train, batch_size=64, shuffle=True)
test_loader = DataLoader(test, batch_size=256)

net = network(options.library)
optimizer = torch.optim.Adam(net.parameters())
trainer = FPTTTrainer(net, optimizer, nn.CrossEntropyLoss(), window=5, batch_first=True)
if last.exists():
    trainer.load(last)
writer = SummaryWriter(options.folder, purge_step=len(trainer.history) + 1)


def log(trainer: FPTTTrainer, record: EpochRecord) -> None:
    for name, value in record.scalars().items():
        writer.add_scalar(name, value, record.epoch)
    trainer.save(last)


trainer.fit(
    train_loader,
    options.epochs - len(trainer.history),
    val_loader=test_loader,
    batch=("frames", "label"),
    metric={"f1": MacroF1(10), "accuracy": accuracy},
    scheduler=OneCycleLR(optimizer, max_lr=0.01, total_steps=options.epochs * len(train_loader)),
    patience=3,
    checkpoint=options.folder / "best.pt",
    callbacks=[log],
)
writer.close()
