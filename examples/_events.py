"""Event-camera recordings through tonic: its data sets read where they lie, its transforms, loaders of frames.

Also spoken digits and commands as spikes of 700 cochlear channels (SHD, SSC), in the HDF5 files of their authors.

A data directory holds ``NMNIST/Train/<digit>/*.bin`` and ``NMNIST/Test/...``, ``DVSGesture/ibmGestureTrain/<user>/
<gesture>.npy`` and ``DVSGesture/ibmGestureTest/...``, ``CIFAR10DVS/<class>/*.aedat4``: what tonic leaves there after
extraction, all of it or a part. In place of ``NMNIST``, ``nmnist_1k/nmnist_1k.npz`` will do, see
:class:`PackedRecordings`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tonic
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

Transform = Callable[[np.ndarray], np.ndarray]

SPLITS = ("count", "time")


class Framing(NamedTuple):
    """How a recording becomes frames.

    Attributes:
        frames: Number of frames, the time steps of the network.
        split: ``"count"``: each frame has the same number of events (the authors); ``"time"``: the same duration.
        window_ms: Duration of a frame instead, from the first event on; a short recording ends in empty frames, a long
            one is cut.
        downsample: Side of the squares of pixels that become one.
    """

    frames: int
    split: str = "count"
    window_ms: float | None = None
    downsample: int = 1

    def size(self, sensor_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Width, height and polarities of a frame."""
        width, height, polarities = sensor_size
        return -(-width // self.downsample), -(-height // self.downsample), polarities

    def transform(self, sensor_size: tuple[int, int, int]) -> Transform:
        """Events to frames ``[frames, polarity, height, width]`` of event counts."""
        transforms = tonic.transforms
        if self.window_ms is not None:
            slices = {"time_window": 1000 * self.window_ms, "include_incomplete": True}
        else:
            slices = {"n_event_bins" if self.split == "count" else "n_time_bins": self.frames}
        return transforms.Compose(  # type: ignore[no-any-return]
            [
                transforms.Downsample(spatial_factor=1 / self.downsample),
                transforms.ToFrame(self.size(sensor_size), **slices),
                self._fit,
            ]
        )

    def _fit(self, frames: np.ndarray) -> np.ndarray:
        missing = max(self.frames - len(frames), 0)
        return np.pad(frames[: self.frames], [(0, missing), *[(0, 0)] * (frames.ndim - 1)])


class _OnDisk:
    """Takes the recordings that are there, all or some of them, and never downloads."""

    layout: str
    instead = ""

    def _check_exists(self) -> bool:
        folder = Path(self.location_on_system, self.folder_name)  # type: ignore[attr-defined]
        if not any(folder.glob(self.layout)):
            raise FileNotFoundError(
                f"no recordings of {type(self).__name__} in {folder}: expected files {self.layout} there, as tonic "
                f"extracts them{self.instead}; --data-dir or the variable FPTT_DATA says where data are"
            )
        return True


# tonic looks for its files in a folder of the class's name.
class NMNIST(_OnDisk, tonic.datasets.NMNIST):
    layout = "[0-9]/*.bin"
    instead = ", or all in one file nmnist_1k/nmnist_1k.npz beside the folder NMNIST"


class DVSGesture(_OnDisk, tonic.datasets.DVSGesture):
    layout = "user*_*/*.npy"


class CIFAR10DVS(_OnDisk, tonic.datasets.CIFAR10DVS):
    layout = "*/*.aedat4"

    def _check_exists(self) -> bool:
        if find_spec("aedat") is None:
            raise ModuleNotFoundError("tonic reads CIFAR10-DVS with the package aedat: pip install aedat")
        return super()._check_exists()


class _SpeechFile(_OnDisk):
    """One HDF5 file for each part: ``SHD/shd_train.h5``, ``SHD/shd_test.h5``, ``SSC/ssc_train.h5`` and so on."""

    def _check_exists(self) -> bool:
        self.layout = self.data_filename  # type: ignore[attr-defined]
        return super()._check_exists()


class SHD(_SpeechFile, tonic.datasets.SHD):
    pass


class SSC(_SpeechFile, tonic.datasets.SSC):
    pass


class PackedRecordings:
    """N-MNIST recordings in one ``.npz`` file, as tonic's event arrays.

    Args:
        path: The file. ``x``, ``y``: pixel of each event, all recordings one after the other; ``p``: polarities, packed
            by ``numpy.packbits``; ``dt``: microseconds since the event before; ``offset``: where each recording begins,
            and the end of the last; ``label`` and ``train``: one entry per recording.
        train: Training recordings, or those for testing.
        transform: Applied to the events.
    """

    def __init__(self, path: Path, train: bool, transform: Transform) -> None:
        with np.load(path) as file:
            self._columns = {name: file[name] for name in ("x", "y", "dt", "offset", "label")}
            self._polarity = np.unpackbits(file["p"], count=len(file["x"]))
            self._indices = np.flatnonzero(file["train"] == train)
        self.targets = self._columns["label"][self._indices].tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        begin, end = self._columns["offset"][self._indices[index] :][:2]
        events = np.empty(end - begin, dtype=NMNIST.dtype)
        events["x"], events["y"] = self._columns["x"][begin:end], self._columns["y"][begin:end]
        events["p"] = self._polarity[begin:end]
        events["t"] = np.cumsum(self._columns["dt"][begin:end], dtype=np.int64)
        return self._transform(events), self.targets[index]


class EventSet(NamedTuple):
    """One of tonic's data sets."""

    dataset: Any
    classes: int


EVENT_SETS = {
    "nmnist": EventSet(NMNIST, 10),
    "dvs_gesture": EventSet(DVSGesture, 11),
    "cifar10_dvs": EventSet(CIFAR10DVS, 10),
}


def open_recordings(name: str, root: Path, train: bool, framing: Framing) -> Any:
    """The training or test recordings of a data set, as frames; an error says what is missing where.

    CIFAR10-DVS has no split of its own: the last tenth of each class, in the order of the file names, is for testing.
    """
    dataset = EVENT_SETS[name].dataset
    transform = framing.transform(dataset.sensor_size)
    packed = root / "nmnist_1k" / "nmnist_1k.npz"
    if name == "nmnist" and not (root / "NMNIST").exists() and packed.exists():
        return PackedRecordings(packed, train, transform)
    if name == "cifar10_dvs":
        recordings = dataset(str(root), transform=transform)
        return Subset(recordings, split_classes(recordings, train))
    recordings = dataset(str(root), train=train, transform=transform)
    return Subset(recordings, np.argsort(recordings.data).tolist())  # tonic lists files as the disk does


def split_classes(recordings: Any, train: bool) -> list[int]:
    """Indices of the first nine tenths of the files of each class, or of the rest."""
    chosen: list[int] = []
    files, targets = np.asarray(recordings.data), np.asarray(recordings.targets)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        members = members[np.argsort(files[members])]
        cut = len(members) * 9 // 10
        chosen += (members[:cut] if train else members[cut:]).tolist()
    return chosen


def frame_loader(
    recordings: Any,
    batch_size: int,
    scale: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    flat: bool = False,
) -> DataLoader[Any]:
    """A loader of ``(frames [T, B, polarity, height, width], label [B])``.

    Args:
        recordings: Pairs of frames and label.
        batch_size: Recordings per batch.
        scale: Factor on the event counts.
        generator: Shuffles; an incomplete last batch is left out, too. ``None``: everything in order.
        flat: Frames as rows of pixels, ``[T, B, pixels]``.
    """

    def stack(samples: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
        frames, labels = zip(*samples, strict=True)
        x = scale * torch.from_numpy(np.stack(frames, axis=1)).float()
        return x.flatten(2) if flat else x, torch.tensor(np.array(labels)).long()

    shuffle = generator is not None
    return DataLoader(recordings, batch_size, shuffle=shuffle, drop_last=shuffle, generator=generator, collate_fn=stack)
