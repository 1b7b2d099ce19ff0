"""Long streams: killed and resumed, flat in memory, beside other networks, and with a NaN in the middle.

``FPTT_STREAM_STEPS=100000`` runs the memory test at full size.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch as snn
import torch
import torch.nn.functional as F
from nets import Before, adam, batch, copies, flat, identical, spikes, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CheckpointError
from fptt_plugin.state import ModelState

WORKER = Path(__file__).with_name("stream_worker.py")
STEPS = int(os.environ.get("FPTT_STREAM_STEPS", 3000))
CE = nn.CrossEntropyLoss()


def start(*arguments):
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(worker):
    out, error = worker.communicate(timeout=900)
    assert worker.returncode == 0, error
    return [line.split() for line in out.splitlines()]


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    """Two times SIGKILL in mid-stream; the 1 000 updates after the last checkpoint are those of a run left alone."""
    (tmp_path / "alone").mkdir()
    reference = start("train", tmp_path / "alone", 1400)
    for after in (150, 300):
        worker = start("train", tmp_path, 10**6)
        for line in worker.stdout:
            if line.split()[0] == str(after):
                break
        worker.kill()
        worker.wait()
        worker.stdout.close()
        worker.stderr.close()
        assert worker.returncode == -9
    (_, begin), *resumed = finish(start("train", tmp_path, 1400))
    (_, zero), *alone = finish(reference)
    assert int(zero) == 0
    assert 290 < int(begin) < 400
    seen = [updates for updates, _ in resumed]
    assert int(seen[-1]) - int(begin) >= 1000
    assert len(seen) >= 20
    assert resumed == alone[-len(resumed) :]
    assert len({state for _, state in alone}) == len(alone)


def test_a_truncated_file_is_refused_and_the_one_before_still_loads(tmp_path):
    def make():
        net = spiking_net()
        return FPTTTrainer(net, adam(net), CE, readout="mean")

    def stream(trainer, steps):
        for _ in range(steps):
            x, y = batch(1)
            trainer.step(x[0], y)

    trainer, one, two = make(), tmp_path / "one.pt", tmp_path / "two.pt"
    stream(trainer, 10)
    trainer.save(one)
    kept = copies(trainer.net.parameters())
    stream(trainer, 10)
    trainer.save(two)
    whole = two.read_bytes()
    other = make()
    for length in [*range(0, len(whole), len(whole) // 20), len(whole) - 1]:
        two.write_bytes(whole[:length])
        before = Before(other)
        with pytest.raises(CheckpointError, match=r"two\.pt"):
            other.load(two)
        assert before.differs() == []
    other.load(one)
    assert identical(other.net.parameters(), kept)
    two.write_bytes(whole)
    other.load(two)
    assert identical(other.net.parameters(), trainer.net.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")
def test_memory_and_objects_stay_flat():
    rows = finish(start("memory", STEPS))
    (first, begin, objects), (last, end, objects_at_end) = [list(map(int, row)) for row in rows]
    print(f"RSS after {first} steps: {begin} KiB, after {last}: {end} KiB; objects {objects}, {objects_at_end}")
    assert end < 1.01 * begin
    assert objects_at_end - objects < 20


# ---------------------------------------------------------------------- beside each other


def snntorch_net():
    return nn.Sequential(nn.Linear(3, 8), snn.Leaky(beta=0.9, threshold=0.3, init_hidden=True), nn.Linear(8, 2))


def spikingjelly_net():
    return nn.Sequential(layer.Linear(3, 8), neuron.LIFNode(v_threshold=0.2), layer.Linear(8, 2))


@pytest.mark.parametrize("build", [spiking_net, snntorch_net, spikingjelly_net])
def test_networks_beside_each_other_do_not_touch(build):
    """Two trainers taking turns, and a copy that evaluates and resets in between, against each trainer alone."""

    def make(seed):
        torch.manual_seed(seed)
        net = build()
        return FPTTTrainer(net, adam(net, 0.01), CE, window=2, readout="mean", driver="step")

    def advance(trainer, step):
        x, y = batch(1)
        generator = torch.Generator().manual_seed(step)
        trainer.step(torch.rand(x[0].shape, generator=generator), y)

    alone = [make(1), make(2)]
    for trainer in alone:
        for step in range(31):
            advance(trainer, step)
    beside = [make(1), make(2)]
    for step in range(31):
        for trainer in beside:
            advance(trainer, step)
        if step % 2:  # in mid-window a state has a graph, and torch copies no such tensor
            copied = copy.deepcopy(beside[0].net).eval()
            ModelState(copied).reset()
            with torch.no_grad(), spikes(copied):
                for _ in range(3):
                    copied(torch.rand(5, 3))
            functional.reset_net(copied) if build is spikingjelly_net else ModelState(copied).reset()
            FPTTTrainer(copied, adam(copied), CE, driver="step").train_sequence(*batch(3))
    for one, other in zip(alone, beside, strict=True):
        assert one.updates == other.updates == 15
        assert identical(one.net.parameters(), other.net.parameters())
        assert identical(flat(ModelState(one.net).get()), flat(ModelState(other.net).get()))
    assert not identical(beside[0].net.parameters(), beside[1].net.parameters())


# ---------------------------------------------------------------------- a NaN in step 700


def spoiled(where):
    """A trainer's stream whose step 700 has a NaN in its data or its loss."""
    now = [0]

    def loss_fn(output, target):
        return F.mse_loss(output, target) * (float("nan") if now == [700] and where == "loss" else 1.0)

    def data(step):
        now[0] = step
        x, y = torch.rand(4, 3), torch.rand(4, 2)
        if step == 700 and where != "loss":
            (x if where == "input" else y)[1, 1] = float("nan")
        return x, y

    return loss_fn, data


@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("where", ["input", "target", "loss"])
def test_a_nan_in_step_700(where, policy):
    loss_fn, data = spoiled(where)
    net = spiking_net(extra=[nn.BatchNorm1d(8)])
    trainer = FPTTTrainer(net, adam(net, 0.01), loss_fn, on_nonfinite=policy, driver="step")
    for step in range(700):
        trainer.step(*data(step))
    before, weights = Before(trainer), copies(net.parameters())
    x, y = data(700)
    if policy == "raise":
        with pytest.raises(FloatingPointError if where == "loss" else ValueError, match=r"not finite|non-finite"):
            trainer.step(x, y)
    else:
        result = trainer.step(x, y)
        assert not result.updated
        assert trainer.skipped == 1
    if where == "target" and policy == "skip":  # a step without target: the network has moved on
        assert before.differs() == ["weights", "recurrent state"]
    else:
        assert before.differs() == []
    assert identical(net.parameters(), weights)  # what differs of the weights are statistics of the normalization
    assert all(value.isfinite().all() for value in net.state_dict().values())
    with spikes(net):
        for step in range(701, 750):
            assert trainer.step(*data(step)).updated
    assert all(value.isfinite().all() for value in net.state_dict().values())
