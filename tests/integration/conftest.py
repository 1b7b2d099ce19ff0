"""What tests of the examples share: their modules, and a run of a script as a user would start it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def examples_importable(monkeypatch):
    """The modules of the examples can be imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def run_example(tmp_path):
    """``run_example(script, *arguments)`` runs a script from another folder, without data; returns what it prints.

    With ``processes``, in as many as ``torchrun`` starts.
    """

    def run_example(script, *arguments, timeout=None, processes=None):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [sys.executable, *(torchrun if processes else []), EXAMPLES / script, *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FPTT_DATA": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_example
