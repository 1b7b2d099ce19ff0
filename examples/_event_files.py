"""Small recordings in the files of the real data sets, for ``--smoke`` and tests: a spot whose place is its class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Events = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def write_recordings(name: str, root: Path, train: int = 4, test: int = 2, seed: int = 0) -> None:
    """Writes a data set with that many recordings of each class.

    Args:
        name: ``"nmnist"`` or ``"dvs_gesture"``.
        root: Data directory.
        train: Recordings of each class for training.
        test: For testing.
        seed: Of the events.

    Raises:
        ValueError: For data sets whose files cannot be written without their camera's software.
    """
    if name not in ("nmnist", "dvs_gesture"):
        raise ValueError(f"no small files of {name} can be made: use --smoke with --dataset nmnist")
    generator = np.random.default_rng(seed)
    for training, count in ((True, train), (False, test)):
        for index in range(count):
            if name == "nmnist":
                for label in range(10):
                    folder = root / "NMNIST" / ("Train" if training else "Test") / str(label)
                    write_nmnist(folder / f"{index:05}.bin", spot(label, 10, 34, 1500, 300_000, generator))
            else:
                part = "ibmGestureTrain" if training else "ibmGestureTest"
                for label in range(11):
                    folder = root / "DVSGesture" / part / f"user{index + 1:02}_led"
                    write_dvs_gesture(folder / f"{label}.npy", spot(label, 11, 128, 4000, 6000, generator))


def spot(label: int, classes: int, side: int, count: int, duration: int, generator: np.random.Generator) -> Events:
    """Events ``x, y, t, p`` about one place of a circle, different for each class."""
    angle = 2 * np.pi * label / classes
    centre = np.array([[np.cos(angle)], [np.sin(angle)]]) * side / 3 + side / 2
    x, y = np.clip(centre + generator.normal(scale=side / 12, size=(2, count)), 0, side - 1).astype(np.int64)
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
