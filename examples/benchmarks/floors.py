"""What no way to train can do without: one step forward and backward, its matrix products, the weights' update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from contenders import ALPHA, BETA, MAX_NORM, RHO, Row, Training, fused_adam
from networks import Net
from torch import Tensor, nn

from fptt_plugin import DynamicRegularizer
from fptt_plugin.compile.update import CompiledUpdate
from fptt_plugin.neurons import ConvGate
from fptt_plugin.state import ModelState

Product = Callable[[], object]


def forward_backward(net: Net, device: torch.device) -> Training:
    """One step's loss and gradients, in eager PyTorch; no optimizer, no clipping, no regularizer."""
    model = net.fresh(device)
    state, weights = ModelState(model), list(model.parameters())

    def train(x: Tensor, y: Tensor) -> None:
        state.reset()
        for x_t in x:
            for weight in weights:
                weight.grad = None
            F.cross_entropy(model(x_t), y).backward()
            state.detach()

    return Training(model, train)


def update_alone(net: Net, device: torch.device, *, compiled: bool) -> Training:
    """Regularizer, clipping, Adam, dual and average of an eager network whose gradients are there already."""
    model = net.fresh(device)
    optimizer = fused_adam(model)
    regularizer = DynamicRegularizer(optimizer, ALPHA, BETA, RHO, max_grad_norm=MAX_NORM)
    for weight in model.parameters():
        weight.grad = 1e-3 * torch.randn_like(weight)
    optimizer.step()  # makes the state that the compiled update works on
    update = CompiledUpdate(regularizer).step if compiled else optimizer.step

    def train(x: Tensor, y: Tensor) -> None:
        for _ in x:
            update()

    return Training(model, train)


def copies(net: Net, device: torch.device) -> Training:
    """Reads and writes five numbers per weight: all that an update moves, weight, average, dual and Adam's moments."""
    model = net.fresh(device)
    now = [torch.rand_like(weight) for weight in model.parameters() for _ in range(5)]
    after = [torch.empty_like(tensor) for tensor in now]

    def train(x: Tensor, y: Tensor) -> None:
        for _ in x:
            torch._foreach_copy_(after, now)

    return Training(model, train)


def matrix_products(net: Net, device: torch.device) -> Training:
    """The matrix products and convolutions that one FPTT step needs, on tensors of their sizes.

    Per weight: the forward product and the weight's gradient; and the gradient of its input where a weight lies before
    it in this step. The state is detached, so its side of a gate and the recurrent spikes need none. Everything
    else (neurons, loss, copies, transposed layouts) is left out. Layouts are PyTorch's default.
    """
    model = net.fresh(device)
    products: list[Product] = []
    x, _ = net.data(2, device)
    model(x[0])
    ModelState(model).detach()
    with _recorded(model, products):
        model(x[1])

    def train(x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            for _ in x:
                for product in products:
                    product()

    return Training(model, train)


@contextmanager
def _recorded(model: nn.Module, products: list[Product]) -> Iterator[None]:
    """Notes the products of every layer and neuron that runs; those inside a neuron are known from its weights."""

    def observe(layer: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        x = inputs[0]
        if isinstance(layer, nn.Linear):
            products.extend(_dense(layer.weight, x, x.requires_grad))
        elif isinstance(layer, nn.Conv2d):
            products.extend(_convolution(layer.weight, x, layer.padding, x.requires_grad))
        for name in ("mem_gate", "adp_gate", "recurrent"):
            inner = getattr(layer, name, None)
            if isinstance(inner, ConvGate):
                padding = tuple(size // 2 for size in inner.kernel_size)
                products.extend(_convolution(inner.weight, x, padding, needs_input_gradient=True))
            elif inner is not None:
                products.extend(_dense(inner.weight, x, needs_input_gradient=name != "recurrent"))

    handles = [child.register_forward_hook(observe) for child in model.children()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dense(weight: Tensor, x: Tensor, needs_input_gradient: bool) -> list[Product]:
    # A gate's weight is [N, 2N], for input and state side by side: only the input's half passes a gradient on.
    weight = weight.detach()
    features = x.shape[-1]
    inputs = torch.rand(len(x), weight.shape[1], device=x.device)
    grad = torch.rand(len(x), len(weight), device=x.device)
    products: list[Product] = [partial(F.linear, inputs, weight), partial(torch.mm, grad.t(), inputs)]
    return [*products, partial(torch.mm, grad, weight[:, :features])] if needs_input_gradient else products


def _convolution(weight: Tensor, x: Tensor, padding: Any, needs_input_gradient: bool) -> list[Product]:
    x, weight = x.detach(), weight.detach()
    forward = partial(F.conv2d, x, weight, padding=padding)
    needed = [needs_input_gradient, True, False]
    rest = [None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, needed]
    return [forward, partial(torch.ops.aten.convolution_backward, torch.rand_like(forward()), x, weight, *rest)]


BARE, PRODUCTS = "floor: forward + backward", "floor: matrix products"
UPDATE, COMPILED_UPDATE = "part: clip + Adam + regularizer, eager", "part: clip + Adam + regularizer, compiled"
COPIES = "floor: copying what an update writes"

FLOORS: dict[str, Row] = {
    BARE: Row(forward_backward),
    PRODUCTS: Row(matrix_products),
    UPDATE: Row(partial(update_alone, compiled=False)),
    COMPILED_UPDATE: Row(partial(update_alone, compiled=True)),
    COPIES: Row(copies),
}
