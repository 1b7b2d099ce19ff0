"""What the loss sees: ramp, auxiliary term, readout, the choice of the output, snnTorch's own losses."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import snntorch.functional as SF
import torch
import torch.nn.functional as F
from nets import Mean, adam, batch, copies, distance, identical, sgd, spikes, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import BatchError, OutputError
from fptt_plugin.functional.losses import ClassDistribution, divergence
from fptt_plugin.training import Objective, Readout

CE = nn.CrossEntropyLoss()
LOGITS, LABELS = torch.tensor([[1.0, -1.0], [0.5, 0.2], [-2.0, 1.0]]), torch.tensor([0, 1, 1])


def value(objective, t=2, steps=8, target=LABELS, per_sequence=True):
    return objective.loss(LOGITS, target, t, steps, per_sequence).item()


def test_ramp_and_auxiliary_term():
    plain, uniform = CE(LOGITS, LABELS).item(), divergence(LOGITS, torch.full((3, 2), 0.5)).item()
    ramp = 3 / 8
    assert value(Objective(CE)) == pytest.approx(ramp * plain + (1 - ramp) * uniform)
    assert value(Objective(F.cross_entropy)) == pytest.approx(ramp * plain + (1 - ramp) * uniform)
    assert value(Objective(CE, auxiliary=False)) == pytest.approx(ramp * plain)
    assert value(Objective(CE, ramp="constant")) == pytest.approx(plain)
    assert value(Objective(CE), steps=None) == pytest.approx(plain)
    assert value(Objective(CE), t=7) == pytest.approx(plain)
    assert value(Objective(CE), per_sequence=False) == pytest.approx(plain)
    assert value(Objective(CE, ramp="linear"), per_sequence=False) == pytest.approx(ramp * plain)
    assert value(Objective(CE, ramp=lambda t, steps: t / 4, auxiliary=False)) == pytest.approx(plain / 2)
    other = Objective(lambda output, target: CE(output, target))
    assert value(other) == pytest.approx(ramp * plain)  # no auxiliary term unless it is asked for
    assert value(Objective(other.loss_fn, auxiliary=True)) == pytest.approx(ramp * plain + (1 - ramp) * uniform)
    regression = Objective(nn.MSELoss())
    assert value(regression, target=torch.zeros(3, 2)) == pytest.approx(LOGITS.square().mean().item())


def test_the_table_is_the_users_and_learns():
    distribution = ClassDistribution(mean_over_classes=True)
    objective = Objective(CE, auxiliary=distribution)
    first = value(objective)
    assert objective.distribution is distribution
    assert not torch.equal(distribution.table[2, 1], torch.full((2,), 0.5))  # sample 1 was misclassified
    assert value(objective) != first
    table = distribution.table.clone()
    objective.loss(LOGITS.flip(0), LABELS, 2, 8, True, update=False)
    assert torch.equal(distribution.table, table)


def test_training_follows_ramp_and_table():
    """A sequence of three steps by hand."""
    net = spiking_net()
    plain, (x, y) = copy.deepcopy(net), batch(3)
    optimizer, table = sgd(plain), ClassDistribution()
    losses = []
    for t, x_t in enumerate(x):
        output, weight = plain(x_t), (t + 1) / 3
        loss = weight * CE(output, y) + (1 - weight) * table.loss(t, output, y) if weight < 1 else CE(output, y)
        plain.zero_grad()
        loss.backward()
        optimizer.step()
        plain[1].mem, plain[3].mem = plain[1].mem.detach(), plain[3].mem.detach()
        losses.append(loss.item())
    trainer = FPTTTrainer(net, sgd(net), CE, alpha=0, max_grad_norm=None)
    with spikes(net):
        result = trainer.train_sequence(x, y)
    assert identical(net.parameters(), plain.parameters())
    assert result.loss.item() == pytest.approx(sum(losses) / 3)
    assert torch.equal(trainer.objective.distribution.table, table.table)


@pytest.mark.parametrize("window", [1, 3])
def test_mean_readout(window):
    net = spiking_net()
    plain, (x, y) = copy.deepcopy(net), batch(6)
    trainer = FPTTTrainer(
        net, sgd(net, 0.0), CE, window=window, readout="mean", auxiliary=False, loss_ramp="constant", max_grad_norm=None
    )
    result = trainer.train_sequence(x, y)
    outputs, total = [], 0.0
    for t, x_t in enumerate(x):
        output = plain(x_t)
        total = total + output
        outputs.append(output.detach())
        if (t + 1) % window == 0:
            plain.zero_grad()
            CE(total / (t + 1), y).backward()
            total = total.detach()  # the past carries no gradient
            plain[1].mem, plain[3].mem = plain[1].mem.detach(), plain[3].mem.detach()
    assert torch.allclose(result.output, torch.stack(outputs).mean(0), atol=1e-6)
    for own, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert theirs.grad.abs().max() > 0
        assert torch.allclose(own.grad, theirs.grad, atol=1e-6)
    assert torch.allclose(trainer.predict(x, averaged=False), result.output)
    trainer._run_state.readout.mode = "step"
    assert torch.equal(trainer.predict(x, averaged=False), outputs[-1])


def test_readout_state_round_trip():
    readout = Readout("mean")
    readout(torch.ones(2))
    state = readout.get()
    expected = readout(torch.zeros(2))
    readout.set(state)
    assert torch.equal(readout(torch.zeros(2)), expected)


@pytest.mark.parametrize("readout", ["mean", "rate"])
@pytest.mark.parametrize("window", [1, 4, 5])
def test_windows_that_the_network_averages_count_by_their_steps(window, readout):
    """``forward`` ends in a mean over the steps of its slice; the last slice is a remainder."""
    net = Mean(nn.Sequential(layer.Linear(3, 8), neuron.LIFNode(v_threshold=0.1), layer.Linear(8, 2)))
    functional.set_step_mode(net, "m")
    trainer = FPTTTrainer(net, adam(net), CE, window=window, readout=readout)
    x, y = batch(steps=11)
    trainer.train_sequence(x, y)
    functional.reset_net(net)
    with torch.no_grad():
        whole = net.eval()(x)
    assert whole.std() > 0
    assert torch.allclose(trainer.predict(x, averaged=False), whole, atol=1e-6)


SPK, MEM = torch.zeros(3, 2), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("returned", "output", "loss_fn", "chosen"),
    [
        (MEM, None, CE, MEM),
        ((SPK, MEM), None, CE, MEM),
        ((SPK, SPK + 2, MEM), None, CE, MEM),
        ((SPK, MEM), None, SF.ce_rate_loss(), SPK),
        ((SPK, MEM), None, SF.mse_membrane_loss(), MEM),
        ((SPK, MEM), 0, CE, SPK),
        ([SPK, None], 0, CE, SPK),
        ({"logits": MEM, "spikes": SPK}, "spikes", CE, SPK),
        (SimpleNamespace(logits=MEM), "logits", CE, MEM),
        ((SPK, [MEM]), lambda returned: returned[1][0], CE, MEM),
    ],
)
def test_choice_of_the_output(returned, output, loss_fn, chosen):
    assert Objective(loss_fn, output).select(returned) is chosen


@pytest.mark.parametrize(
    ("returned", "output", "words"),
    [
        ((SPK, torch.ones(3, 4)), None, r"tuple\(a tensor of shape \(3, 2\), a tensor .*say which one.*output=0"),
        ({"logits": MEM}, None, r"a mapping with keys \['logits'\]; say which one"),
        ({"logits": MEM}, "spikes", "output='spikes'.*no such entry"),
        ((SPK,), 3, "output=3.*no such tensor"),
        (MEM, 1, "output=1.*no such tensor"),
    ],
)
def test_no_such_output(returned, output, words):
    with pytest.raises(ValueError, match=words):
        Objective(CE, output).select(returned)


@pytest.mark.parametrize("loss_fn", [SF.ce_rate_loss(), SF.mse_membrane_loss(), SF.mse_membrane_loss(on_target=0.7)])
def test_snntorch_losses_are_means_over_time(loss_fn):
    record = torch.randn(5, 3, 2)
    objective = Objective(loss_fn)
    steps = [objective.plain_loss(output, LABELS) for output in record]
    assert torch.allclose(torch.stack(steps).mean(), loss_fn(record, LABELS))
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), loss_fn)
    with spikes(net):
        assert trainer.train_sequence(*batch()).loss > 0


@pytest.mark.parametrize(
    "loss_fn",
    [
        SF.ce_count_loss(),
        SF.ce_max_membrane_loss(),
        SF.mse_count_loss(),
        SF.mse_temporal_loss(),
        SF.ce_temporal_loss(),
        SF.ce_rate_loss(population_code=True, num_classes=2),
        SF.mse_membrane_loss(time_var_targets=True),
    ],
    ids=lambda loss: loss.__name__,
)
def test_losses_of_the_whole_record_are_refused(loss_fn):
    with pytest.raises(ValueError, match=rf"{loss_fn.__name__} .*whole sequence"):
        Objective(loss_fn)


def log_probabilities(logits):
    return logits.log_softmax(1)


@pytest.mark.parametrize(
    ("loss", "output"),
    [
        (F.cross_entropy, None),
        (partial(F.cross_entropy, reduction="mean"), None),
        (nn.NLLLoss(), log_probabilities),
        (F.nll_loss, log_probabilities),
        (partial(F.nll_loss), log_probabilities),
    ],
)
def test_the_forms_of_a_cross_entropy_train_alike(loss, output):
    weights = []
    for form, pick in ((CE, None), (loss, output)):
        torch.manual_seed(0)
        net = spiking_net()
        trainer = FPTTTrainer(net, sgd(net), form, output=pick)
        x, y = batch()
        with spikes(net):
            trainer.train_sequence(x, torch.where(torch.arange(len(y)) == 1, -100, y))
        assert "auxiliary term: class distribution" in trainer.explain()
        weights.append(list(net.parameters()))
    assert distance(*weights) < 1e-6


@pytest.mark.parametrize("form", [F.cross_entropy, F.nll_loss])
def test_the_ignored_index_of_a_partial(form):
    x, y = batch()
    y[1] = 7
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), partial(form, ignore_index=7))
    trainer.train_sequence(x, y)
    assert trainer.objective.ignore_index == 7
    counted = trainer.evaluate([(x, y)], metric=lambda output, target: float(len(target)))
    assert counted == len(y) - 1


def test_the_broadcast_of_a_partial():
    net = spiking_net(classes=1)
    with pytest.raises(BatchError, match="which mse_loss would broadcast"):
        FPTTTrainer(net, sgd(net), partial(F.mse_loss)).train_sequence(batch()[0], torch.rand(4))


def test_no_address_is_shown():
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), partial(CE.forward), output=lambda out: out, loss_ramp=lambda t, steps: 1.0)
    trainer.train_sequence(*batch())
    assert "0x" not in trainer.explain()
    assert "on output=<lambda>; ramp: <lambda>" in trainer.explain()
    assert repr(trainer) == "FPTTTrainer(Sequential, SGD, forward: 6 updates)"


@pytest.mark.parametrize("call", ["train_sequence", "predict"])
@pytest.mark.parametrize(
    ("pick", "loss_fn", "words"),
    [
        (lambda out: out.sum(0), CE, r"shape \(2,\).*begin with the 4 samples"),
        (lambda out: out[-1], lambda out, y: out.square().mean(), r"shape \(2,\).*begin with the 4 samples"),
        (lambda out: out.T, nn.MSELoss(), r"shape \(2, 4\).*begin with the 4 samples"),
        (lambda out: out.mean(), nn.MSELoss(), r"shape \(\).*begin with the 4 samples"),
        (lambda out: out[:, 0], CE, r"shape \(4,\).*no class scores for CrossEntropyLoss"),
        (lambda out: out[:, 0], partial(F.nll_loss, reduction="sum"), r"shape \(4,\).*no class scores for nll_loss"),
    ],
)
def test_an_output_without_samples_or_classes(pick, loss_fn, words, call):
    net, (x, y) = spiking_net(), batch()
    before = copies(net.parameters())
    trainer = FPTTTrainer(net, adam(net), loss_fn, output=pick)
    with pytest.raises(OutputError, match=words):
        getattr(trainer, call)(*(x, y)[: 1 + (call == "train_sequence")])
    assert identical(net.parameters(), before)


def test_one_number_per_sample_is_an_output():
    net, (x, y) = spiking_net(), batch()
    trainer = FPTTTrainer(net, adam(net), nn.BCEWithLogitsLoss(), output=lambda out: out[:, 0])
    assert trainer.train_sequence(x, y.float()).output.shape == y.shape
    with pytest.raises(BatchError, match=r"shape, y.float\(\)"):
        trainer.train_sequence(x, y)


def test_an_error_of_the_loss_itself_is_not_blamed_on_the_target():
    def broken(out, y):
        raise RuntimeError("of its own")

    net, (x, y) = spiking_net(), batch()
    trainer = FPTTTrainer(net, adam(net), broken, output=lambda out: out[:, :1])
    with pytest.raises(RuntimeError, match=r"^of its own$"):
        trainer.train_sequence(x, y.float().unsqueeze(1))
