"""Running statistics taken anew: plain means over a loader, at weights that do not move."""

import pytest
import torch
from nets import CE, Before, adam, copies, identical
from spikingjelly.activation_based import layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import BatchError, BatchTypeError, ConfigurationError, FPTTWarning
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, PerStepBatchNorm1d
from fptt_plugin.spikingjelly import LTCIntegrator as NodeIntegrator
from fptt_plugin.spikingjelly import PerStepBatchNorm1d as MemoryNorm1d

STEPS = 5


def per_step():
    return nn.Sequential(
        nn.Linear(3, 8), PerStepBatchNorm1d(8, STEPS), LTCLeaky(init_hidden=True, linear_features=8), nn.Linear(8, 2),
        LTCIntegrator(init_hidden=True, linear_features=2),
    )  # fmt: skip


def shared():
    net = per_step()
    net[1] = nn.BatchNorm1d(8)
    return net


def nodes():
    return nn.Sequential(
        layer.Linear(3, 8), MemoryNorm1d(8, STEPS), neuron.LIFNode(v_threshold=0.3), layer.Linear(8, 2),
        NodeIntegrator(linear_features=2),
    )  # fmt: skip


def instances():
    drive = [nn.Linear(3, 8), nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()]
    return nn.Sequential(*drive, LTCLeaky(init_hidden=True), nn.Linear(8, 2), LTCIntegrator(init_hidden=True))


def batches(count=4, steps=STEPS):
    lengths = [steps] * count if isinstance(steps, int) else steps
    return [(3 * torch.randn(t, 16, 3, dtype=torch.float64) + 1, torch.arange(16) % 2) for t in lengths]


def trained(net, **options):
    trainer = FPTTTrainer(net.double(), adam(net), CE, **options)
    for x, y in batches():
        trainer.train_sequence(x, y)
    return trainer


@pytest.mark.parametrize("averaged", [None, True, False])
@pytest.mark.parametrize("build", [per_step, shared, nodes])
def test_statistics_are_means_over_the_loader(build, averaged):
    trainer = trained(build(), average_weights="never")
    net = trainer.net
    data, weights = batches(3), copies(net.parameters())
    assert trainer.recalibrate(data, averaged=averaged) == 3
    assert identical(net.parameters(), weights)
    with torch.no_grad(), trainer.averaged_weights() if averaged is not False else torch.no_grad():
        drives = torch.stack([net[0](x) for x, _ in data])  # [3, T, B, 8]
    if build is shared:
        mean, var = drives.mean(2).mean((0, 1)), drives.var(2).mean((0, 1))
    else:
        mean, var = drives.mean(2).mean(0), drives.var(2).mean(0)
    assert torch.allclose(net[1].running_mean, mean, rtol=1e-10)
    assert torch.allclose(net[1].running_var, var, rtol=1e-10)
    assert net[1].momentum == 0.1
    assert net[1].training


@pytest.mark.parametrize("lengths", [(2, 5, 2, 5), (2, 2, 2, 5), (8, 6)])
@pytest.mark.parametrize("build", [per_step, nodes])
def test_every_step_of_batches_of_different_lengths_counts_alike(build, lengths):
    net, data = build().double(), batches(steps=lengths)
    FPTTTrainer(net, adam(net), CE).recalibrate(data)
    with torch.no_grad():
        drives = [net[0](x) for x, _ in data]
    for t in range(STEPS):  # the last of them serves the steps after it, too
        here = [h[s] for h in drives for s in range(len(h)) if min(s, STEPS - 1) == t]
        assert torch.allclose(net[1].running_mean[t], torch.stack([h.mean(0) for h in here]).mean(0), rtol=1e-10)
        assert torch.allclose(net[1].running_var[t], torch.stack([h.var(0) for h in here]).mean(0), rtol=1e-10)


@pytest.mark.parametrize("build", [per_step, nodes])
def test_steps_that_no_batch_reaches_keep_their_statistics(build):
    trainer = trained(build())
    before = trainer.net[1].running_mean.clone()
    trainer.recalibrate(batches(steps=(2, 3)))
    assert torch.equal(trainer.net[1].running_mean[3:], before[3:])
    assert (trainer.net[1].running_mean[:3] != before[:3]).all()


def test_instance_normalization_takes_means_over_all_calls():
    trainer = trained(instances(), average_weights="never")
    net, data = trainer.net, batches(steps=(2, 5))
    trainer.recalibrate(data, averaged=False)
    with torch.no_grad():
        drives = torch.cat([net[:2](x.flatten(0, 1)) for x, _ in data])  # [T * B, 2, 4]
    assert torch.allclose(net[2].running_mean, drives.mean(2).mean(0), rtol=1e-10)
    assert torch.allclose(net[2].running_var, drives.var(2).mean(0), rtol=1e-10)
    assert net[2].momentum == 0.1
    assert not net[2]._forward_pre_hooks


@pytest.mark.skipif(not hasattr(neuron, "MPBNLIFNode"), reason="not in this version")
@pytest.mark.parametrize("mode", "sm")
def test_a_node_that_normalizes_its_membrane_by_itself(mode):
    nodes = neuron.MPBNLIFNode(out_features=8, step_mode=mode), NodeIntegrator(linear_features=2, step_mode=mode)
    trainer = trained(nn.Sequential(nn.Linear(3, 8), nodes[0], nn.Linear(8, 2), nodes[1]), average_weights="never")
    x, y = batches(1, steps=1)[0]
    trainer.net.eval()
    trainer.recalibrate([(x, y)], averaged=False)
    membrane = trainer.net[0](x[0])  # its first step from rest
    assert torch.allclose(nodes[0].vbn.running_mean, membrane.mean(0), rtol=1e-10)
    assert torch.allclose(nodes[0].vbn.running_var, membrane.var(0), rtol=1e-10)
    assert not nodes[0].training


class OwnMode(nn.Module):
    """Normalizes as its own mode says, by layers that it does not call in evaluation."""

    def __init__(self, *kinds):
        super().__init__()
        self.norms = nn.ModuleList(kind(8) for kind in kinds)

    def forward(self, x):
        return self.norms[0](x) if self.training else self.norms[-1](x) if len(self.norms) > 1 else x


def test_a_layer_that_evaluation_does_not_reach_keeps_its_statistics_and_is_named():
    net = shared()
    net[1] = OwnMode(nn.BatchNorm1d, nn.BatchNorm1d)
    trainer = trained(net)
    before = copies(net[1].norms[0].buffers())
    with pytest.warns(FPTTWarning, match=r"running statistics of 1\.norms\.0 are the old ones"):
        trainer.recalibrate(batches())
    assert identical(net[1].norms[0].buffers(), before)
    assert net[1].norms[1].num_batches_tracked == 4 * STEPS
    net[1] = OwnMode(nn.BatchNorm1d)
    trainer = trained(net)
    before = copies(net.state_dict().values())
    with pytest.raises(ConfigurationError, match=r"1\.norms\.0 do not move"):
        trainer.recalibrate(batches())
    assert identical(net.state_dict().values(), before)


def test_a_stream_in_progress_goes_on_and_a_frozen_layer_keeps_its_statistics():
    trainer = trained(per_step(), average_weights="never")
    for x, y in batches(2):
        trainer.step(x[0], y)
    before = Before(trainer)
    statistics = copies([trainer.net[1].running_mean])
    trainer.net[1].eval()
    with pytest.raises(ConfigurationError, match="no batch normalization"):
        trainer.recalibrate(batches())
    trainer.net[1].train()
    trainer.recalibrate(batches())
    assert not identical([trainer.net[1].running_mean], statistics)
    changed = {name for name in trainer.net.state_dict() if "running" in name}
    seen = dict(zip(trainer.net.state_dict(), before.seen["weights"], strict=True))
    assert all(
        torch.equal(seen[name], value) for name, value in trainer.net.state_dict().items() if name not in changed
    )
    assert identical(before.seen["recurrent state"], before.look()["recurrent state"])


@pytest.mark.parametrize(
    ("loader", "error"), [([], BatchError), ([torch.zeros(5, 16, 3)], BatchTypeError), (None, BatchTypeError)]
)
@pytest.mark.parametrize("build", [per_step, shared])
def test_an_error_leaves_the_old_statistics(build, loader, error):
    trainer = trained(build())
    before = copies(trainer.net.state_dict().values())
    with pytest.raises(error):
        trainer.recalibrate([*batches(2), {"a": 1}] if loader is None else loader)
    assert identical(trainer.net.state_dict().values(), before)
    assert trainer.net[1].momentum == 0.1


def test_names_of_a_batch_and_networks_without_normalization():
    trainer = trained(per_step())
    data = [{"frames": x, "label": y} for x, y in batches(2)]
    assert trainer.recalibrate(data, batch=("frames", "label")) == 2
    plain = per_step()
    plain[1] = nn.Identity()
    with pytest.raises(ConfigurationError, match="leave recalibrate"):
        trained(plain).recalibrate(batches(1))


def test_it_makes_up_for_statistics_that_lag_behind():
    """Weights that have just moved far are scored by the statistics of others until these are taken anew."""
    torch.manual_seed(0)
    net = shared().double()
    trainer = FPTTTrainer(net, torch.optim.Adam(net.parameters(), 0.03), CE, average_weights="never", alpha=0.0)
    x = torch.randn(STEPS, 64, 3, dtype=torch.float64)
    y = (x.sum((0, 2)) > 0).long()
    for _ in range(30):
        trainer.train_sequence(x, y)
    with torch.no_grad():
        net[0].weight *= 3
        net[0].bias += 2
    trainer.regularizer.accept_weights()
    lagging = trainer.evaluate([(x, y)])
    trainer.recalibrate([(x, y)])
    assert trainer.evaluate([(x, y)]) > lagging + 0.1
