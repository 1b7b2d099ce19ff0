"""Training inside Lightning's ``Trainer`` is the plain loop, bit for bit, and Lightning counts its updates."""

import importlib

import pytest
import torch
from nets import copies, identical
from torch import nn

from fptt_plugin import DynamicRegularizer, FPTTTrainer
from fptt_plugin.errors import ConfigurationError
from fptt_plugin.state import ModelState

pytest.importorskip("lightning", reason="Lightning is not installed, or does not import", exc_type=Exception)
import lightning

pytestmark = [pytest.mark.usefixtures("examples_importable"), pytest.mark.filterwarnings("ignore::UserWarning")]
SAMPLES, STEPS, BATCHES = 96, 20, 3


@pytest.fixture
def example(examples_importable):
    return importlib.import_module("lightning_loop")


def run(module, loader, epochs=2, validation=None, path=None, **options):
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", **{**quiet, **options})
    trainer.fit(module, loader, validation, ckpt_path=path)
    return trainer


def everything(net, regularizer):
    parameters = list(net.parameters())
    return copies([*parameters, *map(regularizer.average_of, parameters), *map(regularizer.dual_of, parameters)])


def plain_loop(example, epochs=2, online=True):
    """What the module does, without Lightning: one update per step, or one per sequence."""
    net, loader = example.build_net(), example.make_loader(SAMPLES, seed=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    regularizer = DynamicRegularizer(optimizer, alpha=0.1, max_grad_norm=1.0)
    state = ModelState(net)
    for _ in range(epochs):
        for x, label in loader:
            state.reset()
            losses = []
            for x_t in x.transpose(0, 1):
                losses.append(nn.functional.cross_entropy(net(x_t), label))
                if online:
                    optimizer.zero_grad()
                    losses[-1].backward()
                    optimizer.step()
                    state.detach()
            if not online:
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
    assert regularizer.dual_of(net[0].weight).abs().max() > 0
    return everything(net, regularizer)


def test_manual_optimization(example):
    """The module of the example."""
    module = example.OnlineClassifier()
    start = copies(module.net.parameters())
    trainer = run(module, example.make_loader(SAMPLES, seed=1))
    assert trainer.global_step == module.regularizer.updates == 2 * BATCHES * STEPS
    assert identical(everything(module.net, module.regularizer), plain_loop(example))
    assert not identical(module.net.parameters(), start)


def test_automatic_optimization(example):
    class Offline(example.OnlineClassifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = True

        def training_step(self, batch, index):
            x, label = batch
            self.state.reset()
            return torch.stack([nn.functional.cross_entropy(self.net(x_t), label) for x_t in x.transpose(0, 1)]).mean()

    module = Offline()
    trainer = run(module, example.make_loader(SAMPLES, seed=1))
    assert trainer.global_step == module.regularizer.updates == 2 * BATCHES
    assert identical(everything(module.net, module.regularizer), plain_loop(example, online=False))


def test_the_trainer_inside_a_module(example):
    """``FPTTTrainer`` with the optimizer that Lightning hands out: its own loop, weights and averages are the same."""
    options = {"loss_fn": nn.CrossEntropyLoss(), "batch_first": True, "max_grad_norm": 1.0}

    class Inside(example.OnlineClassifier):
        fptt = None

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameters(), lr=3e-3)

        def training_step(self, batch, index):
            if self.fptt is None:
                self.fptt = FPTTTrainer(self.net, self.optimizers(), **options)
            self.fptt.train_sequence(*batch)

    module, net = Inside(), example.build_net()
    trainer = run(module, example.make_loader(SAMPLES, seed=1))
    fptt = FPTTTrainer(net, torch.optim.Adam(net.parameters(), lr=3e-3), **options)
    for _ in range(2):
        for batch in example.make_loader(SAMPLES, seed=1):
            fptt.train_sequence(*batch)
    assert trainer.global_step == module.fptt.updates == fptt.updates == 2 * BATCHES * STEPS
    assert identical(everything(module.net, module.fptt.regularizer), everything(net, fptt.regularizer))


def test_a_limit_in_steps_stops_there(example):
    module = example.OnlineClassifier()
    trainer = run(module, example.make_loader(SAMPLES, seed=1), max_steps=2 * STEPS)
    assert trainer.global_step == module.regularizer.updates == 2 * STEPS


def test_validation_sees_the_averages_and_training_does_not(example):
    seen = []

    class Spying(example.OnlineClassifier):
        def validation_step(self, batch, index):
            seen.append(copies(self.net.parameters()))
            super().validation_step(batch, index)

    module = Spying()
    trainer = run(module, example.make_loader(SAMPLES, seed=1), validation=example.make_loader(SAMPLES, seed=2))
    found, count = everything(module.net, module.regularizer), len(seen[-1])
    assert identical(seen[-1], found[count : 2 * count])  # W_bar
    assert not identical(seen[-1], found[:count])  # W
    assert identical(found, plain_loop(example))
    assert 0.5 < trainer.callback_metrics["val_accuracy"] <= 1
    trainer.validate(module, example.make_loader(SAMPLES, seed=2), verbose=False)


def test_lightnings_checkpoint_resumes_bit_for_bit(example, tmp_path):
    module = example.OnlineClassifier()
    trainer = run(module, example.make_loader(SAMPLES, seed=1), epochs=1, enable_checkpointing=True)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = example.OnlineClassifier()
    trainer = run(resumed, example.make_loader(SAMPLES, seed=1), epochs=2, path=tmp_path / "one.ckpt")
    assert trainer.global_step == resumed.regularizer.updates == 2 * BATCHES * STEPS
    assert identical(everything(resumed.net, resumed.regularizer), plain_loop(example))


def test_lbfgs_is_refused(example):
    class Second(example.OnlineClassifier):
        def configure_optimizers(self):
            optimizer = torch.optim.LBFGS(self.net.parameters())
            self.regularizer = DynamicRegularizer(optimizer)
            return optimizer

    with pytest.raises(ConfigurationError, match="LBFGS"):
        run(Second(), example.make_loader(SAMPLES, seed=1))


def test_the_example_runs(run_example):
    printed = run_example("lightning_loop.py", "--smoke", timeout=300)
    epochs = [line for line in printed.splitlines() if line.startswith("epoch")]
    accuracies = [float(line.split("'val_accuracy': ")[1].split(",")[0]) for line in epochs]
    assert len(accuracies) == 3
    assert accuracies[-1] > 0.9
