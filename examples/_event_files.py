"""Small recordings in the files of the real data sets, for ``--smoke`` and tests: a spot whose place is its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Events = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def write_recordings(root: Path, train: int = 4, test: int = 2) -> None:
    """Writes N-MNIST and DVS-Gesture with that many recordings of each class for training and for testing.

    Files of CIFAR10-DVS, in a format of their camera's maker, are not written.
    """
    generator = np.random.default_rng(0)
    for index in range(train + test):
        part, folder = ("Train", "ibmGestureTrain") if index < train else ("Test", "ibmGestureTest")
        for label in range(10):
            path = root / "NMNIST" / part / str(label) / f"{index + 1:05}.bin"
            write_nmnist(path, spot(label, 10, 34, 1500, 300_000, generator))
        for label in range(11):
            path = root / "DVSGesture" / folder / f"user{index + 1:02}_led" / f"{label}.npy"
            write_dvs_gesture(path, spot(label, 11, 128, 4000, 6000, generator))


def spot(label: int, classes: int, side: int, count: int, duration: int, generator: np.random.Generator) -> Events:
    """Events ``x, y, t, p`` about one place of a circle, different for each class."""
    angle = 2 * np.pi * label / classes
    center = np.array([[np.cos(angle)], [np.sin(angle)]]) * side / 3 + side / 2
    x, y = np.clip(center + generator.normal(scale=side / 12, size=(2, count)), 0, side - 1).astype(np.int64)
    return x, y, np.sort(generator.integers(0, duration, count)), generator.integers(0, 2, count)


def write_nmnist(path: Path, events: Events) -> None:
    """N-MNIST's format: 5 bytes per event: x, y, then a bit of polarity and 23 bits of microseconds."""
    x, y, t, p = events
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]
    path.write_bytes(np.stack(columns, axis=1).astype(np.uint8).tobytes())


def write_dvs_gesture(path: Path, events: Events) -> None:
    """DVS-Gesture as tonic distributes it: rows of x, y, polarity and milliseconds."""
    x, y, t, p = events
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.stack([x, y, p, t], axis=1))


def write_speech(root: Path, train: int = 4, test: int = 2) -> None:
    """Writes SHD and SSC with that many recordings of each class: a band of channels whose place is the class."""
    import h5py

    generator = np.random.default_rng(0)
    for name, classes, parts in (("SHD", 20, ("train", "test")), ("SSC", 35, ("train", "valid", "test"))):
        for part in parts:
            labels = np.repeat(np.arange(classes), train if part == "train" else test)
            times, units = [], []
            for label in labels:
                count = 300
                times.append(np.sort(generator.uniform(0, 0.9, count)).astype(np.float16))
                center = 700 * (label + 0.5) / classes
                units.append(np.clip(generator.normal(center, 5, count), 0, 699).astype(np.int64))
            (root / name).mkdir(parents=True, exist_ok=True)
            with h5py.File(root / name / f"{name.lower()}_{part}.h5", "w") as file:
                for column, values, dtype in (("times", times, np.float16), ("units", units, np.int64)):
                    place = file.create_dataset(f"spikes/{column}", (len(labels),), h5py.vlen_dtype(dtype))
                    for index, row in enumerate(values):
                        place[index] = row
                file["labels"] = labels.astype(np.uint16)
                file["extra/keys"] = np.array([f"class {c}".encode() for c in range(classes)])
                file["extra/speaker"] = np.zeros(len(labels), np.uint16)
