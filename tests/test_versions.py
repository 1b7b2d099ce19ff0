"""The table of versions is what `.ci/matrix` found, and the declared ranges begin where it does."""

import importlib.util
import json
import re
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def matrix():
    loader = SourceFileLoader("matrix", str(ROOT / ".ci" / "matrix"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("matrix", loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(matrix):
    return json.loads(matrix.RUNS.read_text())


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)]


def test_the_table_is_that_of_the_runs(matrix, runs):
    assert matrix.TABLE.read_text() == matrix.table(runs)
    assert "versions/table.md" in (ROOT / "docs" / "start.md").read_text()


def test_what_ran_passes(runs):
    ran = [run for run in runs.values() if "passed" in run]
    assert ran
    for run in ran:
        assert run["passed"] > 500
        assert "failed" not in run
        assert "error" not in run


@pytest.mark.parametrize(("package", "column"), [("torch", 1), ("snntorch", 2), ("spikingjelly", 3)])
def test_the_declared_range_begins_with_the_oldest_that_was_tried(matrix, package, column):
    floor = re.search(rf'"{package}>=([\d.]+)', PYPROJECT).group(1)
    oldest = min((row[column] for row in matrix.ROWS), key=numbers)
    assert numbers(oldest)[: len(numbers(floor))] == numbers(floor)


def test_every_declared_python_has_a_row(matrix):
    declared = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)
    assert sorted({row.python for row in matrix.ROWS}) == sorted(declared)


def test_the_row_of_the_constraints(matrix):
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert matrix.Row("3.11", pins["torch"], pins["snntorch"], pins["spikingjelly"]) in matrix.ROWS


def test_rows_that_were_not_run_are_in_the_table_as_such(matrix):
    found = matrix.table({}).splitlines()
    assert len(found) == 2 + len(matrix.ROWS)
    assert all("| not run |" in line for line in found[2:])
