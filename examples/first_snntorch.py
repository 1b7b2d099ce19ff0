"""Trains a network of snnTorch online on handwritten digits, in half a minute."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky

torch.set_num_threads(1)  # on a CPU, threads of a network this small mostly wait for each other
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)  # 1797 digits of 8 x 8 pixels
x = torch.as_tensor(images / 16).float()
x = x[:, None].expand(-1, 20, -1)  # shown as a constant current for 20 steps: [N, T, 64]
train, test = random_split(TensorDataset(x, torch.as_tensor(labels)), [0.75, 0.25])

net = nn.Sequential(
    nn.Linear(64, 128),
    LTCLeaky(beta=0.5, init_hidden=True),  # was: snn.Leaky(beta=0.9, init_hidden=True)
    nn.Linear(128, 10),
    LTCIntegrator(beta=0.8, init_hidden=True),  # class scores: leaky, does not spike
)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
trainer = FPTTTrainer(net, optimizer, nn.CrossEntropyLoss(), batch_first=True)

train_loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
test_loader = DataLoader(test, batch_size=64)
history = trainer.fit(train_loader, epochs=5, val_loader=test_loader)
print(f"test accuracy {history[-1].val_score:.1%} after {trainer.updates} updates")
