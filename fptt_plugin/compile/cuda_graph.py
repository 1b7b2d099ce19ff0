"""A function's kernels, recorded once and replayed from fixed places in the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], list[Tensor]]


class Replay:
    """Stands for a compiled function; its first ``moving`` inputs may be other tensors at every call.

    Args:
        function: Launches the same kernels whatever the values; may write into its inputs.
        inputs: An example, all on one GPU. From the ``moving``-th on these must be the same tensors at every call.
        moving: How many inputs are copied in at every call.

    Raises:
        ValueError: If an input is not on a GPU.
    """

    def __init__(self, function: Function, inputs: list[Tensor], moving: int) -> None:
        if not all(map(on_gpu, inputs)):
            raise ValueError(
                "a CUDA graph needs every tensor on the GPU: the network, its inputs, and the optimizer's step counts, "
                "torch.optim.Adam(..., capturable=True)"
            )
        self._moving = moving
        self._inputs = [tensor.clone() for tensor in inputs[:moving]] + inputs[moving:]
        self._places = _places(inputs[moving:])
        self._outputs, self._replay = record(function, self._inputs)

    def fits(self, inputs: list[Tensor]) -> bool:
        """Whether the inputs that do not move are where they were."""
        return _places(inputs[self._moving :]) == self._places

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        torch._foreach_copy_(self._inputs[: self._moving], inputs[: self._moving])
        self._replay()
        return [output.clone() for output in self._outputs]


def on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def record(function: Function, inputs: list[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
    """Records a function on these inputs, which are as before afterwards; returns its outputs and the replay."""
    kept = [tensor.clone() for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries set themselves up in the first calls, which cannot be recorded
        for _ in range(3):
            function(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(inputs)
    torch._foreach_copy_(inputs, kept)
    return outputs, graph.replay


def _places(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
