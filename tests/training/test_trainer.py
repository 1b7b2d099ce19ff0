"""``FPTTTrainer`` against loops written by hand: the same weights after the same data."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import (
    LIF,
    Grows,
    adam,
    batch,
    check_setting,
    copies,
    distance,
    gradients,
    identical,
    sgd,
    spikes,
    spiking_net,
)
from torch import nn
from twin import Twin

from fptt_plugin import BPTT, FPTTTrainer, TruncatedBPTT
from fptt_plugin.errors import ConfigurationError, FPTTWarning

PLAIN = {"auxiliary": False, "loss_ramp": "constant"}  # cross-entropy and nothing else
CE = nn.CrossEntropyLoss()


def reset(net):
    for module in net.modules():
        if isinstance(module, LIF):
            module.mem = None


def detach(net):
    for module in net.modules():
        if isinstance(module, LIF):
            module.mem = module.mem.detach()


def data(sequences=4, **sizes):
    return [batch(**sizes) for _ in range(sequences)]


def by_hand(net, sequences, window, update, every_step=False):
    """Online training the long way round: a loss at each window's end (or the mean over its steps), then an update."""
    for x, y in sequences:
        reset(net)
        losses = []
        for t, x_t in enumerate(x):
            out = net(x_t)
            last = (t + 1) % window == 0 or t + 1 == len(x)
            if every_step or last:
                losses.append(F.cross_entropy(out, y))
            if last:
                net.zero_grad()
                torch.stack(losses).mean().backward()
                detach(net)
                losses = []
                update(net)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("window", [1, 4])
def test_alpha_0_is_truncated_bptt_bit_for_bit(window, every_step):
    plain = spiking_net()
    nets = [plain, copy.deepcopy(plain), copy.deepcopy(plain)]
    first, sequences = copies(plain.parameters()), data()
    optimizer = adam(plain)

    def update(net):
        assert all(grad.abs().max() > 0 for grad in gradients(net))
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    with spikes(plain):
        by_hand(plain, sequences, window, update, every_step)
    options = {"window": window, "loss_every": 1 if every_step else None, **PLAIN}
    for net, kind in zip(nets[1:], (TruncatedBPTT, lambda *a, **o: FPTTTrainer(*a, alpha=0, **o)), strict=True):
        trainer = kind(net, adam(net), CE, **options)
        for x, y in sequences:
            trainer.train_sequence(x, y)
        assert identical(net.parameters(), plain.parameters())
        assert not identical(net.parameters(), first)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_fptt_is_the_twin(window, alpha):
    net = spiking_net(dtype=torch.float64)
    plain, sequences = copy.deepcopy(net), data(5, steps=8, dtype=torch.float64)
    twin = Twin(plain.parameters(), lambda groups: torch.optim.Adam(groups[0], lr=0.05), alpha=alpha, clip=1.0)

    def update(net):
        twin.step(gradients(net))
        with torch.no_grad():
            for parameter, W in zip(net.parameters(), twin.W, strict=True):
                parameter.copy_(W)

    by_hand(plain, sequences, window, update)
    trainer = FPTTTrainer(net, adam(net), CE, alpha=alpha, window=window, average_weights="never", **PLAIN)
    with spikes(net):
        updates = [trainer.train_sequence(x, y).updates for x, y in sequences]
    assert updates == [-(-8 // window)] * 5
    assert (trainer.updates, trainer.steps) == (sum(updates), 40)
    assert distance(net.parameters(), twin.W) < 1e-12
    assert distance(map(trainer.regularizer.average_of, net.parameters()), twin.W_bar) < 1e-12
    assert distance(map(trainer.regularizer.dual_of, net.parameters()), twin.lam) < 1e-12
    assert distance(net.parameters(), twin.W_bar) > 1e-3


@pytest.mark.parametrize("every_step", [False, True])
def test_a_window_of_the_whole_sequence_has_bptts_gradient(every_step):
    x, y = batch(7)
    net = spiking_net()
    nets = [copy.deepcopy(net) for _ in range(4)]
    outputs = [net(x_t) for x_t in x]
    torch.stack([F.cross_entropy(out, y) for out in (outputs if every_step else outputs[-1:])]).mean().backward()
    options = {"loss_every": 1 if every_step else None, "max_grad_norm": None, **PLAIN}
    makers = [
        lambda net: FPTTTrainer(net, sgd(net), CE, alpha=0.1, window=7, **options),
        lambda net: FPTTTrainer(net, sgd(net), CE, alpha=0.1, window=None, **options),
        lambda net: BPTT(net, sgd(net), CE, **options),
    ]
    for other, make in zip(nets[:3], makers, strict=True):
        with spikes(other):
            assert make(other).train_sequence(x, y).updates == 1
        assert identical(gradients(other), gradients(net))
    short = nets[3]
    FPTTTrainer(short, sgd(short, 0.0), CE, window=3, update_every=9, **options).train_sequence(x, y)
    assert not identical(gradients(short), gradients(net))


def test_update_every_averages_the_windows():
    x, y = batch(6)
    net = spiking_net()
    plain = copy.deepcopy(net)
    sums, count = [0.0] * 4, 0

    def collect(net):
        nonlocal count
        for i, grad in enumerate(gradients(net)):
            sums[i] = sums[i] + grad
        count += 1

    by_hand(plain, [(x, y)], 2, collect)
    trainer = FPTTTrainer(net, sgd(net), CE, window=2, update_every=6, max_grad_norm=None, **PLAIN)
    with spikes(net):
        assert trainer.train_sequence(x, y).updates == 1
    assert count == 3
    assert distance(gradients(net), [total / 3 for total in sums]) < 1e-7
    assert max(grad.abs().max() for grad in gradients(net)) > 1e-3


def test_updates_rarer_than_sequences_are_said_once(recwarn):
    x, y = batch(6)
    for update_every, warned in ((6, 0), (8, 1), (60, 1)):
        net = spiking_net()
        trainer = FPTTTrainer(net, sgd(net), CE, window=2, update_every=update_every)
        with spikes(net):
            assert [trainer.train_sequence(x, y).updates for _ in range(2)] == [1, 1]
        words = f"update_every={update_every}, and this sequence has 6 steps: each sequence ends with an update"
        assert sum(words in str(recwarn.pop(FPTTWarning).message) for _ in range(warned)) == warned
        assert not [one for one in recwarn if "update_every" in str(one.message)]


@pytest.mark.parametrize(
    ("options", "updates", "losses"),
    [
        ({}, 10, range(10)),
        ({"window": 4}, 3, [3, 7, 9]),  # the sequence's last step always carries one
        ({"window": 4, "loss_every": 2}, 3, [1, 3, 5, 7, 9]),
        ({"window": 1, "loss_every": 5}, 2, [4, 9]),
        ({"window": 2, "loss_every": 5}, 2, [4, 9]),
        ({"window": 2, "update_every": 4}, 3, [1, 3, 5, 7, 9]),
        ({"window": None}, 1, [9]),
        ({"window": None, "loss_every": 4}, 1, [3, 7, 9]),
    ],
    ids=str,
)
def test_strides(options, updates, losses):
    seen = []

    def loss_fn(output, target):
        seen.append(int(target[0, 0]))
        return F.mse_loss(output, target)

    net = spiking_net()
    x = torch.rand(10, 4, 3)
    y = torch.arange(10.0).reshape(10, 1, 1).expand(10, 4, 2)
    trainer = FPTTTrainer(net, sgd(net), loss_fn, **options)
    result = trainer.train_sequence(x, y)
    assert result.updates == updates
    assert seen == list(losses)


def test_step_in_a_loop_is_train_sequence():
    net = spiking_net()
    other = copy.deepcopy(net)
    x, y = torch.rand(8, 4, 3), torch.randint(2, (8, 4))
    batched = FPTTTrainer(net, adam(net), CE, window=2, update_every=4)
    stream = FPTTTrainer(other, adam(other), CE, window=2, update_every=4)
    result = batched.train_sequence(x, y)
    stream.reset()
    with spikes(other):
        steps = [stream.step(*pair) for pair in zip(x, y, strict=True)]
    assert identical(net.parameters(), other.parameters())
    assert torch.equal(steps[-1].output, result.output)
    losses = [step.loss for step in steps if step.loss is not None]
    assert torch.allclose(torch.stack(losses).mean(), result.loss)
    assert [step.updated for step in steps] == [False, False, False, True] * 2
    assert not any(t.requires_grad for t in (*result[:2], *(step.output for step in steps), *losses))


def test_batch_first_is_the_transposed_data():
    net = spiking_net()
    other = copy.deepcopy(net)
    x, y = torch.rand(6, 4, 3), torch.randint(2, (6, 4))
    FPTTTrainer(net, adam(net), CE).train_sequence(x, y)
    trainer = FPTTTrainer(other, adam(other), CE, batch_first=True, targets="step")
    trainer.train_sequence(x.transpose(0, 1), y.T)
    assert identical(net.parameters(), other.parameters())
    out = trainer.predict(x.transpose(0, 1))
    trainer.batch_first = False
    assert torch.equal(out, trainer.predict(x))


@pytest.mark.parametrize("when", ["epoch", "sequence", "never"])
def test_average_weights(when):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE, alpha=0.5, average_weights=when)

    def averaged():
        return identical(net.parameters(), map(trainer.regularizer.average_of, net.parameters()))

    trainer.train_sequence(*batch())
    assert averaged() == (when == "sequence")
    trainer.fit(data(2), epochs=1, progress=False)
    assert averaged() == (when != "never")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha", 1.0), ("beta", 0.2), ("rho", 0.7), ("variant", "gradient"), ("window", 3), ("update_every", 2),
        ("max_grad_norm", 1e-3), ("max_grad_norm", None), ("average_weights", "sequence"), ("readout", "mean"),
        ("loss_ramp", "constant"), ("auxiliary", False), ("output", lambda out: 2 * out),
    ],
)  # fmt: skip
def test_every_option_changes_the_result(option, value):
    ends = []
    for options in ({}, {option: value}):
        torch.manual_seed(4)
        net = spiking_net()
        trainer = FPTTTrainer(net, sgd(net, 0.5), CE, **{"alpha": 0.3, "max_grad_norm": 0.1, **options})
        for sequence in data(3):
            trainer.train_sequence(*sequence)
        ends.append(list(net.parameters()))
    assert not identical(*ends)


def test_explain_names_driver_state_loss_and_regularizer():
    net = spiking_net()
    text = FPTTTrainer(net, adam(net), CE, window=4, alpha=0.25, driver="step").explain()
    for words in (
        "driver: step",
        "1 (LIF: mem)",
        "3 (LIF: mem)",
        "CrossEntropyLoss",
        "linear",
        "window: 4",
        "alpha=0.25",
    ):
        assert words in text


def test_a_layer_that_joins_later_is_trained_like_the_others():
    net = Grows(spiking_net())
    optimizer = sgd(net, lr=0.1)
    trainer = FPTTTrainer(net, optimizer, CE, alpha=0.0, max_grad_norm=None)
    x, y = batch()
    trainer.train_sequence(x, y)
    net.head = nn.Linear(2, 2)
    optimizer.add_param_group({"params": net.head.parameters(), "lr": 0.0})
    trainer.train_sequence(x, y)
    first = net.head.weight.grad.clone()
    optimizer.param_groups[0]["lr"] = 0.0  # then the same batch has the same gradient
    trainer.train_sequence(x, y)
    second = net.head.weight.grad.clone()
    trainer.train_sequence(x, y)
    assert first.abs().max() > 0
    assert torch.equal(net.head.weight.grad, second)


@pytest.mark.parametrize("name", ["net", "optimizer", "state", "objective", "regularizer", "schedule", "grad_scaler"])
def test_what_a_trainer_is_built_from_cannot_be_replaced(name):
    net = spiking_net()
    trainer, other = FPTTTrainer(net, adam(net), CE), spiking_net()
    before = getattr(trainer, name)
    with pytest.raises(ConfigurationError, match=f"trainer.{name}"):
        setattr(trainer, name, getattr(FPTTTrainer(other, adam(other), CE), name) or torch.amp.GradScaler("cpu"))
    assert getattr(trainer, name) is before
    setattr(trainer, name, before)
    again = copy.deepcopy(trainer)
    again.train_sequence(*batch())
    trainer.train_sequence(*batch())


@pytest.mark.parametrize(
    ("name", "wrong", "right"), [("average_weights", "epcoh", "never"), ("targets", "all", "step")]
)
def test_options_that_may_be_changed_are_checked(name, wrong, right):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    check_setting(trainer, name, wrong, right)
