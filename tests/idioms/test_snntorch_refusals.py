"""What cannot be trained step by step is refused by name before a weight moves, and the remedy in the message works."""

import copy
import warnings

import pytest
import snntorch as snn
import torch
from idioms import snntorch_more_nets as more
from idioms import snntorch_nets as nets
from idioms import snntorch_refused as refused
from nets import copies, identical, sgd, spikes
from torch import nn

from fptt_plugin import BPTT, DynamicRegularizer, FPTTTrainer
from fptt_plugin.errors import CannotStepError
from fptt_plugin.snntorch import LTCLeaky
from fptt_plugin.state import AttributeHandler, register_state_handler
from fptt_plugin.tree import map_tensors

CE = nn.CrossEntropyLoss()
PLAIN = {"loss_every": 1, "loss_ramp": "constant", "auxiliary": False}


def data(steps=6):
    return torch.rand(steps, 4, 5), torch.arange(4) % 3


def lively(net):
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -0.4, 0.6)
    return net


def refusal(net, words, x=None, **options):
    """Trains; asserts that this is refused in these words and that nothing has changed."""
    weights = copies(net.state_dict().values())
    with pytest.raises(ValueError) as caught:  # noqa: PT011, PT012 - at construction or at the first batch
        trainer = FPTTTrainer(net, sgd(net), CE, **{**PLAIN, **options})
        trainer.train_sequence(data()[0] if x is None else x, data()[1])
    assert identical(net.state_dict().values(), weights)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def learns(net, x=None, **options):
    """Trains without a warning; every weight moves and every layer spikes."""
    before = copies(net.parameters())
    trainer = FPTTTrainer(lively(net), sgd(net), CE, **{**PLAIN, **options})
    with warnings.catch_warnings(), spikes(net):
        warnings.simplefilter("error")
        for _ in range(3):
            trainer.train_sequence(data()[0] if x is None else x, data()[1])
    assert not any(torch.equal(*pair) for pair in zip(net.parameters(), before, strict=True))
    return trainer


@pytest.mark.parametrize("kind", refused.PARALLEL)
def test_neurons_that_run_over_all_time_steps_at_once(kind):
    net = refused.Parallel(refused.PARALLEL[kind]())
    refusal(net, ["'cell'", kind, "snn.Leaky" if kind != "AssociativeLeaky" else "snn.RLeaky", "in a loop over time"])


@pytest.mark.parametrize(
    "cell",
    [
        lambda: nets.leaky(init_hidden=True),
        lambda: LTCLeaky(init_hidden=True, linear_features=10),
        lambda: nn.Sequential(nn.Linear(10, 10), nets.leaky(init_hidden=True)),
        lambda: snn.RLeaky(0.9, linear_features=10, threshold=0.4, init_hidden=True),
    ],
    ids=["Leaky", "LTCLeaky", "Linear and Leaky", "RLeaky"],
)
def test_the_neurons_named_instead_of_these_learn(cell):
    net = refused.Parallel(cell())  # forward() now takes one time step
    learns(net)


def test_slstm_without_memory():
    refusal(refused.slstm(6, linear=False), ["'0' (SLSTM)", "forgets", "nn.Linear in front"])
    learns(refused.slstm(6, linear=True), window=2)


def test_slstm_of_unequal_sizes_forgets():
    """What the refusal rests on; if a later snnTorch mends it, this test says so."""
    cell = snn.SLSTM(5, 6, init_hidden=True, output=True)
    x = torch.rand(4, 5)
    assert torch.equal(cell(x)[2], cell(x)[2])


def test_block_by_block():
    refusal(refused.Autoencoder(), ["'lif1', 'lif2'", "one loop over time"])
    learns(nets.Sequence())


def test_a_layer_before_the_loop():
    refusal(refused.Hoisted(), ["'fc1'", "before the loop"])
    refusal(refused.Hoisted(), ["'fc1'", "before the loop"], window=3)
    learns(nets.Sequence())
    frozen = refused.Hoisted()
    frozen.fc1.requires_grad_(False)
    trainer = FPTTTrainer(frozen, torch.optim.SGD(frozen.parameters(), 0.1), CE)
    assert trainer.train_sequence(*data()).updates == 6


def test_bptt_may_have_it():
    net = lively(refused.Hoisted())
    assert BPTT(net, sgd(net), CE, **PLAIN).train_sequence(*data()).updates == 1


def test_a_trace_that_the_user_keeps():
    refusal(lively(refused.Trace()), ["Trace", "trace.detach()"])
    learns(refused.Trace(detach=True))


def test_a_readout_after_the_loop():
    refusal(refused.LateReadout(), ["'fc_out'", "after its loop", "loop's body"])
    learns(nets.LinearReadout())
    frozen = refused.LateReadout()
    frozen.fc_out.requires_grad_(False)
    refusal(frozen, ["LateReadout returns", "not the stack", "nn.Identity"])  # trained, it would not be what it returns


def test_one_neuron_twice_in_a_step():
    net = refused.SharedStep()
    refusal(net, ["'lif'", "driver='step'", "output_module"])
    trainer = learns(refused.SharedFunctional(named=True), output_module="out")
    assert trainer.updates == 18
    torch.manual_seed(1)
    trainer = learns(refused.SharedFunctional(named=False))  # the input shows how many steps there are
    assert trainer.updates == 18
    torch.manual_seed(1)
    named = learns(refused.SharedFunctional(named=True), output_module="out")
    assert identical(trainer.net.state_dict().values(), named.net.state_dict().values())
    trainer = learns(more.Shared())  # its layers tell the two calls apart
    assert "every 2. call of 'lif'" in trainer.explain()


def test_states_as_arguments_of_their_own():
    refusal(refused.Separate(), ["mem1, mem2", "forward(x_t, state)", "None at the start"])
    learns(refused.Wrapped())


def test_a_reset_in_every_step():
    net = lively(nets.Forgetful())
    trainer = FPTTTrainer(net, sgd(net), CE)
    with pytest.warns(UserWarning, match=r"Forgetful resets 'lif1', 'lif2' at every call .* without its state"):
        trainer.train_sequence(*data())
    learns(nets.Remembering())


def test_utils_reset_in_every_step():
    class Net(nets.Nested):
        def forward(self, x):
            snn.utils.reset(self.encoder)
            return self.decoder(self.encoder(x))

    net = Net()
    trainer = FPTTTrainer(net, sgd(net), CE)
    with pytest.warns(UserWarning, match=r"Net resets 'encoder.1', 'decoder.1' at every call"):
        trainer.train_sequence(*data())


class StartsAnew(nn.Module):
    """One time step, with membranes that start from zero in each."""

    def __init__(self, arguments):
        super().__init__()
        self.fc, self.lif, self.arguments = nn.Linear(5, 3), snn.Leaky(beta=0.9), arguments

    def forward(self, x):
        _, mem = self.lif(self.fc(x), *self.arguments(len(x)))
        return mem


@pytest.mark.parametrize("arguments", [lambda size: [torch.zeros(size, 3)], lambda size: [torch.full((), 0.5)]])
def test_membranes_that_start_anew_in_every_step(arguments):
    net = StartsAnew(arguments)
    with pytest.warns(UserWarning, match="StartsAnew resets 'lif' at every call .* call the neuron without its state"):
        FPTTTrainer(net, sgd(net), CE).train_sequence(*data())
    net = StartsAnew(lambda size: [])  # the neuron keeps its membrane
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FPTTTrainer(net, sgd(net), CE).train_sequence(*data())


class OfSequences(nn.Module):
    """One time step, of which torch's layer takes the samples for time steps."""

    def __init__(self, layer, call=lambda layer, x: layer(x)):
        super().__init__()
        self.layer, self.call = layer, call
        self.fc, self.lif = nn.Linear(5, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, x):
        return self.lif(self.fc(self.call(self.layer, x)))[1]


def attention(layer, x):
    return layer(x, x, x)[0]


@pytest.mark.parametrize(
    ("layer", "call", "right"),
    [
        *((kind(5, 5), lambda layer, x: layer(x)[0], lambda layer, x: layer(x.unsqueeze(0))[0][0])
          for kind in (nn.RNN, nn.GRU, nn.LSTM)),
        (nn.MultiheadAttention(5, 1), attention, None),
        (nn.MultiheadAttention(5, 1, batch_first=True), attention, lambda layer, x: attention(layer, x[:, None])[:, 0]),
        (nn.TransformerEncoderLayer(5, 1, 8), lambda layer, x: layer(x), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_layers_that_take_samples_for_time_steps(layer, call, right):
    net, (x, y) = OfSequences(layer, call), data()
    with pytest.raises(CannotStepError, match="depends on the others in the batch") as caught:
        FPTTTrainer(net, sgd(net), CE).train_sequence(x, y)
    assert "takes the samples for" in str(caught.value)
    if right is not None:
        net = OfSequences(layer, right)
        trainer = FPTTTrainer(net, sgd(net, lr=0.0), CE, alpha=0.0)
        trainer.train_sequence(x, y)
        assert torch.allclose(trainer.predict(x)[:1], trainer.predict(x[:, :1]), atol=1e-6)


class OfEachSample(nn.Module):
    """Calls a layer of sequences for each sample by itself."""

    def __init__(self):
        super().__init__()
        self.gru, self.fc = nn.GRU(1, 6), nn.Linear(6, 3)
        self.lif = snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, x):
        return self.lif(self.fc(torch.stack([self.gru(sample.unsqueeze(1))[0][-1] for sample in x])))[1]


def test_a_layer_of_sequences_that_is_called_for_each_sample_is_right():
    net = OfEachSample()
    assert FPTTTrainer(net, sgd(net), CE).train_sequence(*data()).updates == 6


class Threshold(nn.Module):
    """Keeps its membrane, and gets its threshold as an argument."""

    mem = None

    def forward(self, x, threshold):
        self.mem = x if self.mem is None else 0.9 * self.mem + x
        return torch.sigmoid(self.mem - threshold)


class FromTheSecondStep(nn.Module):
    """Its second neuron, whose state it passes on, is called from the second step on."""

    mem = None

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.threshold = nn.Linear(5, 3), nn.Linear(3, 3), torch.ones(3)
        self.first, self.second = Threshold(), snn.Leaky(beta=0.9)

    def forward(self, x):
        out = self.first(self.fc1(x), self.threshold)
        if self.mem is None:
            self.mem = torch.zeros_like(out)
            return out
        _, self.mem = self.second(self.fc2(out), self.mem)
        return self.mem


def test_arguments_that_are_no_membrane_and_neurons_that_begin_late():
    register_state_handler(Threshold, AttributeHandler(mem=None))
    register_state_handler(FromTheSecondStep, AttributeHandler(mem=None))
    net = FromTheSecondStep()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FPTTTrainer(net, sgd(net), CE).train_sequence(*data()).updates == 6


class WithoutItsTeacher(nn.Module):
    """Leaves a part out of its copies; ``train()`` and ``eval()`` take no argument."""

    def __init__(self):
        super().__init__()
        self.body, self.teacher = nets.Nested(), nn.Linear(5, 3)

    def __getstate__(self):
        parts = {name: part for name, part in self._modules.items() if name != "teacher"}
        return {**vars(self), "_modules": parts}

    def train(self):
        return super().train(True)

    def eval(self):
        return super().train(False)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_that_leaves_a_part_out_of_its_copies(training):
    net = WithoutItsTeacher()
    net.train() if training else net.eval()
    trainer = FPTTTrainer(net, sgd(net), CE)
    assert trainer.train_sequence(*data()).updates == 6
    assert trainer.evaluate([data()], metric=None) > 0
    assert all(module.training is training for module in net.modules())


def test_an_iterator_that_ends_in_forward_is_an_error():
    class Ends(nn.Sequential):
        steps = None

        def forward(self, x):
            if self.steps is not None:
                next(self.steps)
            return super().forward(x)

    net = Ends(nn.Linear(5, 3), snn.Leaky(beta=0.9, init_hidden=True, output=True))
    trainer = FPTTTrainer(net, sgd(net), CE)
    trainer.train_sequence(*data())
    net.steps = iter(range(3))
    with pytest.raises(RuntimeError, match="StopIteration"):  # as Python says in a generator
        trainer.train_sequence(*data())


class WithACell(nn.Module):
    """A loop with a cell of torch's, whose state it passes on itself."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.fc, self.lif = cell, nn.Linear(8, 3), snn.Leaky(beta=0.9)

    def forward(self, x):
        state, mem, record = None, self.lif.reset_mem(), []
        for x_t in x:
            state = self.cell(x_t, state)
            _, mem = self.lif(self.fc(state[0] if isinstance(state, tuple) else state), mem)
            record.append(mem)
        return torch.stack(record)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("window", [1, 3])
def test_a_loop_with_a_cell_of_torch_is_trained_as_by_hand(kind, window):
    net, (x, y) = WithACell(kind(5, 8)), data()
    other = copy.deepcopy(net)
    FPTTTrainer(net, sgd(net), CE, window=window, loss_ramp="constant", loss_every=1).train_sequence(x, y)
    optimizer = sgd(other)
    DynamicRegularizer(optimizer, max_grad_norm=1.0)
    state, mem = None, other.lif.reset_mem()
    for begin in range(0, len(x), window):
        losses = []
        for x_t in x[begin : begin + window]:
            state = other.cell(x_t, state)
            _, mem = other.lif(other.fc(state[0] if isinstance(state, tuple) else state), mem)
            losses.append(CE(mem, y))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        state, mem = map_tensors(torch.Tensor.detach, state), mem.detach()
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(net.parameters(), other.parameters(), strict=True))


class TwoRates(nn.Module):
    """A loop whose second layer is called in every other step."""

    def __init__(self, end):
        super().__init__()
        self.fc1, self.fc2, self.end = nn.Linear(5, 8), nn.Linear(8, 3), end
        self.lif1, self.lif2 = snn.Leaky(beta=0.9, threshold=0.2), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1, mem2, record = self.lif1.reset_mem(), torch.zeros(x.shape[1], 3), []
        for t, x_t in enumerate(x):
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            if t % 2:
                _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2 if self.end is None else self.end(mem2))
        return torch.stack(record)


def test_a_layer_of_every_other_step():
    refusal(TwoRates(None), ["'fc2'", "in some time steps only", "nn.Identity() at the end of the loop's body"])
    net = TwoRates(nn.Identity())
    assert FPTTTrainer(net, sgd(net), CE).train_sequence(*data()).updates == 3  # the other windows reach no weight


@pytest.mark.parametrize("steps", [5, 7])
def test_a_loop_that_does_not_follow_its_input(steps):
    net = nets.Regression()
    trainer = FPTTTrainer(net, sgd(net), CE)
    trainer.train_sequence(*data())
    weights = copies(net.parameters())
    with pytest.raises(ValueError, match=rf"{steps} time steps, .* makes 6 .*range\(len\(x\)\)"):
        trainer.train_sequence(*data(steps))
    assert identical(net.parameters(), weights)
    trainer.train_sequence(*data())
    learns(nets.Sequence(), torch.rand(steps, 4, 5))


def test_a_global_number_of_steps_that_changes(monkeypatch):
    net = nets.Static()
    trainer = FPTTTrainer(net, sgd(net), CE)
    x, y = torch.rand(4, 5), data()[1]
    trainer.train_sequence(x, y)
    monkeypatch.setattr(nets, "num_steps", 4)
    with pytest.raises(RuntimeError, match=r"made 4 time steps where 6 were expected.*new trainer"):
        trainer.train_sequence(x, y)
    assert FPTTTrainer(net, sgd(net), CE).train_sequence(x, y).updates == 4


def test_an_output_module_that_is_none():
    net = nets.Sequence()
    with pytest.raises(ValueError, match=r"output_module='lif9' is not a module .* fc1, lif1, fc2, lif2"):
        FPTTTrainer(net, sgd(net), CE, output_module="lif9")
    with pytest.raises(ValueError, match=r"output_module='lif2' .* not 'step'"):
        FPTTTrainer(net, sgd(net), CE, output_module="lif2", driver="step")
    net.unused = nn.Identity()
    refusal(net, ["'unused' 0 times"], output_module="unused")
    learns(nets.Sequence(), output_module="lif2")


@pytest.mark.parametrize(("option", "value"), [("variant", "gradient"), ("on_nonfinite", "skip")])
def test_options_that_go_back_in_time(option, value):
    refusal(nets.Sequence(), [f"{option}={value!r}", "let forward() take one time step"], **{option: value})
    learns(nets.Remembering(), **{option: value})


def test_compiled_networks():
    eager = {"backend": "eager"}  # which needs no C++ compiler
    refusal(torch.compile(nets.Sequence(), **eager), ["'OptimizedModule' is compiled", "before torch.compile"])
    net = nets.Sequence()
    net.lif1 = torch.compile(net.lif1, **eager)
    refusal(net, ["'lif1' is compiled"])
    net = nets.Sequence()
    net.compile(**eager)
    refusal(net, ["'Sequence' is compiled"])


def test_data_parallel_networks():
    refusal(nn.DataParallel(nets.Sequence()), ["DataParallel", "let forward() take one time step"])
    learns(nn.DataParallel(nets.Remembering()))


def test_distributed_networks(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrap = nn.parallel.DistributedDataParallel
        refusal(wrap(nets.Sequence()), ["DistributedDataParallel", "let forward() take one time step"])
        learns(wrap(nets.Remembering()))
    finally:
        torch.distributed.destroy_process_group()


def test_a_still_image_for_a_step_network():
    net = nets.conv_sequential()
    image = torch.rand(4, 1, 4, 4)
    refusal(net, ["no time in it", "expand(T"], x=image)
    assert FPTTTrainer(net, sgd(net), CE).train_sequence(image.unsqueeze(0).expand(5, *image.shape), data()[1])


def test_an_empty_sequence():
    refusal(nets.Sequence(), ["empty"], x=torch.rand(0, 4, 5))
    refusal(nets.Sequence(), ["empty"], x=torch.rand(6, 0, 5))


def test_neurons_that_return_their_state_in_a_sequential():
    def build(**options):
        neuron = snn.Leaky(beta=0.9, threshold=0.2, **options)
        return nn.Sequential(
            nn.Linear(5, 8), neuron, nn.Linear(8, 2), snn.Leaky(beta=0.9, init_hidden=True, output=True)
        )

    x, y = torch.rand(6, 4, 5), torch.tensor([0, 1, 0, 1])

    def train(net):
        return FPTTTrainer(net, torch.optim.Adam(net.parameters()), nn.CrossEntropyLoss()).train_sequence(x, y)

    with pytest.raises(ValueError, match=r"'1' return \(spk, mem\).*init_hidden=True"):
        train(build())
    assert train(build(init_hidden=True)).updates == 6
