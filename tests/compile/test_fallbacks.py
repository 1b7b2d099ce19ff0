"""What cannot be compiled runs eagerly, with one warning; and the compiler itself."""

import copy
import os
import re
import subprocess
import sys
import warnings

import pytest
import snntorch as snn
import torch
from accelerated import CE, assert_same, double_net, liquid, pair, sequences, train, train_both
from nets import adam, batch, sgd, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import FPTTWarning
from fptt_plugin.functional import MultiGaussian
from fptt_plugin.snntorch import LTCLeaky
from fptt_plugin.state import AttributeHandler, register_state_handler

pytestmark = pytest.mark.usefixtures("traced")


class Reads(nn.Module):
    """Decides by a value."""

    def forward(self, x):
        return x if x.sum() > -1e9 else 2 * x


class Counts(nn.Module):
    """Counts its steps in Python."""

    steps = 0

    def forward(self, x):
        self.steps += 1
        return x * self.steps


class Delay(nn.Module):
    """Hands its input on three steps later."""

    queue = None

    def forward(self, x):
        self.queue = [*(self.queue or []), x][-3:]
        return self.queue[0]


register_state_handler(Delay, AttributeHandler(queue=None))


class Loops(nn.Module):
    """Loops over time itself."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.fires = snn.Leaky(beta=0.8, threshold=0.3, spike_grad=MultiGaussian())

    def forward(self, x):
        mem, outputs = self.fires.init_leaky(), []
        for x_t in x:
            spk, mem = self.fires(self.into(x_t), mem)
            outputs.append(self.out(spk))
        return torch.stack(outputs)


class Subclass(torch.optim.SGD):
    """Anyone's."""


def reason_of(trainers):
    """Train both; the one reason that the accelerated one gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FPTTWarning)
        train_both(trainers, train)
    told = [str(entry.message) for entry in caught if "accelerate" in str(entry.message)]
    assert len(told) <= 1
    assert all(text.split(": ", 1)[1] in trainers[1].explain() for text in told)
    return told[0] if told else None


@pytest.mark.parametrize(
    ("build", "optimizer", "options", "reason"),
    [
        (lambda: double_net(extra=[Reads()]), adam, {}, "parts of the step run eagerly, .*[Dd]ata-dependent"),
        (lambda: double_net(extra=[Delay()]), adam, {}, None),
        (lambda: Loops().double(), adam, {}, "own loop over time"),
        (double_net, lambda net: Subclass(net.parameters(), lr=0.1), {}, "Subclass is none of"),
        (double_net, adam, {"variant": "gradient"}, "second gradient"),
        (double_net, adam, {"update_every": 2}, None),
        (double_net, adam, {"window": None}, None),
    ],
)
def test_eager_where_it_must_be_with_one_warning(build, optimizer, options, reason):
    told = reason_of(pair(build, optimizer, **options))
    assert (told is None) == (reason is None)
    assert reason is None or re.search(reason, told)


def test_a_compiler_that_fails(monkeypatch):
    monkeypatch.undo()

    def fail(graph, inputs, **options):
        raise RuntimeError("no compiler here\nat all")

    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiler(function, **{**options, "backend": fail})
    )
    with pytest.warns(FPTTWarning, match="no compiler here"):
        train_both(pair(), train)


def test_explain_says_what_is_compiled():
    trainer = pair()[1]
    trainer.train_sequence(*sequences(1)[0])
    assert "accelerate='compile': compiled: the whole window" in trainer.explain()
    assert "accelerate" not in pair()[0].explain()


def convolutional():
    unsized = LTCLeaky(init_hidden=True)  # its sizes are known after the first batch
    return nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 8, 3), nn.Flatten(), unsized, nn.Linear(8, 2)).double()


@pytest.mark.parametrize(
    ("build", "window", "whole"),
    [(liquid, 8, True), (liquid, 9, False), (convolutional, 2, True), (convolutional, 3, False)],
)
def test_how_long_a_window_may_be_for_one_graph(graph_steps, build, window, whole):
    train_both(pair(build, window=window), lambda trainer: train(trainer, steps=4 * window))
    assert set(graph_steps) == ({window} if whole else set())


def test_an_unknown_mode():
    net = spiking_net()
    with pytest.raises(ValueError, match="accelerate='fast' is unknown; choose one of 'none', 'compile'"):
        FPTTTrainer(net, sgd(net), CE, accelerate="fast")


# ------------------------------------------------------------------ the compiler itself


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "mode"),
    [
        ("cpu", "auto"),
        pytest.param(
            "cuda", "cudagraph", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_the_compiled_window(monkeypatch, device, mode):
    monkeypatch.undo()
    net = liquid().float().to(device)
    nets = net, copy.deepcopy(net)
    trainers = [
        FPTTTrainer(n, torch.optim.Adam(n.parameters(), capturable=device == "cuda"), CE, accelerate=accelerate)
        for n, accelerate in zip(nets, ("none", mode), strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for trainer in trainers:
            torch.manual_seed(1)
            for _ in range(3):
                trainer.train_sequence(*(part.to(device) for part in batch(10)))
    assert_same(trainers, same=1e-4)
    assert "whole window" in trainers[1].explain()


@pytest.mark.slow
def test_a_compiler_of_kernels_that_is_older_than_the_processor(tmp_path):
    """It gets vector instructions that it knows."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-mavx512*) exit 1;; esac\nexec /usr/bin/env PATH="$OLD" g++ "$@"\n')
    compiler.chmod(0o755)
    old = os.environ["PATH"]
    caches = {"TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "caches")}
    environment = {**os.environ, "OLD": old, "PATH": f"{tmp_path}{os.pathsep}{old}", **caches}
    script = """
import torch
from fptt_plugin.compile import dynamo
dynamo.read_headers()
double = dynamo.Compiled(lambda x: 2 * x)
assert torch.equal(double(torch.ones(64)), torch.full((64,), 2.0))
assert ("cpp.simdlen" in dynamo._INDUCTOR) == (torch.backends.cpu.get_cpu_capability() == "AVX512")
"""
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
