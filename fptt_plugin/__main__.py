"""``python -m fptt_plugin`` prints versions, devices, and what ``accelerate`` can do here: for bug reports.

It compiles a small network, which takes some seconds; ``--quick`` leaves that out.
"""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata

import torch
from torch import Tensor, nn

from . import FPTTTrainer, __version__
from .state import AttributeHandler, register_state_handler

LIBRARIES = {"snntorch": "snnTorch", "spikingjelly": "SpikingJelly"}
OPTIONAL = {"numpy": "NumPy", "tqdm": "tqdm", "tonic": "Tonic", "matplotlib": "Matplotlib"}


class Leaky(nn.Linear):
    """A leaky integrator that needs neither library."""

    mem: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        drive = super().forward(x)
        self.mem = drive if self.mem is None else 0.9 * self.mem + drive
        return self.mem


register_state_handler(Leaky, AttributeHandler(mem=None))


def versions() -> Iterator[str]:
    """Return a line for each package: its version, and for the two libraries whether the neurons load."""
    yield f"fptt_plugin {__version__}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    yield f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    for package, name in {**LIBRARIES, **OPTIONAL}.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield f"{name} is not installed"
            continue
        yield f"{name} {version}{_trouble(package) if package in LIBRARIES else ''}"


def _trouble(library: str) -> str:
    try:
        import_module(f"fptt_plugin.{library}")
    except Exception as error:  # a broken installation raises anything
        return f", but its neurons do not load: {error}"
    return ""


def devices() -> Iterator[str]:
    """Return a line for each device that a network can be trained on."""
    yield "cpu"
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}, {torch.cuda.get_device_name(index)}"
    if torch.backends.mps.is_available():
        yield "mps"
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        yield "xpu"


def acceleration(mode: str, device: str) -> str:
    """Train a small network with ``accelerate=mode``; return what was compiled, or why nothing was."""
    torch.manual_seed(0)
    net = nn.Sequential(Leaky(4, 8), nn.Tanh(), Leaky(8, 2)).to(device)
    x, y = torch.rand(4, 3, 4, device=device), torch.tensor([0, 1, 1], device=device)
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # explain() has the reasons
            trainer = FPTTTrainer(net, torch.optim.Adam(net.parameters()), nn.CrossEntropyLoss(), accelerate=mode)
            for _ in range(2):
                trainer.train_sequence(x, y)
    except Exception as error:  # whatever a compiler raises is the answer
        return f"accelerate={mode!r}: does not work: {type(error).__name__}: {str(error).splitlines()[0]}"
    (found,) = (line.strip() for line in trainer.explain().splitlines() if line.strip().startswith("accelerate="))
    return f"{found} (on {device}, ready in {time.perf_counter() - begun:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fptt_plugin", description="Print versions, devices, compilation.")
    parser.add_argument("--quick", action="store_true", help="compile nothing")
    quick = parser.parse_args().quick
    print("\n".join(versions()))
    found = [*devices()]
    print("devices:", "; ".join(found))
    if quick:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for mode in ("compile", "cudagraph"):
        print(acceleration(mode, device), flush=True)


if __name__ == "__main__":
    main()
