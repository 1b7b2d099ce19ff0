"""Mixed precision around training equals a loop by hand with the context around each forward pass, to the last bit."""

import copy
from contextlib import nullcontext

import pytest
import snntorch as snn
import torch
from nets import CE, batch, copies, identical, sgd, spikes, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.amp.grad_scaler import GradScaler

from fptt_plugin import DynamicRegularizer, FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky
from fptt_plugin.state import ModelState

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}
PLAIN = {"loss_ramp": "constant", "auxiliary": False}


def liquid():
    return nn.Sequential(
        nn.Linear(3, 8),
        LTCLeaky(init_hidden=True, linear_features=8),
        nn.Linear(8, 2),
        LTCIntegrator(init_hidden=True, linear_features=2),
    )


def jelly():
    net = nn.Sequential(layer.Linear(3, 8), neuron.LIFNode(v_threshold=0.2), layer.Linear(8, 2))
    functional.set_step_mode(net, "m")
    nn.init.uniform_(net[0].weight, -0.3, 0.8)
    return net


class Tutorial(nn.Module):
    """Loops over time, with autocast around the loop or within it."""

    def __init__(self, inside):
        super().__init__()
        self.fc1, self.lif1, self.fc2 = nn.Linear(3, 8), snn.Leaky(beta=0.9, threshold=0.2), nn.Linear(8, 2)
        self.inside = inside

    def forward(self, x):
        with torch.autocast(**BF16) if self.inside else nullcontext():
            mem, record = self.lif1.init_leaky(), []
            for x_t in x:
                spk, mem = self.lif1(self.fc1(x_t), mem)
                record.append(self.fc2(spk))
            return torch.stack(record)


def by_hand(net, batches, window, context, epochs=1, scaler=None):
    """Autocast around each forward pass alone, as PyTorch's documentation has it."""
    optimizer, state = sgd(net), ModelState(net)
    regularizer = DynamicRegularizer(optimizer, max_grad_norm=1.0)
    for _ in range(epochs):
        for x, y in batches:
            state.reset()
            for x_window in x.split(window):
                with context():
                    if getattr(net[1], "step_mode", "s") == "m":
                        out = net(x_window)[-1]
                    else:
                        for x_t in x_window:
                            out = net(x_t)
                    loss = CE(out, y)
                optimizer.zero_grad()
                if scaler is None:
                    loss.backward()
                    optimizer.step()
                else:
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
                state.detach()
    return regularizer


@pytest.mark.parametrize("build", [spiking_net, liquid, jelly])
@pytest.mark.parametrize("window", [1, 3])
def test_a_context_around_everything(build, window):
    net = build()
    plain, exact = copy.deepcopy(net), copy.deepcopy(net)
    batches = [batch(), batch(), batch()]
    trainer = FPTTTrainer(net, sgd(net), CE, window=window, **PLAIN)
    with torch.autocast(**BF16), spikes(net):
        for x, y in batches:
            trainer.train_sequence(x, y)
        predicted = trainer.predict(x)
        accuracy = trainer.evaluate(batches)
    regularizer = by_hand(plain, batches, window, lambda: torch.autocast(**BF16))
    assert identical(net.parameters(), plain.parameters())
    averages = [
        [r.average_of(p) for p in n.parameters()] for r, n in ((trainer.regularizer, net), (regularizer, plain))
    ]
    assert identical(*averages)
    by_hand(exact, batches, window, nullcontext)
    assert not identical(net.parameters(), exact.parameters())  # the context does something
    with torch.autocast(**BF16, cache_enabled=False):
        assert torch.equal(predicted, trainer.predict(x))
        assert accuracy == trainer.evaluate(batches)


@pytest.mark.parametrize("average_weights", ["epoch", "sequence", "never"])
def test_fit_within_a_context(average_weights):
    net = liquid()
    other = copy.deepcopy(net)
    records = []
    for model, cached in ((net, True), (other, False)):
        batches = [(x, y) for x, y in (torch.manual_seed(1) and batch() for _ in range(3))]
        trainer = FPTTTrainer(model, sgd(model), CE, average_weights=average_weights)
        with torch.autocast(**BF16, cache_enabled=cached):
            history = trainer.fit(batches, epochs=3, val_loader=batches, progress=False)
        records.append([(record.loss, record.train_score, record.val_score) for record in history])
    assert records[0] == records[1]
    assert identical(net.parameters(), other.parameters())


@pytest.mark.parametrize(
    "options", [{}, {"variant": "gradient"}, {"average_weights": "sequence"}, {"window": 2}], ids=str
)
def test_the_cache_of_a_context_makes_no_difference(options):
    ends = []
    for cached in (True, False):
        torch.manual_seed(0)
        net = liquid()
        trainer = FPTTTrainer(net, sgd(net), CE, alpha=0.5, **options)
        with torch.autocast(**BF16, cache_enabled=cached), spikes(net):
            for _ in range(3):
                trainer.train_sequence(*batch(8))
            answer = trainer.predict(batch()[0])
        ends.append([*copies(net.parameters()), answer])
    if "window" not in options:  # within a window gradients of the cached copies are summed in low precision
        assert identical(*ends)
    assert all(torch.allclose(*pair, atol=1e-2) for pair in zip(*ends, strict=True))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("window", [1, 2])
def test_a_network_that_loops_over_time(inside, window):
    net, (x, y) = Tutorial(inside), batch()
    plain = copy.deepcopy(net)
    trainer = FPTTTrainer(net, sgd(net), CE, window=window, **PLAIN)
    with nullcontext() if inside else torch.autocast(**BF16), spikes(net):
        trainer.train_sequence(x, y)
    optimizer, state = sgd(plain), ModelState(plain)
    DynamicRegularizer(optimizer, max_grad_norm=1.0)
    mem = plain.lif1.init_leaky()
    for x_window in x.split(window):
        with torch.autocast(**BF16):
            for x_t in x_window:
                spk, mem = plain.lif1(plain.fc1(x_t), mem)
            loss = CE(plain.fc2(spk), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mem = mem.detach()
        state.detach()
    assert identical(net.parameters(), plain.parameters())


def test_float16_with_a_scaler():
    net = liquid()
    plain = copy.deepcopy(net)
    batches, scaler = [batch(), batch()], GradScaler("cpu", init_scale=256.0)
    trainer = FPTTTrainer(net, sgd(net), CE, grad_scaler=GradScaler("cpu", init_scale=256.0), **PLAIN)
    with torch.autocast("cpu", torch.float16), spikes(net):
        for x, y in batches:
            trainer.train_sequence(x, y)
    by_hand(plain, batches, 1, lambda: torch.autocast("cpu", torch.float16), scaler=scaler)
    assert trainer.updates == 12
    assert identical(net.parameters(), plain.parameters())


@pytest.mark.parametrize("change", ["load", "load_averages", "swap", "state_dict", "restart"])
def test_weights_that_change_within_a_context_are_seen(change, tmp_path):
    net, (x, y) = liquid(), batch()
    trainer = FPTTTrainer(net, sgd(net), CE)
    trainer.train_sequence(x, y)
    trainer.save(tmp_path / "early.pt")
    early = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.autocast(**BF16):
        for _ in range(3):
            trainer.train_sequence(x, y)
        before = trainer.predict(x, averaged=False)
        if change == "load":
            trainer.load(tmp_path / "early.pt")
        elif change == "load_averages":
            trainer.regularizer.load_averages()
        elif change == "swap":
            with trainer.averaged_weights():
                found = trainer.predict(x, averaged=True)
        else:
            net.load_state_dict(early)
            trainer.regularizer.restart_averages()
        found = found if change == "swap" else trainer.predict(x, averaged=False)
    with torch.autocast(**BF16, cache_enabled=False):
        expected = trainer.predict(x, averaged=change == "swap")
    assert torch.equal(found, expected)
    assert not torch.equal(found, before)


@pytest.mark.parametrize("alpha", [0.1, 0.0])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("change", ["restart", "accept", "load_averages", "optimizer", "swap", "none"])
def test_weights_that_change_in_a_stream_are_seen(change, window, alpha):
    outputs = []
    for cached in (True, False):
        torch.manual_seed(0)
        net, (x, y) = liquid(), batch()
        optimizer = sgd(net)
        trainer = FPTTTrainer(net, optimizer, CE, window=window, alpha=alpha)
        saved = copy.deepcopy(optimizer.state_dict())
        other = {name: 2 * value for name, value in net.state_dict().items() if name.endswith("weight")}
        with torch.autocast(**BF16, cache_enabled=cached):
            for t in range(window):
                trainer.step(x[t], y)
            for _ in range(window):
                trainer.step(x[3])  # without a target, so without an update
            if change == "load_averages":
                trainer.regularizer.load_averages()
            elif change == "swap":
                with trainer.averaged_weights():
                    net(x[3])
                trainer.predict(x, averaged=False)
            else:
                net.load_state_dict(other, strict=False)
                if change == "optimizer":
                    optimizer.load_state_dict(saved)
                elif change != "none" or alpha:
                    getattr(trainer.regularizer, "restart_averages" if change == "restart" else "accept_weights")()
            outputs += [trainer.step(x[4], y).output, trainer.step(x[5], y).output]
        outputs.append(net[0].weight.detach().clone())
    assert torch.equal(outputs[0], outputs[3])
    assert all(torch.allclose(*pair, atol=1e-2) for pair in zip(outputs[:3], outputs[3:], strict=True))


def test_a_loop_by_hand_sees_weights_that_were_loaded():
    net, (x, y) = liquid(), batch()
    regularizer = DynamicRegularizer(sgd(net))
    with torch.autocast(**BF16):
        CE(net(x[0]), y).backward()
        regularizer.optimizer.step()
        ModelState(net).reset()
        before = net(x[0])
        net.load_state_dict({name: 3 * value for name, value in net.state_dict().items() if "weight" in name}, False)
        regularizer.restart_averages()
        ModelState(net).reset()
        found = net(x[0])
    ModelState(net).reset()
    with torch.autocast(**BF16, cache_enabled=False):
        assert torch.equal(found, net(x[0]))
    assert not torch.equal(found, before)


@pytest.mark.parametrize("precision", ["autocast", "weights"])
@pytest.mark.parametrize(("readout", "expected"), [("mean", [1.0, 0.5]), ("sum", [600.0, 300.0]), ("step", [1.0, 1.0])])
def test_sums_over_many_steps_do_not_stop(precision, readout, expected):
    """In bfloat16, 256 + 1 is 256."""
    net = nn.Sequential(layer.Linear(1, 2, bias=False), neuron.IFNode())
    functional.set_step_mode(net, "m")
    nn.init.constant_(net[0].weight, 0.5)
    nn.init.constant_(net[0].weight[0], 1.0)  # fires at every step, the other at every second
    x, y = torch.ones(600, 3, 1), torch.ones(3, dtype=torch.int64)
    if precision == "weights":
        net, x = net.bfloat16(), x.bfloat16()

    def loss_fn(output, target):
        return (output - output.detach() + 1).mean()  # 1, in the precision of the output

    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trainer = FPTTTrainer(net, optimizer, loss_fn, window=2, readout=readout, **PLAIN)
    with torch.autocast(**BF16) if precision == "autocast" else nullcontext():
        result, predicted = trainer.train_sequence(x, y), trainer.predict(x)
    assert result.loss == 1
    for output in (result.output, predicted):
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), torch.tensor([expected] * 3), rtol=0.01, atol=0)
