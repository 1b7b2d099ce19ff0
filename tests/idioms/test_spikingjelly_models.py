"""Networks of ``spikingjelly.activation_based.model``, imported unchanged and built small by their own arguments."""

import pytest
import torch
from nets import sgd
from spikingjelly.activation_based import functional, model, neuron, surrogate
from spikingjelly.activation_based.model import parametric_lif_net
from spikingjelly_by_hand import CE, agrees, averaged, is_flat, lively, per_slice

from fptt_plugin import FPTTTrainer

NODE = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
# name -> (network, shape of a frame, its head averages over time)
MODELS = {
    "MNISTNet": (lambda: plif("MNISTNet"), (1, 28, 28), False),
    "NMNISTNet": (lambda: plif("NMNISTNet"), (2, 34, 34), False),
    "CIFAR10Net": (lambda: plif("CIFAR10Net"), (3, 32, 32), False),
    "DVSGestureNet": (lambda: plif("DVSGestureNet"), (2, 128, 128), False),
    "Spikformer": (
        lambda: model.Spikformer(4, 2, 16, 16, 4, 3, embed_dims=16, num_heads=2, mlp_ratio=2.0, depths=1),
        (2, 16, 16),
        False,
    ),
    "MSResNet": (lambda: model.MSResNet(4, 2, 3, (1, 1, 1, 1), 4, 3, 1), (2, 16, 16), True),
}
pytestmark = pytest.mark.filterwarnings("ignore:the loss sees spikes")
Y = torch.tensor([0, 1])


def plif(name):
    net = getattr(parametric_lif_net, name)(2, neuron.ParametricLIFNode, v_threshold=0.3, **NODE)
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("name", MODELS)
def test_models_follow_the_loop_over_slices(name):
    make, shape, mean = MODELS[name]
    net = make()
    if name != "MSResNet":
        lively(net)
    x = 3 * torch.rand(4, 2, *shape)
    advance, readout = (averaged, "step") if mean else (per_slice, "mean")
    # The attention of an untrained transformer is silent.
    agrees(net, x, Y, advance, driver="slice", readout=readout, fires=name != "Spikformer")
    is_flat(net, x, Y, readout=readout)


def test_attention_over_time_is_refused():
    net = model.MASNN(4, 2, 3, (8, 8), (4, 4, 4), (1, 2, 2), 8, 2, 2)
    with pytest.raises(ValueError, match=r"'conv_blocks.0.attn' \(MultiDimensionalAttention\).*leave it out"):
        FPTTTrainer(net, sgd(net), CE)
