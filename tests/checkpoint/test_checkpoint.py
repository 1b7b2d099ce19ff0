"""One file holds all that training needs: what goes on from it is what would have gone on without it, bit for bit."""

import os
from typing import NamedTuple

import numpy as np
import pytest
import torch
from nets import LIF, Before, adam, batch, copies, flat, identical, sgd, spikes, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CallOrderError, CheckpointError
from fptt_plugin.state import ModelState

CE = nn.CrossEntropyLoss()


def make(net=None, optimizer=adam, alpha=0.1, **options):
    net = spiking_net() if net is None else net
    return FPTTTrainer(net, optimizer(net), CE, alpha=alpha, readout="mean", **options)


def stream(trainer, steps):
    for _ in range(steps):
        x, y = batch(1)
        trainer.step(x[0], y)


def everything(trainer):
    regularizer, parameters = trainer.regularizer, list(trainer.net.parameters())
    averages = [*map(regularizer.average_of, parameters), *map(regularizer.dual_of, parameters)]
    table = trainer.objective.distribution.table
    state = flat(ModelState(trainer.net).get())
    return copies([*parameters, *averages, table, *state, *flat(trainer.optimizer.state_dict())])


def lazy_net():
    return nn.Sequential(nn.LazyLinear(8), LIF(), nn.Linear(8, 2), LIF(spikes=False))


@pytest.mark.parametrize("build", [spiking_net, lazy_net])
@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_training_goes_on_bit_for_bit(tmp_path, build, variant):
    trainer = make(build(), variant=variant)
    with spikes(trainer.net):
        trainer.train_sequence(*batch())  # fills the class distribution
        stream(trainer, 5)
    trainer.save(tmp_path / "a.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    other = make(build(), alpha=0.7, variant=variant)
    other.load(tmp_path / "a.pt")
    assert identical(everything(other), everything(trainer))
    for one in (trainer, other):
        torch.manual_seed(7)
        stream(one, 20)
        for _ in range(5):
            one.train_sequence(*batch())
    assert (other.steps, other.updates, other.skipped) == (trainer.steps, trainer.updates, 0) == (61, 61, 0)
    assert identical(everything(other), everything(trainer))


def test_alpha_comes_back_and_may_be_changed_then(tmp_path):
    trainer = make()
    stream(trainer, 5)
    trainer.save(tmp_path / "a.pt")
    same, stronger = make(alpha=0.7), make(alpha=0.7)
    for one, alpha in ((same, 0.1), (stronger, 0.7)):
        one.load(tmp_path / "a.pt")
        assert one.regularizer.alpha == 0.1
        one.regularizer.alpha = alpha
    for one in (trainer, same, stronger):
        torch.manual_seed(7)
        stream(one, 5)
    assert identical(everything(same), everything(trainer))
    assert not identical(everything(stronger), everything(trainer))


def test_the_file_holds_tensors_and_numbers_only(tmp_path):
    trainer = make()
    stream(trainer, 3)
    trainer.save(tmp_path / "a.pt")
    assert set(torch.load(tmp_path / "a.pt", weights_only=True)) == {"net", "optimizer", "trainer"}


def test_a_state_dict_does_not_follow_the_training():
    trainer = make()
    trainer.train_sequence(*batch())
    state = trainer.state_dict()
    before = copies(flat(state))
    trainer.train_sequence(*batch())
    assert identical(flat(state), before)
    assert not identical(flat(trainer.state_dict()), before)
    trainer.load_state_dict(state)
    assert identical(flat(trainer.state_dict()), before)


def test_none_between_two_updates(tmp_path):
    for options in ({"window": 2}, {"window": 1, "update_every": 2}):
        trainer = make(**options)
        stream(trainer, 3)
        with pytest.raises(RuntimeError, match=r"between two updates.*can_save is True.*or call reset\(\)"):
            trainer.save(tmp_path / "a.pt")
        assert list(tmp_path.iterdir()) == []
        stream(trainer, 1)
        trainer.state_dict()


def test_after_loading_a_failed_update_goes_back_to_the_loaded_state():
    trainer = make(update_every=2)
    stream(trainer, 4)
    x, y = batch(1)
    trainer.step(x[0])  # without a target: nothing is pending, yet half of the way to the next update is done
    state = trainer.state_dict()
    other = make(update_every=2, on_nonfinite="skip")
    other.load_state_dict(state)
    other.objective.loss_fn = lambda output, target: CE(output, target) * float("nan")
    other.step(x[0], y)
    assert other.skipped == 1
    assert identical(flat(ModelState(other.net).get()), flat(state["state"]))


def damaged(file):
    file.write_bytes(file.read_bytes()[:-200])


def foreign(file):
    torch.save({"net": {}}, file)


def text(file):
    file.write_text("no checkpoint")


@pytest.mark.parametrize("damage", [damaged, foreign, text])
def test_a_damaged_file_is_refused(tmp_path, damage):
    trainer, file = make(), tmp_path / "a.pt"
    stream(trainer, 3)
    trainer.save(file)
    damage(file)
    stream(trainer, 1)
    before = Before(trainer)
    with pytest.raises(ValueError, match=r"a.pt (is not a valid checkpoint|lacks 'optimizer', 'trainer')"):
        trainer.load(file)
    assert before.differs() == []


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        make().load(tmp_path / "a.pt")


def grouped(net):
    return torch.optim.Adam([{"params": list(net[0].parameters())}, {"params": list(net[2].parameters())}])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make(spiking_net(hidden=7)), r"0.weight has shape \(7, 3\) here, \(8, 3\) in the file"),
        (lambda: make(spiking_net(extra=[nn.Linear(8, 8)])), "names that only one of them has"),
        (lambda: make(spiking_net(extra=[nn.Identity(), LIF()])), "names that only one"),
        (lambda: make(nn.Sequential(*spiking_net(), LIF())), "stateful modules"),
        (lambda: make(optimizer=sgd), "not of SGD: it lacks"),
        (lambda: make(optimizer=grouped), "other parameter groups"),
        (lambda: make(variant="gradient"), "variant='dual'"),
    ],
    ids=range(7),
)
def test_the_file_of_another_network_or_optimizer_is_refused(tmp_path, build, words):
    trainer = make()
    stream(trainer, 3)
    trainer.save(tmp_path / "a.pt")
    other = build()
    stream(other, 2)
    before = Before(other)
    with pytest.raises(ValueError, match=f"belongs to another network or optimizer: .*{words}"):
        other.load(tmp_path / "a.pt")
    assert before.differs() == []
    stream(other, 1)


@pytest.mark.parametrize("optimizers", [(adam, grouped), (grouped, adam)], ids=["more", "fewer"])
def test_a_state_dict_of_other_parameter_groups_is_refused(optimizers):
    saved, other = (make(optimizer=optimizer) for optimizer in optimizers)
    stream(saved, 3)
    stream(other, 2)
    before = Before(other)
    with pytest.raises(CheckpointError, match="other parameter groups"):
        other.load_state_dict(saved.state_dict())
    assert before.differs() == []


@pytest.mark.parametrize("damage", [lambda dual: dual.flatten()[:1], lambda dual: None], ids=["shape", "none"])
def test_a_damaged_dual_is_refused_before_anything_is_loaded(tmp_path, damage):
    trainer, file = make(), tmp_path / "a.pt"
    stream(trainer, 3)
    trainer.save(file)
    content = torch.load(file)
    entry = content["optimizer"]["state"][0]
    entry["fptt_dual"] = damage(entry["fptt_dual"])
    torch.save(content, file)
    stream(trainer, 2)
    before = Before(trainer)
    with pytest.raises(CheckpointError):
        trainer.load(file)
    assert before.differs() == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    trainer, file = make(), tmp_path / "a.pt"
    stream(trainer, 3)
    trainer.save(file)
    old, weights = file.read_bytes(), copies(trainer.net.parameters())
    stream(trainer, 1)

    def interrupted(content, stream):
        stream.write(b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save(file)
    assert os.listdir(tmp_path) == ["a.pt"]
    assert file.read_bytes() == old
    trainer.load(file)
    assert identical(trainer.net.parameters(), weights)


def test_numbers_of_numpy_come_back(tmp_path):
    rate = np.logspace(-4, -2, 3)[1]
    trainer = make(optimizer=lambda net: adam(net, lr=rate))
    torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda epoch: np.float32(0.5))
    stream(trainer, 2)
    trainer.save(tmp_path / "a.pt")
    other = make(optimizer=adam)
    other.load(tmp_path / "a.pt")
    assert other.optimizer.param_groups[0]["lr"] == trainer.optimizer.param_groups[0]["lr"] == rate / 2


class Membrane(NamedTuple):
    mem: torch.Tensor


class TakesNamedTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, state=None):
        mem = self.layer(x) + (0.0 if state is None else 0.8 * state.mem)
        return mem, Membrane(mem)


def test_a_state_in_named_tuples_loads_when_the_file_is_trusted(tmp_path):
    trainer = make(TakesNamedTuple())
    stream(trainer, 3)
    trainer.save(tmp_path / "a.pt")
    other = make(TakesNamedTuple())
    with pytest.raises(ValueError, match=r"more than tensors and numbers.*weights_only=False"):
        other.load(tmp_path / "a.pt")
    assert other.steps == 0
    other.load(tmp_path / "a.pt", weights_only=False)
    for one in (trainer, other):
        torch.manual_seed(7)
        stream(one, 3)
    assert identical(other.net.parameters(), trainer.net.parameters())


def lazy_gates():
    liquid = pytest.importorskip("fptt_plugin.snntorch")
    return nn.Sequential(nn.Linear(3, 8), liquid.LTCLeaky(init_hidden=True), nn.Linear(8, 2))


@pytest.mark.parametrize("build", [lazy_net, lazy_gates])
def test_a_lazy_network_before_its_first_batch(tmp_path, build):
    """The file names the classes of weights without a size; it loads like any other, and what was drawn is kept."""
    first, other = make(build()), make(build())
    first.save(tmp_path / "a.pt")
    other.load(tmp_path / "a.pt")
    for trainer in (first, other):
        torch.manual_seed(7)
        trainer.train_sequence(*batch())
    assert first.updates > 0
    assert identical(everything(other), everything(first))


def test_other_classes_are_not_read_with_those_of_a_lazy_network(tmp_path):
    torch.save({"net": {"0.weight": FPTTTrainer}, "optimizer": {}, "trainer": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="more than tensors and numbers"):
        make(lazy_net()).load(tmp_path / "a.pt")


def test_the_file_has_the_rights_of_any_other_and_a_link_stays_one(tmp_path):
    trainer = make()
    torch.save({}, tmp_path / "other.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "a.pt")
    trainer.save(tmp_path / "link.pt")
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "a.pt").stat().st_mode == (tmp_path / "other.pt").stat().st_mode


@pytest.mark.parametrize("readout", ["step", "mean"])
@pytest.mark.parametrize(
    ("saved", "loaded"),
    [("float64", "float32"), ("float32", "float64"), ("float32", "bfloat16"), ("bfloat16", "float32")],
)
def test_a_stream_goes_on_in_another_precision(tmp_path, saved, loaded, readout):
    trainers = []
    for dtype in (getattr(torch, saved), getattr(torch, loaded)):
        net = spiking_net().to(dtype)
        trainers.append(FPTTTrainer(net, sgd(net), nn.CrossEntropyLoss(), readout=readout))
    (first, second), (x, y) = trainers, batch(6)
    for x_t in x[:3]:
        first.step(x_t.to(getattr(torch, saved)), y)
    first.save(tmp_path / "a.pt")
    second.load(tmp_path / "a.pt")
    state = flat(second.state.get())
    assert state
    assert {tensor.dtype for tensor in state} == {getattr(torch, loaded)}
    result = second.step(x[3].to(getattr(torch, loaded)), y)
    assert result.output.dtype == getattr(torch, loaded)
    assert result.updated


@pytest.mark.parametrize(
    "call",
    [
        lambda trainer, path: trainer.train_sequence(*batch()),
        lambda trainer, path: trainer.step(batch()[0][0], batch()[1]),
        lambda trainer, path: trainer.step(batch()[0][0]),
        lambda trainer, path: trainer.fit([batch()], progress=False),
        lambda trainer, path: trainer.load(path),
    ],
)
def test_nothing_is_trained_or_loaded_in_inference_mode(tmp_path, call):
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), nn.CrossEntropyLoss())
    trainer.train_sequence(*batch())
    trainer.save(tmp_path / "a.pt")
    with torch.inference_mode(), pytest.raises(CallOrderError, match="inference_mode"):
        call(trainer, tmp_path / "a.pt")
    with torch.inference_mode():
        trainer.predict(batch()[0])
    trainer.step(batch()[0][0], batch()[1])
    assert trainer.train_sequence(*batch()).updates == 6


@pytest.mark.parametrize("call", ["predict", "evaluate", "visit"])
def test_weights_that_get_their_sizes_in_inference_mode_are_trained(call):
    trainer = make(net := lazy_net(), sgd)
    x, y = batch()
    with torch.inference_mode():
        if call == "visit":
            prepared = trainer.prepare(x, y)
            with trainer.evaluation():
                trainer.visit(prepared)
        else:
            getattr(trainer, call)(x if call == "predict" else [(x, y)])
        assert torch.is_inference_mode_enabled()
    assert not any(parameter.is_inference() for parameter in net.parameters())
    assert trainer.train_sequence(x, y).updates == len(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda trainer: trainer.train_sequence(*batch()),
        lambda trainer: trainer.step(batch()[0][0], batch()[1]),
        lambda trainer: trainer.fit([batch()], progress=False),
    ],
)
@pytest.mark.parametrize("accelerate", ["none", "compile"])
def test_nothing_is_learned_without_gradients(tmp_path, call, accelerate):
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), nn.CrossEntropyLoss(), accelerate=accelerate)
    with torch.no_grad(), pytest.raises(CallOrderError, match="gradients are off"):
        call(trainer)
    assert trainer.updates == 0
    with torch.no_grad():
        trainer.save(tmp_path / "a.pt")
        trainer.load(tmp_path / "a.pt")
        trainer.step(batch()[0][0])  # without a target it only predicts
        trainer.reset()
    if accelerate == "none":
        assert trainer.train_sequence(*batch()).updates == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda net, optimizer: {"net": net.state_dict(), "optimizer": optimizer.state_dict()}, "lacks 'trainer'"),
        (lambda net, optimizer: {"optimizer": optimizer.state_dict()}, "lacks 'net', 'trainer'"),
        (lambda net, optimizer: net, "something else"),
        (lambda net, optimizer: [net.state_dict()], "something else"),
    ],
)
def test_a_file_of_another_loop_is_told_apart(tmp_path, content, words):
    trainer = make()
    torch.save(content(trainer.net, trainer.optimizer), tmp_path / "a.pt")
    before = Before(trainer)
    with pytest.raises(CheckpointError, match=words):
        trainer.load(tmp_path / "a.pt", weights_only=False)
    assert before.differs() == []


def test_a_file_of_the_beginning_makes_runs_independent(tmp_path):
    """As the answer on searches of hyperparameters says."""
    trainer = FPTTTrainer(net := spiking_net(), adam(net), CE)
    x, y = batch()
    trainer.save(tmp_path / "start.pt")
    runs = []
    for _ in range(2):
        trainer.load(tmp_path / "start.pt")
        runs.append((trainer.fit([(x, y)] * 2, 2, progress=False)[-1].loss, copies(net.parameters())))
        assert trainer.updates == 4 * len(x)
        assert len(trainer.history) == 2
    assert runs[0][0] == runs[1][0]
    assert identical(runs[0][1], runs[1][1])


@pytest.mark.parametrize(
    ("options", "epochs", "averaged"),
    [
        ({}, 1, True),
        ({"average_weights": "sequence"}, 0, True),
        ({}, 0, False),
        ({"average_weights": "never"}, 1, False),
    ],
)
def test_which_weights_a_file_holds(options, epochs, averaged, tmp_path):
    """As the answer on the trained network says."""
    trainer = FPTTTrainer(net := spiking_net(), adam(net), CE, **options)
    if epochs:
        trainer.fit([batch()], epochs, progress=False)
    else:
        trainer.train_sequence(*batch())
    trainer.save(tmp_path / "run.pt")
    with trainer.averaged_weights():
        w_bar = copies(net.parameters())
    other = spiking_net()
    other.load_state_dict(torch.load(tmp_path / "run.pt")["net"])
    assert identical(other.parameters(), w_bar) == averaged
