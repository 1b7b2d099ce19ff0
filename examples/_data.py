"""Data shared by the examples."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def digits(batch_size: int, steps: int, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Scikit-learn's 1797 handwritten 8x8 digits as spike trains: loaders of ``(spikes [T, B, 64], label [B])``.

    A pixel fires at each step with a probability equal to its brightness (Poisson rate code). Training data are drawn
    anew in every epoch; test data (a quarter) are drawn once. A last batch of a few samples is dropped: with an update
    at every step it would pull the weights towards those few for a whole sequence.
    """
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.25, stratify=labels, random_state=seed)
    x_train, x_test = (torch.as_tensor(part, dtype=torch.float32) for part in split[:2])
    y_train, y_test = (torch.as_tensor(part) for part in split[2:])
    chance = torch.Generator().manual_seed(seed)

    def encode(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        x, y = zip(*samples, strict=True)
        return torch.bernoulli(torch.stack(x).expand(steps, -1, -1), generator=chance), torch.stack(y)

    train = DataLoader(
        TensorDataset(x_train, y_train), batch_size, shuffle=True, drop_last=True, generator=chance, collate_fn=encode
    )
    spikes, labels = encode(list(zip(x_test, y_test, strict=True)))
    test = DataLoader(
        TensorDataset(spikes.transpose(0, 1), labels),
        batch_size,
        collate_fn=lambda samples: (torch.stack([s for s, _ in samples], 1), torch.stack([y for _, y in samples])),
    )
    return train, test
