"""How networks are advanced: step and slice drivers agree with each other and with loops written by hand."""

import copy

import pytest
import snntorch as snn
import torch
from nets import Mean, adam, batch, copies, gradients, identical, sgd, spikes, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import BPTT, FPTTTrainer, TruncatedBPTT
from fptt_plugin.drivers import SliceDriver, StepDriver
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.training.statistics import FrozenNormalization

CE = nn.CrossEntropyLoss()
PLAIN = {"auxiliary": False, "loss_ramp": "constant"}


def lively(net):
    """With weights to the output that make it fire."""
    nn.init.uniform_(net[2].weight, -0.2, 0.8)
    return net


def jelly(mode, node=neuron.LIFNode):
    net = nn.Sequential(layer.Linear(3, 8), node(v_threshold=0.3), layer.Linear(8, 2), node(v_threshold=0.3))
    functional.set_step_mode(net, mode)
    return lively(net)


def torch_net():
    return lively(
        nn.Sequential(
            nn.Linear(3, 8),
            snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True),
            nn.Linear(8, 2),
            snn.Leaky(beta=0.8, threshold=0.5, init_hidden=True, output=True),
        )
    )


@pytest.mark.parametrize("window", [1, 3])
def test_snntorch_is_the_loop_a_user_would_write(window):
    net = torch_net()
    plain, (x, y) = copy.deepcopy(net), batch(7)
    optimizer = sgd(plain)
    for t, x_t in enumerate(x):
        _, membrane = plain(x_t)
        if (t + 1) % window == 0 or t == 6:
            optimizer.zero_grad()
            CE(membrane, y).backward()
            optimizer.step()
            for module in (plain[1], plain[3]):
                module.mem = module.mem.detach()
    trainer = TruncatedBPTT(net, sgd(net), CE, window=window, max_grad_norm=None, **PLAIN)
    with spikes(net):
        trainer.train_sequence(x, y)
    assert identical(net.parameters(), plain.parameters())
    assert all(grad.abs().max() > 0 for grad in gradients(net))


@pytest.mark.parametrize("window", [1, 3])
def test_spikingjelly_steps_and_slices_are_one(window):
    torch.manual_seed(3)
    single, multi = jelly("s"), jelly("m")
    multi.load_state_dict(single.state_dict())
    first, (x, y) = copies(single.parameters()), batch(7)
    options = {"readout": "mean", "window": window, "loss_every": 1}
    trainers = [FPTTTrainer(net, adam(net), CE, **options) for net in (single, multi)]
    for trainer in trainers:
        with spikes(trainer.net):
            result = [trainer.train_sequence(3 * x, y) for _ in range(2)]
        assert result[1].updates == -(-7 // window)
    for own, other, old in zip(single.parameters(), multi.parameters(), first, strict=True):
        assert torch.allclose(own, other, atol=1e-6)
        assert not torch.equal(own, old)
    assert torch.allclose(*(trainer.predict(3 * x) for trainer in trainers), atol=1e-6)
    assert {module.step_mode for module in multi.modules() if hasattr(module, "step_mode")} == {"m"}


def test_a_network_that_averages_over_time_gives_one_output_per_slice():
    net = Mean(jelly("m"))
    plain, (x, y) = copy.deepcopy(net), batch(8)
    trainer = BPTT(net, sgd(net), CE, max_grad_norm=None, **PLAIN)
    with spikes(net):
        result = trainer.train_sequence(3 * x, y)
    CE(plain(3 * x), y).backward()
    assert identical(gradients(net), gradients(plain))
    assert result.output.shape == (4, 2)


def test_the_driver_can_be_chosen():
    net = jelly("m")
    assert type(FPTTTrainer(net, sgd(net), CE)._loop.driver) is SliceDriver
    net = jelly("m")
    assert type(FPTTTrainer(net, sgd(net), CE, driver="step")._loop.driver) is StepDriver


def test_the_first_batch_shows_a_step_network():
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), CE)
    assert "first batch" in trainer.explain()
    trainer.train_sequence(*batch())
    assert type(trainer._loop.driver) is StepDriver
    assert "driver: step" in trainer.explain()


def test_frozen_normalization_hands_the_same_buffers_back():
    norm = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2))
    norm[2].eval()
    buffers = dict(norm.named_buffers())
    values = copies(buffers.values())
    with FrozenNormalization(norm):
        loss = norm(torch.rand(5, 2)).square().sum()
    loss.backward()  # after the context
    assert norm[0].weight.grad is not None
    after = dict(norm.named_buffers())
    assert all(after[name] is buffer for name, buffer in buffers.items())
    assert identical(after.values(), values)
    norm(torch.rand(5, 2))
    assert not identical(after.values(), values)


@pytest.mark.parametrize("kind", [FPTTTrainer, TruncatedBPTT, BPTT])
def test_liquid_neurons_learn_two_classes(kind):
    """Which of two inputs is the brighter on average, one noisy look per step."""
    net = nn.Sequential(nn.Linear(2, 16), LTCLeaky(init_hidden=True), nn.Linear(16, 2), LTCIntegrator(init_hidden=True))
    trainer = kind(net, adam(net, 0.02), CE)

    def data(batches):
        for _ in range(batches):
            y = torch.randint(2, (32,))
            yield torch.rand(8, 32, 2) + 0.5 * nn.functional.one_hot(y, 2), y

    test = list(data(4))
    before = trainer.evaluate(test)
    history = trainer.fit(list(data(25)), epochs=1, progress=False)
    assert before < 0.8
    assert trainer.evaluate(test) > 0.9
    assert history[0].train_score > 0.6
    assert list(history[0].firing_rates) == ["1"]
    assert 0.01 < history[0].firing_rates["1"] < 0.9
