"""CUDA graphs on the CPU, by the recorder that the fixture ``recordings`` puts in the GPU's place."""

import warnings

import pytest
import torch
from accelerated import double_net, liquid, pair, train, train_both
from nets import batch, sgd
from torch import nn

from fptt_plugin.compile import cuda_graph
from fptt_plugin.compile.update import Verdicts
from fptt_plugin.errors import FPTTWarning


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


def test_kernels_that_are_not_fused_are_recorded(monkeypatch, traced):
    asked, lookup = [], torch._dynamo.lookup_backend

    def record(function, inputs):
        outputs = [output.clone() for output in function(*inputs)]

        def replay():
            for output, value in zip(outputs, function(*inputs), strict=True):
                assert not value.requires_grad  # no backward pass is left to autograd
                output.copy_(value)

        return outputs, replay

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: asked.append(name) or lookup(name))
    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "on_gpu", lambda tensor: True)
    trainers = graph_pair(window=9)
    train_both(trainers, lambda trainer: train(trainer, count=2, steps=18))
    assert "aot_eager" in asked
    assert trainers[1].explain().endswith("the whole window, recorded")


def test_guards_hold_between_replays(recordings):
    def train_changing(trainer):
        train(trainer)
        trainer.net[1].threshold = 0.2
        train(trainer)
        trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())  # its tensors move
        train(trainer)

    train_both(graph_pair(), train_changing)
    assert len(recordings) == 22  # of one window each in the first batch, of up to three in the other eight


@pytest.mark.parametrize(("window", "replays"), [(1, 3), (2, 4)])
def test_short_windows_share_a_replay(recordings, window, replays):
    trainers = graph_pair(window=window, loss_every=1)
    train_both(trainers, lambda trainer: train(trainer, count=2, steps=9))
    before = len(recordings)
    train_both(trainers, lambda trainer: train(trainer, count=1, steps=8 if window == 1 else 10))
    # Behind the first window, which is eager: 7 windows of 1 step are two replays of three and one; 4 of 2 steps, four.
    assert len(recordings) - before == replays


class Gate(nn.Module):
    """Multiplies by its weight, except at the blocked steps, where the weight has no gradient."""

    def __init__(self, blocked):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, dtype=torch.float64))
        self.step, self.blocked = 0, blocked

    def forward(self, x):
        self.step += 1
        return x if self.step in self.blocked else x * self.weight


@pytest.mark.parametrize("blocked", [{1, 2}, {1, 2, 3, 4}])
@pytest.mark.parametrize("first", [set(), {*range(9)}], ids=["has state", "has no state yet"])
def test_weights_without_gradient_within_a_replay(recordings, blocked, first):
    def train_reset(trainer):
        for k, (x, y) in enumerate([batch(8, dtype=torch.float64) for _ in range(3)]):
            trainer.net[1].step, trainer.net[1].blocked = 0, blocked if k else first
            trainer.train_sequence(2 * x, y)

    train_both(graph_pair(lambda: double_net(extra=[Gate(blocked)])), train_reset)
    assert recordings


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


# ------------------------------------------------------------------ the host waits once per batch


def spoiled(x, y, step):
    """A batch in which the loss of one step is not finite, and nothing else."""
    y = y.clone()
    y[step, 0, 0] = 0.0
    return x, y


def ratio_loss(output, target):
    return ((output - target) ** 2).mean() / (target.min() > 0.0)


def regression(steps=8):
    return batch(steps, dtype=torch.float64)[0], torch.rand(steps, 4, 2, dtype=torch.float64) + 0.1


@pytest.fixture
def verdicts(monkeypatch):
    """How many updates were asked for at once."""
    found = []
    settle = Verdicts.settle

    def counting(self):
        found.append(len(self.pending or []))
        return settle(self)

    monkeypatch.setattr(Verdicts, "settle", counting)
    return found


def test_finiteness_is_looked_at_once_per_batch(recordings, verdicts):
    trainers = graph_pair()
    train_both(trainers, train)
    assert verdicts == [0, 6, 6]  # in the first batch the optimizer makes its state


class NoValue(torch.Tensor):
    """Stands for a verdict on a device: nobody may ask for it."""

    def __bool__(self):
        raise AssertionError("the host waits for the device")


def test_nobody_asks_within_a_batch(recordings, monkeypatch):
    trainers = graph_pair()
    train(trainers[1], count=1)
    allow, settle = Verdicts.allow, Verdicts.settle

    def settle_all(self):
        self.pending = self.pending and [finite.as_subclass(torch.Tensor) for finite in self.pending]
        return settle(self)

    monkeypatch.setattr(Verdicts, "allow", lambda self, finite: allow(self, finite.as_subclass(NoValue)))
    monkeypatch.setattr(Verdicts, "settle", settle_all)
    train(trainers[1], count=1)
    trainers[1].reset()
    x, y = batch(2, dtype=torch.float64)
    trainers[1].step(x[0], y)
    with pytest.raises(AssertionError, match="waits"):  # a stream has a result at every step
        trainers[1].step(x[1], y)


@pytest.mark.parametrize("at", [1, 4, 7])
@pytest.mark.parametrize("window", [1, 3])
def test_the_bad_window_is_found_by_training_again(recordings, verdicts, at, window):
    def build():
        return double_net(extra=[nn.BatchNorm1d(8).double(), nn.Dropout(0.2)])

    # Adam would divide the gradient of the bias before the normalization, nothing but rounding, by as little.
    trainers = graph_pair(build, optimizer=sgd, loss=ratio_loss, window=window, loss_every=1)

    def train_spoiled(trainer):
        trainer.train_sequence(*regression())
        with pytest.raises(FloatingPointError) as error:
            trainer.train_sequence(*spoiled(*regression(), at))
        trainer.reset()
        trainer.train_sequence(*regression())
        return str(error.value)

    messages = train_both(trainers, train_spoiled)
    assert messages[0] == messages[1]
    assert max(verdicts) > 0


class Exp(nn.Module):
    """Overflows where its input is large."""

    def forward(self, x):
        return x.exp()


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
def test_the_class_distribution_does_not_see_a_batch_twice(recordings, verdicts, on_nonfinite):
    trainers = graph_pair(lambda: double_net(extra=[Exp()]), on_nonfinite=on_nonfinite)

    def train_spoiled(trainer):
        for k in range(3):
            x, y = batch(8, dtype=torch.float64)
            if k == 1:
                x[5] = 1e300
            try:
                trainer.train_sequence(x, y)
            except FloatingPointError:
                assert k == 1
                trainer.reset()

    train_both(trainers, train_spoiled)
    assert torch.allclose(*(trainer.objective.distribution.table for trainer in trainers))
    assert max(verdicts) > 0


def test_skipped_updates_are_those_of_eager_training(recordings, verdicts):
    def train_skipping(trainer):
        for hole in (None, 3, 4, None):
            x, y = regression()
            trainer.train_sequence(*((x, y) if hole is None else spoiled(x, y, hole)))

    trainers = graph_pair(loss=ratio_loss, on_nonfinite="skip")
    train_both(trainers, train_skipping)
    assert [trainer.skipped for trainer in trainers] == [2, 2]
    assert max(verdicts) > 0


class Fails(nn.Module):
    """Raises an error at a step, in the user's own code."""

    at = None

    def __init__(self):
        super().__init__()
        self.step = 0

    def forward(self, x):
        self.step += 1
        if self.at is not None and self.step == self.at:
            raise ZeroDivisionError("the user's own")
        return x


def test_an_error_after_an_update_that_was_not_finite(recordings):
    trainers = graph_pair(lambda: double_net(extra=[Fails()]), loss=ratio_loss)

    def train_failing(trainer):
        trainer.train_sequence(*regression())
        trainer.net[1].at = trainer.net[1].step + 6
        # Whichever comes first in eager training: the update at step 3.
        with pytest.raises(FloatingPointError):
            trainer.train_sequence(*spoiled(*regression(), 3))
        trainer.net[1].at, trainer.net[1].step = None, 0
        trainer.reset()
        trainer.train_sequence(*regression())

    train_both(trainers, train_failing)


def test_the_class_distribution_learns_in_a_recording(recordings):
    trainers = graph_pair()
    train_both(trainers, train)
    tables = [trainer.objective.distribution.table for trainer in trainers]
    assert tables[0].abs().sum() > 0
    assert torch.allclose(*tables)


def test_the_class_distribution_grows_within_a_replay(recordings):
    def train_longer(trainer):
        for steps in (3, 14):
            trainer.train_sequence(*batch(steps, dtype=torch.float64))

    trainers = graph_pair()
    train_both(trainers, train_longer)
    tables = [trainer.objective.distribution.table[:14] for trainer in trainers]
    assert tables[0][7:13].std() > 0.01
    assert torch.allclose(*tables)
    assert recordings


@pytest.mark.parametrize(
    ("others", "why"), [([torch.ones(2, device="meta")], "all tensors on one GPU"), ([3], "every tensor on the GPU")]
)
def test_what_is_not_all_on_one_gpu_is_not_recorded(recordings, others, why):
    recorder = cuda_graph.Recorder(lambda: [])
    assert recorder.record(lambda *inputs: [inputs[0] + 1], [torch.ones(2), *others]) is None
    assert why in recorder.reason
    assert recorder.record(lambda x: [x + 1], [torch.ones(2)]) is not None


@pytest.mark.slow
def test_what_inductor_makes_of_a_graph_is_recorded(monkeypatch):
    recorder = cuda_graph.Recorder(lambda: [])
    monkeypatch.setattr(cuda_graph, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(cuda_graph, "record", lambda function, inputs: (list(function(*inputs)), lambda: None))
    double = torch.compile(lambda x: 2 * x, backend=recorder, options={"size_asserts": False})
    for _ in range(2):
        assert torch.equal(double(torch.ones(3)), torch.full((3,), 2.0))
    assert recorder.reason is None
