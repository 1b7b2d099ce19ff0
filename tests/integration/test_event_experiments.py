"""Event recordings become the right frames, by tonic's readers; the experiments on them and on images run and spike."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tonic")
pytestmark = pytest.mark.usefixtures("examples_importable")


def events(*rows):
    """Arrays x, y, t, p of events given as (x, y, t, p)."""
    return tuple(np.array(column) for column in zip(*rows, strict=True))


# Two pixels of N-MNIST in 8 events: 3 + 1 in the first half by count, 4 in the second.
ROWS = [(0, 0, 0, 1), (0, 0, 10, 1), (33, 5, 2000, 0), (0, 0, 3000, 0)]
ROWS += [(33, 5, 200_000, 1), (33, 5, 201_000, 1), (32, 4, 250_000, 1), (33, 4, 300_000, 0)]


def write_packed(path, samples):
    """``samples``: (events, label, train)."""
    columns = [np.concatenate(parts) for parts in zip(*(sample[0] for sample in samples), strict=True)]
    x, y, _, p = columns
    dt = np.concatenate([np.diff(sample[0][2], prepend=0) for sample in samples])
    path.parent.mkdir(parents=True)
    np.savez(
        path,
        x=x.astype(np.uint8),
        y=y.astype(np.uint8),
        p=np.packbits(p.astype(np.uint8)),
        dt=dt.astype(np.uint32),
        offset=np.cumsum([0, *(len(sample[0][0]) for sample in samples)]),
        label=np.array([sample[1] for sample in samples], dtype=np.uint8),
        train=np.array([sample[2] for sample in samples]),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_nmnist_frames(tmp_path, packed):
    from _event_files import write_nmnist
    from _events import Framing, frame_loader, open_recordings

    other = events((1, 2, 5, 1), (1, 2, 70_000, 0))
    if packed:
        samples = [(other, 3, True), (events(*ROWS), 7, True), (other, 1, False)]
        write_packed(tmp_path / "nmnist_1k" / "nmnist_1k.npz", samples)
    else:
        write_nmnist(tmp_path / "NMNIST" / "Train" / "3" / "00002.bin", other)
        write_nmnist(tmp_path / "NMNIST" / "Train" / "7" / "00001.bin", events(*ROWS))
        write_nmnist(tmp_path / "NMNIST" / "Test" / "1" / "00001.bin", other)
    framing = Framing(2)
    (test,) = open_recordings("nmnist", tmp_path, False, framing)
    assert test[1] == 1
    frames, labels = next(iter(frame_loader(open_recordings("nmnist", tmp_path, True, framing), 2)))
    assert labels.tolist() == [3, 7]
    assert frames.shape == (2, 2, 2, 34, 34)  # time, batch, polarity, height, width
    expected = np.zeros((2, 2, 34, 34))
    expected[0, 1, 0, 0], expected[0, 0, 5, 33], expected[0, 0, 0, 0] = 2, 1, 1
    expected[1, 1, 5, 33], expected[1, 1, 4, 32], expected[1, 0, 4, 33] = 2, 1, 1
    np.testing.assert_array_equal(frames[:, 1], expected)

    (_, _), (small, _) = open_recordings("nmnist", tmp_path, True, Framing(2, downsample=2))
    np.testing.assert_array_equal(small, expected.reshape(2, 2, 17, 2, 17, 2).sum((3, 5)))
    (_, _), (windows, _) = open_recordings("nmnist", tmp_path, True, Framing(5, window_ms=90))
    assert windows.sum((1, 2, 3)).tolist() == [4, 0, 3, 1, 0]
    (_, _), (cut, _) = open_recordings("nmnist", tmp_path, True, Framing(2, window_ms=2))
    assert cut.sum((1, 2, 3)).tolist() == [2, 2]
    (_, _), (even, _) = open_recordings("nmnist", tmp_path, True, Framing(2, split="time"))
    assert even.sum((1, 2, 3)).tolist() == [4, 3]  # tonic leaves out the event at the very end


def test_dvs_gesture_frames(tmp_path):
    from _event_files import write_dvs_gesture
    from _events import Framing, open_recordings

    folder = tmp_path / "DVSGesture" / "ibmGestureTrain"
    write_dvs_gesture(folder / "user02_led" / "10.npy", events((127, 3, 0, 1), (126, 2, 1, 1), (5, 9, 4000, 0)))
    write_dvs_gesture(folder / "user01_fluorescent_led" / "4.npy", events((1, 1, 0, 0), (1, 1, 9, 0)))
    (_, first), (frames, last) = open_recordings("dvs_gesture", tmp_path, True, Framing(3, downsample=4))
    assert (first, last) == (4, 10)
    assert frames.shape == (3, 2, 32, 32)
    assert frames[:2, 1, 0, 31].tolist() == [1, 1]
    assert frames[2, 0, 2, 1] == 1
    assert frames.sum() == 3
    (_, _), (windows, _) = open_recordings("dvs_gesture", tmp_path, True, Framing(4, window_ms=1500))
    assert windows.sum((1, 2, 3)).tolist() == [2, 0, 1, 0]


def test_cifar10_dvs_split(tmp_path, monkeypatch):
    import _events

    for label in ("cat", "airplane"):
        for index in range(20):
            path = tmp_path / "CIFAR10DVS" / label / f"cifar10_{label}_{index:02}.aedat4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    monkeypatch.setattr(_events, "find_spec", lambda name: True)
    train, test = (_events.open_recordings("cifar10_dvs", tmp_path, part, _events.Framing(1)) for part in (True, False))
    assert len(train) == 36
    files = [Path(test.dataset.data[index]).name for index in test.indices]
    assert files == [f"cifar10_{label}_{index}.aedat4" for label in ("airplane", "cat") for index in (18, 19)]
    assert not set(train.indices) & set(test.indices)
    monkeypatch.setattr(_events, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install aedat"):
        _events.open_recordings("cifar10_dvs", tmp_path, True, _events.Framing(1))


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("nmnist", r"NMNIST.Train: expected files \[0-9\]/\*.bin.*or all in one file nmnist_1k"),
        ("dvs_gesture", r"ibmGestureTrain: expected files user\*_\*/\*.npy"),
        ("cifar10_dvs", r"CIFAR10DVS: expected files \*/\*.aedat4"),
    ],
)
def test_missing_recordings(tmp_path, monkeypatch, name, place):
    import _events
    import tonic

    def download(self):
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr(tonic.dataset.Dataset, "download", download)
    monkeypatch.setattr(_events, "find_spec", lambda name: True)
    with pytest.raises(FileNotFoundError, match=place + ".*--data-dir or the variable FPTT_DATA"):
        _events.open_recordings(name, tmp_path, True, _events.Framing(1))


@pytest.mark.parametrize(("name", "file"), [("shd", "shd_train.h5"), ("ssc", "ssc_train.h5")])
def test_speech_is_counted_per_step_and_channel(tmp_path, monkeypatch, name, file):
    import h5py
    import tonic
    from _events import Framing
    from speech import open_speech

    def download(self):
        raise AssertionError("nothing is downloaded")

    monkeypatch.setattr(tonic.dataset.Dataset, "download", download)
    framing = Framing(3, window_ms=100.0, downsample=5)
    with pytest.raises(FileNotFoundError, match=f"expected files {file}"):
        open_speech(name, tmp_path, True, framing)
    folder = tmp_path / name.upper()
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / file, "w") as written:
        for column, kind, values in (
            ("times", np.float16, [[0.001, 0.05, 0.15, 0.35], [0.02]]),  # the fourth is beyond the last step
            ("units", np.int64, [[4, 5, 699, 3], [0]]),
        ):
            place = written.create_dataset(f"spikes/{column}", (2,), h5py.vlen_dtype(kind))
            for index, row in enumerate(values):
                place[index] = np.array(row, dtype=kind)
        written["labels"] = np.array([7, 2], np.uint16)
        written["extra/keys"], written["extra/speaker"] = np.array([b"a"]), np.zeros(2)
    (frames, label), (other, _) = open_speech(name, tmp_path, True, framing)
    assert frames.shape == (3, 1, 140)
    assert {tuple(place.tolist()): frames[tuple(place)] for place in np.argwhere(frames)} == {
        (0, 0, 0): 1, (0, 0, 1): 1, (1, 0, 139): 1,
    }  # fmt: skip
    assert label == 7
    assert (other.sum(), other[0, 0, 0]) == (1, 1)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (("512", "ltc"), "expected C<channels>"),
        (("C32", "ltc"), "expected C<channels>"),
        (("C2-MP-C2-MP-C2-MP-5", "ltc"), "pools a map of 5 x 5 away"),
        (("C2-MP-5", "lstm"), "choose ltc, alif or lif"),
    ],
)
def test_impossible_networks(line, complaint):
    from models_conv import conv_net

    with pytest.raises(ValueError, match=complaint):
        conv_net(*line, "snntorch", (1, 5, 5), 10)


@pytest.mark.parametrize("neuron", ["ltc", "alif", "lif"])
def test_both_libraries_give_the_same_network(neuron):
    import torch
    from models_conv import conv_net

    x = torch.rand(10, 4, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    outputs = []
    for library in ("snntorch", "spikingjelly"):
        torch.manual_seed(0)
        net = conv_net("C8-MP-C8k5-32-16", neuron, library, (2, 9, 9), 3)
        outputs.append(torch.stack([net(x_t) for x_t in x]))
    torch.testing.assert_close(*outputs)
    assert outputs[0].abs().sum() > 0


@pytest.mark.parametrize(
    "command",
    [
        "dvs_gesture.py",
        "dvs_gesture.py --model scnn --downsample 4 --library spikingjelly",
        "dvs_gesture.py --dataset nmnist --neuron lstm --method bptt",
        "dvs_gesture.py --dataset nmnist --recipe normalized",
        "dvs_gesture.py --dataset nmnist --encoders 512 --recipe normalized --library spikingjelly",
        "dvs_cifar10.py --recipe code --frames 8 --layers C32-MP-C64-MP-32R",
        "dvs_cifar10.py --neuron alif",
        "event_counts.py",
        "speech.py",
        "speech.py --dataset ssc --recipe plain --library spikingjelly",
        "static_images.py --gate-norm",
        "static_images.py --dataset fashion_mnist --neuron lif --library spikingjelly",
    ],
)
def test_smoke(command, run_example, tmp_path):
    script, *arguments = command.split()
    run_example(script, "--smoke", "--out", "run", *arguments)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    if "lstm" not in command and "counts" not in command:
        assert all(0.005 < rate < 0.95 for rate in result["final"]["firing_rates"].values()), result["final"]
