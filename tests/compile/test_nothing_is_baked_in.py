"""What Python code may change between two calls: compiled training notices, and does what eager training does."""

import random

import pytest
import torch
from accelerated import double_net, liquid, pair, train, train_both
from nets import LIF, adam, batch, distance
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fptt_plugin.tree import tensors_in

pytestmark = pytest.mark.usefixtures("traced")

modes = pytest.mark.parametrize("window", [1, 3])  # one graph of the window; one of the step


class Scaled(nn.Module):
    """Multiplies by what a subclass or a test says."""

    def __init__(self):
        super().__init__()
        self.settings, self.gain, self.calls, self.on = {"gain": 1.0}, 1.0, [0], False
        self.late = nn.Linear(8, 8, dtype=torch.float64)
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))
        self.trace = None

    def forward(self, x):
        return self.gain * self.settings["gain"] * x


class LateBranch(Scaled):
    def forward(self, x):
        return x + self.late(x) if self.on else x


class LateInSequence(Scaled):
    """Uses a weight from the second call of a sequence on."""

    def __init__(self):
        super().__init__()
        self.neuron = LIF()

    def forward(self, x):
        before = self.neuron.mem
        spikes = self.neuron(x)
        return spikes if before is None else spikes + self.late(before)


class Replaced(Scaled):
    """Homeostasis: a buffer is replaced out of place."""

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Overwritten(Scaled):
    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


class PlainTensor(Scaled):
    """Keeps a tensor in a plain attribute."""

    def forward(self, x):
        now = x.detach().mean(0)
        self.trace = now if self.trace is None else 0.5 * self.trace + 0.5 * now
        return x - self.trace


class CountsInPython(Scaled):
    def forward(self, x):
        self.gain += 0.1
        return x * (1 + 1 / self.gain)


class CountsInAList(Scaled):
    def forward(self, x):
        self.calls[0] += 1
        return x


class Drops(Scaled):
    def forward(self, x):
        return 0 * x if random.random() < 0.3 else x


def between(change):
    """Train, change something, and train on."""

    def run(trainer):
        random.seed(3)
        for i in range(3):
            train(trainer, count=2)
            change(trainer, i)

    return run


def switch(trainer, i):
    trainer.net[1].on = i == 0


def set_number(trainer, i):
    trainer.net[1].gain = 1.0 + 0.25 * i


def set_entry(trainer, i):
    trainer.net[1].settings["gain"] = 1.0 + 0.25 * i


def nothing(trainer, i):
    pass


@modes
@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (LateBranch, switch),
        (LateInSequence, nothing),
        (Replaced, nothing),
        (Overwritten, nothing),
        (PlainTensor, nothing),
        (CountsInPython, nothing),
        (CountsInAList, nothing),
        (Drops, nothing),
        (Scaled, set_number),
        (Scaled, set_entry),
    ],
)
@pytest.mark.filterwarnings("ignore::fptt_plugin.errors.FPTTWarning")
def test_what_a_layer_does(layer, change, window):
    trainers = pair(lambda: double_net(extra=[layer()]), window=window, preflight=False)
    late = trainers[1].net[1].late.weight
    before = late.detach().clone()
    train_both(trainers, between(change))
    eager, compiled = (trainer.net[1] for trainer in trainers)
    assert torch.allclose(eager.mean, compiled.mean)
    assert eager.calls == compiled.calls
    assert eager.gain == pytest.approx(compiled.gain)
    assert not any(is_fake(tensor) for module in trainers[1].net.modules() for tensor in tensors_in(vars(module)))
    if "Late" in layer.__name__:
        assert not torch.equal(late, before)


def masked(trainer, i):
    """Keep half of a layer's weights where they are."""
    if i == 0:
        mask = torch.arange(24).view(8, 3) % 2
        trainer.net[0].weight.register_hook(lambda grad: grad * mask)
    if i == 1:
        trainer.net[0].weight.register_post_accumulate_grad_hook(
            lambda weight: setattr(weight, "grad", 0 * weight.grad)
        )


def forward_hook(trainer, i):
    if i == 0:
        trainer.handle = trainer.net[0].register_forward_hook(lambda module, args, output: 0.5 * output)
    if i == 1:
        trainer.handle.remove()
        trainer.net[2].register_forward_pre_hook(lambda module, args: (1.5 * args[0],))


def backward_hook(trainer, i):
    if i == 0:
        trainer.net[-2].register_full_backward_hook(lambda module, grads, outputs: (0.1 * grads[0],))


def optimizer_hook(trainer, i):
    """Half of the weights' gradients, after clipping."""

    def halve(optimizer, args, kwargs):
        for weight in optimizer.param_groups[0]["params"]:
            weight.grad.mul_(0.5)

    if i == 0:
        trainer.optimizer.register_step_pre_hook(halve)


@modes
@pytest.mark.filterwarnings("ignore:.*step hooks besides:fptt_plugin.errors.FPTTWarning")
@pytest.mark.parametrize("change", [masked, forward_hook, backward_hook, optimizer_hook])
def test_hooks_that_come_and_go(change, window):
    train_both(pair(lambda: double_net(extra=[nn.Identity()]), window=window), between(change))


def halved(module, args, output):
    return 0.5 * output if isinstance(module, nn.Linear) else None


def damped(module, grads, *others):
    return tuple(grad if grad is None else 0.1 * grad for grad in grads) if isinstance(module, nn.Linear) else None


def halve_gradients(optimizer, args, kwargs):
    for weight in optimizer.param_groups[0]["params"]:
        weight.grad.mul_(0.5)


def shrink_weights(optimizer, args, kwargs):
    for weight in optimizer.param_groups[0]["params"]:
        weight.data.mul_(0.99)


@modes
@pytest.mark.filterwarnings("ignore:.*step hooks on all optimizers:fptt_plugin.errors.FPTTWarning")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize(
    ("register", "hook"),
    [
        (register_module_forward_hook, halved),
        (register_module_full_backward_hook, damped),
        (register_optimizer_step_pre_hook, halve_gradients),
        (register_optimizer_step_post_hook, shrink_weights),
    ],
)
def test_hooks_on_all_modules_or_optimizers(register, hook, window):
    handles = []

    def change(trainer, i):
        if i == 0:
            handles.append(register(hook))
        if i == 1:
            handles.pop().remove()

    trainers = pair(window=window)
    try:
        train_both(trainers, between(change))
    finally:
        for handle in handles:
            handle.remove()
    unhooked = pair(window=window)[0]
    torch.manual_seed(1)
    between(lambda trainer, i: None)(unhooked)
    assert distance(unhooked.net.parameters(), trainers[0].net.parameters()) > 1e-3


@modes
@pytest.mark.filterwarnings("ignore:.*step.. was replaced:fptt_plugin.errors.FPTTWarning")
def test_a_step_of_the_optimizer_that_is_replaced(window):
    def change(trainer, i):
        step = trainer.optimizer.step

        def halving(*args):
            halve_gradients(trainer.optimizer, (), {})
            return step(*args)

        if i == 0:
            trainer.optimizer.step = halving

    train_both(pair(window=window), between(change))


class Annealed(nn.Module):
    """A loss with a number and a tensor of its own."""

    def __init__(self):
        super().__init__()
        self.sharpness = 1.0
        self.offset = torch.tensor(0.1, dtype=torch.float64)

    def forward(self, output, target):
        return nn.functional.cross_entropy(self.sharpness * output, target) + self.offset * output.pow(2).mean()


def anneal(trainer, i):
    trainer.objective.loss_fn.sharpness *= 1.3


@modes
def test_numbers_of_a_loss(window):
    trainers = pair(loss=Annealed(), window=window)
    trainers[1].objective.loss_fn = Annealed()
    train_both(trainers, between(anneal))


@modes
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 0.8], dtype=torch.float64)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.MultiMarginLoss(weight=torch.tensor([0.7, 0.3], dtype=torch.float64)),
    ],
)
def test_losses_with_options(loss, window):
    train_both(pair(loss=loss, window=window), train)


@modes
def test_padded_sequences(window):
    def train_padded(trainer):
        for _ in range(3):
            x, y = batch(7, dtype=torch.float64)
            trainer.train_sequence(2 * x, y, torch.tensor([7, 3, 5, 7]))

    train_both(pair(window=window), train_padded)


@modes
def test_noise_is_that_of_eager_training(window):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 0.1 * torch.randn_like(x)

    trainers = pair(lambda: double_net(extra=[Noisy(), nn.Dropout(0.2)]), window=window)
    train_both(trainers, train)


@modes
def test_sequences_of_every_length_and_batch_size(window):
    def train_varied(trainer):
        for steps in (7, 12, 5, 9, 4, 11, 3, 8, 10, 2, 6):
            trainer.train_sequence(*batch(steps, samples=4 + 2 * (steps % 3), dtype=torch.float64))

    train_both(pair(window=window), train_varied)


@pytest.mark.parametrize("readout", ["step", "mean", "sum", "max"])
@pytest.mark.parametrize("window", [2, None])
def test_every_readout(readout, window):
    train_both(pair(liquid, readout=readout, window=window, loss_every=1), train)


def test_a_scheduler_recompiles_nothing(graph_steps):
    trainer = pair(optimizer=lambda net: adam(net))[1]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(trainer.optimizer, 0.9)
    train(trainer, count=2)
    torch._dynamo.utils.counters.clear()
    for _ in range(12):
        train(trainer, count=1)
        scheduler.step()
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len(graph_steps) == 14 * 6
