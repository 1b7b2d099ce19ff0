"""Tiny YOLO v4 (Bochkovskiy et al. 2020, the file yolov4-tiny.cfg of their Darknet) with spiking neurons."""

from __future__ import annotations

import math
from typing import Any

import torch
from models import NO_NORM, Normalization, integrator
from models_conv import convolution, make_static, map_dynamics, map_neuron, scaled
from torch import Tensor, nn

STRIDES = (8, 16, 32)  # of the maps that objects are found on: the last two, or all three
ANCHORS = 3  # sizes of boxes on each of them
RARE = 0.01  # probability of an object that every anchor starts with


class SpikingTinyYOLO(nn.Module):
    """Takes one step ``[B, 3, height, width]``, returns ``[B, N, 5 + classes]`` for all N anchors of its maps.

    Every convolution is batch-normalized and drives spiking neurons where Darknet has leaky rectifiers; liquid leaky
    integrators are read out, one for each map, the finest first. Height and width are multiples of 32.

    Args:
        neuron: ``"ltc"``, ``"alif"`` or ``"lif"``, see :func:`models_conv.conv_net`.
        library: ``"snntorch"`` or ``"spikingjelly"``.
        classes: Classes of objects.
        maps: 2, or 3 with one of stride 8 for small objects (yolov4-tiny-3l.cfg).
        width: Factor on the number of maps in each layer.
        norm: Normalization of every convolution; ``"none"`` is one for all time steps.
        rectifiers: Leaky rectifiers in place of the neurons, as Darknet: the twin that does not spike.
        **dynamics: ``gate_norm`` and ``init_state`` of :class:`fptt_plugin.snntorch.LTCLeaky`.

    Raises:
        ValueError: If the neuron has no maps.
    """

    def __init__(
        self,
        neuron: str,
        library: str,
        classes: int,
        *,
        maps: int = 2,
        width: float = 1.0,
        norm: Normalization = NO_NORM,
        rectifiers: bool = False,
        **dynamics: Any,
    ) -> None:
        super().__init__()
        dynamics = map_dynamics(neuron, **dynamics)
        w32, w64, w128, w256, w512 = (2 * scaled(size // 2, width) for size in (32, 64, 128, 256, 512))

        def block(channels: int, features: int, kernel_size: int = 3, stride: int = 1) -> nn.Module:
            conv = convolution(channels, features, kernel_size, stride)
            unit = nn.LeakyReLU(0.1) if rectifiers else map_neuron(library, features, kernel_size, dynamics)
            return nn.Sequential(conv, norm.maps(library, features), unit)

        def head(channels: int, features: int) -> nn.Module:
            conv = nn.Conv2d(features, ANCHORS * (5 + classes), 1)
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                conv.bias.view(ANCHORS, -1)[:, 4] = -math.log(1 / RARE - 1)  # type: ignore[union-attr]
            spikes = block(channels, features)
            return nn.Sequential(spikes, conv, integrator(library, conv2d_channels=conv.out_channels, kernel_size=1))

        self.outputs = 5 + classes
        self.stem = nn.Sequential(block(3, w32, stride=2), block(w32, w64, stride=2))
        self.stages = nn.ModuleList(
            CrossStage(
                block(size, size), block(size // 2, size // 2), block(size // 2, size // 2), block(size, size, 1)
            )
            for size in (w64, 2 * w64, 4 * w64)
        )
        self.top = nn.Sequential(block(8 * w64, w512), block(w512, w256, 1))
        self.coarse = head(w256, w512)
        self.up = nn.Sequential(block(w256, w128, 1), nn.Upsample(scale_factor=2))
        self.fine = head(w128 + 4 * w64, w256)
        self.finest: nn.Module | None = None
        if maps == 3:
            self.up_again = nn.Sequential(block(w128 + 4 * w64, w64, 1), nn.Upsample(scale_factor=2))
            self.finest = head(w64 + 2 * w64, w128)
        if neuron != "ltc" and not rectifiers:
            make_static(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        withins = []
        for stage in self.stages:
            within, x = stage(x)
            withins.append(within)
        x = self.top(x)
        middle = torch.cat([self.up(x), withins[2]], dim=1)
        heads = [self.fine(middle), self.coarse(x)]
        if self.finest is not None:
            heads.insert(0, self.finest(torch.cat([self.up_again(middle), withins[1]], dim=1)))
        return torch.cat([self._rows(head) for head in heads], dim=1)

    def _rows(self, maps: Tensor) -> Tensor:
        """``[B, anchors * outputs, h, w]`` as ``[B, anchors * h * w, outputs]``."""
        rows: Tensor = maps.unflatten(1, (-1, self.outputs)).movedim(2, -1).flatten(1, 3)
        return rows


class CrossStage(nn.Module):
    """Half of the maps goes through two more layers, and nothing that was seen on the way is lost; then the maps halve.

    Returns the last layer's spikes, and all that is handed on, pooled.
    """

    def __init__(self, first: nn.Module, second: nn.Module, third: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = first, second, third, last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        once = self.second(x[:, x.shape[1] // 2 :])
        within = self.last(torch.cat([self.third(once), once], dim=1))
        return within, nn.functional.max_pool2d(torch.cat([x, within], dim=1), 2)
