"""``fit``, ``evaluate`` and ``predict``: the loops over data."""

import builtins
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from nets import Before, adam, batch, copies, identical, sgd, spikes, spiking_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import ConfigurationTypeError
from fptt_plugin.fit import accuracy, epochs

CE = nn.CrossEntropyLoss()


def make(alpha=0.5, **options):
    net = spiking_net()
    return FPTTTrainer(net, adam(net), CE, alpha=alpha, **options)


def loader(batches=3, **sizes):
    return [batch(**sizes) for _ in range(batches)]


def test_fit_keeps_the_books():
    trainer, data = make(), loader()
    with spikes(trainer.net):
        history = trainer.fit(data, epochs=3, val_loader=loader(1), progress=False)
    assert [record.epoch for record in history] == [1, 2, 3]
    assert [record.updates for record in history] == [18, 36, 54]
    for record in history:
        assert record.loss > 0
        assert 0 <= record.train_score <= 1
        assert 0 <= record.val_score <= 1
        assert record.seconds > 0
        assert list(record.firing_rates) == ["1"]
        assert 0 < record.firing_rates["1"] < 1
    assert history[-1].loss < history[0].loss
    assert make().fit(data, progress=False)[0].val_score is None


def test_the_figures_of_an_epoch_are_means_over_samples():
    trainer, data = make(alpha=0), [batch(samples=4), batch(samples=2)]
    other = make(alpha=0)
    other.net.load_state_dict(trainer.net.state_dict())
    record = trainer.fit(data, progress=False)[0]
    results = [other.train_sequence(*pair) for pair in data]
    scores = [accuracy(result.output, y) for result, (_, y) in zip(results, data, strict=True)]
    assert record.loss == pytest.approx((4 * results[0].loss + 2 * results[1].loss).item() / 6)
    assert record.train_score == pytest.approx((4 * scores[0] + 2 * scores[1]).item() / 6)
    assert identical(trainer.net.parameters(), other.net.parameters())


def test_fit_reads_torch_loaders_with_batch_first():
    x, y = torch.rand(10, 6, 3), torch.arange(10) % 2
    trainer = make(batch_first=True)
    assert trainer.fit(DataLoader(TensorDataset(x, y), batch_size=4), progress=False)[0].updates == 18
    assert trainer.predict(x).shape == (10, 2)


def test_schedulers_step_after_each_epoch():
    trainer = make()
    scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 1, gamma=0.1)
    trainer.fit(loader(), epochs=2, scheduler=scheduler, progress=False)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.01)


def test_a_plateau_scheduler_gets_the_metric():
    trainer = make()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer, "max", factor=0.1, patience=0)

    def metric(output, target):
        return torch.tensor(0.5)

    trainer.fit(loader(1), epochs=3, scheduler=scheduler, metric=metric, progress=False)
    assert scheduler.best == 0.5
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.01)


@pytest.mark.parametrize(("higher_is_better", "scores", "best"), [
    (True, [0.1, 0.9, 0.9, 0.3], 2), (False, [0.5, 0.1, 0.1, 0.3], 2), (True, [float("nan"), 0.1, float("nan")], 2),
    (False, [float("nan"), 0.4, 0.2], 3),
])  # fmt: skip
def test_the_checkpoint_is_of_the_best_epoch(tmp_path, higher_is_better, scores, best):
    trainer, weights = make(), []

    def metric(output, target):
        if trainer.net.training:
            return torch.tensor(0.0)
        weights.append(copies(trainer.net.parameters()))
        return torch.tensor(scores[len(weights) - 1])

    options = {"metric": metric, "higher_is_better": higher_is_better, "progress": False}
    file = tmp_path / "best.pt"
    trainer.fit(loader(1), epochs=len(scores), val_loader=loader(1), checkpoint=file, **options)
    other = make()
    other.load(file)
    assert identical(other.net.parameters(), weights[best - 1])  # W <- W_bar at the end of an epoch
    assert other.updates == 6 * best
    assert not identical(trainer.net.parameters(), weights[best - 1]) or best == len(scores)


def test_progress_bar(capsys, monkeypatch):
    make().fit(loader(), progress=True)  # into a file, say
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make().fit(loader(), progress=False)
    assert capsys.readouterr().err == ""
    make().fit(loader(), epochs=2, progress=True)
    shown = capsys.readouterr().err
    for words in ("epoch 2/2", "loss=", "accuracy=", "rate="):
        assert words in shown


def test_no_progress_bar_without_tqdm(monkeypatch, capsys):
    genuine = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return genuine(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(make().fit(loader(), progress=True)) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("averaged", [True, False])
def test_evaluation_changes_nothing(averaged):
    net = spiking_net(extra=[nn.BatchNorm1d(8), nn.Dropout(0.5)])
    trainer = FPTTTrainer(net, adam(net), CE, alpha=0.5)
    net[1].eval()  # a user may have frozen one layer
    trainer.train_sequence(*batch())
    before, modes = Before(trainer), [module.training for module in net.modules()]
    x, y = batch(samples=20)
    scores = {trainer.evaluate([(x, y)], averaged=averaged) for _ in range(3)}
    assert len(scores) == 1  # no dropout
    assert identical([trainer.predict(x, averaged=averaged)], [trainer.predict(x, averaged=averaged)])
    assert before.differs() == []
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(ValueError, match=r"floating-point|rank|dimensions"):
        trainer.evaluate([(x[0], y)], averaged=averaged)
    assert before.differs() == []
    assert [module.training for module in net.modules()] == modes


class LoRA(nn.Linear):
    """Merges its weights in ``eval()`` and takes them apart in ``train()``, as loralib and peft do."""

    merged = False

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.bias.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.up @ self.down).data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.down.T @ self.up.T)


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("averaged", [True, False])
def test_layers_that_merge_their_weights_in_evaluation_mode(averaged, error):
    net = spiking_net(extra=[LoRA(8, 8), nn.Sequential(LoRA(8, 8), nn.Dropout())])
    net[2][1].eval()
    trainer = FPTTTrainer(net, adam(net), CE)
    trainer.train_sequence(*batch())
    modes = [module.training for module in net.modules()]
    weights = copies([net[1].weight, net[2][0].weight])
    with suppress(KeyError), trainer.evaluation(averaged):
        assert net[1].merged
        trainer.visit(trainer.prepare(*batch()))
        if error:
            raise KeyError
    assert torch.allclose(torch.stack(weights), torch.stack([net[1].weight, net[2][0].weight]), atol=1e-6)
    assert (net[1].merged, net[2][0].merged) == (False, False)
    assert [module.training for module in net.modules()] == modes
    trainer.fit([batch()], 2, val_loader=[batch()], progress=False)
    assert torch.allclose(weights[0], net[1].weight, atol=1e-5)


def test_evaluation_uses_the_averages():
    trainer = make(average_weights="never")
    for pair in loader():
        trainer.train_sequence(*pair)
    x, y = batch(samples=50)
    decisions = [trainer.predict(x), trainer.predict(x, averaged=False)]
    assert not torch.equal(*decisions)
    for decision, averaged in zip(decisions, (True, False), strict=True):
        with spikes(trainer.net):
            assert trainer.evaluate([(x, y)], averaged=averaged) == pytest.approx(accuracy(decision, y).item())

    def metric(output, target):
        return output.mean()

    assert trainer.evaluate([(x, y)], metric=metric) != trainer.evaluate([(x, y)], metric=metric, averaged=False)
    trainer.regularizer.load_averages()
    assert torch.equal(trainer.predict(x), decisions[0])


def test_evaluation_with_a_target_per_step():
    trainer = make()
    x, y = torch.rand(6, 4, 3), torch.randint(2, (6, 4))
    decisions = torch.stack([trainer.predict(x[: t + 1]) for t in range(6)])
    assert trainer.evaluate([(x, y)]) == pytest.approx((decisions.argmax(2) == y).float().mean().item())


def test_empty_loaders():
    with pytest.raises(ValueError, match=r"no batch: the data set is empty, or smaller.*drop_last"):
        make().fit([], progress=False)
    with pytest.raises(ValueError, match="no batch to evaluate"):
        make().evaluate([])


def test_accuracy_is_for_class_labels():
    with pytest.raises(ValueError, match=r"accuracy needs class scores.*pass metric="):
        accuracy(torch.rand(4, 2), torch.rand(4, 2))
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), nn.MSELoss())
    with pytest.raises(ValueError, match="pass metric="):
        trainer.evaluate([(torch.rand(5, 4, 3), torch.rand(4, 2))])


def test_an_unsuitable_metric_shows_before_the_first_update():
    net = spiking_net(extra=[nn.BatchNorm1d(8)])
    trainer = FPTTTrainer(net, adam(net), nn.MSELoss(), driver="step")
    data, seen = [(torch.rand(6, 4, 3), torch.rand(4, 2))], []
    net[2].register_forward_hook(lambda *args: seen.append(1))
    before = copies(net.state_dict().values())
    with pytest.raises(ValueError, match=r"accuracy needs class scores.*pass metric="):
        trainer.fit(data, progress=False)
    assert identical(net.state_dict().values(), before)
    assert trainer.updates == trainer.steps == len(seen) == 0
    trainer.fit(data, metric=nn.functional.mse_loss, progress=False)
    assert trainer.updates == len(seen) == 6


def test_a_layer_in_evaluation_mode_stays_there():
    net = spiking_net(extra=[nn.BatchNorm1d(8), nn.Dropout()])
    trainer = FPTTTrainer(net, adam(net), CE)
    net[1].eval()
    kept = copies(net[1].buffers())
    trainer.fit(loader(), epochs=2, val_loader=loader(1), progress=False)
    assert identical(net[1].buffers(), kept)
    assert not net[1].training
    assert net[2].training
    net.eval()
    trainer.fit(loader(), progress=False)
    assert net[1].training
    assert not identical(net[1].buffers(), kept)


class Plain:
    """No scheduler."""


def test_what_would_fail_after_the_first_epoch_is_refused_before_it(tmp_path):
    trainer = make()
    before = Before(trainer)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trainer.optimizer)
    for options, words in (
        ({"scheduler": plateau}, r"mode='min'.*better when higher: build the scheduler with mode='max'"),
        ({"scheduler": Plain()}, r"scheduler must be one of torch.optim.lr_scheduler"),
        ({"checkpoint": tmp_path / "nowhere" / "a.pt"}, r"nowhere/a.pt' does not exist"),
        (
            {"checkpoint": tmp_path},
            rf"checkpoint='{tmp_path}' is a folder: name a file, checkpoint='{tmp_path}/best.pt'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            trainer.fit(loader(), progress=False, **options)
    assert before.differs() == []
    trainer.fit(loader(), progress=False, scheduler=plateau, metric=lambda o, y: CE(o, y), higher_is_better=False)


def test_numbers_of_epochs_may_be_integers_of_numpy():
    trainer = make()
    history = trainer.fit(loader(), np.int64(2), patience=np.int64(1), progress=False)
    assert [type(record.epoch) for record in history] == [int] * len(history)
    found = list(epochs(trainer, loader(), np.int64(3), first=np.int32(2)))
    assert [(record.epoch, type(record.epoch)) for record in found] == [(2, int), (3, int)]
    for numbers in ({"count": 2.0}, {"count": 2, "first": True}):
        with pytest.raises(ConfigurationTypeError, match="first and count must be numbers of epochs"):
            epochs(trainer, loader(), **numbers)


def test_a_generator_serves_one_epoch():
    with pytest.raises(ValueError, match="a generator, which is used up after one epoch"):
        make().fit((pair for pair in loader()), epochs=2, progress=False)


def test_masks_from_the_loader():
    (x, y), mask = batch(), torch.tensor([True, True, False, True])
    wrong = torch.where(mask, y, 1 - y)
    trainer, other = make(), make()
    other.net.load_state_dict(trainer.net.state_dict())
    record = trainer.fit([(x, wrong, mask)], val_loader=[(x, wrong, mask)], progress=False)[0]
    other.train_sequence(x, y, mask)
    other.regularizer.load_averages()
    assert identical(trainer.net.parameters(), other.net.parameters())
    assert record.val_score == pytest.approx(accuracy(other.predict(x)[mask], y[mask]).item())
    assert record.train_score in (pytest.approx(i / 3) for i in range(4))
    with pytest.raises(ValueError, match="no labeled sample"):
        trainer.evaluate([(x, y, torch.zeros(4).bool())])
    record = trainer.fit([(x, y, torch.zeros(4).bool())], progress=False)[0]
    assert record.train_score != record.train_score


def test_a_loader_for_each_epoch():
    trainer, other, numbers = make(), make(), []
    other.net.load_state_dict(trainer.net.state_dict())
    data = {2: loader(1), 3: loader(2)}

    def loader_of(epoch):
        numbers.append((epoch, trainer.updates))
        return data[epoch]

    with spikes(trainer.net):
        records = list(epochs(trainer, loader_of, 3, first=2))
    assert numbers == [(2, 0), (3, 6)]
    assert [record.epoch for record in records] == [2, 3]
    assert [record.loss for record in records] == [other.fit(data[epoch], progress=False)[0].loss for epoch in (2, 3)]
    assert identical(trainer.net.parameters(), other.net.parameters())
