"""Networks with normalization per time step, trained: against loops by hand, in every driver, resumed in the middle."""

import copy

import pytest
import snntorch as snn
import torch
from nets import CE, Before, adam, batch, copies, flat, identical, sgd, spikes
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import DynamicRegularizer, FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, PerStepBatchNorm1d, PerStepBatchNorm2d, RLTCLeaky
from fptt_plugin.spikingjelly import LTCIntegrator as NodeIntegrator
from fptt_plugin.spikingjelly import LTCLeaky as LTCNode
from fptt_plugin.spikingjelly import PerStepBatchNorm1d as MemoryNorm1d
from fptt_plugin.state import ModelState

STEPS = 7


def unbiased(net):
    """A bias in front of a normalization has no gradient but rounding noise, which Adam would make a step of."""
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.bias = None
    return net


class OwnPrecision(nn.Module):
    """snnTorch's spikes are float32, also in a network of another precision."""

    def __init__(self):
        super().__init__()
        self.register_buffer("like", torch.zeros(()))

    def forward(self, x):
        return x.to(self.like.dtype)


def recurrent(accumulate=False):
    norms = [PerStepBatchNorm1d(size, STEPS - 1, accumulate=accumulate) for size in (8, 8, 2)]
    lif = RLTCLeaky(linear_features=8, init_hidden=True, recurrent_norm=norms[1])
    return nn.Sequential(
        nn.Linear(3, 8), norms[0], lif, nn.Linear(8, 2), norms[2], LTCIntegrator(init_hidden=True, linear_features=2)
    )


def accumulated():
    return recurrent(accumulate=True)


def maps():
    return nn.Sequential(
        nn.Unflatten(1, (3, 1, 1)),
        nn.Conv2d(3, 4, 3, padding=1),
        PerStepBatchNorm2d(4, STEPS),
        LTCLeaky(conv2d_channels=4, init_hidden=True),
        nn.Flatten(),
        nn.Linear(4, 2),
        LTCIntegrator(init_hidden=True, linear_features=2),
    )


def stock():
    return nn.Sequential(
        nn.Linear(3, 8), PerStepBatchNorm1d(8, STEPS), snn.Leaky(beta=0.8, threshold=0.5, init_hidden=True),
        OwnPrecision(), nn.Linear(8, 2), snn.Leaky(beta=0.9, threshold=0.2, init_hidden=True, output=True),
    )  # fmt: skip


def nodes():
    return nn.Sequential(
        layer.Linear(3, 8), MemoryNorm1d(8, STEPS), neuron.LIFNode(v_threshold=0.3), layer.Linear(8, 2),
        MemoryNorm1d(2, STEPS, accumulate=True), LTCNode(linear_features=2), NodeIntegrator(linear_features=2),
    )  # fmt: skip


def multistep():
    net = nodes()
    functional.set_step_mode(net, "m")
    return net


class Loops(nn.Module):
    """A tutorial's network: its forward walks over time and starts everything itself."""

    def __init__(self):
        super().__init__()
        self.fc1, self.norm, self.lif1 = nn.Linear(3, 8), PerStepBatchNorm1d(8, STEPS), LTCLeaky(linear_features=8)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.Leaky(beta=0.9, threshold=0.2)

    def forward(self, x):
        self.norm.reset()
        self.lif1.reset_mem()
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = []
        for x_t in x:
            spk1, mem1 = self.lif1(self.norm(self.fc1(x_t)), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(mem2)
        return torch.stack(out)


STEPPED = [recurrent, accumulated, maps, stock, nodes]


def sequences(count=3, samples=16):
    for _ in range(count):
        x, y = batch(STEPS, samples=samples, dtype=torch.float64)
        yield 3 * x, y


def by_hand(net, window):
    """FPTT written as a loop over a network that takes one step."""
    optimizer = adam(net)
    regularizer = DynamicRegularizer(optimizer, alpha=0.1, max_grad_norm=1.0)
    for x, y in sequences():
        ModelState(net).reset()
        for begin in range(0, STEPS, window):
            end = min(begin + window, STEPS)
            for x_t in x[begin:end]:
                out = net(x_t)
            out = out[-1] if isinstance(out, tuple) else out
            loss = end / STEPS * CE(out, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ModelState(net).detach()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters() if p.grad is not None)
    return regularizer


def trained(net, **options):
    options = {"auxiliary": False, "average_weights": "never", **options}
    trainer = FPTTTrainer(net, adam(net), CE, **options)
    with spikes(net):
        for x, y in sequences():
            trainer.train_sequence(x, y)
    return trainer


def held(net):
    return [*net.state_dict().values(), *flat(ModelState(net).get())]


def assert_close(ones, others, same=1e-10):
    for one, other in zip(ones, others, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=same, atol=same)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("build", [*STEPPED, multistep])
def test_training_is_the_loop_by_hand(build, window):
    net = unbiased(build()).double()
    twin = copy.deepcopy(net)
    functional.set_step_mode(twin, "s")
    torch.manual_seed(1)
    trainer = trained(net, window=window)
    torch.manual_seed(1)
    by_hand(twin, window)
    assert trainer.updates == 3 * -(-STEPS // window)
    assert_close(held(net), held(twin))
    assert_close(ModelState(net).get()["1" if build is not maps else "2"]["step"], [torch.tensor(STEPS)] * 16)


@pytest.mark.parametrize("window", [1, 3])
def test_a_forward_that_loops_is_the_loop_by_hand(window):
    net = unbiased(Loops()).double()
    stepped = nn.Sequential(
        *copy.deepcopy([net.fc1, net.norm, net.lif1, net.fc2]), snn.Leaky(0.9, threshold=0.2, output=True)
    ).double()
    stepped[2].init_hidden = stepped[4].init_hidden = True
    torch.manual_seed(1)
    trainer = trained(net, window=window)
    torch.manual_seed(1)
    by_hand(stepped, window)
    assert trainer.updates == 3 * -(-STEPS // window)
    assert_close(net.parameters(), stepped.parameters())
    assert_close([net.norm.running_mean, net.norm.running_var], [stepped[1].running_mean, stepped[1].running_var])


@pytest.mark.parametrize("build", [*STEPPED, multistep, Loops])
def test_prediction_and_evaluation_use_each_steps_running_statistics(build):
    net = unbiased(build()).double()
    trainer = trained(net, window=2)
    (x, y), *_ = sequences(1)
    kept = copies(net.buffers())
    predicted = trainer.predict(x)
    assert identical(net.buffers(), kept)
    net.eval()
    ModelState(net).reset()
    with torch.no_grad(), trainer.averaged_weights():
        if build in (multistep, Loops):
            out = net(x)[-1]
        else:
            for x_t in x:
                out = net(x_t)
    out = out[-1] if isinstance(out, tuple) else out
    assert_close([predicted], [out])
    norm = next(m for m in net.modules() if isinstance(m, (PerStepBatchNorm1d, PerStepBatchNorm2d, MemoryNorm1d)))
    norm.running_mean += 1.0
    assert not torch.allclose(trainer.predict(x), predicted)
    assert 0 <= trainer.evaluate([(x, y)]) <= 1


@pytest.mark.parametrize("build", [*STEPPED, multistep])
def test_a_stream_resumes_bit_for_bit(build, tmp_path):
    def stream(trainer, data):
        return [trainer.step(x[0], y).loss for x, y in data]

    def trainer_of(net):
        return FPTTTrainer(net, adam(net), CE, window=2, average_weights="never", readout="step")

    net = build()
    data = [batch(1, samples=4) for _ in range(20)]
    first = trainer_of(net)
    stream(first, data[:10])
    first.save(tmp_path / "middle.pt")
    whole = stream(first, data[10:])
    second = trainer_of(build())
    second.load(tmp_path / "middle.pt")
    resumed = stream(second, data[10:])
    assert [loss for loss in whole if loss is not None] == [loss for loss in resumed if loss is not None]
    assert identical(held(first.net), held(second.net))
    assert identical(first.net.parameters(), second.net.parameters())


@pytest.mark.parametrize("build", [recurrent, accumulated, nodes])
def test_the_second_gradient_moves_no_statistics(build):
    """Both variants make the same first step through the network, so their statistics agree."""
    moved = []
    for variant in ("dual", "gradient"):
        torch.manual_seed(0)
        net = unbiased(build()).double()
        trainer = FPTTTrainer(net, sgd(net, 0.0), CE, window=2, variant=variant, average_weights="never")
        torch.manual_seed(1)
        for x, y in sequences():
            trainer.train_sequence(x, y)
        moved.append(held(net))
    assert_close(*moved, same=1e-13)


@pytest.mark.parametrize("build", [*STEPPED, multistep])
def test_a_window_that_is_skipped_leaves_statistics_and_count(build):
    net = unbiased(build()).double()
    trainer = FPTTTrainer(net, adam(net), CE, on_nonfinite="skip", average_weights="never")
    for x, y in sequences():
        trainer.step(x[0], y)
    before = Before(trainer)
    (x, y), *_ = sequences(1)
    with torch.no_grad():
        kept = net[0].weight.clone() if build is not maps else None
    trainer.step(torch.full_like(x[0], torch.nan), y)
    assert not before.differs()
    assert kept is None or torch.equal(net[0].weight, kept)
    trainer.step(x[0], y)
    assert before.differs()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("build", [recurrent, accumulated, maps, nodes, multistep])
def test_compiled_is_eager(build):
    net = unbiased(build()).double()
    twin = copy.deepcopy(net)
    for one, accelerate in ((net, "none"), (twin, "compile")):
        torch.manual_seed(1)
        trained(one, window=2, accelerate=accelerate)
    assert_close(held(net), held(twin))


def test_a_network_with_it_compiles_into_one_graph_whatever_the_step():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    net = recurrent()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    frames = []
    for x_t in torch.randn(2 * STEPS, 16, 3):
        compiled(x_t)
        frames.append(counter.frame_count)
    assert frames[1:] == [2] * (2 * STEPS - 1)  # once for the empty state; no step has a graph of its own
