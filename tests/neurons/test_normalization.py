"""Batch normalization per time step: against one nn.BatchNorm per step, and statistics taken over all that was seen."""

import copy
import io
import pickle

import numpy as np
import pytest
import snntorch as snn
import torch
from nets import spikes
from snntorch import utils
from spikingjelly.activation_based import functional, layer
from torch import nn

from fptt_plugin.errors import BatchShapeError, ConfigurationError, ConfigurationTypeError
from fptt_plugin.snntorch import LTCLeaky, PerStepBatchNorm1d, PerStepBatchNorm2d, RLTCLeaky
from fptt_plugin.spikingjelly import LTCLeaky as LTCNode
from fptt_plugin.spikingjelly import PerStepBatchNorm1d as MemoryNorm1d
from fptt_plugin.spikingjelly import PerStepBatchNorm2d as MemoryNorm2d

FLAT = pytest.param((PerStepBatchNorm1d, MemoryNorm1d), nn.BatchNorm1d, (6, 3), id="1d")
MAPS = pytest.param((PerStepBatchNorm2d, MemoryNorm2d), nn.BatchNorm2d, (4, 3, 5, 2), id="2d")
EACH_SHAPE = pytest.mark.parametrize(("kinds", "torch_kind", "shape"), [FLAT, MAPS])
EACH_LIBRARY = pytest.mark.parametrize("library", [0, 1], ids=["snntorch", "spikingjelly"])


def steps_of(norm, x):
    norm.reset()
    return torch.stack([norm(x_t) for x_t in x])


def drifting(steps, *shape, dtype=torch.float64):
    """A drive whose mean and scale change from step to step, as those of a recurrent network do."""
    t = torch.arange(steps, dtype=dtype).view(-1, *[1] * len(shape))
    return (1 + t) * torch.randn(steps, *shape, dtype=dtype) + 3 * t


# ---------------------------------------------------------------------- statistics of each step


@EACH_LIBRARY
@EACH_SHAPE
def test_each_step_is_a_batch_norm_of_its_own_with_shared_scale_and_shift(kinds, torch_kind, shape, library):
    norm = kinds[library](3, steps=5, momentum=0.3, eps=1e-3).double()
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    by_hand = [torch_kind(3, momentum=0.3, eps=1e-3).double() for _ in range(5)]
    for own in by_hand:
        own.weight, own.bias = norm.weight, norm.bias
    for _ in range(3):
        x = drifting(5, *shape).requires_grad_()
        pair = steps_of(norm, x), torch.stack([own(x_t) for own, x_t in zip(by_hand, x, strict=True)])
        noise = torch.randn_like(x)
        grads = [torch.autograd.grad(y, (x, norm.weight, norm.bias), noise) for y in pair]
        assert torch.allclose(*pair, rtol=1e-12, atol=1e-12)
        for one, other in zip(*grads, strict=True):
            assert one.abs().sum() > 0
            assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)
    for module in (norm, *by_hand):
        module.eval()
    x = drifting(5, *shape)
    assert torch.allclose(
        steps_of(norm, x), torch.stack([own(x_t) for own, x_t in zip(by_hand, x, strict=True)]), rtol=1e-12, atol=1e-12
    )
    assert torch.allclose(norm.running_mean, torch.stack([own.running_mean for own in by_hand]), rtol=1e-12)
    assert torch.allclose(norm.running_var, torch.stack([own.running_var for own in by_hand]), rtol=1e-12)


@EACH_LIBRARY
def test_later_steps_share_the_last_statistics(library):
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=2).double()
    steps_of(norm, drifting(5, 6, 3))
    norm.eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    y = steps_of(norm, x.expand(5, 6, 3))
    assert torch.equal(y[1], y[4])
    assert not torch.allclose(y[0], y[1])
    assert norm.step.tolist() == [5] * 6


@EACH_LIBRARY
@pytest.mark.parametrize("accumulate", [False, True])
def test_samples_at_different_steps_each_meet_the_statistics_of_their_own(library, accumulate):
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=4, accumulate=accumulate).double()
    for _ in range(20):
        steps_of(norm, drifting(4, 6, 3))
    norm.eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    alone = steps_of(norm, x.expand(4, 6, 3))
    norm.reset(), norm(x), norm(x)
    norm.step = torch.where(torch.tensor([True, False] * 3), 0, norm.step)
    mixed = norm(x)
    assert torch.equal(mixed[::2], alone[0][::2])
    assert torch.equal(mixed[1::2], alone[2][1::2])
    # In training both steps' statistics move, toward those by which both groups were normalized.
    before = norm.running_mean.clone()
    norm.train()
    norm.step = torch.tensor([0, 2] * 3)
    norm(x)
    assert ((norm.running_mean - before).abs().sum(1) > 0).tolist() == [True, False, True, False]


# ---------------------------------------------------------------------- statistics of all steps so far


@EACH_LIBRARY
@EACH_SHAPE
def test_accumulated_statistics_are_those_of_all_that_was_seen(kinds, torch_kind, shape, library):
    norm = kinds[library](3, steps=5, accumulate=True, eps=1e-3).double()
    nn.init.uniform_(norm.weight), nn.init.uniform_(norm.bias)
    x = drifting(5, *shape).requires_grad_()
    y = steps_of(norm, x)
    seen = [x[: t + 1].transpose(1, 2).flatten(3) if len(shape) > 2 else x[: t + 1].unsqueeze(-1).transpose(1, 2)
            for t in range(5)]  # fmt: skip
    by_hand = []
    for t, values in enumerate(seen):
        var, mean = torch.var_mean(values, dim=[0, *range(2, values.dim())], correction=0)
        view = (1, 3, *[1] * (len(shape) - 2))
        normal = (x[t] - mean.view(view)) / (var.view(view) + 1e-3).sqrt()
        by_hand.append(normal * norm.weight.view(view) + norm.bias.view(view))
    by_hand = torch.stack(by_hand)
    assert torch.allclose(y, by_hand, rtol=1e-10, atol=1e-10)
    noise = torch.randn_like(x)
    grads = [torch.autograd.grad(out, (x, norm.weight), noise) for out in (y, by_hand)]
    for one, other in zip(*grads, strict=True):
        assert one.abs().sum() > 0
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9)


@EACH_LIBRARY
def test_a_stream_of_one_sample_is_normalized_by_its_past(library):
    kind = (PerStepBatchNorm1d, MemoryNorm1d)[library]
    norm = kind(3, steps=10, accumulate=True)
    x = 5 + 2 * torch.randn(400, 1, 3)
    y = steps_of(norm, x)
    assert (y[0] == 0).all()  # nothing to compare with
    assert y[100:].mean().abs() < 0.2
    assert abs(y[100:].std() - 1) < 0.1
    with pytest.raises(BatchShapeError, match="accumulate=True"):
        kind(3, steps=10)(x[0])
    kind(3, steps=10).eval()(x[0])


@EACH_LIBRARY
def test_a_sample_that_begins_again_takes_its_past_out_of_the_statistics(library):
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=10, accumulate=True).double()
    x = drifting(4, 2, 3)
    norm(x[0]), norm(x[1])
    for name in ("step", "mean", "m2"):
        state = getattr(norm, name).clone()
        state[0] = 0
        setattr(norm, name, state)
    y = norm(x[2])
    seen = torch.cat([x[:3, 1], x[2:3, 0]])
    var, mean = torch.var_mean(seen, dim=0, correction=0)
    assert torch.allclose(y, (x[2] - mean) / (var + 1e-5).sqrt(), rtol=1e-10)


# ---------------------------------------------------------------------- the count of steps


class Neurons(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.norm, self.neuron = PerStepBatchNorm1d(3, steps=4), neuron


@pytest.mark.parametrize(
    "neuron",
    [
        LTCLeaky(init_hidden=True),
        RLTCLeaky(init_hidden=True, linear_features=3),
        snn.Leaky(beta=0.9, init_hidden=True),
        snn.RLeaky(beta=0.9, init_hidden=True, linear_features=3),
        snn.Synaptic(alpha=0.9, beta=0.8, init_hidden=True),
        snn.RSynaptic(alpha=0.9, beta=0.8, init_hidden=True, linear_features=3),
        snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True),
        snn.Lapicque(beta=0.9, init_hidden=True),
        snn.SLSTM(3, 3, init_hidden=True),
    ],
    ids=lambda neuron: type(neuron).__name__,
)
def test_snntorchs_reset_reaches_it_beside_any_neuron(neuron):
    net = Neurons(neuron)
    net.neuron(net.norm(torch.randn(6, 3)))
    assert net.norm.step.tolist() == [1] * 6
    utils.reset(net)
    assert len(net.norm.step) == 0


def test_spikingjellys_reset_reaches_it_and_slices_go_on():
    net = nn.Sequential(layer.Linear(3, 3), MemoryNorm1d(3, steps=4), LTCNode())
    functional.set_step_mode(net, "m")
    x = torch.randn(4, 6, 3)
    net.eval()
    nn.init.uniform_(net[1].running_mean)
    whole = net(x)
    functional.reset_net(net)
    assert net[1].step == 0
    assert torch.equal(torch.cat([net(x[:1]), net(x[1:])]), whole)


@EACH_LIBRARY
def test_another_batch_size_begins_at_the_first_step(library):
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=4)
    norm(torch.randn(6, 3)), norm(torch.randn(6, 3)), norm(torch.randn(2, 3))
    assert norm.step.tolist() == [1, 1]


@EACH_LIBRARY
def test_the_count_is_no_part_of_the_state_dict_and_copies_keep_it(library):
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=4)
    norm(torch.randn(6, 3))
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    for twin in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert twin.step.tolist() == [1] * 6
        assert torch.equal(twin.running_mean, norm.running_mean)
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    fresh = type(norm)(3, steps=4)
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(fresh.running_var, norm.running_var)
    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(norm))[0].running_mean, norm.running_mean)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "option", [{"eps": 0.5}, {"momentum": 0.9}, {"gamma": 0.1}, {"affine": False}, {"accumulate": True}, {"steps": 2}]
)
@EACH_LIBRARY
def test_every_option_changes_something(library, option):
    kind = (PerStepBatchNorm1d, MemoryNorm1d)[library]
    x = drifting(4, 6, 3, dtype=torch.float32)

    def outcome(**options):
        torch.manual_seed(0)
        norm = kind(3, **{"steps": 4, **options})
        trained = steps_of(norm, x)
        loss = (trained * x).sum()
        parameters = sum(p.numel() for p in norm.parameters())
        norm.eval()
        return torch.cat([trained.flatten(), steps_of(norm, x).flatten(), loss.view(1), torch.tensor([parameters])])

    assert not torch.allclose(outcome(), outcome(**option))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_features": 0}, ConfigurationError),
        ({"steps": 0}, ConfigurationError),
        ({"steps": 3.0}, ConfigurationTypeError),
        ({"num_features": True}, ConfigurationTypeError),
        ({"eps": 0}, ConfigurationError),
        ({"momentum": 0}, ConfigurationError),
        ({"momentum": None}, ConfigurationTypeError),
        ({"gamma": float("nan")}, ConfigurationError),
    ],
)
@EACH_LIBRARY
def test_impossible_options_are_refused(library, options, error):
    with pytest.raises(error):
        (PerStepBatchNorm2d, MemoryNorm2d)[library](**{"num_features": 3, "steps": 4, **options})


@EACH_LIBRARY
def test_sizes_may_be_integers_of_numpy(library):
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](np.int64(3), steps=np.int32(4))
    assert type(norm.num_features) is type(norm.steps) is int
    assert norm(torch.rand(5, 3)).shape == (5, 3)


@pytest.mark.parametrize("shape", [(3,), (6, 4), (5, 6, 3), (6, 3, 2, 2)])
@EACH_LIBRARY
def test_other_shapes_are_refused(library, shape):
    with pytest.raises(BatchShapeError, match=r"\[B, 3\]"):
        (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=4)(torch.randn(shape))


@pytest.mark.parametrize("accumulate", [False, True])
@EACH_LIBRARY
def test_under_autocast_it_keeps_statistics_in_float32(library, accumulate):
    torch.manual_seed(0)
    norm = (PerStepBatchNorm1d, MemoryNorm1d)[library](3, steps=4, accumulate=accumulate)
    twin, x = copy.deepcopy(norm), torch.randn(4, 64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = steps_of(norm, x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert norm.running_mean.dtype == torch.float32
    assert torch.allclose(y.float(), steps_of(twin, x.bfloat16().float()), rtol=1e-2, atol=1e-2)
    assert torch.allclose(norm.running_mean, twin.running_mean, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- on the recurrent drive


def test_the_recurrent_neuron_normalizes_what_it_feeds_back():
    torch.manual_seed(0)
    lif = RLTCLeaky(linear_features=4, recurrent_norm=PerStepBatchNorm1d(4, steps=5)).double()
    norm = copy.deepcopy(lif.recurrent_norm)
    twin = LTCLeaky(linear_features=4).double()
    twin.mem_gate, twin.adp_gate = lif.mem_gate, lif.adp_gate
    spk, _ = lif.reset_mem()
    x = 2 * torch.randn(5, 16, 4, dtype=torch.float64)
    drives, fed_back = [], torch.zeros(16, 4, dtype=torch.float64)
    for x_t in x:
        spk, mem = lif(x_t)
        drives.append(x_t + norm(lif.recurrent(fed_back)))
        fed_back, mem_twin = twin(drives[-1])
        assert torch.equal(spk, fed_back)
        assert torch.equal(mem, mem_twin)
    assert spk.any()
    spk.sum().backward()
    assert lif.recurrent_norm.weight.grad.abs().sum() > 0
    assert lif.recurrent_norm.step.tolist() == [5] * 16
    lif.reset_mem()
    assert len(lif.recurrent_norm.step) == 0


class NormalizedFeedback(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.recurrent, self.norm = nn.Linear(features, features), MemoryNorm1d(features, steps=5)

    def forward(self, spikes, x):
        return x + self.norm(self.recurrent(spikes))


def test_spikingjellys_recurrent_containers_take_it():
    elementwise = layer.ElementWiseRecurrentContainer(LTCNode(linear_features=4), NormalizedFeedback(4), step_mode="m")
    linear = layer.LinearRecurrentContainer(
        nn.Sequential(MemoryNorm1d(4, steps=5), LTCNode(linear_features=4)), 4, 4, step_mode="m"
    )
    x = 2 * torch.randn(5, 16, 4)
    for container in (elementwise, linear):
        with spikes(container):
            out = container(x)
        norm = next(module for module in container.modules() if isinstance(module, MemoryNorm1d))
        assert norm.step.tolist() == [5] * 16
        assert (norm.running_mean.abs().sum(1) > 0).sum() >= 4  # the first feedback is zero
        out.sum().backward()
        assert norm.weight.grad.abs().sum() > 0
        functional.reset_net(container)
        assert norm.step == 0
