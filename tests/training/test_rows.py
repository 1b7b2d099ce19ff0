"""Samples of a batch whose sequences end at different times."""

import pytest
import snntorch as snn
import torch
from nets import LIF, Before, adam, batch, distance, flat, identical, sgd, spiking_net, twins
from spikingjelly.activation_based import layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, PerStepBatchNorm1d, RLTCLeaky
from fptt_plugin.spikingjelly import LTCIntegrator as NodeIntegrator
from fptt_plugin.spikingjelly import LTCLeaky as LTCNode
from fptt_plugin.spikingjelly import PerStepBatchNorm1d as MemoryNorm1d
from fptt_plugin.state import AttributeHandler, ModelState, register_state_handler

CE = nn.CrossEntropyLoss()
SOME = torch.tensor([True, False, True, False])


def leaky():
    lif = [snn.Leaky(beta=0.9, init_hidden=True), snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True)]
    return nn.Sequential(nn.Linear(3, 8), lif[0], nn.Linear(8, 8), lif[1], nn.Linear(8, 2), LTCIntegrator())


def liquid():
    layers = [nn.Linear(3, 8), LTCLeaky(init_hidden=True), nn.BatchNorm1d(8), nn.Linear(8, 2)]
    return nn.Sequential(*layers, LTCIntegrator(init_hidden=True))


def nodes():
    layers = [layer.Linear(3, 8), neuron.LIFNode(v_reset=0.2), layer.Linear(8, 8), LTCNode(), layer.Linear(8, 2)]
    return nn.Sequential(*layers, neuron.IFNode(v_threshold=0.1))


def delayed():
    return nn.Sequential(layer.Delay(2), *spiking_net())


def normalized():
    norms = PerStepBatchNorm1d(8, 20), PerStepBatchNorm1d(8, 20, accumulate=True)
    for norm in norms:
        nn.init.uniform_(norm.running_mean)
    layers = [nn.Linear(3, 8), norms[0], RLTCLeaky(init_hidden=True, linear_features=8, recurrent_norm=norms[1])]
    return nn.Sequential(*layers, nn.Linear(8, 2), LTCIntegrator(init_hidden=True))


def normalized_nodes():
    norm = MemoryNorm1d(8, 20)
    nn.init.uniform_(norm.running_mean)
    return nn.Sequential(layer.Linear(3, 8), norm, LTCNode(), layer.Linear(8, 2), NodeIntegrator())


def multistep():
    net = nodes()
    for module in net.modules():
        if hasattr(module, "step_mode"):
            module.step_mode = "m"
    return net


class Cell(nn.Module):
    """A torch cell with an explicit state of two tensors."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTMCell(3, 8), nn.Linear(8, 2)

    def forward(self, x, state):
        state = self.cell(x, state)
        return self.out(state[0]), state


def evaluated(build):
    """The output of single steps without learning, of a whole batch and of each sample by itself."""
    net = build().eval()
    if build is leaky:
        net[-1].init_hidden = True
    return net


@pytest.mark.parametrize("readout", ["step", "mean"])
@pytest.mark.parametrize(
    "build", [spiking_net, leaky, liquid, nodes, delayed, multistep, Cell, normalized, normalized_nodes]
)
def test_new_rows_begin_anew_and_the_others_go_on(build, readout):
    """Against the same stream without a restart, and one that only begins there."""
    net = evaluated(build)
    trainer = FPTTTrainer(net, sgd(net, 0.0), CE, readout=readout)
    x, _ = batch(12)
    net(x[:1]) if build is multistep else net(*([x[0], None] if build is Cell else [x[0]]))
    ModelState(net).reset()

    def run(begin, restart=None):
        trainer.reset()
        return [trainer.step(x[t], new_sequence=SOME if t == restart else None).output for t in range(begin, 12)]

    kept, fresh, mixed = run(0)[6:], run(6), run(0, restart=6)[6:]
    assert len({tuple(out.flatten().tolist()) for out in kept}) > 1
    for old, new, both in zip(kept, fresh, mixed, strict=True):
        assert distance([both], [torch.where(SOME.unsqueeze(1), new, old)]) < 1e-6
    assert not torch.equal(torch.stack(kept)[:, SOME], torch.stack(fresh)[:, SOME])


@pytest.mark.parametrize("options", [{}, {"window": 4, "loss_every": 1}, {"variant": "gradient", "window": 2}], ids=str)
def test_learning_with_restarts_is_learning_with_states_set_by_hand(options):
    ones, others = twins(options)
    for step in range(12):
        x, y = batch(1)
        rows = torch.rand(4) > 0.7
        ones.step(x[0], y, new_sequence=rows)
        if step and options.get("variant") != "gradient":  # which would replay from the state before
            for neuron_ in (others.net[1], others.net[3]):
                neuron_.mem = torch.where(rows.unsqueeze(1), torch.zeros(()), neuron_.mem)
            others.step(x[0], y)
        elif step == 0:
            others.step(x[0], y)
    if options.get("variant") != "gradient":
        assert identical(ones.net.parameters(), others.net.parameters())
        assert identical(flat(ModelState(ones.net).get()), flat(ModelState(others.net).get()))
    assert ones.updates == 12 // options.get("window", 1)


def test_no_gradient_reaches_the_sequence_before():
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net, 0.0), lambda output, target: output[SOME].sum(), window=2, max_grad_norm=None)
    x, y = batch(2)
    x.requires_grad_()
    trainer.step(x[0], y)
    trainer.step(x[1], y, new_sequence=SOME)
    assert x.grad[0].abs().sum() == 0
    assert x.grad[1][SOME].abs().sum() > 0
    assert x.grad[1][~SOME].abs().sum() == 0


def test_a_random_initial_state_is_drawn_anew():
    net = nn.Sequential(nn.Linear(3, 8), LTCLeaky(init_hidden=True, init_state="random"), nn.Linear(8, 2), LIF())
    trainer = FPTTTrainer(net, sgd(net, 0.0), CE)
    x = torch.zeros(4, 3)
    for _ in range(5):
        trainer.step(x)
    kept = net[1].b
    trainer.step(x, new_sequence=SOME)
    rho = torch.sigmoid(net[1].adp_gate(net[0](x), torch.full((4, 8), 0.1)))
    assert torch.allclose(net[1].b[SOME], (rho * 0.1)[SOME])
    assert not torch.allclose(net[1].b[~SOME], (rho * 0.1)[~SOME])
    assert not torch.equal(net[1].b, kept)


class Average(LIF):
    """One number for all samples."""

    def forward(self, x):
        self.mem = x.mean() if self.mem is None else 0.5 * self.mem + x.mean()
        return x + self.mem


class Biased(LIF):
    """Begins at one instead of zero."""

    def forward(self, x):
        self.mem = 0.5 * (torch.ones_like(x) if self.mem is None else self.mem) + x
        return self.mem


class TimeMajor(LIF):
    """Keeps its state transposed."""

    def forward(self, x):
        self.mem = x.T if self.mem is None else 0.5 * self.mem + x.T
        return self.mem.T


class Centered(LIF):
    """Mixes the samples of its state in training mode, as no layer of torch is seen to do."""

    def forward(self, x):
        self.mem = x if self.mem is None else 0.5 * self.mem + x
        self.mem = self.mem - self.mem.mean(0) if self.training else self.mem
        return self.mem


class Begins(nn.Module):
    """The remedy for ``Biased``: says where it begins."""

    level = 1.0

    def forward(self, x):
        self.level = 0.5 * self.level + x
        return self.level


register_state_handler(Begins, AttributeHandler(level=1.0))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (Average(), r"'1.mem' cannot begin .* its state has shape \(\), not \[B"),
        (Biased(), r"'1' cannot begin .* its state \(or one before it\) does not start from zero"),
        (TimeMajor(), "'[12]' cannot begin .*first dimension is not the batch"),
        (Centered(), "'1' cannot begin .*mixes samples, or"),
        (layer.Dropout(0.5), "'1' cannot begin .*does not start from zero"),
    ],
    ids=["average", "biased", "transposed", "centered", "dropout"],
)
def test_what_cannot_be_restarted_is_refused(extra, words):
    net = spiking_net(hidden=4, extra=[extra])
    trainer = FPTTTrainer(net, adam(net), CE)
    x, y = batch(6)
    for x_t in x:
        trainer.step(x_t, y)
    before, steps = Before(trainer), trainer.steps
    with pytest.raises(ValueError, match=words):
        trainer.step(x[0], y, new_sequence=SOME)
    assert before.differs() == []
    assert trainer.steps == steps
    trainer.step(x[0], y)


def test_a_neuron_may_say_where_it_begins():
    net = spiking_net(extra=[Begins()])
    trainer = FPTTTrainer(net, sgd(net), CE)
    x, y = batch(4)
    for x_t in x:
        trainer.step(x_t, y, new_sequence=SOME)
    assert torch.equal(net[1].level[SOME], 0.5 + net[0](x[3])[SOME]) is False  # the weights have moved since
    assert trainer.updates == 4


NORMS = [lambda: nn.BatchNorm1d(8)]
if hasattr(neuron, "MPBNLIFNode"):  # in SpikingJelly 2.x; asks its own mode, and never calls its normalization
    NORMS.append(lambda: neuron.MPBNLIFNode(out_features=8))


@pytest.mark.parametrize("norm", NORMS)
def test_monitors_and_statistics_see_only_the_training(norm):
    net = spiking_net(extra=[norm()])
    trainer = FPTTTrainer(net, adam(net), CE, driver="step")
    seen = []
    net[2].register_forward_hook(lambda *args: seen.append(1))
    for _ in range(4):
        x, y = batch(1)
        trainer.step(x[0], y, new_sequence=SOME)
    assert len(seen) == getattr(net[1], "vbn", net[1]).num_batches_tracked == 4


def test_a_skipped_update_forgets_no_restart():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE, window=2, on_nonfinite="skip", readout="mean")
    x, y = batch(6)
    for x_t in x[:4]:
        trainer.step(x_t, y)
    trainer.objective.loss_fn = lambda output, target: CE(output, target) * float("nan")
    kept = net[1].mem
    trainer.step(x[4], y, new_sequence=SOME)
    trainer.step(x[5], y)
    assert trainer.skipped == 1
    assert torch.equal(net[1].mem, torch.where(SOME.unsqueeze(1), 0.0, kept))
    assert trainer._run_state.readout.get()[1].flatten().tolist() == [0, 4, 0, 4]


def test_checkpoints_keep_the_counts_of_each_row(tmp_path):
    ones, others = twins({"readout": "mean"})

    def stream(trainer, steps):
        for _ in range(steps):
            x, y = batch(1)
            trainer.step(x[0], y, mask=torch.rand(4) > 0.3, new_sequence=torch.rand(4) > 0.8)

    stream(ones, 20)
    ones.save(tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=True)
    others.load(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 3\), x_t has \(5, 3\)"):
        others.step(torch.rand(5, 3))
    for trainer in (ones, others):
        torch.manual_seed(3)
        stream(trainer, 50)
    assert identical(ones.net.parameters(), others.net.parameters())
    assert identical(flat(ones.state_dict()), flat(others.state_dict()))


# ---------------------------------------------------------------------- batch size


def test_a_batch_of_another_size_needs_a_reset():
    trainer = twins()[0]
    x, y = batch(3)
    trainer.step(x[0], y)
    before = Before(trainer)
    with pytest.raises(ValueError, match=r"inputs of shape \(4, 3\), x_t has \(2, 3\).*reset\(\).*new_sequence"):
        trainer.step(x[1, :2], y[:2])
    assert before.differs() == []
    trainer.step(x[1], y)
    trainer.reset()
    assert trainer.step(x[1, :2], y[:2]).updated
    trainer.train_sequence(x, y)
    with pytest.raises(ValueError, match="reset"):
        trainer.step(x[1, :2], y[:2])  # the sequence's state is still there
    assert trainer.train_sequence(x[:, :2], y[:2]).updates == 3
