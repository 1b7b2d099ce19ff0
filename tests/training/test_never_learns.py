"""Parameters that never learn are named, with the likely cause; each once, and nothing else is."""

import warnings

import pytest
import torch
from nets import CE, LIF, Grows, adam, batch, spiking_net
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import FPTTWarning
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky


class Parallel(nn.Module):
    """Two layers of which the second may take no part, or none that counts."""

    def __init__(self, how):
        super().__init__()
        self.body, self.other, self.how = spiking_net(), nn.Linear(3, 2), how

    def forward(self, x):
        out = self.body(x)
        if self.how == "unused":
            return out
        return out + (self.other(x).detach() if self.how == "detached" else 0.0 * self.other(x))


def said(net, updates=100, steps=10, **options):
    """The warnings of that many updates, and of as many again."""
    trainer = FPTTTrainer(net, adam(net), CE, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        while trainer.updates < 2 * updates:
            trainer.train_sequence(*batch(steps=steps))
    texts = [str(entry.message) for entry in caught if entry.category is FPTTWarning]
    return [text for text in texts if "not learn. Likely" in text]


def test_a_network_that_learns_says_nothing():
    assert said(spiking_net()) == []


@pytest.mark.parametrize(
    ("how", "what"), [("unused", "no gradient"), ("detached", "no gradient"), ("zero", "a gradient of zero")]
)
def test_a_layer_that_takes_no_part(how, what):
    (text,) = said(Parallel(how))
    assert f"'other.weight', 'other.bias' had {what}" in text
    assert "requires_grad_(False)" in text
    net = Parallel(how)
    net.other.requires_grad_(False)
    assert said(net) == []


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delay_longer_than_the_window(delay):
    def build():
        net = nn.Sequential(
            layer.Linear(3, 8),
            neuron.LIFNode(v_threshold=0.2),
            layer.Delay(delay),
            layer.Linear(8, 2),
            neuron.LIFNode(v_threshold=0.2),
        )
        functional.set_step_mode(net, "m")
        nn.init.uniform_(net[0].weight, -0.2, 1.0)
        return net

    (text,) = said(build(), readout="mean")
    assert text.startswith("'0.weight', '0.bias' had no gradient")
    assert "a larger window reaches them" in text
    assert said(build(), readout="mean", window=2 * delay) == []


def test_a_silent_layer():
    net = spiking_net()
    net[1].threshold = 1e3
    texts = said(net)
    assert any("'0.weight'" in text and "gradient of zero" in text and "lower the threshold" in text for text in texts)


def test_before_the_stated_number_of_updates_nothing_is_said():
    net = Parallel("unused")
    trainer = FPTTTrainer(net, adam(net), CE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            trainer.train_sequence(*batch(steps=11))
    with pytest.warns(FPTTWarning, match="first 100 updates"):
        trainer.train_sequence(*batch(steps=11))


def test_a_layer_that_joins_later_has_had_its_chance():
    net = Grows(spiking_net())
    assert said(net) == []


def test_streams_count_too():
    net = Parallel("unused")
    trainer = FPTTTrainer(net, adam(net), CE)
    for _ in range(99):
        trainer.step(torch.rand(4, 3), torch.arange(4) % 2)
    with pytest.warns(FPTTWarning, match="'other.weight', 'other.bias' had no gradient"):
        trainer.step(torch.rand(4, 3), torch.arange(4) % 2)


# As one graph, several windows in a replay, the update alone, and gradients that are averaged over windows.
COMPILED = [
    pytest.param("traced", {"accelerate": "compile"}, id="window"),
    pytest.param("recordings", {"accelerate": "cudagraph"}, id="recorded"),
    pytest.param("traced", {"accelerate": "compile", "window": 2, "update_every": 4}, id="update"),
    pytest.param("traced", {"accelerate": "compile", "alpha": 0}, id="without the regularizer"),
]


class Recurrent(nn.Module):
    """Weights from spikes to the step after, which have no gradient at the first step, beside layers that never do."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 8),
            RLTCLeaky(init_hidden=True, linear_features=8),
            nn.Linear(8, 2),
            LTCIntegrator(init_hidden=True, linear_features=2),
        )
        self.unused, self.zero = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.body(x) + 0.0 * self.zero(x)


@pytest.mark.parametrize(("fixture", "options"), COMPILED)
def test_compiled_updates_count(fixture, options, request):
    request.getfixturevalue(fixture)
    texts = said(Recurrent(), **options)
    assert [text.partition(" in all of the first 100 updates")[0] for text in texts] == [
        "'unused.weight', 'unused.bias' had no gradient",
        "'zero.weight', 'zero.bias' had a gradient of zero",
    ]


def test_a_stream_of_compiled_steps_counts(traced):
    net = Parallel("zero")
    trainer = FPTTTrainer(net, adam(net), CE, accelerate="compile")
    for _ in range(99):
        trainer.step(torch.rand(4, 3), torch.arange(4) % 2)
    with pytest.warns(FPTTWarning, match="'other.weight', 'other.bias' had a gradient of zero"):
        trainer.step(torch.rand(4, 3), torch.arange(4) % 2)


def silences(net, epochs=2):
    trainer = FPTTTrainer(net, adam(net), CE)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit([batch()], epochs=epochs, progress=False)
    return [str(entry.message) for entry in caught if "in the first epoch" in str(entry.message)]


@pytest.mark.parametrize("threshold", [6.0, 50.0])
def test_fit_names_layers_that_hardly_fire_once(threshold):
    assert silences(spiking_net()) == []
    net = spiking_net()
    net[1].threshold = threshold
    (text,) = silences(net)
    assert text.startswith("'1' (0 %): fired in less than 1 %")
    assert "lower the threshold" in text
    assert "compare with alpha=0" in text


def test_fit_names_every_silent_layer():
    net = nn.Sequential(
        nn.Linear(3, 8), LIF(threshold=30.0), nn.Linear(8, 8), LIF(threshold=30.0), nn.Linear(8, 2), LIF(spikes=False)
    )
    (text,) = silences(net)
    assert "'1' (0 %), '3' (0 %)" in text


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_a_liquid_output_layer_that_is_read_by_counts(combine):
    def build(last):
        return nn.Sequential(nn.Linear(3, 8), LIF(), nn.Linear(8, 2), last)

    x, y = batch()
    for last, warned in ((LTCLeaky(init_hidden=True), True), (LIF(), False), (LTCIntegrator(init_hidden=True), False)):
        net = build(last)
        nn.init.uniform_(net[2].weight, 0.2, 1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            FPTTTrainer(net, adam(net), CE, readout=combine).train_sequence(x, y)
        texts = [str(entry.message) for entry in caught if "its spikes are counted" in str(entry.message)]
        assert len(texts) == warned
        assert all("'3' (LTCLeaky) is the output layer" in text and "LTCIntegrator()" in text for text in texts)


def test_a_neuron_that_is_not_meant_to_fire_is_not_named():
    """SpikingJelly's way to read a membrane: a threshold out of reach."""
    net = nn.Sequential(nn.Linear(3, 8), neuron.LIFNode(v_threshold=0.1), nn.Linear(8, 2))
    net.append(neuron.LIFNode(v_threshold=float("inf")))
    assert silences(net) == []
    net[3].v_threshold = 100.0
    (text,) = silences(net)
    assert text.startswith("'3' (0 %)")
    assert "LTCLeaky" not in text


@pytest.mark.parametrize("how", ["mask", "ignore_index"])
def test_an_epoch_in_which_no_target_counts(how):
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    x, y = batch()
    nothing = (x, torch.full_like(y, -100)) if how == "ignore_index" else (x, y, torch.zeros(len(y), dtype=torch.bool))
    with pytest.warns(FPTTWarning, match="epoch 1 made no update; none of its targets counts"):
        trainer.fit([nothing], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit([nothing, (x, y)], progress=False)  # the other batch teaches


def test_an_epoch_of_a_frozen_network_is_not_blamed_on_its_targets():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), CE)
    net.requires_grad_(False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit([batch()], progress=False)
    texts = [str(entry.message) for entry in caught]
    assert texts
    assert not any("targets" in text for text in texts)


def test_an_epoch_in_which_every_update_is_skipped():
    net = spiking_net()
    trainer = FPTTTrainer(net, adam(net), lambda output, y: CE(output, y) * torch.inf, on_nonfinite="skip")
    with pytest.warns(FPTTWarning, match=r"epoch 1 made no update; all of its \d+ updates were skipped"):
        trainer.fit([batch()], progress=False)
