"""Whatever is wrong is said before anything moves: weights, W_bar, dual, recurrent state, optimizer state."""

import numpy as np
import pytest
import torch
from nets import LIF, Before, adam, batch, sgd, spikes, spiking_net
from torch import nn

from fptt_plugin import BPTT, FPTTTrainer, TruncatedBPTT

CE = nn.CrossEntropyLoss()
NAN, INF = float("nan"), float("inf")


def trained(loss_fn=CE, **options):
    """A trainer in mid-training: averages, moments, class distribution and recurrent state are all there."""
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), loss_fn, **options)
    with spikes(net):
        trainer.train_sequence(*batch())
        trainer.train_sequence(*batch())
    assert trainer.regularizer.dual_of(net[0].weight).abs().max() > 0
    return trainer


def refused(trainer, call, error, words):
    before = Before(trainer)
    with pytest.raises(error, match=words):
        call()
    assert before.differs() == []
    trainer.reset()
    assert trainer.train_sequence(*batch()).loss.isfinite()  # and training goes on
    assert "weights" in before.differs()


X, Y = torch.rand(6, 4, 3), torch.zeros(4, dtype=torch.long)
HOLED = X.clone()
HOLED[5, 0, 0] = NAN


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (X[0], Y, ValueError, r"\[T, B, \.\.\.\].*unsqueeze.*got shape \(4, 3\)"),
        (X, torch.zeros(7, 4).long(), ValueError, r"\(7, 4\) does not fit x with T=6 steps and B=4.*pass \[B"),
        (X, torch.zeros(5).long(), ValueError, r"\(5,\) does not fit x with T=6 steps and B=4"),
        (X, torch.tensor(1), TypeError, r"single number.*y.unsqueeze\(0\)"),
        (X, ["a"] * 4, TypeError, r"y has a str where a tensor belongs, in \(str, str, str, str\): pass tensors"),
        (X, [0] * 5, ValueError, r"\(5,\) does not fit x with T=6 steps and B=4"),
        (X[:0], Y, ValueError, "empty sequence: T=0, B=4: leave it out"),
        (X[:, :0], Y[:0], ValueError, "empty sequence: T=6, B=0"),
        (HOLED, Y, ValueError, "non-finite.*nan_to_num"),
        (X * INF, Y, ValueError, "non-finite"),
        (X + 0j, Y, TypeError, r"got torch.complex64: pass real and imaginary part as features, torch.cat\("),
        (X.long(), Y, TypeError, r"floating-point tensor, got torch.int64: convert it.*x.float\(\)"),
        (X.numpy().astype(str), Y, TypeError, "x has a ndarray where a tensor belongs"),
        (None, Y, TypeError, "x has a NoneType where a tensor belongs"),
        (X, torch.full((4, 2), NAN), ValueError, "y has non-finite values"),
        (torch.rand(4, 4, 3), torch.zeros(4, 4).long(), ValueError, "per sequence or per step.*targets='sequence'"),
        (torch.rand(6, 4, 5), Y, RuntimeError, "shapes cannot be multiplied"),
        (X, Y + 9, ValueError, "labels must be 0 to 1, one for each output; these range from 9 to"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_sequences(x, y, error, words):
    trainer = trained()
    refused(trainer, lambda: trainer.train_sequence(x, y), error, words)


@pytest.mark.parametrize(
    ("targets", "y", "words"),
    [("step", Y, r"\(one per step\); the trainer has targets='step'"), ("sequence", torch.zeros(6, 4), "'sequence'")],
)
def test_targets_of_the_other_kind(targets, y, words):
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), CE, targets=targets)
    with pytest.raises(ValueError, match=words):
        trainer.train_sequence(X, y)


def test_targets_decides_what_the_shape_leaves_open():
    x, y = torch.rand(4, 4, 3), torch.randint(2, (4, 4))
    net = spiking_net()
    assert FPTTTrainer(net, sgd(net), CE, targets="step").train_sequence(x, y).updates == 4
    net = spiking_net(classes=4)
    one_hot = torch.eye(4)
    assert FPTTTrainer(net, sgd(net), nn.MSELoss(), targets="sequence").train_sequence(x, one_hot).updates == 4


def test_batch_first_says_its_own_layout():
    trainer = trained()
    trainer.batch_first = True
    with pytest.raises(ValueError, match=r"x must be \[B, T, \.\.\.\]"):
        trainer.train_sequence(X[0], Y)
    with pytest.raises(ValueError, match=r"per sequence or per step with T=6 and B=4"):
        trainer.train_sequence(X.transpose(0, 1), torch.zeros(4, 6).long())


@pytest.mark.parametrize(
    ("x", "words"), [(X[0], r"\[T, B, \.\.\.\]"), (X[:0], "empty sequence"), (HOLED, "non-finite")], ids=range(3)
)
def test_predict(x, words):
    trainer = trained()
    refused(trainer, lambda: trainer.predict(x), ValueError, words)


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (X[0, 0], Y, ValueError, r"x_t must be \[B, \.\.\.\].*x_t.unsqueeze\(0\)"),
        (X[0, :0], Y[:0], ValueError, "empty batch"),
        (X[0], Y[:3], ValueError, r"\(3,\) does not fit a batch of 4"),
        (X[0], Y[0], ValueError, "does not fit"),
        (X[0], "1", TypeError, "y_t has a str where a tensor belongs"),
        (X[0], 1, ValueError, "does not fit a batch of 4"),
        (X[0] / 0, Y, ValueError, "non-finite"),
        (X[0].int(), Y, TypeError, "torch.int32"),
        (X[0], torch.full((4,), INF), ValueError, "y_t has non-finite values: pass None"),
        (torch.rand(4, 5), Y, ValueError, r"inputs of shape \(4, 3\), x_t has \(4, 5\)"),
        (torch.rand(3, 3), Y[:3], ValueError, r"x_t has \(3, 3\).*reset\(\)"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else "",
)
def test_steps_of_a_stream(x, y, error, words):
    trainer = trained()
    trainer.reset()
    trainer.step(X[0], Y)
    refused(trainer, lambda: trainer.step(x, y), error, words)


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"scalar tensor, got \(4,\): average it.*mean"),
        (lambda output, target: 1.0, "scalar tensor, got float"),
    ],
)
def test_a_loss_that_is_no_scalar(loss_fn, words):
    trainer = trained(lambda output, target: current[0](output, target))
    current[0] = loss_fn
    before = Before(trainer)
    with pytest.raises(ValueError, match=words):
        trainer.train_sequence(X, Y)
    current[0] = CE
    assert before.differs() == []


current = [CE]


class Pair(nn.Module):
    """Returns its input twice."""

    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -1.0}, "alpha=-1.0 must be >= 0"),
        ({"beta": 0.0}, r"beta=0.0 must lie in \(0, 1\]"),
        ({"beta": 1.5}, "beta=1.5"),
        ({"rho": 1.5}, "rho=1.5"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be > 0, or None"),
        ({"window": 0}, "window=0 must be an integer >= 1"),
        ({"window": 1.5}, "window=1.5 must be an integer"),
        ({"loss_every": 0}, "loss_every=0 must be an integer >= 1"),
        ({"update_every": 0, "window": 1}, "update_every=0 must be an integer >= 1"),
        ({"window": 4, "update_every": 6}, "update_every=6 must be a multiple of window=4"),
        ({"window": None, "update_every": 6}, "multiple of window=None"),
        ({"variant": "gradient", "window": 2, "update_every": 4}, "one window: leave update_every out"),
        ({"variant": "x"}, "variant='x' is unknown; choose one of 'dual', 'gradient'"),
        ({"readout": "last"}, "readout='last' is unknown; choose one of None, 'step', 'mean'"),
        ({"driver": "x"}, "driver='x' is unknown; choose one of 'auto'"),
        ({"average_weights": True}, "average_weights=True is unknown; choose one of None, 'epoch', 'sequence'"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite='ignore' is unknown; choose one of 'raise', 'skip'"),
        ({"targets": "x"}, "targets='x' is unknown; choose one of 'auto', 'sequence', 'step'"),
        ({"loss_ramp": "cosine"}, "loss_ramp='cosine' is unknown; choose one of 'linear', 'constant'"),
        ({"auxiliary": "yes"}, "auxiliary='yes' must be True, False, a ClassDistribution"),
        ({"output": 1.5}, "output=1.5 must be an index, a name, a callable"),
        ({"output": True}, "output=True must be an index"),
        ({"window": True}, "window=True must be an integer"),
        ({"window": np.True_}, r"window=np.True_ must be an integer"),
        ({"window": np.float64(4)}, r"must be an integer >= 1$"),
        ({"loss_every": "2"}, "loss_every='2' must be an integer"),
        ({"window": np.int64(4), "update_every": np.int64(6)}, "update_every=6 must be a multiple of window=4"),
        ({"window": np.int64(0)}, "must be an integer >= 1"),
    ],
    ids=str,
)
def test_options(options, words):
    net = spiking_net()
    optimizer = sgd(net)
    with pytest.raises(ValueError, match=words):
        FPTTTrainer(net, optimizer, CE, **options)
    # The failure left nothing on the optimizer: a correct trainer can be built on it.
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert FPTTTrainer(net, optimizer, CE).train_sequence(*batch()).updates == 6


@pytest.mark.parametrize("kind", [np.int64, np.uint8, torch.tensor])
def test_integers_of_any_type_are_integers(kind):
    options = {"window": kind(2), "loss_every": kind(1), "update_every": kind(4), "output": kind(0)}
    net = nn.Sequential(spiking_net(), Pair())
    trainer = FPTTTrainer(net, sgd(net), CE, **options)
    assert [type(value) for value in (*trainer.schedule, trainer.objective.output)] == [int] * 4
    assert trainer.train_sequence(*batch(steps=8)).updates == 2


def test_a_loss_function_with_a_parameter_of_its_own():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, output, target):
            return nn.functional.cross_entropy(self.scale * output, target)

    net, loss_fn = spiking_net(), Scaled()
    with pytest.raises(ValueError, match=r"1 parameter\(s\).*net.register_parameter\(name, parameter\)"):
        FPTTTrainer(net, torch.optim.SGD([*net.parameters(), loss_fn.scale], lr=0.1), loss_fn)
    net.register_parameter("scale", loss_fn.scale)
    trainer = FPTTTrainer(net, sgd(net), loss_fn)
    trainer.train_sequence(*batch())
    assert loss_fn.scale != 2.0
    assert trainer.regularizer.average_of(loss_fn.scale) != 2.0


def test_networks_and_optimizers():
    net, other = spiking_net(), spiking_net()
    with pytest.raises(ValueError, match=r"4 parameter\(s\) that are not the network's: build it from net.parameters"):
        FPTTTrainer(net, sgd(other), CE)
    with pytest.raises(ValueError, match=r"Sequential has no stateful neuron.*register_state_handler"):
        FPTTTrainer(nn.Sequential(nn.Linear(2, 2)), sgd(net), CE)
    with pytest.raises(ValueError, match=r"must be a torch.optim.Optimizer, got generator"):
        FPTTTrainer(net, net.parameters(), CE)
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got function"):
        FPTTTrainer(lambda x: x, sgd(net), CE)
    with pytest.raises(ValueError, match="loss_fn must be callable"):
        FPTTTrainer(net, sgd(net), "cross-entropy")
    optimizer = sgd(net)
    FPTTTrainer(net, optimizer, CE)
    with pytest.raises(ValueError, match="already carries a DynamicRegularizer"):
        FPTTTrainer(net, optimizer, CE)


def test_everything_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match="cannot be built") as caught:
        FPTTTrainer(nn.Linear(2, 2), sgd(spiking_net()), CE, alpha=-1, beta=2, window=0, readout="x", driver="y")
    message = str(caught.value)
    assert message.startswith("FPTTTrainer cannot be built:")
    for words in (
        "alpha=-1",
        "beta=2",
        "window=0",
        "readout='x'",
        "driver='y'",
        "no stateful neuron",
        "not the network",
    ):
        assert words in message
    assert message.count("\n- ") == 7


def test_baselines_take_no_options_of_the_regularizer():
    net = spiking_net()
    for option in ("alpha", "beta", "rho", "variant", "average_weights"):
        with pytest.raises(TypeError, match=f"TruncatedBPTT has no regularizer and takes no {option}"):
            TruncatedBPTT(net, sgd(net), CE, **{option: 0.1})
    for option in ("window", "update_every"):
        with pytest.raises(TypeError, match=f"BPTT goes back through the whole sequence and takes no {option}"):
            BPTT(net, sgd(net), CE, **{option: 2})


def test_a_stream_has_no_end_for_bptt():
    net = spiking_net()
    with pytest.raises(ValueError, match=r"window=None waits for the end.*build the trainer with a window"):
        BPTT(net, sgd(net), CE).step(X[0], Y)
    assert net[1].mem is None
    assert isinstance(net[1], LIF)
