"""``python -m fptt_plugin`` says what is installed and what can be compiled here."""

import subprocess
import sys
from importlib import metadata

import pytest
import torch

import fptt_plugin
from fptt_plugin import __main__ as report


def test_versions_of_everything_that_is_installed(monkeypatch):
    lines = list(report.versions())
    assert lines[0] == f"fptt_plugin {fptt_plugin.__version__}"
    assert f"PyTorch {torch.__version__}" in lines[2]
    for package, name in report.LIBRARIES.items():
        assert f"{name} {metadata.version(package)}" in lines

    def version(package, installed=metadata.version):
        if package in ("snntorch", "tonic"):
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    lines = list(report.versions())
    assert "snnTorch is not installed" in lines
    assert "Tonic is not installed" in lines
    assert f"SpikingJelly {metadata.version('spikingjelly')}" in lines


def test_a_library_whose_neurons_do_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "fptt_plugin.snntorch", None)
    line = next(line for line in report.versions() if line.startswith("snnTorch"))
    assert f"{metadata.version('snntorch')}, but its neurons do not load: " in line


@pytest.mark.usefixtures("traced")
def test_what_is_compiled():
    found = report.acceleration("compile", "cpu")
    assert found.startswith("accelerate='compile': compiled: the ")  # whole window; with PyTorch 2.6 the step alone
    assert "(on cpu, ready in" in found
    recorded = report.acceleration("cudagraph", "cpu")
    assert "kernels are launched one by one, because a CUDA graph takes a network on a GPU" in recorded


def test_no_compiler(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    assert "no compiler" in report.acceleration("compile", "cpu")


def test_the_command():
    command = [sys.executable, "-m", "fptt_plugin", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines, here = done.stdout.splitlines(), list(report.versions())
    # This process has one thread, another may have more.
    assert [line.partition(", ")[0] for line in lines[:-1]] == [
        line.partition(", ")[0] for line in here[: len(lines) - 1]
    ]
    assert done.stdout.splitlines()[-1].startswith("devices: cpu")
    assert "accelerate" not in done.stdout
