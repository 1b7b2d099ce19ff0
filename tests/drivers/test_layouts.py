"""A message about the layout of the input: the change that it prints is carried out, and the network trains."""

import copy
import re
import warnings

import pytest
import snntorch as snn
import torch
from nets import CE, adam, copies, identical, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import BatchError, BatchTypeError, CannotRunError, CannotStepError, FPTTError, FPTTWarning
from fptt_plugin.snntorch import LTCIntegrator

T, B, F = 7, 4, 3
X, Y = torch.rand(T, B, F, generator=torch.Generator().manual_seed(0)), torch.arange(B) % 2


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Flatten(), nn.LazyLinear(6), snn.Leaky(beta=0.9, init_hidden=True, output=True)
    )


def jelly():
    net = nn.Sequential(layer.Linear(F, 8), neuron.LIFNode(v_threshold=0.2), layer.Linear(8, 2), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    return net


class Tutorial(nn.Module):
    def __init__(self, axis=0):
        super().__init__()
        self.fc, self.lif, self.axis = nn.Linear(F, 2), snn.Leaky(beta=0.9), axis

    def forward(self, x):
        mem, record = self.lif.init_leaky(), []
        for t in range(x.shape[self.axis]):
            _, mem = self.lif(self.fc(x.select(self.axis, t)), mem)
            record.append(mem)
        return torch.stack(record)


def follow(net, x, y, **options):
    """Trains; does what the message says until it trains, at most twice. Returns input, options and the errors."""
    errors = []
    for _ in range(3):
        trial = copy.deepcopy(net)
        before = copies(p for p in trial.parameters() if not isinstance(p, nn.UninitializedParameter))
        trainer = FPTTTrainer(trial, adam(trial), CE, **options)
        try:
            trainer.train_sequence(x, y)
        except FPTTError as error:
            errors.append(error)
        else:
            return x, options, errors
        assert identical((p for p in trial.parameters() if not isinstance(p, nn.UninitializedParameter)), before)
        remedy = errors[-1].remedy
        if "without batch_first" in remedy:
            options.pop("batch_first")
        elif "batch_first=True" in remedy:
            options["batch_first"] = True
        code = re.findall(r"\b([xy]\.\w+\([^)]*\)(?:\.\w+\([^)]*\))*)", remedy)
        assert code or "batch_first" in remedy, remedy
        for line in code:
            value = eval(line, {"x": x, "y": y, "T": 5, "torch": torch})
            x, y = (value, y) if line[0] == "x" else (x, value)
    raise AssertionError(f"the remedies lead nowhere: {errors}")


@pytest.mark.parametrize("build", [spiking_net, jelly])
@pytest.mark.parametrize("double", [False, True])
def test_batch_first_data_and_the_other_way_round(build, double):
    x = X.double() if double else X
    trained, options, errors = follow(build(), x.transpose(0, 1), Y)
    assert options == {"batch_first": True}
    assert len(errors) <= 2
    trained, options, errors = follow(build(), x, Y, batch_first=True)
    assert options == {}
    assert trained.dtype == torch.float32


@pytest.mark.parametrize("samples", [4, 9])
def test_batch_first_data_for_a_loop_in_forward(samples):
    x, y = torch.rand(samples, T, F), torch.arange(samples) % 2
    trained, options, errors = follow(Tutorial(), x, y)
    assert "forward() loops over the first axis: pass x.transpose(0, 1)" in errors[0].remedy
    assert options == {}
    assert trained.shape == (T, samples, F)


def test_an_axis_of_one_is_no_time():
    """Images ``[B, 1, 8, 8]`` for a network that would also take their one channel for one time step."""
    net = nn.Sequential(layer.Flatten(), layer.Linear(64, 2), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    x, y = torch.rand(16, 1, 8, 8), torch.arange(16) % 2
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), lr=0.1), CE, readout="mean")
    with pytest.raises(FPTTError) as caught:
        trainer.train_sequence(x, y)
    assert "batch_first" not in caught.value.remedy
    assert "for a still input" in caught.value.remedy
    assert trainer.train_sequence(x.unsqueeze(0).expand(5, *x.shape), y).updates == 5


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("samples", [4, 9])
def test_time_first_data_for_a_loop_over_the_second_axis(samples, batch_first):
    class Second(Tutorial):
        def forward(self, x):
            return super().forward(x.transpose(0, 1))

    x, y = torch.rand(T, samples, F), torch.arange(samples) % 2
    trained, _, errors = follow(Second(), x, y, **({"batch_first": True} if batch_first else {}))
    assert "forward() loops over the second axis: pass x.transpose(0, 1)" in errors[0].remedy
    assert trained.shape == (samples, T, F)


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (spiking_net(), torch.rand(B, F, T)),
        (spiking_net(inputs=5), torch.rand(B, 5, 9)),
        (conv(), torch.rand(B, 2, T, 6, 6)),
        (conv(), torch.rand(B, 2, 6, 6, T)),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_time_at_another_axis(net, x, batch_first):
    _, _, errors = follow(net, x, Y, **({"batch_first": True} if batch_first else {}))
    assert any("time looks like axis" in error.remedy for error in errors)


@pytest.mark.parametrize("features", [F, 9])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_loop_over_any_axis_takes_sequences_of_any_length(axis, features):
    net = Tutorial(axis)
    net.fc = nn.Linear(features, 2)
    trainer = FPTTTrainer(net, adam(net), CE)
    for steps in (9, 4, 12):  # the first as long as there are features
        x = torch.rand(steps, B, features).movedim((0, 1, 2), (axis, 0 if axis else 1, {0: 2, 1: 2, 2: 1}[axis]))
        assert trainer.train_sequence(x, Y).updates == steps
    assert f"x.shape[{axis}]" in trainer.explain()


@pytest.mark.parametrize(
    ("net", "x"), [(spiking_net(), X[0]), (conv(), torch.rand(B, 2, 6, 6)), (spiking_net(inputs=9), torch.rand(B, 9))]
)
def test_still_images(net, x):
    trained, _, errors = follow(net, x, Y)
    assert "repeat it over T" in errors[0].remedy
    assert trained.shape == (5, *x.shape)


def test_one_sample_without_a_batch_axis():
    trained, _, errors = follow(spiking_net(), X[:, 0], Y[:1])
    assert trained.shape == (T, 1, F)
    _, _, errors = follow(spiking_net(), X[:, :1], torch.tensor(1))
    assert isinstance(errors[0], BatchTypeError)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [spiking_net, jelly, Tutorial])
def test_another_precision(build, dtype):
    trained, _, errors = follow(build(), X.to(dtype), Y)
    assert len(errors) == 1
    assert trained.dtype == torch.float32


def test_sparse_tensors_arrays_and_tuples():
    follow(spiking_net(), X.to_sparse(), Y)
    for x in (None, "x", [None, X], pack_sequence([X[0], X[1]])):
        net = spiking_net()
        with pytest.raises(
            BatchTypeError, match=r"where a tensor belongs: |in \(NoneType, Tensor\)|is a PackedSequence"
        ):
            FPTTTrainer(net, adam(net), CE).train_sequence(x, Y)
    for x in ((X, X), {"x": X}):
        net = spiking_net()
        with pytest.raises(CannotRunError, match=r"does not run on inputs of shapes .*forward\(input\)"):
            FPTTTrainer(net, adam(net), CE).train_sequence(x, Y)
        assert not net._forward_pre_hooks  # the network is as it was
        FPTTTrainer(net, adam(net), CE).train_sequence(X.numpy(), Y.numpy())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body = nn.Embedding(11, F), spiking_net()

    def forward(self, tokens):
        return self.body(self.embed(tokens))


def test_tokens():
    tokens = torch.randint(11, (T, B))
    net = Tokens()
    trainer = FPTTTrainer(net, adam(net), CE)
    before = net.embed.weight.clone()
    assert trainer.train_sequence(tokens, Y).updates == T
    assert not torch.equal(net.embed.weight, before)
    assert trainer.predict(tokens).shape == (B, 2)
    trainer.reset()
    assert trainer.step(tokens[0], Y).updated
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    with pytest.raises(BatchTypeError, match=r"got torch.int64.*x.float\(\)"):
        trainer.train_sequence(torch.randint(11, (T, B, F)), Y)


class PutsTimeFirst(nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.body, self.mean = jelly(), mean

    def forward(self, x):
        out = self.body(x.transpose(0, 1))
        return out.mean(0) if self.mean else out.transpose(0, 1)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_network_that_puts_time_first_itself(mean, batch_first):
    net = PutsTimeFirst(mean)
    with pytest.raises(CannotStepError, match=r"puts time first in forward\(\).*take the transpose or permute out"):
        FPTTTrainer(net, adam(net), CE, batch_first=batch_first).train_sequence(X.transpose(0, 1), Y)


def test_a_network_that_repeats_its_image():
    class Repeats(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = jelly()

        def forward(self, x):
            return self.body(x.unsqueeze(0).repeat(5, 1, 1)).mean(0)

    net = Repeats()
    for x in (X[0], X):
        with pytest.raises(FPTTError, match=r"take that out of forward\(\) and pass x.unsqueeze") as caught:
            FPTTTrainer(net, adam(net), CE).train_sequence(x, Y)
    x = eval(re.search(r"x\.unsqueeze\(0\)\.expand\([^)]*\)", str(caught.value))[0], {"x": X[0], "T": 5})
    FPTTTrainer(net.body, adam(net.body), CE).train_sequence(x, Y)


class RepeatsMaps(nn.Module):
    """A convolution, and a repetition over time behind it."""

    def __init__(self, conv, steps=4):
        super().__init__()
        self.conv, self.steps = conv, steps
        self.body = nn.Sequential(
            neuron.LIFNode(step_mode="m"), layer.Flatten(step_mode="m"), layer.Linear(256, 2, step_mode="m")
        )

    def forward(self, x):
        x = self.conv(x)
        return self.body(x if self.steps is None else x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))


@pytest.mark.parametrize("steps", [4, B])
def test_a_network_that_repeats_behind_its_first_layers(steps):
    """The first advice is on the repetition; what it says of the layers before that works, too."""
    image = torch.rand(B, 1, 8, 8)
    sequence = image.unsqueeze(0).expand(T, *image.shape)
    net = RepeatsMaps(nn.Conv2d(1, 4, 3, padding=1), steps)
    for x in (image, sequence):
        with pytest.raises(FPTTError, match=r"\): forward\(\) repeats a still image.*; then 'conv' is a"):
            FPTTTrainer(net, adam(net), CE, window=2).train_sequence(x, Y)
    net.steps = None
    for x in (image, sequence):
        with pytest.raises(FPTTError, match=r"\): 'conv' is a torch.nn.Conv2d"):
            FPTTTrainer(net, adam(net), CE, window=2).train_sequence(x, Y)
    net.conv = layer.Conv2d(1, 4, 3, padding=1, step_mode="m")
    FPTTTrainer(net, adam(net), CE, window=2).train_sequence(sequence, Y)


def test_a_network_that_repeats_behind_a_linear_layer():
    net = RepeatsMaps(nn.Sequential(nn.Flatten(1), nn.Linear(64, 256), nn.Unflatten(1, (4, 8, 8))))
    with pytest.raises(FPTTError, match=r"\): forward\(\) repeats a still image"):
        FPTTTrainer(net, adam(net), CE).train_sequence(torch.rand(T, B, 1, 8, 8), Y)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (Y.unsqueeze(1), r"y.squeeze\(-1\)"),
        (Y.int(), r"y.long\(\)"),
        (Y.float(), r"y.long\(\)"),
        (Y.bool(), r"y.long\(\)"),
        (nn.functional.one_hot(Y), r"y.argmax\(-1\).*y.float\(\)"),
        (Y.repeat(T, 1).T, r"y.transpose\(0, 1\) if it is \[B, T\]"),
        (Y + 2, "labels must be 0 to 1"),
        (Y - 1, "labels must be 0 to 1"),
        (Y.expand(T, B).unsqueeze(2), r"y.squeeze\(-1\)"),
        (nn.functional.one_hot(Y.expand(T, B)), r"y.argmax\(-1\).*y.float\(\)"),
    ],
)
def test_labels(y, words):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    with pytest.raises(BatchError, match=words) as caught:
        trainer.train_sequence(X, y)
    for line in re.findall(r"y\.\w+\([^)]*\)", caught.value.remedy):
        trainer.train_sequence(X, eval(line, {"y": y}))


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.PoissonNLLLoss(), nn.functional.mse_loss]
)
def test_regression_targets_without_their_last_axis(loss):
    net = spiking_net(classes=1)
    trainer = FPTTTrainer(net, adam(net), loss)
    for y in (torch.rand(B), torch.rand(T, B), Y, Y.expand(T, B)):
        with pytest.raises(BatchError, match=r"\(4, 1\) and the target \(4,\), which .* would broadcast") as caught:
            trainer.train_sequence(X, y)
        (code,) = re.findall(r"y\.\w+\(.*\)", caught.value.remedy)
        trainer.train_sequence(X, eval(code, {"y": y}))
    for y in (torch.rand(B), Y):
        net = spiking_net(classes=1)
        with pytest.warns(FPTTWarning, match="every output is compared with every target"):
            FPTTTrainer(net, adam(net), lambda out, y: (out - y).square().mean()).train_sequence(X, y)


@pytest.mark.parametrize("loss", [CE, nn.NLLLoss(), nn.functional.cross_entropy])
def test_an_axis_of_one_between_samples_and_features(loss):
    net = spiking_net()
    with pytest.raises(BatchError, match=r"class scores \[B, C\] at a time step in place of \[4, 1, 2\]") as caught:
        FPTTTrainer(net, adam(net), loss).train_sequence(X.unsqueeze(2), Y)
    (code,) = re.findall(r"output=(lambda.*\))", caught.value.remedy)
    squeezed, plain = copy.deepcopy(net), copy.deepcopy(net)
    result = FPTTTrainer(squeezed, adam(squeezed), loss, output=eval(code)).train_sequence(X.unsqueeze(2), Y)
    assert torch.allclose(result.loss, FPTTTrainer(plain, adam(plain), loss).train_sequence(X, Y).loss)


def test_a_step_that_does_not_run_names_the_reason():
    net = nn.Sequential(nn.Linear(3, 2), LTCIntegrator(init_hidden=True))
    with pytest.raises(CannotStepError, match=r"does not run on one step of shape \(4, 1, 3\): no default gate"):
        FPTTTrainer(net, adam(net), CE).train_sequence(X.unsqueeze(2), Y)


@pytest.mark.parametrize("loss", [nn.HuberLoss(), nn.functional.huber_loss])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bfloat16])
def test_huber_takes_the_type_of_the_output(loss, dtype):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), loss)
    y = nn.functional.one_hot(Y, 2).to(dtype)
    with pytest.raises(BatchError, match=f"does not take a target of type {dtype}") as caught:
        trainer.train_sequence(X, y)
    (code,) = re.findall(r"y\.\w+\(.*\)", caught.value.remedy)
    assert trainer.train_sequence(X, eval(code, {"y": y, "torch": torch})).updates == T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_huber_its_type(dtype):
    net = spiking_net()
    with torch.autocast("cpu", torch.bfloat16):
        trainer = FPTTTrainer(net, adam(net), nn.HuberLoss())
        assert trainer.train_sequence(X, nn.functional.one_hot(Y, 2).to(dtype)).updates == T


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("y", [Y, Y.float(), Y.unsqueeze(1), Y.unsqueeze(1).float(), Y.expand(T, B)])
@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), nn.functional.binary_cross_entropy_with_logits, nn.SoftMarginLoss()]
)
def test_two_classes_and_one_output(loss, y, flat):
    net = spiking_net(classes=1)
    trainer = FPTTTrainer(net, adam(net), loss, output=(lambda out: out[:, 0]) if flat else None)
    for _ in range(2):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FPTTWarning)
                trainer.train_sequence(X, y)
        except BatchError as error:
            (code,) = re.findall(r"y\.\w+\(.*\)", error.remedy)
            y = eval(code, {"y": y})
    assert trainer.updates >= T


@pytest.mark.parametrize("window", [1, 3, None])
@pytest.mark.parametrize("samples", [B, T])
def test_a_network_that_puts_time_second_in_its_output(window, samples):
    class PutsTimeSecond(nn.Module):
        def __init__(self, second):
            super().__init__()
            self.body, self.second = jelly(), second

        def forward(self, x):
            return self.body(x).transpose(0, 1) if self.second else self.body(x)

    x, y = torch.rand(T, samples, F), torch.arange(samples) % 2
    net = PutsTimeSecond(second=True)
    with pytest.raises(CannotStepError, match=r"returns \[B, T, ...\].*take the transpose or permute out"):
        FPTTTrainer(net, adam(net), CE, window=window, targets="sequence").train_sequence(x, y)
    net = PutsTimeSecond(second=False)
    assert FPTTTrainer(net, adam(net), CE, window=window, targets="sequence").train_sequence(x, y).updates
