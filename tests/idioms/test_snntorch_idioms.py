"""Every way in which snnTorch's tutorials write a network, trained as it is: equal to the loop a user would write."""

import copy
import warnings

import pytest
import torch
from idioms import snntorch_more_nets as more
from idioms import snntorch_nets as nets
from nets import copies, flat, identical, sgd, spikes
from torch import nn

from fptt_plugin import BPTT, DynamicRegularizer, FPTTTrainer, SavedForBackward
from fptt_plugin.state import ModelState
from fptt_plugin.tree import map_tensors

CE = nn.CrossEntropyLoss()
OPTIONS = {"loss_every": 1, "max_grad_norm": None, "loss_ramp": "constant", "auxiliary": False}
FLAT, MAPS = (4, 5), (4, 1, 4, 4)

# name -> network, shape of one step's input, driver that is found, module whose call ends a step
IDIOMS = {
    "A static image, global num_steps": (nets.Static, None, "in-flight", "lif2"),
    "B series, self.timesteps": (nets.Regression, FLAT, "in-flight", "lif2"),
    "B series, its own length": (nets.Sequence, FLAT, "in-flight", "lif2"),
    "C Sequential conv, external loop": (nets.conv_sequential, MAPS, "step", None),
    "D without its reset": (nets.Remembering, FLAT, "step", None),
    "E RLeaky": (nets.Recurrent, FLAT, "in-flight", "rlif2"),
    "E RLTCLeaky": (more.LiquidRecurrent, FLAT, "in-flight", "rlif2"),
    "F reset_mem, no state passed": (nets.Hidden, FLAT, "in-flight", "lif2"),
    "G utils.reset of nested Sequentials": (nets.Nested, FLAT, "in-flight", "decoder"),
    "H explicit states": (nets.Explicit, FLAT, "explicit", None),
    "conv-B": (nets.Conv, MAPS, "in-flight", "lif2"),
    "Linear readout": (nets.LinearReadout, FLAT, "in-flight", "fc_out"),
    "top-down feedback": (more.TopDown, FLAT, "in-flight", "lif2"),
    "Leaky and Synaptic": (more.Mixed, FLAT, "in-flight", "syn2"),
    "Alpha": (more.Alpha, FLAT, "in-flight", "lif2"),
    "LTCLeaky": (more.Liquid, FLAT, "in-flight", "lif2"),
    "population coding": (more.Population, FLAT, "in-flight", "lif2"),
    "one neuron for two layers": (more.Shared, FLAT, "in-flight", "lif"),
}
every_idiom = pytest.mark.parametrize("name", IDIOMS)


def build(name):
    """A network with weights that make it spike."""
    make, shape, *_ = IDIOMS[name]
    net = make()
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.uniform_(layer.weight, *((-0.3, 0.7) if shape != MAPS else (-0.3, 0.4)))
    return net, shape


def data(shape, steps=6):
    """Input of the network, the same step by step, and labels."""
    y = torch.arange(4) % 3
    if shape is None:
        x = torch.rand(*FLAT)
        return x, x.expand(steps, *x.shape), y
    x = torch.rand(steps, *shape)
    return x, x, y


def options(name):
    return {**OPTIONS, "output": more.Population.classes} if "population" in name else OPTIONS


def conv_step(net, x, state):
    net[2].mem, net[5].mem = state or (torch.zeros(0), torch.zeros(0))
    _, mem = net(x)
    return mem, (net[2].mem, mem)


def one_step(net):
    return getattr(net, "by_hand", lambda x_t, state: conv_step(net, x_t, state))


def train_by_hand(net, x, y, sequences, window, alpha):
    """What a user would write around one time step of the network; returns the last output."""
    optimizer = sgd(net)
    DynamicRegularizer(optimizer, alpha=alpha)
    step = one_step(net)
    for _ in range(sequences):
        state, losses = None, []
        for t, x_t in enumerate(x, start=1):
            output, state = step(x_t, state)
            losses.append(CE(output, y))
            if t % window == 0 or t == len(x):
                optimizer.zero_grad()
                torch.stack(losses).mean().backward()
                optimizer.step()
                losses, state = [], map_tensors(torch.Tensor.detach, state)
    return output.detach()


@pytest.mark.parametrize(("window", "alpha"), [(1, 0.0), (1, 0.5), (3, 0.5), (4, 0.0)])
@every_idiom
def test_training_is_the_loop_a_user_would_write(name, window, alpha):
    net, shape = build(name)
    plain, first = copy.deepcopy(net), copies(net.parameters())
    x, x_steps, y = data(shape)
    trainer = FPTTTrainer(net, sgd(net), CE, window=window, alpha=alpha, **options(name))
    for _ in range(2):
        with spikes(net):
            result = trainer.train_sequence(x, y)
    output = train_by_hand(plain, x_steps, y, 2, window, alpha)
    assert identical(net.parameters(), plain.parameters())
    assert identical([result.output], [output])
    assert result.updates == -(-6 // window)
    still = [key for (key, new), old in zip(net.named_parameters(), first, strict=True) if torch.equal(new, old)]
    # Plain SGD moves what has a gradient; that of an Alpha layer's input needs a second step.
    assert still == (["fc1.weight", "fc1.bias"] if name == "Alpha" and window == 1 else [])


@every_idiom
def test_explain_says_how_the_network_is_called(name):
    net, shape = build(name)
    *_, driver, module = IDIOMS[name]
    x, _, y = data(shape)
    trainer = FPTTTrainer(net, sgd(net), CE, **options(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(x, y)
    text = trainer.explain()
    assert f"driver: {driver} (" in text
    if module:
        assert f"call of {module!r} ends a time step" in text
    for neuron, _ in ModelState(net).modules():
        assert f"{neuron} (" in text
    assert "mem" in text


@every_idiom
def test_bytes_saved_for_backward_are_equal_at_any_length(name, monkeypatch):
    def peak(kind, steps):
        monkeypatch.setattr(nets, "num_steps", steps)
        torch.manual_seed(1)
        net, shape = build(name)
        if hasattr(net, "timesteps"):
            net.timesteps = steps
        x, _, y = data(shape, steps)
        trainer = kind(net, sgd(net), CE, **options(name))
        trainer.train_sequence(x, y)
        with SavedForBackward(net) as saved:
            trainer.train_sequence(x, y)
        return saved.peak

    short, *longer = (peak(FPTTTrainer, steps) for steps in (6, 12, 48))
    assert longer == [short, short]
    assert short > 0
    assert peak(BPTT, 48) > 6 * peak(BPTT, 6) > 6 * short


@pytest.mark.parametrize("name", [name for name, idiom in IDIOMS.items() if idiom[2] == "in-flight"])
def test_what_forward_returns_carries_no_graph(name):
    net, shape = build(name)
    x, _, y = data(shape)
    trainer, returned = FPTTTrainer(net, sgd(net), CE, window=3, **options(name)), []
    trainer.train_sequence(x, y)
    net.register_forward_hook(lambda module, args, output: returned.append(output))
    result = trainer.train_sequence(x, y)
    assert len(returned) == 1  # one call of the network for the whole sequence
    tensors = flat([returned, result, trainer.state.get()])
    assert tensors
    assert not any(tensor.requires_grad for tensor in tensors)


@every_idiom
def test_evaluate_and_predict_change_nothing(name):
    net, shape = build(name)
    x, x_steps, y = data(shape)
    trainer = FPTTTrainer(net, sgd(net), CE, **options(name))
    trainer.train_sequence(x, y)
    weights, plain = copies(net.state_dict().values()), copy.deepcopy(net)
    prediction = trainer.predict(x, averaged=False)
    score = trainer.evaluate([(x, y)], averaged=False)
    assert identical(net.state_dict().values(), weights)
    assert net.training
    step, state = one_step(plain), None
    with torch.no_grad():
        for x_t in x_steps:
            output, state = step(x_t, state)
    assert torch.equal(prediction, output)
    assert score == pytest.approx((output.argmax(1) == y).float().mean().item())
    assert not prediction.requires_grad
