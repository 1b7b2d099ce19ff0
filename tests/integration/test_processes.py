"""Processes of ``DistributedDataParallel`` with different data stay in step, or all raise at that step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import identical

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out, worker = tmp_path_factory.mktemp("processes") / "out", Path(__file__).with_name("desync_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", worker, out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [torch.load(f"{out}.{rank}") for rank in (0, 1)]


@pytest.mark.parametrize(
    ("case", "lacking", "steps", "updates"),
    [("target", 0, 6, 6), ("mask", 1, 7, 7), ("empty", 1, 0, 0)],
)
def test_a_loss_in_one_process_alone_is_an_error_in_both_at_that_step(found, case, lacking, steps, updates):
    for rank, results in enumerate(found):
        result = results[case]
        assert result["error"].startswith("BatchError")
        assert f"this process has {'no' if rank == lacking else 'a'} loss" in result["error"]
        assert (result["steps"], result["updates"]) == (steps, updates)
    assert identical(found[0][case]["w"], found[1][case]["w"])


@pytest.mark.parametrize(
    ("case", "steps", "updates", "skipped"),
    [("window", 12, 4, 0), ("both", 12, 10, 0), ("skip", 12, 10, 2), ("whole", (18, 21), 3, 0)],
)
def test_what_all_can_do_keeps_them_in_step(found, case, steps, updates, skipped):
    for rank, results in enumerate(found):
        result = results[case]
        assert result["error"] is None
        expected = steps if isinstance(steps, int) else steps[rank]
        assert (result["steps"], result["updates"], result["skipped"]) == (expected, updates, skipped)
    assert identical(found[0][case]["w"], found[1][case]["w"])


def test_sequences_of_other_lengths_are_an_error_where_the_first_ends(found):
    for results in found:
        assert results["length"]["error"].startswith("CallOrderError")
        assert "the same length" in results["length"]["error"]
        assert results["length"]["updates"] == 6 + 5
    assert identical(found[0]["length"]["w"], found[1]["length"]["w"])


def test_an_update_that_one_process_cannot_make_no_process_makes(found):
    for results in found:
        assert results["overflow"]["error"].startswith("NotFiniteError")
        assert results["overflow"]["updates"] == 0
        assert results["overflow, skip"]["error"] is None
        assert results["overflow, skip"]["updates"] == 0
        assert results["overflow, skip"]["skipped"] == 5
    for case in ("overflow", "overflow, skip"):
        assert identical(found[0][case]["w"], found[1][case]["w"])


def test_the_gradient_variant_is_refused(found):
    assert all("variant='gradient'" in results["variant"] for results in found)
