"""Every test starts from the same random state, on one thread: sums do not depend on the machine's cores."""

from importlib import metadata

import pytest
import torch

from fptt_plugin.compile import accelerator, cuda_graph
from fptt_plugin.compile.window import CompiledWindow

torch.set_num_threads(1)


def pytest_collectstart(collector):
    torch.manual_seed(0)  # for the data that a file draws when it is imported


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---------------------------------------------------------------------- compiled training


@pytest.fixture
def traced(monkeypatch):
    """Graphs are run by PyTorch as they were traced: the same operations, without the wait for a compiler."""
    compiler = torch.compile

    def traced(function, *, fullgraph, backend, options):
        backend, options = ("eager", None) if backend == "inductor" else (backend, options)
        return compiler(function, fullgraph=fullgraph, backend=backend, options=options)

    monkeypatch.setattr(torch, "compile", traced)


@pytest.fixture
def whole_windows(monkeypatch):
    """Windows of any length become one graph."""
    monkeypatch.setattr(accelerator, "LONGEST", 100)
    monkeypatch.setattr(accelerator, "LONGEST_OF_CONVOLUTIONS", 100)


@pytest.fixture
def recordings(monkeypatch, traced):
    """A recorder that replays by calling the function on the same places; the replays so far.

    It does what a GPU does, and is as strict: warm-ups write to the places, capturing computes nothing, a replay reads
    and writes what was there at capture alone, and overwrites the outputs of the last one. Three windows of one step
    share a replay.
    """
    monkeypatch.setattr(accelerator, "LONGEST", 3)
    replays = []

    def record(function, inputs):
        inputs = tuple(inputs)  # whoever puts another tensor into the list later does not reach the graph
        for _ in range(3):
            outputs = list(function(*inputs))
        outputs = [
            torch.full_like(output, 77, requires_grad=False) if isinstance(output, torch.Tensor) else output
            for output in outputs
        ]

        def replay():
            replays.append(1)
            for output, value in zip(outputs, function(*inputs), strict=True):
                if isinstance(output, torch.Tensor):
                    output.copy_(value.detach())

        return outputs, replay

    compiler = torch._dynamo.lookup_backend("eager")
    monkeypatch.setattr(
        torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs, config_patches=None: compiler(graph, inputs)
    )
    monkeypatch.setattr(cuda_graph, "record", record)
    monkeypatch.setattr(cuda_graph, "on_gpu", lambda tensor: True)
    return replays


@pytest.fixture
def graph_steps(monkeypatch):
    """Steps of each window that was trained as one graph."""
    found, run = [], CompiledWindow.run

    def noting(self, window):
        outcome = run(self, window)
        if outcome is not None:
            found.extend([outcome.steps // len(outcome.losses)] * len(outcome.losses))
        return outcome

    monkeypatch.setattr(CompiledWindow, "run", noting)
    return found


# ---------------------------------------------------------------------- versions of the libraries


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Neurons and layers that an older snnTorch or SpikingJelly does not have yet are not tested there."""
    try:
        return (yield)
    except AttributeError as error:
        library = getattr(error.obj, "__name__", "").partition(".")[0]
        newest = {"snntorch": "1", "spikingjelly": "2"}
        if library not in newest or metadata.version(library).split(".")[0] >= newest[library]:
            raise
        pytest.skip(f"{library} {metadata.version(library)} has no {error.name}")
