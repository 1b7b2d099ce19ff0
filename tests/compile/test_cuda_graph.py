"""CUDA graphs on the CPU: a recorder that replays by calling the function on the same places."""

import warnings

import pytest
import torch
from accelerated import double_net, liquid, pair, train, train_both
from nets import batch
from torch import nn

from fptt_plugin.compile import cuda_graph
from fptt_plugin.errors import FPTTWarning


@pytest.fixture
def recordings(monkeypatch, traced):
    """Stands for the GPU; the replays so far."""
    replays = []

    def record(function, inputs):
        outputs = list(function(*inputs))
        outputs = [output.detach().clone() if isinstance(output, torch.Tensor) else output for output in outputs]

        def replay():
            replays.append(1)
            for output, value in zip(outputs, function(*inputs), strict=True):
                if isinstance(output, torch.Tensor):
                    output.copy_(value.detach())

        return outputs, replay

    compiler = torch._dynamo.lookup_backend("eager")
    monkeypatch.setattr(
        torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs, options: compiler(graph, inputs)
    )
    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "on_gpu", lambda tensor: True)
    return replays


def graph_pair(build=double_net, **options):
    trainers = pair(build, **options)
    trainers[1].accelerate = "cudagraph"
    return trainers


@pytest.mark.parametrize("build", [double_net, liquid, lambda: double_net(extra=[nn.BatchNorm1d(8).double()])])
@pytest.mark.parametrize("options", [{}, {"auxiliary": False}, {"window": 2, "readout": "mean"}])
def test_replays_train_as_eager_training_does(recordings, build, options):
    trainers = graph_pair(build, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FPTTWarning)
        train_both(trainers, train)
    assert len(recordings) >= 6
    assert trainers[1].explain().endswith("the whole window, recorded")


def test_guards_hold_between_replays(recordings):
    def train_changing(trainer):
        train(trainer)
        trainer.net[1].threshold = 0.2
        train(trainer)
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())  # its tensors move
        train(trainer)

    train_both(graph_pair(), train_changing)
    assert len(recordings) > 30


@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_recording_that_fails_changes_nothing(recordings, monkeypatch, fails):
    def record(function, inputs):
        if fails == "after":
            function(*inputs)
        raise RuntimeError("cannot be captured")

    monkeypatch.setattr(cuda_graph, "record", record)
    trainers = graph_pair(lambda: double_net(extra=[nn.Dropout(0.2), nn.BatchNorm1d(8).double()]))
    train_both(trainers, train)
    assert not recordings
    assert "not recorded, because RuntimeError: cannot be captured" in trainers[1].explain()


class Overwrites(nn.Module):
    """Writes into a tensor that nobody knows of."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(8, dtype=torch.float64)

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


def test_what_is_written_without_a_place_is_not_recorded(recordings):
    trainers = graph_pair(lambda: double_net(extra=[Overwrites()]), preflight=False)
    train_both(trainers, train)
    assert torch.allclose(*(trainer.net[1].mean for trainer in trainers))
    assert not recordings


def test_a_network_on_the_cpu_is_compiled_and_not_recorded(traced, graph_steps):
    with pytest.warns(FPTTWarning, match="CUDA graph takes"):
        train_both(graph_pair(), train)
    assert graph_steps


def test_losses_in_hand_are_not_overwritten(recordings):
    trainer = graph_pair()[1]
    first = trainer.train_sequence(*batch(8, dtype=torch.float64))
    kept = first.output.clone(), first.loss.clone()
    trainer.train_sequence(*batch(8, dtype=torch.float64))
    assert torch.equal(first.output, kept[0])
    assert torch.equal(first.loss, kept[1])
