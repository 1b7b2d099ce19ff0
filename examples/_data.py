"""Data shared by the examples."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

IMAGES = ("mnist", "fashion_mnist", "digits")
ECG_CLASSES = 6
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


def digits(batch_size: int, steps: int, seed: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Scikit-learn's 1797 handwritten 8x8 digits as spike trains: loaders of ``(spikes [T, B, 64], label [B])``.

    A pixel fires at each step with a probability equal to its brightness (Poisson rate code). Training data are drawn
    again in every epoch; test data (a quarter) are drawn once. A last batch of a few samples is dropped: with an update
    at every step it would pull the weights toward those few for a whole sequence.
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


class Split(NamedTuple):
    """A data set in memory.

    Attributes:
        x_train: Training samples, the sample first.
        y_train: Their labels.
        x_test: Test samples.
        y_test: Their labels.
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    def subset(self, count: int | None) -> Split:
        """The first training samples only; all of them for ``None``."""
        return Split(self.x_train[:count], self.y_train[:count], self.x_test, self.y_test)


def images(dataset: str, data_dir: Path) -> Split:
    """Gray images ``[N, height, width]`` in [0, 1] and labels ``[N]``.

    ``"mnist"`` and ``"fashion_mnist"`` are read from the four official IDX files in the folder of that name;
    ``"digits"`` are the 8x8 digits of scikit-learn, a fixed quarter of them for testing.

    Raises:
        FileNotFoundError: If a file is missing; says where it should be.
    """
    if dataset == "digits":
        x, y = load_digits(return_X_y=True)
        x_train, x_test, y_train, y_test = train_test_split(x / 16.0, y, test_size=0.25, stratify=y, random_state=0)
        parts = [torch.as_tensor(part, dtype=torch.float32).view(-1, 8, 8) for part in (x_train, x_test)]
        return Split(parts[0], torch.as_tensor(y_train), parts[1], torch.as_tensor(y_test))
    folder = data_dir / dataset
    require(folder, list(IDX_FILES.values()))
    arrays = {name: read_idx(folder / file) for name, file in IDX_FILES.items()}
    return Split(arrays["x_train"] / 255.0, arrays["y_train"].long(), arrays["x_test"] / 255.0, arrays["y_test"].long())


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes, as MNIST comes in.

    Raises:
        ValueError: If the file is none, or was cut short.
    """
    with gzip.open(path) as file:
        content = bytearray(file.read())
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of bytes: download it again")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    data = torch.frombuffer(content, dtype=torch.uint8, offset=start)
    if data.numel() != torch.Size(shape).numel():
        raise ValueError(f"{path} holds {data.numel()} values where its header says {shape}: download it again")
    return data.view(shape)


def write_idx(path: Path, data: Tensor) -> None:
    """Writes bytes in the format that :func:`read_idx` reads."""
    header = bytes([0, 0, 8, data.dim()]) + b"".join(size.to_bytes(4, "big") for size in data.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + data.to(torch.uint8).contiguous().numpy().tobytes())


def ecg(data_dir: Path) -> Split:
    """QT-database ECG as level-crossing spikes: ``x [N, 1301, 4]``, a class per step ``y [N, 1301]``, -1 where none is.

    Read from ``qtdb_ecg/QTDB_train.mat`` and ``QTDB_test.mat`` with arrays ``x`` and one-hot ``y [N, 1301, 6]``.

    Raises:
        FileNotFoundError: If a file is missing; says where it should be.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    folder = data_dir / "qtdb_ecg"
    require(folder, ["QTDB_train.mat", "QTDB_test.mat"])
    parts: list[Tensor] = []
    for name in ("train", "test"):
        content = loadmat(folder / f"QTDB_{name}.mat")
        one_hot = torch.as_tensor(content["y"]).long()
        labels = torch.where(one_hot.sum(dim=2) > 0, one_hot.argmax(dim=2), -1)
        parts += [torch.as_tensor(content["x"]).float(), labels]
    return Split(*parts)


def require(folder: Path, files: list[str]) -> None:
    """Raises an error that names what is missing, and where it should be."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder.resolve()} lacks {', '.join(missing)}: put the files of the data set there, or name the folder "
            f"that holds {folder.name}/ with --data-dir or the environment variable FPTT_DATA"
        )


def shuffled(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the batches of one epoch; a last batch that is not full is left out.

    Raises:
        ValueError: If there are fewer samples than one batch takes.
    """
    if count < batch_size:
        raise ValueError(f"{count} samples do not fill a batch of {batch_size}: lower --batch-size")
    order = torch.randperm(count, generator=generator)
    return iter(order[: count - count % batch_size].split(batch_size))


def in_order(count: int, batch_size: int) -> Iterator[Tensor]:
    """Indices of all samples, batch by batch."""
    return iter(torch.arange(count).split(batch_size))


def write_synthetic_images(data_dir: Path) -> None:
    """IDX files of a few images whose class shows in the bright rows: something to run on without a data set."""
    chance = torch.Generator().manual_seed(0)
    for dataset in ("mnist", "fashion_mnist"):
        folder = data_dir / dataset
        folder.mkdir()
        for part, count in (("train", 96), ("test", 32)):
            labels = torch.arange(count) % 10
            x = torch.randint(60, (count, 28, 28), generator=chance)
            for image, label in zip(x, labels.tolist(), strict=True):
                image[14 * label // 5 : 14 * (label + 1) // 5 + 1] += 190
            write_idx(folder / IDX_FILES[f"x_{part}"], x)
            write_idx(folder / IDX_FILES[f"y_{part}"], labels)


def write_synthetic_ecg(data_dir: Path) -> None:
    """Files like those of the ECG data, in which the class shows in the channels' firing rates."""
    from scipy.io import savemat

    steps, chance = 60, torch.Generator().manual_seed(0)
    folder = data_dir / "qtdb_ecg"
    folder.mkdir()
    for name, count in (("train", 24), ("test", 8)):
        labels = (torch.arange(steps) * ECG_CLASSES // steps).expand(count, -1)
        one_hot = torch.nn.functional.one_hot(labels, ECG_CLASSES)
        one_hot[:, -2:] = 0  # no label
        rates = torch.rand(ECG_CLASSES, 4, generator=chance) / 2
        x = torch.bernoulli(rates[labels], generator=chance)
        savemat(folder / f"QTDB_{name}.mat", {"x": x.numpy().astype("int16"), "y": one_hot.numpy().astype("uint8")})
