"""A complete run for either library: metrics, a schedule, early stopping, TensorBoard, resuming.

Kill it at any time and start it again: it continues after the last complete epoch, with the
figures of an uninterrupted run. Watch it with ``tensorboard --logdir runs``.
"""

import argparse
from importlib import import_module
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, StackDataset, random_split
from torch.utils.tensorboard import SummaryWriter

from fptt_plugin import FPTTTrainer
from fptt_plugin.fit import EpochMetric, accuracy
from fptt_plugin.results import EpochRecord

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--library", choices=["snntorch", "spikingjelly"], default="snntorch")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--folder", type=Path, default=Path("runs/digits"))
options = parser.parse_args()
options.folder.mkdir(parents=True, exist_ok=True)
last = options.folder / "last.pt"

# In each of 20 steps a pixel fires with a probability equal to its brightness.
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
frames = torch.tensor(images / 16).float().unsqueeze(1).expand(-1, 20, -1).bernoulli()
data = StackDataset(frames=frames, label=labels)  # type: ignore[arg-type]
train, test = random_split(data, [0.75, 0.25])
train_loader = DataLoader(train, batch_size=64, shuffle=True)
test_loader = DataLoader(test, batch_size=256)

# Network: snnTorch's neurons keep their state with init_hidden=True, SpikingJelly's always.
neurons = import_module(f"fptt_plugin.{options.library}")
state = {"init_hidden": True} if options.library == "snntorch" else {}
hidden, readout = neurons.LTCLeaky(**state), neurons.LTCIntegrator(beta=0.8, **state)
net = nn.Sequential(nn.Linear(64, 64), hidden, nn.Dropout(0.1), nn.Linear(64, 10), readout)

optimizer = torch.optim.Adam(net.parameters())
trainer = FPTTTrainer(net, optimizer, nn.CrossEntropyLoss(), window=5, batch_first=True)
if last.exists():
    trainer.load(last)
writer = SummaryWriter(options.folder, purge_step=len(trainer.history) + 1)


def macro_f1(output: Tensor, target: Tensor) -> float:
    return float(f1_score(target, output.argmax(dim=1), average="macro"))


def log(trainer: FPTTTrainer, record: EpochRecord) -> None:
    for name, value in record.scalars().items():
        writer.add_scalar(name, value, record.epoch)
    trainer.save(last)


trainer.fit(
    train_loader,
    options.epochs - len(trainer.history),
    val_loader=test_loader,
    batch=("frames", "label"),
    metric={"f1": EpochMetric(macro_f1), "accuracy": accuracy},  # or metrics of torchmetrics
    scheduler=OneCycleLR(optimizer, max_lr=0.01, total_steps=options.epochs * len(train_loader)),
    patience=3,
    checkpoint=options.folder / "best.pt",
    callbacks=[log],
)
writer.close()
