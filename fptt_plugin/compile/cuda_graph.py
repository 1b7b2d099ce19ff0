"""A compiled graph's kernels, recorded once and replayed from fixed places in the GPU's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..state import random_state, set_random_state
from .dynamo import backend, first_line

Function = Callable[..., Any]


class Recorder:
    """Backend of ``torch.compile`` that records what another backend makes of each graph.

    The compiler's guards are checked before each replay, and what Python code does besides is done after it, as without
    a recording.

    Args:
        fixed: Returns the tensors that a graph may write into: they stay where they are from call to call.
        fuses: Have Inductor fuse the graph's kernels. Without it PyTorch's own are recorded: more of them, which a
            replay launches at once, and ready in a fraction of the time.

    Attributes:
        reason: Why a graph is not recorded but launches its kernels one by one; ``None`` if none was refused.
    """

    def __init__(self, fixed: Callable[[], list[Tensor]], *, fuses: bool = True) -> None:
        self._fixed, self._fuses = fixed, fuses
        self.reason: str | None = None

    def __call__(self, graph: Any, inputs: list[Any], *, options: dict[str, Any]) -> Function:
        if self._fuses:
            return _Recorded(backend("inductor")(graph, inputs, config_patches=options), self)
        # Not the graph itself: its backward pass would run in autograd's threads, which cannot be captured.
        return _Recorded(backend("aot_eager")(graph, inputs), self)

    def record(self, function: Function, inputs: list[Any]) -> _Recording | None:
        """Record a function; ``None``, with everything as before, where that cannot be."""
        try:
            if not all(isinstance(value, Tensor) and on_gpu(value) for value in inputs):
                raise ValueError("a CUDA graph needs every tensor on the GPU, and no numbers that change")
            if len({value.device for value in inputs}) > 1:
                raise ValueError("a CUDA graph needs all tensors on one GPU")
            return _Recording(function, inputs, {tensor.data_ptr() for tensor in self._fixed()})
        except Exception as error:
            self.reason = first_line(error)
            return None


class _Recorded:
    """Stands for a compiled function; recorded at the first call, and again if a tensor that it writes has moved."""

    most = 4  # recordings, after which the places move too often to be worth it

    def __init__(self, function: Function, recorder: Recorder) -> None:
        self._function = function
        self._recorder = recorder
        self._recording: _Recording | None = None
        self._left = self.most

    def __call__(self, *inputs: Any) -> Any:
        if self._recording is None or not self._recording.fits(inputs):
            self._recording = None
            if self._left:
                self._recording = self._recorder.record(self._function, list(inputs))
                self._left = self._left - 1 if self._recording else 0
        return self._function(*inputs) if self._recording is None else self._recording(inputs)


class _Recording:
    """Kernels recorded on fixed tensors and on copies of all others, which are filled before each replay.

    Raises:
        ValueError: If the function writes into a tensor that is not fixed.
    """

    def __init__(self, function: Function, inputs: list[Tensor], fixed: set[int]) -> None:
        self._moving = [i for i, tensor in enumerate(inputs) if tensor.data_ptr() not in fixed]
        self._places = list(inputs)
        for i in self._moving:
            self._places[i] = inputs[i].detach().clone().requires_grad_(inputs[i].requires_grad)
        kept, random = [tensor.detach().clone() for tensor in self._places], random_state()
        try:
            self._outputs, self._replay = record(function, self._places)
            if any(not torch.equal(self._places[i], kept[i]) for i in self._moving):
                raise ValueError("it writes into a tensor that is neither weight, buffer nor optimizer state")
        finally:
            with torch.no_grad():
                for place, value in zip(self._places, kept, strict=True):
                    place.copy_(value)
            set_random_state(random)

    def fits(self, inputs: tuple[Any, ...]) -> bool:
        """Whether the fixed tensors are where they were."""
        moving = set(self._moving)
        return all(
            i in moving or value.data_ptr() == place.data_ptr()
            for i, (value, place) in enumerate(zip(inputs, self._places, strict=True))
        )

    def __call__(self, inputs: tuple[Tensor, ...]) -> list[Any]:
        copy_([self._places[i] for i in self._moving], [inputs[i] for i in self._moving])
        self._replay()
        # The next replay overwrites them.
        outputs = [torch.empty_like(output) if isinstance(output, Tensor) else output for output in self._outputs]
        pairs = [pair for pair in zip(outputs, self._outputs, strict=True) if isinstance(pair[0], Tensor)]
        copy_([new for new, _ in pairs], [output for _, output in pairs])
        return outputs


@torch.no_grad()
def copy_(places: list[Tensor], values: list[Tensor]) -> None:
    """Copy values to places, with one kernel for each type of number."""
    for dtype in dict.fromkeys(place.dtype for place in places):
        mine = [i for i, place in enumerate(places) if place.dtype == dtype]
        torch._foreach_copy_([places[i] for i in mine], [values[i] for i in mine])


def on_gpu(tensor: Tensor) -> bool:
    """Whether kernels on a tensor can be recorded."""
    return tensor.is_cuda


def record(function: Function, inputs: list[Tensor]) -> tuple[list[Any], Callable[[], None]]:
    """Record a function on these inputs, into which it may write; return its outputs and the replay."""
    with torch.cuda.device(inputs[0].device):  # a stream of another GPU would record nothing
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up in the first calls, which cannot be recorded
            for _ in range(3):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outputs = list(function(*inputs))
        except Exception:
            # A capture that fails leaves the random numbers in wait: "Offset increment outside graph capture".
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise
    return outputs, graph.replay
